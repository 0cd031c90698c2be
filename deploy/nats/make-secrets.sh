#!/bin/sh
# Makes what docker-compose.secured.yml and docker-compose.accounts.yml need: an authority, the broker's certificate by it, and a
# file with a password for each role.
#
#   deploy/nats/make-secrets.sh [DIRECTORY] [NAME,...]
#
# DIRECTORY is `secrets` by default. Where it is there already, the broker's certificate is made anew, by its authority.key,
# and what is missing is added. NAMEs are further host names and addresses by which clients and other brokers reach the broker;
# nats, nats-1, nats-2, nats-3, localhost and 127.0.0.1 are always among them.
set -eu

home=${1:-secrets}
names=DNS:nats,DNS:nats-1,DNS:nats-2,DNS:nats-3,DNS:localhost,IP:127.0.0.1
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

# What three brokers know each other by: this certificate and no other, for the authority may give some to clients. A broker that
# joins another is its client.
[ -f cluster.pem ] || {
    openssl ecparam -name prime256v1 -genkey -noout -out cluster.key
    openssl req -new -x509 -key cluster.key -days 3650 -subj '/CN=Natsway brokers' -addext "subjectAltName=$names" \
        -addext extendedKeyUsage=serverAuth,clientAuth -out cluster.pem
}

# Each program is given a file with its own password, the broker one with all of them: those of permissions.conf, and the further
# ones of accounts.conf.
[ -f compose.env ] || touch compose.env
: > passwords.env
for role in admin gateway worker caller operator provisioner groups member producer consumer \
    team-a-worker team-a-stand-in team-b-worker team-b-stand-in shipper-admin groups-admin; do
    variable=NATSWAY_$(echo "$role" | tr a-z- A-Z_)_PASSWORD
    # They stood in compose.env once.
    [ -s "$role.password" ] || sed -n "s/^$variable=//p" compose.env > "$role.password"
    # A letter first: to the broker a variable is configuration, and what begins with digits may be a number.
    [ -s "$role.password" ] || echo "p$(openssl rand -hex 24)" > "$role.password"
    echo "$variable=$(cat "$role.password")" >> passwords.env
done
{
    echo "NATSWAY_SECRETS=$PWD"
    # Workers that are added by demand get them too.
    echo "NATSWAY_WORKER_MOUNTS=$PWD/authority.pem,$PWD/worker.password,$PWD/team-a-worker.password"
    # From here on `docker compose` means both files.
    echo COMPOSE_FILE=docker-compose.yml:docker-compose.secured.yml
} > compose.env

# Containers see these, each mounted by itself, and are nobody here. Others on this machine stop at the directory.
chmod 644 authority.pem broker.pem broker.key cluster.pem cluster.key passwords.env ./*.password
echo "$PWD is ready: keep authority.key elsewhere" >&2
