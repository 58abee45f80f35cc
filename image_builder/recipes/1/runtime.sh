# Install the Debian packages that a slim image needs, and what they need, in the versions of the full image alone.
. /run/cic/lib.sh
versions=/run/cic/slim.versions
work=$(mktemp -d)

installed() {
    dpkg-query -W -f='${Package}:${Architecture} ${Version} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort
}

installed >"$work/before"
sort /run/cic/slim.packages | comm -23 - "$work/before" | sed 's/ /=/' >"$work/missing"
if [ -s "$work/missing" ]; then
    sed 's/^\([^:]*\):[^ ]* \(.*\)/Package: \1\nPin: version \2\nPin-Priority: 1001\n/' "$versions" >"$work/pins"
    sh /run/cic/apt.sh "$work/missing" "$work/pins"
fi
installed >"$work/after"
others=$(comm -13 "$work/before" "$work/after" | awk '
    NR == FNR { full[$1] = $2; next }
    $1 in full && full[$1] != $2 { printf "%s%s is %s, not %s", sep, $1, $2, full[$1]; sep = ", " }' "$versions" -)
[ -z "$others" ] || fail "the packages are not to be had in the full image's versions: $others"
rm -r "$work"
