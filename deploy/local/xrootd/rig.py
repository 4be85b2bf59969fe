"""The tape endpoint of the one-machine stack: xrootd, our plug-in and the simulated library.

The server listens on one port, talks to loopback clients only, and lets in nobody without the
keytab that is made at the first start.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.files import make_directory, write_atomic
from deploy.local.privilege import Identity, unprivileged
from deploy.local.process import ProcessSpec
from deploy.local.xrootd.layout import DIRECTORY_FD, EVENTS_FD, EXPORT, Layout
from deploy.local.xrootd.library.settings import Settings

PACKAGES = (
    "xrootd-server xrootd-server-plugins xrootd-client libxrootd-dev libxrootd-server-dev g++"
)
_REPOSITORY = Path(__file__).resolve().parents[3]
_SOURCE = Path(__file__).with_name("tape_plugin.cc")
_HEADERS = (Path("/usr/include/xrootd"), Path("/usr/local/include/xrootd"))
_USER = "tape"

_CONFIG = """\
# Written at each start of the rig.
xrd.port {port}
xrd.network nodnr
xrd.allow host 127.0.0.1
xrd.allow host [::1]
xrd.allow host [::127.0.0.1]
xrd.allow host [::ffff:127.0.0.1]
all.adminpath {run}
all.pidpath {run}
oss.localroot {buffer}
all.export {export}
oss.statlib -2 preopen {plugin}
ofs.preplib {plugin} {run}
ofs.notify closew rm mv msgs 1024 64 >{events}
# A writer that vanishes leaves nothing behind; its file goes away after the hold.
ofs.persist manual hold 5s
xrootd.chksum max 4 chkcgi adler32
xrootd.seclib libXrdSec.so
sec.protocol sss -s {keytab}
sec.protbind * only sss
ofs.authorize 1
acc.authdb {authorization}
acc.audit deny
"""


class XrootdRig:
    """One server with its files below ``directory``, on 127.0.0.1:``port``.

    ``spec()`` prepares everything and says how to run it under `deploy.local.process.Supervisor`.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.layout = Layout(directory.absolute())

    @property
    def url(self) -> str:
        """What the tape service's XRootD driver is configured with."""
        return f"root://127.0.0.1:{self.port}/{EXPORT}"

    @property
    def keytab(self) -> Path:
        """The client's secret, there once ``spec()`` was called."""
        return self.layout.client_keytab

    def available(self) -> str | None:
        """Why the rig cannot run here and what to do about it; None when it can."""
        missing = _missing_programs()
        if missing:
            return f"{', '.join(missing)} not found; as root: apt-get install {PACKAGES}"
        if problem := _name_problem():
            return problem
        self.layout.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._identity()
            return _xattr_problem(self.layout.directory)
        except StackError as error:
            return str(error)

    def build(self) -> Path:
        """Compile the plug-in, once per user, source and server version.

        Raises StackError with the compiler's words.
        """
        source = _SOURCE.read_bytes()
        key = hashlib.sha256(source + _server_version().encode()).hexdigest()[:16]
        target = _cache() / f"libNearlineTape-{key}.so"
        if not target.exists():
            make_directory(target.parent, 0o700)
            _compile(target)
        return target

    def spec(self, name: str = "xrootd") -> ProcessSpec:
        """Make or renew the rig's files and return how to run it in the foreground.

        Raises StackError when it cannot run here. May be called while the rig runs.
        """
        if problem := self.available():
            raise StackError(f"the XRootD rig cannot run: {problem}")
        identity = self._identity()
        self._prepare(identity)
        program = (sys.executable, "-m", "deploy.local.xrootd.library", str(self.layout.directory))
        return ProcessSpec(
            name=name,
            argv=(*identity.prefix, *program),
            cwd=self.layout.run,
            env={"PYTHONPATH": str(_REPOSITORY)},
            files=(self.layout.config, self.layout.plugin),
            ready=self.ready,
            ready_timeout=30.0,
        )

    def configure(self, **settings: object) -> None:
        """Replace the library's settings (see `Settings`); a running library uses them at once.

        Raises ValueError for an unknown name or a wrong kind of value.
        """
        self.layout.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self.layout.settings, Settings.from_dict(settings).to_json())

    def ready(self) -> str | None:
        """None when the server takes connections, else why not."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError as error:
            return f"port {self.port}: {error}"
        return None

    def _identity(self) -> Identity:
        python = Path(sys.executable)
        return unprivileged(self.layout.config, python, Path(sys.prefix) / "bin", _SOURCE)

    def _prepare(self, identity: Identity) -> None:
        layout, owner = self.layout, (identity.uid, identity.gid)
        make_directory(layout.directory, 0o755)
        make_directory(layout.run, 0o700, owner)
        make_directory(layout.data, 0o700, owner)
        write_atomic(layout.plugin, self.build().read_bytes(), 0o755)
        write_atomic(layout.authorization, f"u {_USER} {EXPORT} a\n".encode())
        write_atomic(layout.config, self._config().encode())
        if not layout.settings.exists():
            self.configure()
        if not layout.client_keytab.exists():
            write_atomic(layout.client_keytab, _new_keytab(layout.directory), 0o600)
        write_atomic(layout.server_keytab, layout.client_keytab.read_bytes(), 0o600)
        if os.geteuid() == 0:
            os.chown(layout.server_keytab, *owner)

    def _config(self) -> str:
        seen = Layout(Path(f"/proc/self/fd/{DIRECTORY_FD}"))
        return _CONFIG.format(
            port=self.port,
            run=seen.run,
            buffer=seen.data / "buffer",
            export=EXPORT,
            plugin=seen.plugin,
            events=f"/proc/self/fd/{EVENTS_FD}",
            keytab=seen.server_keytab,
            authorization=seen.authorization,
        )


def _missing_programs() -> list[str]:
    programs = ["xrootd", "xrdsssadmin", "setpriv", "g++"]
    missing = [name for name in programs if shutil.which(name) is None]
    if _headers() is None:
        missing.append("XrdOfs/XrdOfsPrepare.hh")
    return missing


def _name_problem() -> str | None:
    """Why xrootd would end at its start: it looks up this machine's own name."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return f"the name of this machine does not resolve ({error}); add it to /etc/hosts: {name}"
    return None


