# gather_debs.sh NAME SCRIPT [ARGUMENT]...: what a step with this script would take of apt's archives becomes a repository
# of its own, /cic-bundle/debs/NAME. apt has checked the files; the index is made of what they say of themselves.
. /run/cic/lib.sh
folder=/cic-bundle/debs/$1 script=$2
shift 2
mkdir -p "$folder"
CIC_DEBS=$folder sh "/run/cic/$script" "$@"
cd "$folder"
for file in *.deb; do
    [ -e "$file" ] || continue
    dpkg-deb --field "$file"
    echo "Filename: ./$file"
    echo "Size: $(stat -c %s "$file")"
    echo "SHA256: $(sha256sum "$file" | cut -d ' ' -f 1)"
    echo
done >Packages
