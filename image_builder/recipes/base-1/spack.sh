# Spack's solver comes from Python's registry: Spack would fetch one of its own else. Then what is installed already.
. /run/cic/lib.sh
index=$(site pip_index_url)
[ -z "$index" ] || export PIP_INDEX_URL="$index"
if [ -d /opt/spack-packages/repos ]; then
    site=/opt/spack/etc/spack # from Spack 1.1 on, what is in there goes before everybody's configuration
    [ ! -e "$site/include.yaml" ] || site=$site/site
    mkdir -p "$site"
    printf 'repos:\n  builtin: /opt/spack-packages/repos/spack_repo/builtin\n' >"$site/repos.yaml"
fi
python3 -m pip install --no-cache-dir --break-system-packages --root-user-action=ignore 'clingo>=5.6,<6'
spack compiler find --scope site
spack external find --scope site openmpi
# A spec that may need a great many packages leaves indexes of all of them, and Python's compiled files: builds begin with
# these.
spack spec --fresh fftw >/dev/null
rm -rf /root/.spack/cache/concretization /tmp/*
