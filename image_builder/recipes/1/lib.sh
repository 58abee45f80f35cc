# What every script of the recipe begins with: stop at the first failing command, and trust the site's CA.
# The CA is mounted: it lies in no layer, and the variables that name it live as long as the step.
set -eu

# What writes a time into a file writes this one, which is that of all files of a build (1980-01-02).
export SOURCE_DATE_EPOCH=315619200

fail() {
    echo "cic: error: $*" >&2
    exit 1
}

# configure_apt TEXT: apt's configuration for as long as the step lives.
configure_apt() {
    APT_CONFIG=$(mktemp)
    export APT_CONFIG
    chmod 0644 "$APT_CONFIG"
    trap 'rm -f "$APT_CONFIG"' EXIT
    echo "$1" >"$APT_CONFIG"
}

# What a bundle holds stands for every server. Its repositories were checked with it: their files have no signatures.
bundle=/run/cic/bundle ca=/run/cic/ca.pem
if [ -d "$bundle" ]; then
    list=$bundle/sources.list
    [ -e "$list" ] || list=/dev/null
    configure_apt "Dir::Etc::SourceList \"$list\"; Dir::Etc::SourceParts \"/dev/null\"; Acquire::Languages \"none\";"
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$bundle/wheels"
elif [ -s "$ca" ]; then
    export SSL_CERT_FILE="$ca" REQUESTS_CA_BUNDLE="$ca" CURL_CA_BUNDLE="$ca" GIT_SSL_CAINFO="$ca" PIP_CERT="$ca" \
        CARGO_HTTP_CAINFO="$ca" NODE_EXTRA_CA_CERTS="$ca"
    configure_apt "Acquire::https::CaInfo \"$ca\";"
fi

# site NAME: what the site lends to the step under that name, or nothing.
site() {
    [ ! -r /run/cic/site ] || sed -n "s/^$1=//p" /run/cic/site
}

# A proxy whose address holds a password comes this way, and to no step that runs a description's code.
for name in http_proxy https_proxy no_proxy; do
    value=$(site "$name")
    if [ -n "$value" ]; then export "$name=$value" "$(echo "$name" | tr "[:lower:]" "[:upper:]")=$value"; fi
done

# What apt keeps of the archive: its lists, what it reads of them, and the packages' files.
drop_apt_caches() {
    apt-get clean
    rm -rf /var/lib/apt/lists /var/cache/apt/pkgcache.bin /var/cache/apt/srcpkgcache.bin
    mkdir -p /var/lib/apt/lists
    # Logs and earlier states, and a cache of inode numbers: no two builds have the same.
    rm -f /var/cache/ldconfig/aux-cache /var/log/dpkg.log /var/log/alternatives.log
    for folder in /var/log/apt /var/lib/dpkg /var/cache/debconf; do
        [ ! -d "$folder" ] || find "$folder" -maxdepth 1 -type f \( -path "/var/log/*" -o -name "*-old" \) -delete
    done
}

# Spack is on the PATH, or where base images have it.
find_spack() {
    for folder in "${SPACK_ROOT:-}" /opt/spack /spack; do
        if command -v spack >/dev/null; then return; fi
        if [ -x "$folder/bin/spack" ]; then PATH=$folder/bin:$PATH; fi
    done
    command -v spack >/dev/null || fail "the base image has no spack, neither on the PATH nor in /opt/spack or /spack"
}

# python FILE [ARGUMENT]...: run one of the recipe's Python files with what Spack itself runs on.
python() {
    for interpreter in "${SPACK_PYTHON:-}" python3 python; do
        if [ -n "$interpreter" ] && command -v "$interpreter" >/dev/null; then
            "$interpreter" "$@"
            return
        fi
    done
    fail "the base image has no python3"
}

# The environment's own Python, with what it finds in the view; pip asks nothing, and leaves nothing of its own.
prepare_pip() {
    [ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
    export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        PIP_NO_INPUT=1
    index=$(site pip_index_url)
    [ -z "$index" ] || export PIP_INDEX_URL="$index"
}

has_pip() { python3 -m pip --version 2>/dev/null || python3 -m ensurepip 2>/dev/null; }

# As python3 -m pip, but a random.py of the current folder is no module of pip's own Python.
run_pip() {
    python3 -c 'import runpy, sys
sys.path[:] = [path for path in sys.path if path]
runpy.run_module("pip", run_name="__main__", alter_sys=True)' "$@"
}

# take_environment FILE...: put files of the environment where Spack finds it. A COPY before the step would be as good,
# but BuildKit 0.13 reads each new file system that a step with secrets begins with (see recipe/dockerfile.py).
take_environment() {
    mkdir -p /opt/cic
    for file in "$@"; do
        cp "/run/cic/$file" "/opt/cic/$file"
        chmod 0644 "/opt/cic/$file"
    done
}
