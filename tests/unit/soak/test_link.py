"""The breakable link: each way to break a connection, and that it heals."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fixtures.tcpproxy import Link


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to a server that echoes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        link = Link(lambda: listener.getsockname()[1])
        yield link
        link.close()
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(1000):
                connection.sendall(data)
        except ConnectionResetError:
            return


def _connect(link: Link) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", link.port))
    connection.settimeout(5.0)
    return connection


def _says(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(1000)


def _is_silent(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    try:
        return not connection.recv(1000)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5.0)


def _is_broken(connection: socket.socket) -> bool:
    try:
        return not _says(connection, b"?")
    except (ConnectionResetError, BrokenPipeError):
        return True


def test_everything_passes_with_or_without_delay(link: Link) -> None:
    with _connect(link) as connection:
        assert _says(connection, b"one") == b"one"
        link.delay(0.01)
        assert _says(connection, b"two") == b"two"


def test_a_cut_resets_what_is_there_and_refuses_until_healed(link: Link) -> None:
    with _connect(link) as connection:
        assert _says(connection, b"one") == b"one"
        assert link.cut() == 1
        assert _is_broken(connection)
    with _connect(link) as refused:
        assert _is_broken(refused)
    link.heal()
    with _connect(link) as connection:
        assert _says(connection, b"two") == b"two"


def test_a_frozen_link_delivers_when_it_thaws(link: Link) -> None:
    with _connect(link) as connection:
        link.freeze()
        connection.sendall(b"one")
        assert _is_silent(connection)
        assert link.heal() == 0
        assert connection.recv(1000) == b"one"


def test_a_half_open_link_swallows_answers_and_then_resets(link: Link) -> None:
    with _connect(link) as connection, _connect(link) as idle:
        assert _says(idle, b"one") == b"one"
        link.half_open()
        connection.sendall(b"lost")
        assert _is_silent(connection)
        assert link.heal() == 1
        assert _is_broken(connection)
        assert _says(idle, b"two") == b"two"


def test_a_link_can_answer_itself(link: Link) -> None:
    link.answer(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
    with _connect(link) as connection:
        assert _says(connection, b"PUT / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 500")
