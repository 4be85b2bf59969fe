"""The local certificates: accepted by a strict TLS handshake, private, renewed in time."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from deploy.local import certs
from deploy.local.certs import MEMBERS, Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "certs")
    authority.issue()
    return authority


def contents(authority: Authority) -> dict[str, bytes]:
    return {name: authority.credentials(name).certificate.read_bytes() for name in MEMBERS}


def handshake(authority: Authority, client: str, server: str, host: str) -> str:
    """Do a mutual handshake in memory; return the client's common name as the server saw it."""
    server_end, client_end = authority.credentials(server), authority.credentials(client)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server_end.certificate, server_end.key)
    server_context.load_verify_locations(server_end.authority)
    server_context.verify_mode = ssl.CERT_REQUIRED
    client_context = ssl.create_default_context(cafile=client_end.authority)
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    client_context.load_cert_chain(client_end.certificate, client_end.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    other = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (one, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    subject = (other.getpeercert() or {})["subject"]
    return str(dict(pair for part in subject for pair in part)["commonName"])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_members_know_one_another_by_name(authority: Authority, host: str) -> None:
    assert handshake(authority, "tape", "monitor", host) == "tape"


def test_keys_are_private(authority: Authority) -> None:
    keys = list(authority.certificate.parent.glob("*.key"))
    assert len(keys) == len(MEMBERS) + 1
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_good_certificates_are_kept(authority: Authority) -> None:
    before = contents(authority)
    authority.issue()
    assert contents(authority) == before


def test_certificates_near_their_end_are_renewed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(authority)
    monkeypatch.setattr(certs, "_RENEW_BEFORE", datetime.timedelta(days=400))
    authority.issue()
    assert all(contents(authority)[name] != before[name] for name in MEMBERS)


def test_a_new_authority_replaces_all_certificates(authority: Authority) -> None:
    authority.certificate.unlink()
    authority.issue()
    issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    for pem in contents(authority).values():
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(issuer)
    assert handshake(authority, "gateway", "catalog", "localhost") == "gateway"
