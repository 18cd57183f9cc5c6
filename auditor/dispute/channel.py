"""Disputes over a socket: one line there, one line back, both bounded in size and time (protocol §8). No torch."""

from __future__ import annotations

import socket
from collections.abc import Callable

from auditor.dispute.messages import MAX_MESSAGE_BYTES
from auditor.dispute.rules import CHALLENGER, RESPONDER, Forfeit
from vtrain.errors import UsageError

ANSWER_SECONDS = 3600.0  # a replay of a segment may be in between
_READ_BYTES = 1 << 16


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, or ``PORT`` on this machine.

    Raises:
        UsageError: neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"address {text!r}; want HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


class Line:
    """A socket that carries lines.

    Args:
        connection: connected.
        peer: who is at the other end, ``challenger`` or ``responder``.
        seconds: how long to wait for a line.
    """

    def __init__(self, connection: socket.socket, peer: str, seconds: float = ANSWER_SECONDS) -> None:
        self._socket, self._peer = connection, peer
        self._socket.settimeout(seconds)
        self._buffer = bytearray()

    def send(self, line: bytes) -> None:
        """Send a line.

        Raises:
            Forfeit: the other end is gone.
        """
        try:
            self._socket.sendall(line + b"\n")
        except OSError as error:
            raise Forfeit(self._peer, f"hung up: {error}") from error

    def receive(self) -> bytes | None:
        """The next line; None where the other end closed.

        Raises:
            Forfeit: nothing came in time, or more than a message may have.
        """
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) > MAX_MESSAGE_BYTES:
                raise Forfeit(self._peer, f"sent more than {MAX_MESSAGE_BYTES} bytes without an end")
            try:
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError as error:
                raise Forfeit(self._peer, f"said nothing for {self._socket.gettimeout():.0f} s") from error
            except OSError as error:
                raise Forfeit(self._peer, f"hung up: {error}") from error
            if not data:
                return None
            self._buffer += data

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def connect(address: tuple[str, int], seconds: float = ANSWER_SECONDS) -> tuple[Callable[[bytes], bytes], Line]:
    """A challenger's channel to a party that listens, and what to close at the end.

    Raises:
        UsageError: nobody listens there.
    """
    try:
        line = Line(socket.create_connection(address, timeout=seconds), RESPONDER, seconds)
    except OSError as error:
        raise UsageError(f"{address[0]}:{address[1]}: {error}") from error

    def channel(question: bytes) -> bytes:
        line.send(question)
        reply = line.receive()
        if reply is None:
            raise Forfeit(RESPONDER, "hung up without an answer")
        return reply

    return channel, line


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket that waits for a challenger.

    Raises:
        UsageError: the address can't be listened on.
    """
    try:
        return socket.create_server(address, backlog=1)
    except OSError as error:
        raise UsageError(f"{address[0]}:{address[1]}: {error}") from error


def serve(server: socket.socket, answer: Callable[[bytes], bytes], seconds: float = ANSWER_SECONDS) -> None:
    """Answer one challenger until it hangs up.

    Raises:
        Forfeit: it broke a rule.
    """
    connection, _ = server.accept()
    line = Line(connection, CHALLENGER, seconds)
    try:
        while (question := line.receive()) is not None:
            line.send(answer(question))
    finally:
        line.close()
