# exchange.sh look|bring|fetch: tell which of the wanted packages the cache mount holds; copy them from the site's folder
# into it, or out of it.
. /run/cic/lib.sh
case $1 in
    look) python /run/cic/packages.py list /run/cic/packages/shared /run/cic/wanted >/cic-held ;;
    bring) python /run/cic/packages.py copy /run/cic/brought /run/cic/packages /run/cic/wanted ;;
    fetch)
        mkdir -p /run/cic/packages/shared
        python /run/cic/packages.py copy /run/cic/packages/shared /cic-packages /run/cic/wanted
        ;;
esac
