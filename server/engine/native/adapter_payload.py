"""What a slot holds: the weights of one adapter on the device, whatever its family, and which of them a row has.

Knows no slots and no files. Any thread.
"""

from collections.abc import Callable

from torch import Tensor

from server.engine.base import ResolvedAdapter
from server.engine.native.batch import Row
from server.engine.native.layers.prefix import Prefix
from server.engine.native.layers.weight_adapter import WeightAdapter

AdapterPayload = WeightAdapter | Prefix | Tensor
"""A weight adapter, a prefix, or the (P, D) embeddings of a soft prompt."""

Payloads = Callable[[ResolvedAdapter], AdapterPayload]
"""Gives the weights of an adapter that a running row holds."""


def weight_digest(row: Row) -> str | None:
    """Return the digest of the row's weight adapter, or None."""
    return row.request.weight_adapter.digest if row.request.weight_adapter else None


def weight_adapter(row: Row, payloads: Payloads) -> WeightAdapter | None:
    """Return the row's weight adapter, or None."""
    if row.request.weight_adapter is None:
        return None
    payload = payloads(row.request.weight_adapter)
    assert isinstance(payload, WeightAdapter)
    return payload


def prompt(row: Row, payloads: Payloads) -> Tensor | Prefix | None:
    """Return what comes before the row: the embeddings of a soft prompt, a prefix, or None."""
    if row.request.soft_prompt is None:
        return None
    payload = payloads(row.request.soft_prompt)
    assert not isinstance(payload, WeightAdapter)
    return payload
