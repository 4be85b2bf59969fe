"""The command line that every service has: ``python -m services.NAME [COMMAND] --config FILE``."""

import argparse
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import structlog
import uvloop

from services.kit import crash, memory, telemetry
from services.kit.config import ConfigError, LogConfig, load

# Python's own 5 ms would let a thread that packs or parses hold up each step of every small call.
_SWITCH_SECONDS = 0.0005


class ServiceConfig(Protocol):
    """What the configuration of every service has."""

    @property
    def log(self) -> LogConfig:
        """What is logged, and how."""


C = TypeVar("C", bound=ServiceConfig)
Serve = Callable[[C], Coroutine[Any, Any, None]]
Command = Callable[[C], None]


def main(
    service: str, config_type: type[C], serve: Serve[C], commands: Mapping[str, Command[C]] = {}
) -> NoReturn:
    """Read the arguments and the configuration, set up logs, then run the service or a command.

    Exits 0 at a regular end and 2 when the configuration cannot be used.
    """
    arguments = _parser(service, commands).parse_args()
    memory.tune()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        config = load(config_type, arguments.config)
        telemetry.configure(config.log, service)
        crash.arm(os.environ.get(crash.VARIABLE, ""))
        if arguments.command == "serve":
            uvloop.run(serve(config))
        else:
            commands[arguments.command](config)
    except ConfigError as error:
        structlog.get_logger(__name__).error("configuration", why=str(error))
        sys.exit(2)
    sys.exit(0)


def _parser(service: str, commands: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}")
    names = ["serve", *commands]
    parser.add_argument("command", nargs="?", default="serve", choices=names)
    parser.add_argument("--config", type=Path, required=True, help="the service's TOML file")
    return parser
