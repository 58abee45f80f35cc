# Give a slim image's base the full image's users and groups, then the Debian packages that are needed, and what they
# need, in the versions of the full image alone.
. /run/cic/lib.sh
full=/run/cic/facts
work=$(mktemp -d)

for file in passwd group shadow gshadow; do
    [ ! -e "$full/$file" ] || cat "$full/$file" >"/etc/$file"
done

installed() {
    dpkg-query -W -f='${Package}:${Architecture} ${Version} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort
}

installed >"$work/before"
sort "$full/packages" | comm -23 - "$work/before" | sed 's/ /=/' >"$work/missing"
if [ -s "$work/missing" ]; then
    sed 's/^\([^:]*\):[^ ]* \(.*\)/Package: \1\nPin: version \2\nPin-Priority: 1001\n/' "$full/versions" >"$work/pins"
    sh /run/cic/apt.sh "$work/missing" "$work/pins"
fi
installed >"$work/after"
others=$(comm -13 "$work/before" "$work/after" | awk '
    NR == FNR { full[$1] = $2; next }
    $1 in full && full[$1] != $2 { printf "%s%s is %s, not %s", sep, $1, $2, full[$1]; sep = ", " }' "$full/versions" -)
[ -z "$others" ] || fail "the packages are not to be had in the full image's versions: $others"
rm -r "$work"
