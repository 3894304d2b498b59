"""Connections to object stores: whose they are and how long a silent one is waited for."""

import socket
import time

import pytest

from adapters.object_stores import connect


def test_connect_gives_every_caller_a_connection_of_its_own() -> None:
    one, path = connect("memory://somewhere/deep", {})
    other, _ = connect("memory://somewhere/deep", {})
    assert one is not other
    assert path == "/somewhere/deep"


def test_connect_to_s3_repeats_nothing_twice_and_takes_overrides() -> None:
    filesystem, path = connect("s3://bucket/folder", {"config_kwargs": {"read_timeout": 7}})
    assert path == "bucket/folder"
    assert filesystem.config_kwargs == {"connect_timeout": 5, "read_timeout": 7, "retries": {"max_attempts": 0}}


def test_silent_s3_server_is_given_up_after_five_attempts() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)  # takes connections and never answers
        options = {"endpoint_url": f"http://127.0.0.1:{listener.getsockname()[1]}", "key": "a", "secret": "b"}
        filesystem, _ = connect("s3://bucket/folder", {**options, "config_kwargs": {"read_timeout": 0.05}})
        start_s = time.monotonic()
        with pytest.raises(Exception, match="timeout"):
            filesystem.ls("bucket/folder")
        assert time.monotonic() - start_s < 10


@pytest.mark.parametrize(
    ("url", "options"), [("nonsense://x", {}), ("s3://bucket/x", {"config_kwargs": 3}), ("s3://b/x", {"nonsense": 1})]
)
def test_connect_to_an_impossible_place_raises_what_it_says(url: str, options: dict[str, object]) -> None:
    with pytest.raises((ImportError, TypeError, ValueError)):
        connect(url, options)[0].ls("bucket")
