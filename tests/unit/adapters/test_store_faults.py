"""Whole or not there, whatever breaks off: a fault at every call in turn, another server between any two calls."""

import itertools
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters import store_remote
from adapters.errors import CorruptBlobError, StoreError
from adapters.store import AdapterStore
from tests.fixtures.adapters import write_lora
from tests.fixtures.remote_stores import NOBODY, Place, contents

pytestmark = pytest.mark.usefixtures("no_flushing")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = write_lora(tmp_path / "adapter")
    (folder / "card.md").write_text("# card")
    return folder


@pytest.fixture
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of local copies that need not outlive the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Fault(OSError):
    """A connection that broke."""


class Faulty:
    """A file system whose call number ``at`` fails, before or after it took effect, and perhaps all from then on."""

    def __init__(self, inner: object, at: int, how: str, between: Callable[[], object] | None = None) -> None:
        self.inner, self.at, self.how, self.between = inner, at, how, between
        self.num_calls = 0

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)
        if name not in {"ls", "put_file", "pipe_file", "get_file", "cat_file", "cp_file", "rm_file", "modified"}:
            return method

        def call(*args: object, **kwargs: object) -> object:
            number = self.num_calls
            self.num_calls += 1
            if self.between is not None:
                if number == self.at:
                    self.between()
                return method(*args, **kwargs)
            if number == self.at and self.how == "answer lost":
                method(*args, **kwargs)
            if number == self.at or (number > self.at and self.how == "crash"):
                raise Fault("broken")
            return method(*args, **kwargs)

        return call

    @property
    def was_reached(self) -> bool:
        return self.num_calls > self.at


def _break(server: AdapterStore, at: int, how: str, between: Callable[[], object] | None = None) -> Faulty:
    remote = server._remote
    assert remote is not None
    faulty = Faulty(remote._filesystem(), at, how, between)
    remote._filesystem = lambda: faulty  # type: ignore[method-assign]
    return faulty


def _make_old(place: Place, digest: str) -> None:
    for path, file in place.filesystem().store.items():
        if digest in path:
            file.modified = datetime.now(UTC) - timedelta(days=1)


def _prepare(what: str, place: Place, adapter: Path) -> Callable[[AdapterStore], object]:
    """Bring a store where the case begins, and return the step that will break off."""
    if what == "put new":
        return lambda server: server.put(adapter)
    digest = place.server().put(adapter)
    _make_old(place, digest)
    if what in ("put half", "sweep half"):
        place.remove(f"{digest}/.complete")
    if what == "quarantine":
        place.spoil(digest)
        return lambda server: server.local_path(digest)
    if what in ("sweep", "sweep half"):
        return lambda server: server.sweep(lambda: NOBODY, older_than_s=1000)
    return lambda server: server.put(adapter)


STEPS = ["put new", "put again", "put half", "sweep", "sweep half", "quarantine"]


@pytest.mark.parametrize("how", ["error", "answer lost", "crash"])
@pytest.mark.parametrize("what", STEPS)
def test_step_that_breaks_off_at_any_call_leaves_the_whole_blob_or_none(
    what: str, how: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    sound = contents(adapter)
    for at in itertools.count():
        place = Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path / str(at))
        step = _prepare(what, place, adapter)
        server = place.server()
        faulty = _break(server, at, how)
        with suppress(StoreError, CorruptBlobError):
            step(server)
        digest = _seen_by_another(place, sound, spoilt=what == "quarantine")
        # What a server that died has announced stands in nobody's way for ever.
        with monkeypatch.context() as patch:
            patch.setattr(store_remote, "_REMOVAL_DEAD_AFTER_S", 0.0)
            if digest is not None or what != "quarantine":
                assert contents(place.server().local_path(place.server().put(adapter))) == sound
            place.server().sweep(lambda: NOBODY, older_than_s=-5)
            place.server().sweep(lambda: NOBODY, older_than_s=-5)
            assert [path for path in place.files() if not path.startswith(".quarantine/")] == []
        if not faulty.was_reached:
            break
    assert at >= 3


def _seen_by_another(place: Place, sound: dict[str, bytes], *, spoilt: bool) -> str | None:
    """Check that what another server sees is the whole blob or none; return its digest if it is whole."""
    digests = {path.partition("/")[0] for path in place.files()} - {".quarantine"}
    for digest in digests:
        try:
            assert contents(place.server().local_path(digest)) == sound
        except CorruptBlobError:
            assert spoilt
        except StoreError:
            continue
        else:
            return digest
    return None


@pytest.mark.parametrize("outer", ["put", "sweep", "quarantine"])
@pytest.mark.parametrize("inner", ["put", "sweep"])
def test_what_was_put_is_whole_whatever_another_server_does_between_any_two_calls(
    outer: str, inner: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    sound = contents(adapter)
    for at in itertools.count():
        place = Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path / str(at))
        step = _prepare({"put": "put again"}.get(outer, outer), place, adapter)
        digest = place.files()[0].partition("/")[0]
        one, other = place.server(), place.server()
        was_put: list[bool] = []

        def between(other: AdapterStore = other, was_put: list[bool] = was_put) -> None:
            if inner == "sweep":
                other.sweep(lambda: NOBODY, older_than_s=1000)
                return
            try:
                other.put(adapter)
            except StoreError:  # it would wait for the removal, and be told in the end to try again
                return
            was_put.append(True)

        faulty = _break(one, at, "", between)
        try:
            step(one)
        except (CorruptBlobError, StoreError):
            assert outer == "quarantine"
        if (outer == "put" or was_put) and outer != "quarantine":
            assert contents(place.server().local_path(digest)) == sound
        if outer == "quarantine" and was_put:
            # Either the put came in time to see the spoilt blob go, or the next reader finds it.
            _seen_by_another(place, sound, spoilt=True)
            assert contents(place.server().local_path(place.server().put(adapter))) == sound
        if not faulty.was_reached:
            break
    assert at >= 3


@pytest.mark.parametrize("what", ["put again", "put half"])
def test_what_was_put_is_whole_though_a_sweep_stands_still_between_any_two_calls(
    what: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    sound, num_put = contents(adapter), 0
    for put_at, sweep_at in itertools.product(range(4), range(1, 12)):
        place = Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path / f"{put_at}-{sweep_at}")
        put = _prepare(what, place, adapter)
        digest = place.files()[0].partition("/")[0]
        one, other = place.server(), place.server()
        standing_still, go_on = threading.Event(), threading.Event()

        def stand_still(standing_still: threading.Event = standing_still, go_on: threading.Event = go_on) -> None:
            standing_still.set()
            assert go_on.wait(10)

        def sweep(other: AdapterStore = other, standing_still: threading.Event = standing_still) -> None:
            other.sweep(lambda: NOBODY, older_than_s=1000)
            standing_still.set()

        thread = threading.Thread(target=sweep)

        def begin(thread: threading.Thread = thread, standing_still: threading.Event = standing_still) -> None:
            thread.start()
            assert standing_still.wait(10)

        _break(other, sweep_at, "", stand_still)
        _break(one, put_at, "", begin)
        was_put = False
        with suppress(StoreError):
            put(one)
            was_put = True
        go_on.set()
        if thread.ident is not None:
            thread.join()
        if was_put:
            num_put += 1
            assert contents(place.server().local_path(digest)) == sound
    assert num_put > 10
