# exchange.sh bring|fetch: copy the wanted packages from the site's folder into the cache mount, or out of it.
. /run/cic/lib.sh
case $1 in
    bring) python /run/cic/packages.py copy /run/cic/brought /run/cic/packages /run/cic/wanted ;;
    fetch)
        mkdir -p /run/cic/packages/shared
        python /run/cic/packages.py copy /run/cic/packages/shared /cic-packages /run/cic/wanted
        ;;
esac
