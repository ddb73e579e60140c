"""TLS certificates and node keys for trying a deployment: `python scripts/certificates.py folder=certs`.

Writes into the folder, with keys that only their owner can read:

    ca.pem                    what SuperNodes and `flwr` check the SuperLink by
    server.pem, server.key    of the SuperLink, valid for 30 days
    NODE.key, NODE.pub        of each SuperNode: the first stays with it, the second is registered at the SuperLink

    folder=certs              made if it is not there
    hosts=127.0.0.1,localhost names and addresses under which the SuperLink is reached
    nodes=node-1,node-2

Real organisations use their own certificate authority; each makes its node's key itself and sends the .pub file.
"""

import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=30)
DEFAULTS = {"folder": "certs", "hosts": "127.0.0.1,localhost", "nodes": "node-1,node-2"}


def main(arguments: Sequence[str]) -> int:
    """Write the files; exit code 2 for a mistake on the command line."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        print(f"error: {unknown[0]} is unknown; expected {', '.join(DEFAULTS)}", file=sys.stderr)
        return 2
    settings = {**DEFAULTS, **given}
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    _write_certificates(folder, settings["hosts"].split(","))
    for node in filter(None, settings["nodes"].split(",")):
        _write_node(folder, node)
    return 0


def _write_certificates(folder: Path, hosts: Sequence[str]) -> None:
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FeDPO trial authority")])
    root = _certificate(name, name, authority.public_key()).add_extension(x509.BasicConstraints(True, 0), critical=True)
    usage = x509.KeyUsage(*(False,) * 5, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
    root = root.add_extension(usage, critical=True)
    root = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
    own = _certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])]), name, server.public_key())
    own = own.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    own = own.add_extension(x509.BasicConstraints(False, None), critical=True)
    own = own.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    for file, builder in (("ca.pem", root), ("server.pem", own)):
        signed = builder.sign(authority, hashes.SHA384())
        (folder / file).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / "server.key", server)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + VALID)
    )


def _name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _write_node(folder: Path, node: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    _write_key(folder / f"{node}.key", key)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / f"{node}.pub").write_bytes(public + b"\n")


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    openssh = serialization.PrivateFormat.OpenSSH if file.stem != "server" else serialization.PrivateFormat.PKCS8
    content = key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
