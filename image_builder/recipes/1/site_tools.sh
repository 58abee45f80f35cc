# site_tools.sh [compilers] [catalogue]: find the compilers that apt brought; use the site's packages, unless its own
# configuration says so already.
. /run/cic/lib.sh
find_spack
for what in "$@"; do
    case $what in
        compilers) spack compiler find --scope site ;;
        catalogue) grep -qsF /software-catalog /root/.spack/repos.yaml || spack repo add --scope site /software-catalog ;;
    esac
done
