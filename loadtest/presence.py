"""Whether anybody listens at an address: told by the connection alone, whatever the protocol."""

import asyncio
import contextlib

_TIMEOUT_S = 5.0
_NUM_TRIES = 3
_PAUSE_S = 0.5


class ServerGoneError(Exception):
    """Nobody listens where the server should be."""


async def is_listening(address: str, num_tries: int = 1) -> bool:
    """Say whether a connection can be made, at the latest at the last try.

    Args:
        address: ``host:port``.
        num_tries: How often to try, with a pause between.
    """
    host, _, port = address.rpartition(":")
    for number in range(num_tries):
        if number:
            await asyncio.sleep(_PAUSE_S)
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return True
    return False


class Watch:
    """Looks after a server that requests say they cannot reach.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._doubts = asyncio.Event()

    def doubt(self) -> None:
        """Say that a request did not reach the server."""
        self._doubts.set()

    async def until_gone(self) -> None:
        """Wait until nobody listens any more.

        Raises:
            ServerGoneError: Then.
        """
        while True:
            await self._doubts.wait()
            if not await is_listening(self._address, _NUM_TRIES):
                raise ServerGoneError(f"the server at {self._address} went away during the run")
            self._doubts.clear()
