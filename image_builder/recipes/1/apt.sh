# apt.sh [FILE]: install the Debian packages that the description names, or FILE, and leave no lists and archives behind.
. /run/cic/lib.sh
command -v apt-get >/dev/null || fail "the base image has no apt-get, and the description asks for Debian packages"
export DEBIAN_FRONTEND=noninteractive
set -f
apt-get update -o APT::Update::Error-Mode=any
xargs apt-get install -y --no-install-recommends -- <"${1:-/run/cic/packages.apt}"
drop_apt_caches
