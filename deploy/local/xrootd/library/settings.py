"""How fast and how reliable the simulated library is: a JSON file, read at each use."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Times are seconds. The ``fail_*`` lists hold parts of paths whose transfer shall fail."""

    migrate_delay: float = 1.0
    """From the close of a file to the start of its migration."""
    retry_delay: float = 5.0
    """From a failed migration to the next attempt."""
    mount: float = 2.0
    seek: float = 0.2
    dismount_after: float = 5.0
    """The drive keeps its tape this long after the last recall."""
    bandwidth: float = 0.0
    """Bytes per second of the drive; 0 is as fast as the disk."""
    evict_after_migrate: bool = False
    fail_migrate: tuple[str, ...] = ()
    fail_recall: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Settings:
        """Raises ValueError for an unknown name or a value of the wrong kind."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings of the tape library: {', '.join(sorted(unknown))}")
        return cls(**{name: _checked(name, value) for name, value in values.items()})  # type: ignore[arg-type]

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode()


def _checked(name: str, value: object) -> object:
    default = getattr(Settings, name)
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{name} must be a list of strings, not {value!r}")
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name} must be true or false, not {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError(f"{name} must be a number from 0, not {value!r}")
    return value


class SettingsFile:
    """The settings as they are now; a file that cannot be read leaves the last good ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = Settings()

    def read(self) -> Settings:
        """Read the file; without one the defaults hold."""
        try:
            self._last = Settings.from_dict(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            self._last = Settings()
        except (OSError, ValueError, AttributeError) as error:
            log.error("%s is not usable, the last settings stay: %s", self._path, error)
        return self._last
