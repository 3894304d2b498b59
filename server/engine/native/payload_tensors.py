"""The tensors inside an adapter's payload, whatever family it is of: how large they are, and copies elsewhere.

A payload is a tensor, or mappings, tuples and dataclasses of payloads; whatever else it holds is taken as it is.
Any thread.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Payload = TypeVar("Payload")


def payload_bytes(payload: object) -> int:
    """Return the bytes of all tensors in a payload."""
    return sum(tensor.nbytes for tensor in _tensors(payload))


def to_device(payload: Payload, device: torch.device) -> Payload:
    """Return a copy on a device; from pinned memory the copy may still be under way on the current stream."""
    return map_tensors(payload, lambda tensor: tensor.to(device, non_blocking=True))


def to_pinned(payload: Payload) -> Payload:
    """Return a copy in host memory from which the device can read by itself."""
    return map_tensors(payload, lambda tensor: tensor.cpu().pin_memory())


def keep_for(payload: object, stream: torch.cuda.Stream) -> None:
    """Have the memory of a payload, once it is let go, wait for what the stream has to do by then."""
    for tensor in _tensors(payload):
        tensor.record_stream(stream)


def map_tensors(payload: Payload, change: Callable[[Tensor], Tensor]) -> Payload:
    """Return a payload of the same build with every tensor changed."""
    found: object = payload
    if isinstance(found, Tensor):
        found = change(found)
    elif isinstance(found, Mapping):
        found = {key: map_tensors(value, change) for key, value in found.items()}
    elif isinstance(found, tuple):
        found = tuple(map_tensors(value, change) for value in found)
    elif is_dataclass(found) and not isinstance(found, type):
        values = {field.name: map_tensors(getattr(found, field.name), change) for field in fields(found) if field.init}
        found = replace(found, **values)
    return found


def _tensors(payload: object) -> Iterator[Tensor]:
    if isinstance(payload, Tensor):
        yield payload
    elif isinstance(payload, Mapping):
        for value in payload.values():
            yield from _tensors(value)
    elif isinstance(payload, tuple):
        for value in payload:
            yield from _tensors(value)
    elif is_dataclass(payload) and not isinstance(payload, type):
        for field in fields(payload):
            yield from _tensors(getattr(payload, field.name))
