# Install the Debian packages that a slim image needs and its base does not have in that version, or a later one.
. /run/cic/lib.sh
missing=$(mktemp)
while read -r package version; do
    case $(dpkg-query -W -f='${db:Status-Status} ${Version}' "${package%%[=:]*}" 2>/dev/null || :) in
        "installed "*) dpkg --compare-versions \
            "$(dpkg-query -W -f='${Version}' "${package%%[=:]*}")" ge "$version" || echo "$package" ;;
        *) echo "$package" ;;
    esac
done </run/cic/slim.packages >"$missing"
[ ! -s "$missing" ] || sh /run/cic/apt.sh "$missing"
rm -f "$missing"
