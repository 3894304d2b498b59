"""Warnings of PEFT that do not apply to what is done here, and so would only teach users to read over warnings.

It knows messages; it changes no behaviour.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_BESIDE_THE_POINT = (
    # LayerNorm tuning copies the layer whole, whatever its type.
    "Unsupported layer type",
    # Rows are of one length where there is a soft prompt: positions are those a model counts by itself.
    "Position ids are not supported",
)


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """Keep those warnings back; not for several threads at once.

    Raises:
        Nothing.
    """
    with warnings.catch_warnings():
        for message in _BESIDE_THE_POINT:
            warnings.filterwarnings("ignore", message=message)
        yield
