"""The `nlds` command. Thin: each command is one or two calls of the Python client.

Modules imported at start know neither gRPC nor rich, which take a fifth of a second each.
"""

from nearline_client.cli.main import main, nlds

__all__ = ["main", "nlds"]
