"""What a server does beside answering: it looks what other servers changed, tells them what it uses, and sweeps.

A database or a store that cannot be reached is said once, and once when it is back; serving goes on meanwhile. Event
loop's thread only; the work itself runs in threads of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from adapters.errors import AdapterError
from adapters.registry import Registry
from adapters.store import AdapterStore
from server.access.keys import KeyRing
from server.core.errors import InvalidArgumentError
from server.service.directory import AdapterDirectory

_log = logging.getLogger(__name__)
# A server that dies holds versions back for so long; one that lives tells anew in time.
_LEASES_TTL_S = 30.0


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Where names and keys are kept.

    Attributes:
        url: Database URL; empty means SQLite in the data directory.
        poll_s: Seconds between two looks at what other servers changed.

    Raises:
        InvalidArgumentError: If ``poll_s`` is not over 0.
    """

    url: str = field(default="", repr=False)
    poll_s: float = 0.5

    def __post_init__(self) -> None:
        """Refuse to look without a pause."""
        if self.poll_s <= 0:
            raise InvalidArgumentError("registry.poll_s must be over 0")


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where adapters' bytes are kept.

    Attributes:
        url: A path, or a URL as ``s3://bucket/folder``; empty means a folder in the data directory.
        max_local_bytes: How much the local copies of a remote store may take.
        sweep_grace_s: Age from which bytes without a name are removed; more than an upload takes from bytes to name.
        sweep_every_s: Seconds between two sweeps.
        options: What fsspec needs to reach a remote store: ``endpoint_url``, keys, ``token``.

    Raises:
        InvalidArgumentError: If a time is not over 0.
    """

    url: str = ""
    max_local_bytes: int = 10 << 30
    sweep_grace_s: float = 3600.0
    sweep_every_s: float = 600.0
    options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse to sweep without a pause, or what is just being put."""
        if self.sweep_every_s <= 0 or self.sweep_grace_s <= 0:
            raise InvalidArgumentError("store.sweep_every_s and store.sweep_grace_s must be over 0")


class Upkeep:
    """The background tasks.

    Args:
        registry: Refreshed, and told what is in use here.
        key_ring: Refreshed.
        store: Swept.
        directory: Knows what is in use here.
        poll_s: Seconds between two looks.
        sweep_every_s: Seconds between two sweeps.
        sweep_grace_s: Age from which bytes without a name are removed.
        also: What else is looked at as often as the registry, by what is being done.
    """

    def __init__(
        self,
        registry: Registry,
        key_ring: KeyRing,
        store: AdapterStore,
        directory: AdapterDirectory,
        *,
        poll_s: float,
        sweep_every_s: float,
        sweep_grace_s: float,
        also: Mapping[str, Callable[[], object]] = MappingProxyType({}),
    ) -> None:
        """Do nothing yet; :meth:`start` does."""
        self._registry = registry
        self._key_ring = key_ring
        self._store = store
        self._directory = directory
        self._poll_s = poll_s
        self._sweep_every_s = sweep_every_s
        self._sweep_grace_s = sweep_grace_s
        self._also = also
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: set[str] = set()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="upkeep")

    def start(self) -> None:
        """Begin, with a sweep at once."""
        self._tasks = [
            asyncio.create_task(self._poll(), name="upkeep-poll"),
            asyncio.create_task(self._sweep(), name="upkeep-sweep"),
        ]

    async def stop(self) -> None:
        """End, when what runs now has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)

    async def _poll(self) -> None:
        while True:
            await self._try("refreshing the registry", self._registry.refresh)
            await self._try("refreshing the keys", self._key_ring.refresh)
            for what, look in self._also.items():
                await self._try(what, look)
            publish = partial(self._registry.publish_leases, self._directory.leased(), ttl_s=_LEASES_TTL_S)
            await self._try("publishing leases", publish)
            await asyncio.sleep(self._poll_s)

    async def _sweep(self) -> None:
        sweep = partial(self._store.sweep, self._registry.live_digests, older_than_s=self._sweep_grace_s)
        while True:
            await self._try("sweeping the store", sweep)
            await asyncio.sleep(self._sweep_every_s)

    async def _try(self, what: str, work: Callable[[], object]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except AdapterError as error:
            if what not in self._failing:
                _log.warning("%s fails: %s", what, error.message)
            self._failing.add(what)
        except Exception:  # a mistake of ours; what else is done here must go on
            if what not in self._failing:
                _log.exception("%s fails", what)
            self._failing.add(what)
        else:
            if what in self._failing:
                _log.info("%s works again", what)
            self._failing.discard(what)
