"""Adapters kept in host memory, ready to go to the device: bounded by bytes, least recently used goes first.

Knows no slots, no files and no torch: what it keeps is opaque. Any thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Payload = TypeVar("Payload")


class HostTier(Generic[Payload]):
    """A bounded memory of payloads by digest.

    Args:
        max_bytes: Most bytes kept; 0 keeps nothing.
        size_of: Bytes of a payload.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Payload], int]) -> None:
        self._max_bytes, self._size_of = max_bytes, size_of
        self._entries: OrderedDict[str, tuple[Payload, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._num_bytes = self._num_hits = 0

    @property
    def num_bytes(self) -> int:
        """Bytes kept now."""
        return self._num_bytes

    @property
    def num_hits(self) -> int:
        """How often :meth:`get` found what it was asked for."""
        return self._num_hits

    def __len__(self) -> int:
        """Payloads kept now."""
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        """Whether a payload is kept; neither a hit nor a use."""
        return digest in self._entries

    def get(self, digest: str) -> Payload | None:
        """Return a payload, now the most recently used one, or None."""
        with self._lock:
            found = self._entries.get(digest)
            if found is None:
                return None
            self._entries.move_to_end(digest)
            self._num_hits += 1
            return found[0]

    def put(self, digest: str, payload: Payload) -> None:
        """Keep a payload as the most recently used one; one larger than the whole memory is not kept."""
        with self._lock:
            if digest in self._entries:
                self._entries.move_to_end(digest)
                return
            num_bytes = self._size_of(payload)
            if num_bytes > self._max_bytes:
                return
            while self._num_bytes + num_bytes > self._max_bytes:
                _, (_, num_freed) = self._entries.popitem(last=False)
                self._num_bytes -= num_freed
            self._entries[digest] = (payload, num_bytes)
            self._num_bytes += num_bytes
