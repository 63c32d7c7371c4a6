#!/bin/sh
# Certificates to try TLS with, and the server's configuration made of them:
#
#     serving/tls/make_certificates.sh DIRECTORY [SERVER_NAME...]
#
# An authority, a server's certificate for localhost and the names given, a client's, all for 30 days, and
# ssl.config, an SSLConfig (tensorflow_serving/config/ssl_config.proto) for --ssl_config_file. In production
# the certificates are your own authority's; ssl.config is made of them by the last lines here. It holds the
# server's private key.
set -eu
umask 077
directory=$1
shift
names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
    names="$names,DNS:$name"
done
mkdir -p "$directory"
cd "$directory"

key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 $key -keyout authority.key -out authority.crt -days 30 -subj "/CN=try-out authority" \
    -addext "keyUsage=critical,keyCertSign" 2>errors || { cat errors >&2; exit 1; }

# certificate NAME USAGE SUBJECT_ALTERNATIVE_NAMES
certificate() {
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\nbasicConstraints=critical,CA:FALSE\n' "$3" "$2" >extensions
    {
        openssl req $key -keyout "$1.key" -out request -subj "/CN=$1"
        openssl x509 -req -in request -CA authority.crt -CAkey authority.key -CAcreateserial -days 30 \
            -extfile extensions -out "$1.crt"
    } >errors 2>&1 || { cat errors >&2; exit 1; }
}
certificate server serverAuth "$names"
certificate client clientAuth "DNS:client"
rm -f extensions request errors authority.srl

# field NAME FILE: the file's lines as one string of a text proto
field() {
    echo "$1:"
    sed 's/.*/  "&\\n"/' "$2"
}
{
    field server_key server.key
    field server_cert server.crt
    echo "# Only callers with a certificate of this authority get through."
    field custom_ca authority.crt
    echo "client_verify: true"
} >ssl.config
