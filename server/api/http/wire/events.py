"""Server-sent events as bytes, and what turns a generation's chunks into them.

Source:
    Event format: https://html.spec.whatwg.org/multipage/server-sent-events.html; ``[DONE]`` as OpenAI's streams end.
"""

import json
from collections.abc import Mapping
from typing import Protocol

from server.core.outputs import GenerationChunk

DONE = b"data: [DONE]\n\n"
to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Write JSON as streams have it: without needless spaces and escapes."""


class Pieces(Protocol):
    """Turns the chunks of one call into events. Stateful: one for each stream."""

    def piece(self, index: int, chunk: GenerationChunk) -> bytes:
        """Return the event of a chunk; ``index`` is its request's among those of the call."""
        ...

    def last(self) -> bytes:
        """Return what stands between the last chunk's event and the end; possibly nothing."""
        ...


def event(payload: Mapping[str, object]) -> bytes:
    """Return the event that carries ``payload``."""
    return f"data: {to_json(payload)}\n\n".encode()
