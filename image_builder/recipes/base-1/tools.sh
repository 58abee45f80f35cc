# What Spack and the packages that it builds expect of an operating system.
. /run/cic/lib.sh
command -v apt-get >/dev/null || fail "the operating system's image has no apt-get: os_image must be a Debian or Ubuntu"
export DEBIAN_FRONTEND=noninteractive
apt-get update -o APT::Update::Error-Mode=any
apt-get install -y --no-install-recommends autoconf automake bison bzip2 ca-certificates cmake curl file flex g++ gawk \
    gcc gettext gfortran git gnupg libopenmpi-dev libtool m4 make openmpi-bin patch perl pkg-config python3 python3-pip \
    python3-venv tar unzip xz-utils zlib1g-dev zstd
# Where the archive has it, Spack's solver runs with it (concretize.sh).
if apt-cache show libmimalloc-dev >/dev/null 2>&1; then apt-get install -y --no-install-recommends libmimalloc-dev; fi
rm -rf /var/lib/apt/lists
mkdir -p /var/lib/apt/lists
