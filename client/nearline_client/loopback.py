"""Receives the redirect that ends a browser login, on a free loopback port (RFC 8252, 7.3)."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from nearline_client.auth_errors import LoginFailed

PATH = "/callback"


class LoopbackReceiver:
    """Listens while it is entered; `wait` returns what the provider sent with the redirect."""

    def __init__(self, state: str) -> None:
        """`state` is the random value of the request: answers without it are somebody else's."""
        self._state = state
        self._answer: dict[str, str] | None = None

    def __enter__(self) -> Self:
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.server_close()

    @property
    def redirect_uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{PATH}"

    def wait(self, seconds: float) -> dict[str, str]:
        """The parameters of the redirect. Raises LoginFailed when none comes in time."""
        deadline = time.monotonic() + seconds
        while self._answer is None:
            self._server.timeout = deadline - time.monotonic()
            if self._server.timeout <= 0:
                raise LoginFailed("nobody logged in in time; run `nlds login` again")
            self._server.handle_request()
        return self._answer

    def accept(self, target: str) -> bool:
        """Take a request target when it is the redirect waited for."""
        parts = urlsplit(target)
        answer = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path != PATH or answer.get("state") != self._state:
            return False
        self._answer = answer
        return True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            # A browser may open a connection and send nothing: it must not hold up the redirect.
            timeout = 2.0

            def do_GET(self) -> None:
                taken = receiver.accept(self.path)
                text = "You can close this page." if taken else "This is not the awaited login."
                self.send_response(200 if taken else 400)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the request line holds the authorization code."""

        return Handler
