# shellcheck shell=bash
# Shared by the set-up scripts; sourced, never run.
# Needs bash with `set -euo pipefail`. It says things, installs Debian packages and reads the machine's own apt sources.

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH DEBIAN_FRONTEND=noninteractive

say() { printf '== %s\n' "$*" >&2; }
warn() { printf '!! %s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
has_systemd() { [[ -d /run/systemd/system ]]; }
need_root() { [[ $(id -u) -eq 0 ]] || die "${0##*/} installs packages: run it as root (sudo make ...)"; }
need_debian() { have apt-get || die "this machine has no apt-get; install by hand: $*"; }

# Run a command quietly; show the end of its output only when it fails.
quietly() {
    local log
    log=$(mktemp)
    if "$@" >"$log" 2>&1 </dev/null; then
        rm -f "$log"
        return 0
    fi
    tail -n 40 "$log" >&2
    rm -f "$log"
    warn "failed: $*"
    return 1
}

# die_of COMMAND... -- MESSAGE: run the command once more to show why it fails, and end with the message.
die_of() {
    local -a command=()
    while [[ $1 != -- ]]; do command+=("$1") && shift; done
    "${command[@]}" 2>&1 </dev/null | tail -n 40 >&2 || true
    die "${*:2}"
}

os_codename() { (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}"); }
is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
has_candidate() { [[ $(apt-cache policy "$1" 2>/dev/null) == *'Candidate: '[^\(]* ]]; }

# Services must not start because their package was installed: each script starts what it needs, where it needs it.
POLICY_FILE=/usr/sbin/policy-rc.d
POLICY_MARK='# written by the set-up scripts of the container image service'
hold_services() {
    [[ ! -e $POLICY_FILE ]] || grep -qF "$POLICY_MARK" "$POLICY_FILE" || return 0
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY_FILE"
    chmod 755 "$POLICY_FILE"
}
release_services() {
    if grep -qsF "$POLICY_MARK" "$POLICY_FILE"; then rm -f "$POLICY_FILE"; fi
}

apt_update() {
    say "apt-get update"
    quietly apt-get -o DPkg::Lock::Timeout=300 update
}

# apt_run OPTIONS... PACKAGES...: a plain install, nothing started.
apt_run() {
    local status=0
    hold_services
    quietly apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold \
        install -y --no-install-recommends "$@" || status=$?
    release_services
    return "$status"
}

# apt_install PACKAGES...: installs those that are missing.
apt_install() {
    local package
    local -a missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    need_debian "${missing[*]}"
    for package in "${missing[@]}"; do
        has_candidate "$package" || { apt_update && break; }
    done
    say "installing ${missing[*]}"
    apt_run "${missing[@]}" || { apt_update && apt_run "${missing[@]}"; }
}

# The machine's own Debian sources, one "URI suite" per line: no third party's, no cdrom, a mirror list resolved.
debian_sources() {
    local codename origin uri release component
    codename=$(os_codename)
    known_targets | while IFS='|' read -r origin uri release component; do
        [[ $origin == Debian && $component == main ]] || continue
        case $release in "$codename" | "$codename-updates" | "$codename-security") ;; *) continue ;; esac
        case $uri in mirror+file:*) uri=$(first_mirror "${uri#mirror+file:}") ;; esac
        case $uri in http://* | https://*) printf '%s %s\n' "${uri%/}" "$release" ;; esac
    done | sort -u
}
# Who an archive is from is known only once its lists are here.
known_targets() {
    [[ $(list_targets) == *'Debian|'* ]] || apt_update
    list_targets
}
# shellcheck disable=SC2016 # these are apt's own fields
list_targets() { apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Identifier: Packages'; }
first_mirror() {
    local path=${1%/}
    awk '!/^#/ && NF { print $1; exit }' "${path#//}"
}

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
source_line() { printf 'deb [signed-by=%s] %s %s main\n' "$DEBIAN_KEYRING" "$1" "$2"; }

# suite_options SUITE [PACKAGE...]: sets SUITE_APT, the apt options that see the machine's own suites and SUITE beside
# them, of which only PACKAGEs can be installed. Its lists and pins are in a folder of its own: a later `apt upgrade`
# knows nothing of SUITE.
suite_options() {
    local suite=$1 folder uri release main_uri=''
    shift
    folder=${CIC_SETUP_CACHE:-/var/cache/cic-setup}/apt-$suite
    mkdir -p "$folder/lists/partial"
    : >"$folder/sources.list"
    while read -r uri release; do
        source_line "$uri" "$release" >>"$folder/sources.list"
        if [[ $release == "$(os_codename)" ]]; then main_uri=$uri; fi
    done < <(debian_sources)
    [[ -n $main_uri ]] || die "no Debian source for $(os_codename) in /etc/apt: cannot tell where $suite is"
    source_line "$main_uri" "$suite" >>"$folder/sources.list"
    {
        printf 'Package: *\nPin: release n=%s\nPin-Priority: -1\n' "$suite"
        [[ $# -eq 0 ]] || printf '\nPackage: %s\nPin: release n=%s\nPin-Priority: 990\n' "$*" "$suite"
    } >"$folder/preferences"
    SUITE_APT=(
        -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::Etc::preferences=$folder/preferences" -o Dir::Etc::preferencesparts=/dev/null
        -o "Dir::State::lists=$folder/lists" -o Acquire::Check-Valid-Until=false -o APT::Get::List-Cleanup=0
        -o DPkg::Lock::Timeout=300
    )
    quietly apt-get "${SUITE_APT[@]}" update
}
