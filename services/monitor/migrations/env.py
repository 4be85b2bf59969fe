"""Runs the revisions of the monitor's schema."""

from services.kit.migrate import run_env
from services.monitor.tables import metadata

run_env(metadata)
