"""The adapters a raw body names, as the routes read them."""

import json
from typing import Any

import pytest

from server.api.http.asked_adapters import asked_adapters

SUMMARIZE, COMPLETIONS, CHAT = "/v1/summarize", "/v1/completions", "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (SUMMARIZE, {"text": "x"}, ()),
        (SUMMARIZE, {"text": "x", "adapters": ["a:1", "b"]}, ("a:1", "b")),
        (COMPLETIONS, {"model": "base"}, ()),
        (COMPLETIONS, {"model": None}, ()),
        (COMPLETIONS, {"model": "a@canary+b"}, ("a@canary", "b")),
        (CHAT, {"model": "a", "adapters": ["b"]}, ("a", "b")),
        (CHAT, {"model": "base", "adapters": ["b"]}, ("b",)),
        (CHAT, {"model": 3, "adapters": "b"}, ()),
        (SUMMARIZE, {"adapters": [1, "b"]}, ("b",)),
        (SUMMARIZE, ["a"], ()),
        ("/v1/references", {"adapters": ["a"]}, ()),
    ],
)
def test_adapters_of_a_body_are_found(path: str, fields: Any, named: tuple[str, ...]) -> None:
    assert asked_adapters(path, json.dumps(fields).encode(), "base") == named


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_body_that_is_no_json_names_none(body: bytes) -> None:
    assert asked_adapters(SUMMARIZE, body, "base") == ()
