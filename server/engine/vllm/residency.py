"""Which adapters of one kind are resident, who uses them, and who gets the next place.

Who gets a place. A request whose adapter is resident takes it at once. One whose adapter is not takes an empty place,
else that of the adapter that nobody uses, least recently used first, else it waits, first come first served. Once the
oldest has waited for :data:`PATIENCE_S`, the place with the fewest users is closed to new ones, so that it is free
after their answers: no adapter starves, whatever arrives. Requests for one adapter share one load.

Plain asyncio, event loop's thread only. Knows nothing of what it keeps.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.core.errors import MedleyError, ResourceExhaustedError
from server.engine.base import ResolvedAdapter
from server.observability.durations import Durations

_log = logging.getLogger(__name__)
Payload = TypeVar("Payload")

PATIENCE_S = 2.0
"""How long the oldest request without a place lets others pass before one is closed for it."""


@dataclass(slots=True, eq=False)
class Place(Generic[Payload]):
    """One adapter's place.

    Attributes:
        adapter: Whose it is.
        loaded: What it holds, once loaded; fails if that fails.
        num_users: Requests that hold it.
        is_pinned: Whether it stays without users.
        is_closed: Whether new users must wait until it is another adapter's.
    """

    adapter: ResolvedAdapter
    loaded: "asyncio.Future[Payload]"
    num_users: int = 0
    is_pinned: bool = False
    is_closed: bool = False

    @property
    def payload(self) -> Payload:
        """What it holds; whoever acquired it may ask."""
        return self.loaded.result()

    @property
    def is_idle(self) -> bool:
        """Whether it can be given to another adapter."""
        return not self.num_users and not self.is_pinned and self.loaded.done()


@dataclass(slots=True)
class _Wish(Generic[Payload]):
    """An adapter that waits for a place, and the requests that wait for it."""

    adapter: ResolvedAdapter
    since_s: float
    waiters: "list[asyncio.Future[Place[Payload]]]" = field(default_factory=list)


class Residency(Generic[Payload]):
    """The places.

    Args:
        capacity: How many there are.
        load: Brings an adapter up.
        unload: Takes one down; awaited before the next is brought up in its place.
        load_times: Counts how long loading takes.
    """

    def __init__(
        self,
        capacity: int,
        load: Callable[[ResolvedAdapter], Awaitable[Payload]],
        unload: Callable[[Payload], Awaitable[None]],
        load_times: Durations,
    ) -> None:
        """Begin with empty places."""
        self._capacity = capacity
        self._load, self._unload, self._load_times = load, unload, load_times
        self._places: OrderedDict[str, Place[Payload]] = OrderedDict()
        self._wishes: OrderedDict[str, _Wish[Payload]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_loads = self.num_evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests that are loaded, least recently used first."""
        return tuple(digest for digest, place in self._places.items() if place.loaded.done())

    async def acquire(self, adapter: ResolvedAdapter) -> Place[Payload]:
        """Hold an adapter, bringing it up if need be; whoever gets a place must :meth:`release` it.

        Raises:
            ResourceExhaustedError: If every place is pinned by another adapter.
            Exception: Whatever loading raised.
        """
        place = self._find(adapter.digest) or await self._wait_for_place(adapter)
        try:
            if not place.loaded.done():
                # Not the future itself: others wait for it, too, and a cancelled waiter would cancel it.
                await asyncio.wait((place.loaded,))
            place.loaded.result()
        except BaseException:
            self.release(place)
            raise
        return place

    def release(self, place: Place[Payload]) -> None:
        """Give up one hold; the adapter stays until its place is needed."""
        place.num_users -= 1
        if self._wishes:
            self._grant()

    async def pin(self, adapter: ResolvedAdapter) -> None:
        """Bring an adapter up, and keep it.

        Raises:
            ResourceExhaustedError: If every place is pinned or in use.
            Exception: Whatever loading raised.
        """
        place = self._places.get(adapter.digest) or self._take(adapter)
        if place is None:
            raise ResourceExhaustedError(
                f"every place for {adapter.kind.role} is pinned or in use; unpin one or try again later"
            )
        place.is_pinned, place.is_closed = True, False
        self._grant()
        try:
            await asyncio.wait((place.loaded,))
            place.loaded.result()
        except BaseException:
            place.is_pinned = False
            raise

    def unpin(self, digest: str) -> None:
        """Let a pinned adapter go again; unknown digests are ignored."""
        if place := self._places.get(digest):
            place.is_pinned = False
            self._grant()

    def clear(self, error: MedleyError) -> None:
        """Forget everything, as what held the adapters is gone; whoever waits gets ``error``."""
        for task in self._tasks:
            task.cancel()
        for place in self._places.values():
            _fail(place.loaded, error)
        for wish in self._wishes.values():
            for waiter in wish.waiters:
                _fail(waiter, error)
        self._places.clear()
        self._wishes.clear()

    def _find(self, digest: str) -> Place[Payload] | None:
        """Return a place that may be used at once, counting the user."""
        place = self._places.get(digest)
        if place is None:
            return None
        if self._wishes:
            self._close_one_if_due()
        if place.is_closed:
            return None
        self._places.move_to_end(digest)
        place.num_users += 1
        return place

    async def _wait_for_place(self, adapter: ResolvedAdapter) -> Place[Payload]:
        waiter: asyncio.Future[Place[Payload]] = asyncio.get_running_loop().create_future()
        self._wishes.setdefault(adapter.digest, _Wish(adapter, time.monotonic())).waiters.append(waiter)
        self._grant()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def _grant(self) -> None:
        """Give free places to those who wait, oldest first."""
        while self._wishes:
            digest, wish = next(iter(self._wishes.items()))
            wish.waiters = [waiter for waiter in wish.waiters if not waiter.done()]
            if wish.waiters:
                place = self._places.get(digest) or self._take(wish.adapter)
                if place is None:
                    self._refuse_if_all_pinned()
                    self._close_one_if_due()
                    return
                place.is_closed = False
                place.num_users += len(wish.waiters)
                for waiter in wish.waiters:
                    waiter.set_result(place)
            self._wishes.pop(digest)

    def _take(self, adapter: ResolvedAdapter) -> Place[Payload] | None:
        """Make an adapter a place, evicting one that nobody uses; None if there is none."""
        evicted: Place[Payload] | None = None
        if len(self._places) >= self._capacity:
            evicted = next((place for place in self._places.values() if place.is_idle), None)
            if evicted is None:
                return None
            del self._places[evicted.adapter.digest]
            self.num_evictions += 1
        place = Place[Payload](adapter, asyncio.get_running_loop().create_future())
        self._places[adapter.digest] = place
        task = asyncio.create_task(self._bring_up(place, evicted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return place

    async def _bring_up(self, place: Place[Payload], evicted: Place[Payload] | None) -> None:
        started_s = time.monotonic()
        try:
            if evicted is not None:
                await self._unload(evicted.payload)
            payload = await self._load(place.adapter)
        except Exception as error:
            _log.warning("adapter %s could not be loaded: %s", place.adapter.digest, error)
            if self._places.get(place.adapter.digest) is place:
                del self._places[place.adapter.digest]
            _fail(place.loaded, error)
            self._grant()
            return
        self.num_loads += 1
        self._load_times.observe(time.monotonic() - started_s, place.adapter.digest)
        place.loaded.set_result(payload)
        self._grant()

    def _refuse_if_all_pinned(self) -> None:
        if not all(place.is_pinned for place in self._places.values()):
            return
        for wish in self._wishes.values():
            error = ResourceExhaustedError(
                f"every place for {wish.adapter.kind.role} is pinned; this adapter cannot be loaded"
            )
            for waiter in wish.waiters:
                _fail(waiter, error)
        self._wishes.clear()

    def _close_one_if_due(self) -> None:
        oldest = next(iter(self._wishes.values()), None)
        if oldest is None or time.monotonic() - oldest.since_s < PATIENCE_S:
            return
        open_places = [place for place in self._places.values() if not place.is_pinned]
        if open_places and not any(place.is_closed for place in open_places):
            min(open_places, key=lambda place: place.num_users).is_closed = True


def _fail(future: "asyncio.Future[Payload]", error: Exception) -> None:
    """Fail a future that may be done, and that perhaps nobody waits for."""
    if not future.done():
        future.set_exception(error)
        future.exception()
