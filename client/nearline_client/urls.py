"""Which URLs may carry secrets."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback_host(host: str | None) -> bool:
    """Whether `host` is a loopback address or `localhost`; other names are not resolved."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Whether the URL's host is this machine by its loopback address or `localhost`."""
    return is_loopback_host(urlsplit(url).hostname)


def is_secure_url(url: str) -> bool:
    """Whether nobody on the way can read or replace what travels: https, or http on loopback."""
    parts = urlsplit(url)
    if parts.scheme == "http":
        return is_loopback_host(parts.hostname)
    return parts.scheme == "https" and bool(parts.hostname)
