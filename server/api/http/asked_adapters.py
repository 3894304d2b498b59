"""Which adapters a call names, read from its raw body before any route sees it. Refuses nothing: the routes do."""

import json
from collections.abc import Mapping

INFERENCE_PATHS = frozenset({"/v1/summarize", "/v1/completions", "/v1/chat/completions"})
"""The routes whose calls run on the engine."""


def asked_adapters(path: str, body: bytes, base_id: str) -> tuple[str, ...]:
    """Return the references a call names, in its order; none where it names the base or is not well formed.

    Args:
        path: The route.
        body: The whole body.
        base_id: What the base is called in ``model``.
    """
    if path not in INFERENCE_PATHS:
        return ()
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(fields, Mapping):
        return ()
    model, adapters = fields.get("model"), fields.get("adapters")
    named = model.split("+") if isinstance(model, str) and model != base_id else []
    return tuple(each for each in [*named, *(adapters if isinstance(adapters, list) else [])] if isinstance(each, str))
