"""One connection of the HTTP front end, which ends when its caller takes nothing of its answer or ends no request.

The event loop keeps little of what a caller has not taken, and the operating system less than it would by itself; an
answer that does not fit waits in its route, whose request the engine goes on with. Knows no routes.

Source:
    TCP_NOTSENT_LOWAT: ``tcp_notsent_lowat`` in https://docs.kernel.org/networking/ip-sysctl.html.
"""

import asyncio
import logging
import socket
from typing import Any

from server.api.http.head_limit import LimitedHeadProtocol

MAX_UNSENT_BYTES = 16 << 10
"""Most bytes of a connection that wait in this process before whoever writes has to wait, and as many in the system."""

_LOGGER = logging.getLogger(__name__)


def bound_unsent(listener: socket.socket) -> None:
    """Bound what the operating system keeps unsent for each connection that is made through ``listener``.

    Else it keeps megabytes for a caller who does not read. What is on its way to the caller does not count, so nobody
    gets an answer later for it.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)


class PatientProtocol(LimitedHeadProtocol):
    """One connection. It is broken off when its caller has taken nothing for a while of what waits for it.

    So it is when its caller has sent nothing for as long while the server waits for a request, or the rest of one. A
    connection that waits for the next request after an answer is the library's to close.

    Args:
        arguments: As the library gives them.
        stall_timeout_s: Longest time without a byte being taken, or sent.
        named: As the library gives them.
    """

    def __init__(self, *arguments: Any, stall_timeout_s: float, **named: Any) -> None:
        """Begin without a connection."""
        super().__init__(*arguments, **named)
        self._stall_timeout_s = stall_timeout_s
        self._looking: asyncio.TimerHandle | None = None
        self._listening: asyncio.TimerHandle | None = None
        self._awaits_request, self._has_received = True, False
        self._num_left_at_close: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        super().connection_made(transport)
        self._listen_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the connection go."""
        self._stop_looking()
        if self._listening is not None:
            self._listening.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the connection."""
        self._has_received = True
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._awaits_request = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """End a request."""
        self._awaits_request = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Have whoever writes wait, for the caller is slow."""
        super().pause_writing()
        self._look_later(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Have whoever writes go on."""
        self._stop_looking()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that was not used for long; what its caller has not taken until now it does not get."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _look_later(self, num_left: int) -> None:
        self._looking = self.loop.call_later(self._stall_timeout_s, self._look, num_left)

    def _look(self, num_left_before: int) -> None:
        num_left = self.transport.get_write_buffer_size()
        if num_left < num_left_before:
            self._look_later(num_left)
            return
        self._looking = None
        _LOGGER.info("caller takes nothing, its connection is broken off", extra={"caller": str(self.client)})
        # Closing would wait until the rest is taken.
        self.transport.abort()

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _listen_later(self) -> None:
        # One timer a connection, not one for each piece that comes: it costs nothing where all goes well.
        self._listening = self.loop.call_later(self._stall_timeout_s, self._listen)

    def _listen(self) -> None:
        if self.transport.is_closing():
            self._see_off()
            return
        # Nothing comes either while the server itself takes nothing.
        if self._has_received or not self._awaits_request or self.flow.read_paused:
            self._has_received = False
            self._listen_later()
            return
        _LOGGER.info("caller ends no request, its connection is broken off", extra={"caller": str(self.client)})
        self.transport.abort()

    def _see_off(self) -> None:
        """Break off a connection that closes once its caller has taken the rest, if it takes nothing of that."""
        num_left, before = self.transport.get_write_buffer_size(), self._num_left_at_close
        if before is not None and num_left >= before:
            self.transport.abort()
            return
        self._num_left_at_close = num_left
        self._listen_later()
