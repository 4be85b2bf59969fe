"""The local certificate authority and one certificate per member of the mesh."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.local.files import make_directory, write_atomic

MEMBERS = ("gateway", "catalog", "monitor", "transfer", "tape", "operator")
_AUTHORITY_LIFE = datetime.timedelta(days=3650)
_MEMBER_LIFE = datetime.timedelta(days=365)
_RENEW_BEFORE = datetime.timedelta(days=30)
# Clocks of clients may be a little behind.
_BACKDATE = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class Credentials:
    """Paths of a certificate, its private key (mode 0600) and the authority, all PEM."""

    certificate: Path
    key: Path
    authority: Path


class Authority:
    """Issues and renews the certificates kept under ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def certificate(self) -> Path:
        """The authority's own certificate, which clients trust."""
        return self._directory / "ca.pem"

    def credentials(self, member: str) -> Credentials:
        """Where the certificate of ``member`` is; `issue` makes it."""
        return Credentials(
            self._directory / f"{member}.pem", self._directory / f"{member}.key", self.certificate
        )

    def issue(self) -> None:
        """Make what is missing and renew what ends within 30 days."""
        make_directory(self._directory, 0o711)
        if not _usable(self.certificate, self._key_path):
            self._make_authority()
        authority = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        for member in MEMBERS:
            files = self.credentials(member)
            if not _usable(files.certificate, files.key, authority):
                self._make_member(member, authority)

    @property
    def _key_path(self) -> Path:
        return self._directory / "ca.key"

    def _make_authority(self) -> None:
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("Nearline local authority")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = (
            _builder(name, name, key.public_key(), _AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        _write(self._key_path, self.certificate, key, builder.sign(key, hashes.SHA256()))

    def _make_member(self, member: str, authority: x509.Certificate) -> None:
        key, signer = ec.generate_private_key(ec.SECP256R1()), _load_key(self._key_path)
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), loopback])
        both_ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = (
            _builder(_name(member), authority.subject, key.public_key(), _MEMBER_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage(both_ends), critical=False)
            .add_extension(issuer_key, critical=False)
        )
        files = self.credentials(member)
        _write(files.key, files.certificate, key, builder.sign(signer, hashes.SHA256()))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), f"{path} is not one of our keys"
    return key


def _write(
    key_path: Path,
    certificate_path: Path,
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # The certificate last: a pair that was interrupted does not match and is made anew.
    write_atomic(key_path, pem, 0o600)
    write_atomic(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _usable(
    certificate_path: Path, key_path: Path, authority: x509.Certificate | None = None
) -> bool:
    if not certificate_path.exists() or not key_path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    if authority is not None and not _issued_by(certificate, authority):
        return False
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left > _RENEW_BEFORE and certificate.public_key() == _load_key(key_path).public_key()


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
