# apt.sh [FILE PINS]: install the Debian packages that the description names, and leave no lists and archives behind.
# Or those of FILE, in the versions that PINS, a file of apt's preferences, tells, be they older than what is there.
# Downloads are kept in a cache mount. apt 2.6 takes a file that is there already by its name and size, so each that it
# would take is compared with the sum in the signed lists before. With CIC_DEBS, they are put into that folder only.
. /run/cic/lib.sh
command -v apt-get >/dev/null || fail "the base image has no apt-get, and the description asks for Debian packages"
export DEBIAN_FRONTEND=noninteractive
names=${1:-/run/cic/packages.apt} pins=${2:-}

mirror=$(site apt_mirror | sed 's/[&#]/\\&/g')
if [ -n "$mirror" ]; then
    sources=/run/cic/private/sources.list.d
    mkdir "$sources"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || sed -E "s#https?://[^ ]*/(debian|ubuntu)/?( |\$)#$mirror\\2#" "$file" >"$sources/${file##*/}"
    done
fi
set -f
set -- ${mirror:+-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$sources"} \
    ${pins:+-o "Dir::Etc::Preferences=$pins" -o APT::Get::allow-downgrades=true}
apt-get update "$@" -o APT::Update::Error-Mode=any

# A build that is made again gets the versions of before, or says which of them are gone.
if [ -s /run/cic/versions.apt ]; then
    cut -d " " -f 1 /run/cic/versions.apt | xargs apt-cache "$@" madison |
        sed -n 's/^ *\([^ ]*\) *| *\([^ ]*\) *|.*/\1 \2/p' | LC_ALL=C sort -u >/run/cic/private/there
    gone=$(LC_ALL=C sort -u /run/cic/versions.apt | LC_ALL=C comm -23 - /run/cic/private/there | tr "\n" ";")
    [ -z "$gone" ] || fail "the archive does not have any more: $gone"
fi

install_in() {
    archives=$1 && shift
    xargs apt-get install "$@" -o Dir::Cache::Archives="$archives" -y --no-install-recommends -- <"$names"
}

nothing=$(mktemp -d)
mkdir "$nothing/partial"
install_in "$nothing" "$@" -qq -o Acquire::ForceHash=SHA256 --print-uris >"$nothing/uris"
kept_in=/run/cic/archives
[ -d "$kept_in" ] || kept_in=$(mktemp -d) # a step that shares none
rm -rf "$kept_in/partial"
sed -n "s/^'[^']*' \([^ ]*\) [0-9]* \(.*\)\$/\2 \1/p" "$nothing/uris" | LC_ALL=C sort -k 2 >"$nothing/sums"
while read -r sum file; do
    kept=$kept_in/$file
    if [ -e "$kept" ] && ! echo "${sum#SHA256:}  $kept" | sha256sum --check --status -; then rm -f "$kept"; fi
done <"$nothing/sums"
if [ -n "${CIC_DEBS:-}" ]; then # for a bundle: the files alone, and nothing is installed
    install_in "$kept_in" "$@" --download-only
    cut -d " " -f 2- "$nothing/sums" | while read -r file; do cp "$kept_in/$file" "$CIC_DEBS"; done
else
    install_in "$kept_in" "$@"
    mkdir -p /opt/cic
    cp "$nothing/sums" /opt/cic/debs # which files of the archive, for whoever builds the same again
fi
[ "$kept_in" = /run/cic/archives ] || rm -r "$kept_in"
rm -r "$nothing"
drop_apt_caches
