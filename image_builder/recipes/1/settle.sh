# Settle what was copied into a slim image: the linker's cache, and which program is behind each of Debian's alternatives.
. /run/cic/lib.sh
/sbin/ldconfig
while read -r name mode target; do
    if [ ! -e "$target" ] || [ ! -e "/var/lib/dpkg/alternatives/$name" ]; then continue; fi
    if [ "$mode" = manual ]; then update-alternatives --set "$name" "$target"; else update-alternatives --auto "$name"; fi || :
    chosen=$(readlink "/etc/alternatives/$name")
    [ "$chosen" = "$target" ] || fail "the slim image would have $chosen as $name, and the full image has $target"
done </run/cic/facts/alternatives
rm -f /var/cache/ldconfig/aux-cache /var/log/alternatives.log # no two builds have the same
