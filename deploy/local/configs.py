"""What the TOML files of the five services say on one machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from deploy.local.site import HOST, Site
from deploy.local.toml import Table, Value

Overrides: TypeAlias = Mapping[str, Table]
"""Settings by service name that replace the ones made here."""

_LEDGER_OF_GATEWAY = (
    "Submit GetTransaction ListTransactions ListFailures ListTasks Watch CancelTransaction "
    "RetryTransaction ListWorkers ListParkedTasks RunSchedule"
)
_LEDGER_OF_WORKERS = "Work GetTransaction ReadPaths CountTasks"
_CATALOG_OF_GATEWAY = (
    "OpenHolding ListHoldings UpdateHolding FindFiles GetUsage SetQuota DeleteFiles UndeleteFiles "
    "ListFaults"
)
_CATALOG_OF_WORKERS = (
    "OpenHolding ListHoldings RegisterFiles GetFiles ResolveFiles AllocateBlobs RecordBlob "
    "ListMembers ListArchivable ClaimAggregate ReleaseAggregate SetBlobStates ClaimEviction "
    "ListBlobs ReportFault GetUsage PinFiles ListFaults ReinstateCopies ClaimReplaced "
    "ListStalePuts ForgetPuts"
)
_MAY_CALL: dict[str, dict[str, str]] = {
    "catalog": {
        "gateway": _CATALOG_OF_GATEWAY,
        "transfer": _CATALOG_OF_WORKERS,
        "tape": _CATALOG_OF_WORKERS,
        "operator": "*",
    },
    "monitor": {
        "gateway": _LEDGER_OF_GATEWAY,
        "transfer": _LEDGER_OF_WORKERS,
        "tape": _LEDGER_OF_WORKERS,
        "operator": "*",
    },
    "transfer": {"gateway": "*", "operator": "*"},
    "tape": {"operator": "*"},
}


def service(site: Site, name: str, tape_driver: str) -> Table:
    """The settings of one of the five services."""
    return {
        "log": {"format": "json"},
        "server": _server(site, name),
        **{
            "gateway": _gateway,
            "catalog": _catalog,
            "monitor": _monitor,
            "transfer": _transfer,
            "tape": _tape,
        }[name](site, tape_driver),
    }


def _gateway(site: Site, _driver: str) -> Table:
    return {
        "tokens": {
            "issuer": site.idp.issuer,
            "audience": "nearline",
            "posix_claims": True,
            "min_uid": _min_uid(),
            "introspection": {
                "client_id": "gateway",
                "client_secret": site.idp.gateway_secret_path,
            },
        },
        **_peers(site, "gateway", "catalog", "monitor", "transfer"),
    }


def _catalog(site: Site, _driver: str) -> Table:
    return {"database": _database(site, "catalog")}


def _monitor(site: Site, _driver: str) -> Table:
    return {"database": _database(site, "monitor")}


def _transfer(site: Site, _driver: str) -> Table:
    return {
        "cache": _cache(site),
        "posix": {"roots": _roots(site), "min_uid": _min_uid()},
        **_peers(site, "transfer", "catalog", "monitor"),
    }


def _tape(site: Site, driver: str) -> Table:
    xrootd: Table = {"url": site.xrootd.url, "keytab": site.xrootd.keytab}
    directory: Table = {"directory": site.directory / "tape"}
    return {
        "cache": _cache(site),
        "endpoint": xrootd if driver == "xrootd" else directory,
        # Somebody is watching: a file is on tape within seconds, not within the hour.
        "archive": {
            "every_seconds": 2.0,
            "min_age_seconds": 2,
            "flush_seconds": 5.0,
            "target_bytes": 1 << 30,
            "confirm_seconds": 1.0,
        },
        "recall": {"poll_seconds": 1.0},
        **_peers(site, "tape", "catalog", "monitor"),
    }


def _roots(site: Site) -> list[str]:
    """Homes of the test users and scratch space; one's own home too, where one is served."""
    own = [] if os.getuid() == 0 else [str(Path.home())]
    return [str(site.homes), tempfile.gettempdir(), *own]


def _min_uid() -> int:
    # The test users have the ids of whoever runs the stack, unless that is root.
    return min(1000, os.getuid() or 1000)


def _server(site: Site, name: str) -> Table:
    peers: dict[str, Value] = {}
    for peer, rpcs in _MAY_CALL.get(name, {}).items():
        full_name = f"/nearline.{name}.v1.{name.capitalize()}Service"
        peers[peer] = [f"{full_name}/{rpc}" for rpc in rpcs.split()]
    return {
        "listen": site.address(name),
        "ops_listen": site.address(name, "ops"),
        "metrics_listen": site.address(name, "metrics"),
        "tls": _tls(site, name),
        "peers": peers,
    }


def _tls(site: Site, member: str) -> Table:
    files = site.authority.credentials(member)
    return {"cert": files.certificate, "key": files.key, "ca": files.authority}


def _peers(site: Site, member: str, *others: str) -> Table:
    tls = _tls(site, member)
    peers: dict[str, Value] = {}
    for other in others:
        peers[other] = {"address": site.address(other), "tls": tls}
    return peers


def _database(site: Site, name: str) -> Table:
    password = site.secret_path(f"{name}.password")
    port = site.postgres.port
    return {"host": HOST, "port": port, "name": name, "user": name, "password": password}


def _cache(site: Site) -> Table:
    seaweed = site.seaweed
    return {
        "endpoint": seaweed.store.endpoint,
        "bucket": seaweed.store.bucket,
        "access_key": seaweed.access_key_path,
        "secret_key": seaweed.secret_key_path,
    }
