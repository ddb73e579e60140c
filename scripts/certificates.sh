#!/usr/bin/env bash
# Make TLS certificates and node keys to try a deployment with.
#
#     bash scripts/certificates.sh [folder=certs] [hosts=127.0.0.1,localhost] [nodes=node-1,node-2]
#
#     hosts    names and addresses under which the SuperLink is reached; from this machine also 127.0.0.1 and localhost
#     nodes    names of the SuperNodes
#
# Writes into the folder, with keys that only their owner can read:
#
#     ca.pem                    SuperNodes and `flwr` check the SuperLink by it
#     server.pem, server.key    for the SuperLink, valid for 30 days
#     NODE.key, NODE.pub        for each SuperNode: it keeps the first, the SuperLink registers the second
#
# Real organisations use their own certificate authority. Each makes the key of its node itself and sends the .pub file.
set -euo pipefail
folder=certs hosts=127.0.0.1,localhost nodes=node-1,node-2
for argument in "$@"; do
    case $argument in
        folder=?*) folder=${argument#*=} ;;
        hosts=?*) hosts=${argument#*=} ;;
        nodes=*) nodes=${argument#*=} ;;
        *) echo "error: $argument is unknown; expected folder=, hosts= or nodes=" >&2 && exit 2 ;;
    esac
done
for program in openssl ssh-keygen; do
    command -v "$program" >/dev/null || { echo "error: there is no $program; install openssl and openssh-client" >&2; exit 2; }
done

mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT # with the key of the authority
IFS=, read -ra hosts <<<"$hosts,127.0.0.1,localhost"
IFS=, read -ra nodes <<<"$nodes"
names=()
for host in "${hosts[@]}"; do
    if [[ $host == *:* || $host =~ ^[0-9.]+$ ]]; then names+=("IP:$host"); else names+=("DNS:$host"); fi
done
cat >"$work/config" <<CONFIG
[req]
distinguished_name = name
prompt = no
[name]
CN = \${ENV::NAME}
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = $(IFS=, && echo "${names[*]}")
authorityKeyIdentifier = keyid
CONFIG
umask 077
new=(req -new -config "$work/config" -newkey ec -pkeyopt ec_paramgen_curve:secp384r1 -nodes -sha384)
{
    NAME="FeDPO trial authority" openssl "${new[@]}" -x509 -days 30 -extensions authority -keyout "$work/ca.key" -out "$work/ca.pem"
    NAME="${hosts[0]}" openssl "${new[@]}" -keyout "$work/server.key" -out "$work/server.csr"
    NAME="" openssl x509 -req -in "$work/server.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
        -days 30 -sha384 -extfile "$work/config" -extensions server -out "$work/server.pem"
} 2>"$work/log" || { echo "error: openssl failed: $(tail -n 1 "$work/log")" >&2; exit 1; }
for node in "${nodes[@]}"; do
    ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f "$work/$node.key"
    mv "$work/$node.key.pub" "$work/$node.pub"
done
chmod a+r "$work"/*.pem "$work"/*.pub 2>/dev/null || true # nodes= makes no .pub
rm -f "$work"/{config,log,server.csr,ca.key}
mv -f "$work"/* "$folder"
