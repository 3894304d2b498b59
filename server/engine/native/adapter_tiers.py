"""Three places for an adapter's weights: its files, host memory, the device.

Files are read, checked and cast once; the result stays in host memory within a bound and goes to the device from there.
On CPU both are the same memory: what a slot gives up is still there, and taking it back costs nothing. On CUDA the host
keeps pinned copies, and copies run on a stream of their own beside the steps. Knows no slots.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch

from server.engine.base import ResolvedAdapter
from server.engine.native.host_tier import HostTier
from server.engine.native.payload_tensors import keep_for, payload_bytes, to_device, to_pinned
from server.observability.durations import Durations

Payload = TypeVar("Payload")


class AdapterTiers(Generic[Payload]):
    """Brings adapters up and keeps what they give up. Any thread, except where a method says otherwise.

    Args:
        read: Reads an adapter's files into a payload on the device.
        device: The device.
        max_host_bytes: Most bytes kept in host memory.

    Attributes:
        host: The host memory.
        load_times: How long :meth:`load` took, failures left out.
    """

    def __init__(self, read: Callable[[ResolvedAdapter], Payload], device: torch.device, max_host_bytes: int) -> None:
        self.host: HostTier[Payload] = HostTier(max_host_bytes, payload_bytes)
        self.load_times = Durations()
        self._read, self._device = read, device
        self._is_host = device.type == "cpu"
        self._stream = None if self._is_host else torch.cuda.Stream(device)

    def at_once(self, adapter: ResolvedAdapter) -> Payload | None:
        """Return the adapter's weights on the device if that takes neither reading nor copying, else None."""
        return self.host.get(adapter.digest) if self._is_host else None

    @torch.inference_mode()
    def load(self, adapter: ResolvedAdapter) -> Payload:
        """Return the adapter's weights on the device, all copies done; takes as long as reading its files.

        Raises:
            AdapterError: If the files are not a sound adapter for this base.
        """
        begun_s = time.monotonic()
        with self._beside_the_steps():
            kept = self.host.get(adapter.digest)
            payload = self._read_and_keep(adapter) if kept is None else to_device(kept, self._device)
        if self._stream is not None:
            self._stream.synchronize()
            # The steps read it on their own stream, of which the allocator of this one knows nothing.
            keep_for(payload, torch.cuda.default_stream(self._device))
        self.load_times.observe(time.monotonic() - begun_s, adapter.digest)
        return payload

    def fetch(self, adapter: ResolvedAdapter) -> None:
        """Bring the adapter's weights into host memory.

        Raises:
            AdapterError: If the files are not a sound adapter for this base.
        """
        if adapter.digest not in self.host:
            self.load(adapter)

    def gave_up(self, digest: str, payload: Payload) -> None:
        """Keep what a slot gave up, where that takes no copy; most recently used among what is kept."""
        if self._is_host:
            self.host.put(digest, payload)

    def _read_and_keep(self, adapter: ResolvedAdapter) -> Payload:
        payload = self._read(adapter)
        self.host.put(adapter.digest, payload if self._is_host else to_pinned(payload))
        return payload

    def _beside_the_steps(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
