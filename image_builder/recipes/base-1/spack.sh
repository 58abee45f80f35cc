# Spack's solver comes from Python's registry: Spack would fetch one of its own else. Then what is installed already.
. /run/cic/lib.sh
index=$(site pip_index_url)
[ -z "$index" ] || export PIP_INDEX_URL="$index"
if [ -d /opt/spack-packages/repos ]; then
    printf 'repos:\n  builtin: /opt/spack-packages/repos/spack_repo/builtin\n' >/opt/spack/etc/spack/repos.yaml
fi
python3 -m pip install --no-cache-dir --break-system-packages --root-user-action=ignore 'clingo>=5.6,<6'
spack compiler find --scope site
spack external find --scope site openmpi
rm -rf /root/.spack /tmp/*
