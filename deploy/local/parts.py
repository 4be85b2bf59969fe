"""How each part of the stack is prepared, run and asked for its health."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local import configs, health
from deploy.local.configs import Overrides
from deploy.local.errors import StackError
from deploy.local.files import secret, write_atomic
from deploy.local.process import ProcessSpec
from deploy.local.site import Site
from deploy.local.toml import Table, encode, merged

BACKENDS = ("postgres", "seaweed", "xrootd", "idp")
SERVICES = ("catalog", "monitor", "gateway", "transfer", "tape")
PARTS = (*BACKENDS, *SERVICES)
TAPE_DRIVERS = ("auto", "xrootd", "directory")
_DATABASES = ("catalog", "monitor")
_REPOSITORY = Path(__file__).parents[2]


class Parts:
    """The parts of one site; files are written when a part is about to start."""

    def __init__(
        self,
        site: Site,
        tape: str,
        overrides: Overrides,
        environment: Mapping[str, Mapping[str, str]],
        say: Callable[[str], None],
    ) -> None:
        if tape not in TAPE_DRIVERS:
            raise StackError(f"no tape driver {tape}; there are {', '.join(TAPE_DRIVERS)}")
        self._site = site
        self._tape = tape
        self._overrides = overrides
        self._environment = environment
        self._say = say

    def spec(self, name: str) -> ProcessSpec:
        """Write what the part needs and return how to run it. Raises StackError."""
        match name:
            case "postgres":
                return self._site.postgres.prepare()
            case "seaweed":
                return self._site.seaweed.prepare()
            case "xrootd":
                return self._site.xrootd.spec()
            case "idp":
                return self._site.idp.prepare()
            case _:
                return self._service(name)

    def trouble(self, name: str) -> str | None:
        """None when the running part is healthy, else what is wrong with it."""
        match name:
            case "postgres":
                return self._site.postgres.ready()
            case "seaweed":
                return self._site.seaweed.ready()
            case "xrootd":
                return self._site.xrootd.ready()
            case "idp":
                return self._site.idp.ready()
            case _:
                return health.grpc_trouble(self._site.address(name, "ops"))

    def tape_driver(self) -> str:
        """The driver of this site, kept from its first start on: each finds its own files only.

        Raises StackError when the driver asked for, or used before, cannot run here.
        """
        kept = self._site.directory / "tape-driver"
        before = kept.read_text() if kept.exists() else "auto"
        wanted = before if self._tape == "auto" else self._tape
        if before not in ("auto", wanted):
            raise StackError(
                f"{self._site.directory} keeps its tape files with the {before} driver; "
                f"use another --dir for {wanted}, or wipe this one"
            )
        missing = self._site.xrootd.available() if wanted != "directory" else None
        if missing and wanted == "xrootd":
            raise StackError(f"the XRootD tape endpoint cannot run: {missing}")
        driver = "directory" if missing or wanted == "directory" else "xrootd"
        if missing:
            self._say(f"no XRootD ({missing}): tape is a plain directory")
        if before != driver:
            write_atomic(kept, driver.encode())
        return driver

    def prepare_databases(self, services: Sequence[str]) -> None:
        """Make roles and databases of the services and bring their tables up to date, side by side.

        Raises StackError with what a migration said.
        """
        names = [name for name in _DATABASES if name in services]
        for name in names:
            password = secret(self._site.secret_path(f"{name}.password"))
            self._site.postgres.ensure_database(name, password)
        if names:
            self._say(f"bringing the tables of {' and '.join(names)} up to date")
        for name, migration in [(name, self._migration(name)) for name in names]:
            said = migration.communicate()[1].decode()
            if migration.returncode:
                raise StackError(f"the tables of {name} cannot be brought up to date:\n{said}")

    def _migration(self, name: str) -> subprocess.Popen[bytes]:
        spec = self._service(name)
        command = [sys.executable, "-m", f"services.{name}", "migrate", *spec.argv[-2:]]
        return subprocess.Popen(
            command, cwd=spec.cwd, env=spec.environment(), stderr=subprocess.PIPE
        )

    def _service(self, name: str) -> ProcessSpec:
        settings = configs.service(self._site, name, self.tape_driver())
        config = self._write(name, merged(settings, self._overrides.get(name, {})))
        files = self._site.authority.credentials(name)
        return ProcessSpec(
            name=name,
            argv=(sys.executable, "-m", f"services.{name}", "--config", str(config)),
            cwd=_REPOSITORY,
            env=self._environment.get(name, {}),
            files=(config, files.certificate),
            ready=lambda: self.trouble(name),
        )

    def _write(self, name: str, settings: Table) -> Path:
        path, content = self._site.config_path(name), encode(settings)
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, content, 0o600)
        return path
