"""Sources: what is allowed, what is taken, and that the other side decides neither size nor place."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import sources
from adapters.errors import AdapterError, AdapterTooLargeError, SourceError, SourceNotAllowedError
from adapters.sources import fetch_source
from tests.fixtures.adapters import CONFIG, WEIGHTS
from tests.fixtures.hub import Hub, running_hub
from tests.fixtures.s3 import S3Server, running_s3

FILES = {CONFIG: b"{}", WEIGHTS: bytes(range(256)) * 30, "card.md": b"# card"}
Options = dict[str, dict[str, object]]


@dataclass
class Origin:
    """A place to fetch from.

    Attributes:
        url: Of the folder.
        options: As ``fetch_source`` takes them.
        add: Puts a file into the folder.
    """

    url: str
    options: Options
    add: Callable[[str, bytes], object]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture(params=["file", "s3", "hf"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Origin:
    if request.param == "file":
        folder = tmp_path / "allowed" / "news"
        folder.mkdir(parents=True)
        return Origin(folder.as_uri(), {}, lambda name, data: (folder / name).write_bytes(data))
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        url = f"{server.new_bucket()}/adapters/news"
        filesystem = server.filesystem()
        return Origin(url, {"s3": server.options}, lambda name, data: filesystem.pipe_file(f"{url}/{name}", data))
    hub: Hub = request.getfixturevalue("hub")
    repository = f"medley/{uuid.uuid4().hex}"
    add = lambda name, data: hub.add(repository, f"news/{name}", data)  # noqa: E731
    return Origin(f"hf://{repository}@main/news", {"hf": hub.options}, add)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def _fetch(source: str, into: Path, options: Options | None = None, *, allowed: tuple[str, ...] = ("",)) -> None:
    schemes = ("hf://", "s3://", "file:///")
    fetch_source(
        source,
        into,
        allowed=schemes if allowed == ("",) else allowed,
        max_file_bytes=10_000,
        max_text_bytes=100,
        options=options,
    )


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetch_takes_an_adapters_files_and_nothing_else(origin: Origin, into: Path) -> None:
    others = {"training_args.bin": b"x", "notes.txt": b"x" * 50_000, "tokenizer.json": b"{}"}
    for name, data in {**FILES, **others}.items():
        origin.add(name, data)
    _fetch(origin.url, into, origin.options)
    assert _contents(into) == FILES


@pytest.mark.parametrize("name", [WEIGHTS, "card.md"])
def test_fetch_of_a_file_over_its_limit_is_refused_and_leaves_nothing(origin: Origin, name: str, into: Path) -> None:
    for path, data in {**FILES, name: b"x" * 10_001}.items():
        origin.add(path, data)
    with pytest.raises(AdapterTooLargeError, match=name):
        _fetch(origin.url, into, origin.options)
    assert _contents(into) == {}


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_fetch_of_a_folder_without_an_adapter_is_a_source_error(origin: Origin, missing: str, into: Path) -> None:
    for name, data in {**FILES, "adapter_model.bin": b"x"}.items():
        if name != missing:
            origin.add(name, data)
    with pytest.raises(SourceError, match=missing):
        _fetch(origin.url, into, origin.options)
    assert _contents(into) == {}


def test_fetch_of_nothing_is_a_source_error_that_tells_no_secret(origin: Origin, into: Path) -> None:
    origin.add(CONFIG, b"{}")
    with pytest.raises(SourceError) as caught:
        _fetch(origin.url.removesuffix("news") + "nowhere", into, origin.options)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_fetch_that_takes_too_long_is_given_up(origin: Origin, into: Path) -> None:
    for name, data in FILES.items():
        origin.add(name, data)
    with pytest.raises(SourceError, match="too long"):
        fetch_source(
            origin.url,
            into,
            allowed=("hf://", "s3://", "file:///"),
            max_file_bytes=10_000,
            max_text_bytes=100,
            options=origin.options,
            timeout_s=0.0,
        )
    assert _contents(into) == {}


@pytest.mark.parametrize("url", ["hf://medley/unknown", "hf://medley/known@v9", "hf://medley/known/nowhere"])
def test_fetch_from_an_unknown_place_on_the_hub_is_a_source_error(url: str, hub: Hub, into: Path) -> None:
    hub.add("medley/known", CONFIG, b"{}")
    with pytest.raises(SourceError, match="nothing is at the source"):
        _fetch(url, into, {"hf": hub.options})


def test_fetch_from_a_hub_that_sends_more_than_it_said_stops_at_the_limit(hub: Hub, into: Path) -> None:
    repository = f"medley/{uuid.uuid4().hex}"
    for name, data in FILES.items():
        hub.add(repository, name, data)
    hub.lies[WEIGHTS] = bytes(50 << 20)
    largest = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            with suppress(FileNotFoundError):  # it is being removed
                largest[0] = max(largest[0], sum(path.stat().st_size for path in into.iterdir()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(AdapterTooLargeError, match=WEIGHTS):
            _fetch(f"hf://{repository}", into, {"hf": hub.options})
    finally:
        stop.set()
        watcher.join()
        hub.lies.clear()
    assert largest[0] < 20_000
    assert _contents(into) == {}


def test_fetch_from_a_hub_that_sends_less_than_it_said_is_a_source_error(hub: Hub, into: Path) -> None:
    repository = f"medley/{uuid.uuid4().hex}"
    for name, data in FILES.items():
        hub.add(repository, name, data)
    hub.lies[WEIGHTS] = b"short"
    try:
        with pytest.raises(SourceError):
            _fetch(f"hf://{repository}", into, {"hf": hub.options})
    finally:
        hub.lies.clear()
    assert _contents(into) == {}


@pytest.mark.parametrize("stated", [True, False])
def test_fetch_from_an_s3_object_that_has_grown_stops_at_the_limit(
    stated: bool, s3: S3Server, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.new_bucket()
    for name, data in {**FILES, WEIGHTS: bytes(1 << 20)}.items():
        s3.filesystem().pipe_file(f"{url}/{name}", data)
    monkeypatch.setattr(sources, "_list", lambda filesystem, folder: dict.fromkeys(FILES, 2))
    if not stated:  # as if the answer came without its length
        monkeypatch.delattr(sources._Bounded, "set_size")
    with pytest.raises(AdapterTooLargeError):
        _fetch(url, into, {"s3": s3.options})
    assert _contents(into) == {}


def test_fetch_from_a_server_that_is_not_there_is_a_source_error(into: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"  # bound, and nobody answers: refused at once
        with pytest.raises(SourceError, match="cannot be read") as caught:
            _fetch("s3://bucket/news", into, {"s3": {"endpoint_url": endpoint, "key": "a", "secret": "b"}})
    assert endpoint not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("hf://medley/news", ("s3://",)),
        ("hf://medley/news", ()),
        ("hf://medley2/news", ("hf://medley",)),
        ("hf://medley/news2/x", ("hf://medley/news/",)),
        ("s3://bucket2/x", ("s3://bucket",)),
        ("s3://bucket/other/x", ("s3://bucket/adapters/",)),
        ("file:///etc", ("file:///data/",)),
        ("file:///data2", ("file:///data",)),
        ("file:///data/../etc", ("file:///data/",)),
        ("file:///data/./x", ("file:///data/",)),
        ("file:///data//x", ("file:///data/",)),
        ("file:///data/%2e%2e/etc", ("file:///",)),
        ("file://host/data", ("file://",)),
        ("file:/data", ("file://",)),
        ("file://", ("file://",)),
        ("file:///", ("file://",)),
        ("/data/x", ("file://",)),
        ("FILE:///data", ("file://",)),
        ("https://example.org/x", ("https://",)),
        ("http://169.254.169.254/latest", ("http://",)),
        ("memory://x/y", ("memory://",)),
        ("s3://user:word@bucket/x", ("s3://",)),
        ("s3://bucket/x?versionId=1", ("s3://",)),
        ("s3://bucket/x#y", ("s3://",)),
        ("s3://bucket/*", ("s3://",)),
        ("s3://bucket\\x", ("s3://",)),
        ("s3://", ("s3://",)),
        ("s3://bucket/ x", ("s3://",)),
        ("s3://bucket/x\n", ("s3://",)),
        ("s3://bucket/x\x00", ("s3://",)),
        ("simplecache::s3://bucket/x", ("s3://", "simplecache::")),
        ("s3://bucket::s3://x", ("s3://",)),
        ("hf://medley", ("hf://",)),
        ("hf://datasets/medley/news", ("hf://",)),
        ("hf://spaces/medley/news", ("hf://",)),
        ("hf://buckets/medley/news", ("hf://",)),
        ("hf://medley/news@", ("hf://",)),
        ("hf://medley/news@refs/pr/1", ("hf://",)),
        ("hf://medley/news@refs%2Fpr%2F1", ("hf://",)),
        ("hf://medley/news@main@x", ("hf://",)),
        ("hf://medley@main/news", ("hf://",)),
        ("hf://medley/news/a@b", ("hf://",)),
        ("hf://medley/news@..", ("hf://",)),
        ("hf://medley/ñews", ("hf://",)),
        ("hf://medley/" + "x" * 1100, ("hf://",)),
        ("", ("",)),
    ],
)
def test_fetch_of_what_is_not_allowed_is_refused(source: str, allowed: tuple[str, ...], into: Path) -> None:
    with pytest.raises(SourceNotAllowedError):
        fetch_source(source, into, allowed=allowed, max_file_bytes=1, max_text_bytes=1)


@pytest.mark.parametrize("prefix", ["file://", "file:///", "{}", "{}/", "{}/news", "{}/news/"])
def test_fetch_under_an_allowed_folder_is_taken(prefix: str, into: Path, tmp_path: Path) -> None:
    folder = tmp_path / "allowed" / "news"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    _fetch(f"{folder.as_uri()}/", into, allowed=(prefix.format((tmp_path / "allowed").as_uri()),))
    assert _contents(into) == FILES


def test_fetch_follows_links_within_the_allowed_folder_as_the_hubs_cache_has_them(into: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, (name, data) in enumerate(FILES.items()):
        (blobs / str(number)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    _fetch(snapshot.as_uri(), into, allowed=((tmp_path / "cache").as_uri(),))
    assert _contents(into) == FILES


@pytest.mark.parametrize("what", ["file", "folder"])
def test_fetch_through_a_link_out_of_the_allowed_folder_is_refused(what: str, into: Path, tmp_path: Path) -> None:
    outside, allowed = tmp_path / "outside", tmp_path / "allowed"
    outside.mkdir()
    allowed.mkdir()
    for name, data in FILES.items():
        (outside / name).write_bytes(data)
    if what == "folder":
        (allowed / "news").symlink_to(outside)
    else:
        (allowed / "news").mkdir()
        for name in FILES:
            (allowed / "news" / name).symlink_to(outside / name)
    with pytest.raises(SourceNotAllowedError, match="leads out"):
        _fetch((allowed / "news").as_uri(), into, allowed=(allowed.as_uri(),))
    assert _contents(into) == {}


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_fetch_of_what_is_no_regular_file_is_a_source_error_at_once(kind: str, into: Path, tmp_path: Path) -> None:
    folder = tmp_path / "news"
    folder.mkdir()
    (folder / CONFIG).write_bytes(b"{}")
    if kind == "pipe":
        os.mkfifo(folder / WEIGHTS)
    elif kind == "folder":
        (folder / WEIGHTS).mkdir()
    else:
        (folder / WEIGHTS).symlink_to(WEIGHTS)
    start_s = time.monotonic()
    with pytest.raises(SourceError):
        _fetch(folder.as_uri(), into)
    assert time.monotonic() - start_s < 5
    assert _contents(into) == {}


@settings(deadline=None)
@given(text=st.text(max_size=40), scheme=st.sampled_from(["hf://", "s3://", "file:///", "file://", ""]))
def test_fetch_of_any_text_raises_nothing_but_adapter_errors(text: str, scheme: str) -> None:
    with pytest.raises(AdapterError):
        fetch_source(scheme + text, Path("/nowhere"), allowed=("x://",), max_file_bytes=1, max_text_bytes=1)
