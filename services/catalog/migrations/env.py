"""Runs the revisions of the catalog's schema; see services.kit.migrate."""

from services.catalog.tables import metadata
from services.kit.migrate import run_env

run_env(metadata)
