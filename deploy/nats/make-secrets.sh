#!/bin/sh
# Makes what docker-compose.secured.yml needs: an authority, the broker's certificate by it, and a password for each role.
#
#   deploy/nats/make-secrets.sh [DIRECTORY] [NAME,...]
#
# DIRECTORY is `secrets` by default. Where it is there already, only the broker's certificate is made anew, by its
# authority.key. NAMEs are further host names and addresses by which clients reach the broker; nats, localhost and
# 127.0.0.1 are always among them.
set -eu

home=${1:-secrets}
names=DNS:nats,DNS:localhost,IP:127.0.0.1
for name in $(printf '%s' "${2:-}" | tr , ' '); do
    case $name in
        *[!0-9.]*) names=$names,DNS:$name ;;
        *) names=$names,IP:$name ;;
    esac
done

umask 077
if [ -d "$home" ]; then
    cd "$home"
    # A password that is made anew locks out whoever has the old one, and so does an authority.
    [ -f authority.key ] || { echo "$PWD is there and has no authority.key: put it back, or name another directory" >&2; exit 1; }
else
    mkdir "$home"
    cd "$home"
    openssl ecparam -name prime256v1 -genkey -noout -out authority.key
    openssl req -new -x509 -key authority.key -days 3650 -subj '/CN=Natsway broker authority' -out authority.pem
fi

# Written over, not replaced: a container that has mounted a file sees what is written into it.
openssl ecparam -name prime256v1 -genkey -noout -out broker.key
openssl req -new -key broker.key -subj /CN=nats -out broker.csr
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names" > broker.ext
openssl x509 -req -in broker.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 825 -extfile broker.ext -out broker.pem
rm broker.csr broker.ext

[ -f compose.env ] || {
    echo "NATSWAY_SECRETS=$PWD"
    # Workers that are added by demand get it too.
    echo "NATSWAY_WORKER_MOUNTS=$PWD/authority.pem"
    # From here on `docker compose` means both files.
    echo COMPOSE_FILE=docker-compose.yml:docker-compose.secured.yml
    for role in GATEWAY WORKER CALLER OPERATOR PROVISIONER GROUPS MEMBER PRODUCER CONSUMER; do
        echo "NATSWAY_${role}_PASSWORD=$(openssl rand -hex 24)"
    done
} > compose.env

# Containers see these three, each mounted by itself, and are nobody here. Others on this machine stop at the directory.
chmod 644 authority.pem broker.pem broker.key
echo "$PWD is ready: keep authority.key elsewhere" >&2