def _headers() -> Path | None:
    return next((path for path in _HEADERS if (path / "XrdOfs/XrdOfsPrepare.hh").exists()), None)


def _xattr_problem(directory: Path) -> str | None:
    probe = directory / f".xattr-{secrets.token_hex(4)}"
    probe.touch()
    try:
        os.setxattr(probe, "user.nearline.probe", b"1")
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise
        return f"the file system of {directory} has no user xattrs; choose another --dir"
    finally:
        probe.unlink()
    return None


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nearline"


@functools.cache
def _server_version() -> str:
    result = subprocess.run(["xrootd", "-v"], capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr).strip()


def _compile(target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", f"-I{_headers()}"]
    result = subprocess.run(
        [*command, "-o", str(temporary), str(_SOURCE)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        temporary.unlink(missing_ok=True)
        raise StackError(f"the plug-in of xrootd does not compile:\n{result.stderr[-2000:]}")
    temporary.replace(target)


def _new_keytab(directory: Path) -> bytes:
    path = directory / f".keytab-{secrets.token_hex(4)}"
    # The plus: a client that comes through a relay, as tests do, has another address than its own.
    arguments = ["-k", "nearline+", "-u", _USER, "-g", _USER, "add", str(path)]
    try:
        result = subprocess.run(
            ["xrdsssadmin", *arguments],
            input="y\n" * 4,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise StackError(f"xrdsssadmin: {result.stdout}{result.stderr}")
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
