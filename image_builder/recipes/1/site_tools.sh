# site_tools.sh [compilers] [catalogue]: find the compilers that apt brought; use the site's packages before Spack's own.
. /run/cic/lib.sh
find_spack

# Whether Spack looks for a package in the catalogue before it looks among its own.
precedes() { spack repo list | awk '/\/software-catalog/ { found = 1; exit } /builtin/ { exit } END { exit !found }'; }

# From Spack 1.1 on, etc/spack/repos.yaml goes before the site's and the user's configuration, and often names Spack's own
# packages: in the site's configuration they follow the catalogue, whichever configuration names that.
use_catalogue() {
    etc=$(dirname "$(dirname "$(readlink -f "$(command -v spack)")")")/etc/spack
    [ -d "$etc/defaults" ] || etc=$(spack location -r)/etc/spack
    if [ -e "$etc/include.yaml" ] && [ -e "$etc/repos.yaml" ] && [ ! -e "$etc/site/repos.yaml" ]; then
        mkdir -p "$etc/site"
        mv "$etc/repos.yaml" "$etc/site/repos.yaml"
    fi
    own=/root/.spack/repos.yaml
    grep -qsF /software-catalog "$own" || spack repo add --scope site /software-catalog
    if [ -e "$own" ] || { [ -e "$etc/include.yaml" ] && [ -e "$etc/repos.yaml" ]; }; then # else nothing goes before it
        precedes || fail "Spack's configuration names its own packages before /software-catalog: correct repos.yaml of" \
            "the base image or of the site's Spack configuration"
    fi
}

for what in "$@"; do
    case $what in
        compilers) spack compiler find --scope site ;;
        catalogue) use_catalogue ;;
    esac
done
