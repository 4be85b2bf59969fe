"""The Kubernetes manifests build, fit the schemas, and the services read their settings."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.catalog.config import CatalogConfig
from services.gateway.config import GatewayConfig
from services.kit.config import load
from services.monitor.config import Config as MonitorConfig
from services.tape.config import TapeConfig
from services.transfer.config import TransferConfig

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("kustomization", ["base", "overlays/example"])
def test_the_manifests_fit_the_schemas(kustomization, tmp_path):
    built = subprocess.run(
        [TOOLS / "kubectl", "kustomize", K8S / kustomization],
        capture_output=True,
        check=True,
        timeout=60,
    )
    manifests = tmp_path / "all.yaml"
    manifests.write_bytes(built.stdout)
    checked = subprocess.run(
        [TOOLS / "kubernetes-validate", "--strict", manifests],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for kind in ("deployment", "service", "poddisruptionbudget"):
        assert checked.stdout.count(f"resource {kind}/") == 5


@pytest.mark.parametrize(
    ("service", "config"),
    [
        ("gateway", GatewayConfig),
        ("catalog", CatalogConfig),
        ("monitor", MonitorConfig),
        ("transfer", TransferConfig),
        ("tape", TapeConfig),
    ],
)
def test_the_services_read_their_configuration(service, config):
    loaded = load(config, K8S / "base" / "config" / f"{service}.toml")
    assert loaded.server.ops_listen == "[::]:7001", "the probes ask there"
