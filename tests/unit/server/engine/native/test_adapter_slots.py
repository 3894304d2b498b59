"""Residency: least recently used goes first, users and pins stay, nobody waits for ever."""

from pathlib import Path

import pytest

from adapters.manifest import AdapterKind, AdapterRole
from server.core.errors import ResourceExhaustedError
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.native.adapter_slots import PATIENCE_STEPS, ResidentAdapters
from server.engine.native.batch import Row


def lora(name: str) -> ResolvedAdapter:
    return ResolvedAdapter(name, AdapterKind.LORA, Path(name), rank=4)


def prompt(name: str) -> ResolvedAdapter:
    return ResolvedAdapter(name, AdapterKind.PROMPT, Path(name), num_virtual_tokens=4)


def row(name: str, *adapters: ResolvedAdapter, max_new_tokens: int = 20) -> Row:
    by_role = {adapter.kind.role: adapter for adapter in adapters}
    params = SamplingParams(max_new_tokens=max_new_tokens)
    request = EngineRequest(name, (5,), params, by_role.get(AdapterRole.WEIGHTS), by_role.get(AdapterRole.PROMPT))
    return Row(request, arrival_s=0.0, seed=0)


class Device:
    """Slots whose loads end at once, or when told."""

    def __init__(self, num_loras: int = 2, num_prompts: int = 2, *, is_instant: bool = True) -> None:
        self.loading: list[ResolvedAdapter] = []
        self.gave_up: list[tuple[str, str]] = []
        slots = {AdapterRole.WEIGHTS: num_loras, AdapterRole.PROMPT: num_prompts}
        self.adapters: ResidentAdapters[str] = ResidentAdapters(
            slots, self.loading.append, lambda digest, payload: self.gave_up.append((digest, payload))
        )
        self._is_instant = is_instant

    def ask(self, *rows: Row) -> list[bool]:
        self.adapters.begin_pass()
        answers = [self.adapters.admit(each) for each in rows]
        if self._is_instant:
            self.finish_loading()
        return answers

    def finish_loading(self) -> None:
        for adapter in self.loading:
            self.adapters.loaded(adapter, adapter.digest)
        self.loading.clear()

    def run(self, each: Row) -> None:
        self.ask(each)
        assert self.ask(each) == [True]


def test_admit_base_row_needs_no_slot() -> None:
    assert Device(num_loras=0).ask(row("r")) == [True]


def test_admit_absent_adapter_loads_once_and_admits_after() -> None:
    device = Device(is_instant=False)
    first, second = row("1", lora("a")), row("2", lora("a"))
    assert device.ask(first, second) == [False, False]
    assert [adapter.digest for adapter in device.loading] == ["a"]
    device.finish_loading()
    assert device.ask(first, second) == [True, True]
    assert device.adapters.payload(lora("a")) == "a"


def test_admit_full_slots_evicts_least_recently_used() -> None:
    device = Device()
    for name in ("a", "b", "a", "c"):
        each = row(f"r-{name}", lora(name))
        device.run(each)
        device.adapters.release(each)
    assert set(device.adapters.resident) == {"a", "c"}
    assert (device.adapters.num_loads, device.adapters.num_evictions) == (3, 1)
    assert device.gave_up == [("b", "b")]


def test_admit_slots_in_use_waits_until_one_is_released() -> None:
    device = Device(num_loras=1)
    running, waiting = row("1", lora("a")), row("2", lora("b"))
    device.run(running)
    assert device.ask(waiting) == [False]
    assert device.adapters.resident == ("a",)
    device.adapters.release(running)
    device.run(waiting)
    assert device.adapters.resident == ("b",)


def test_admit_row_waiting_for_a_slot_is_not_starved_by_later_rows() -> None:
    device = Device(num_loras=1)
    running = row("0", lora("a"))
    device.run(running)
    blocked = row("1", lora("b"))
    base = row("9")
    for step in range(PATIENCE_STEPS):
        assert device.ask(blocked, row(f"early-{step}", lora("a")), base) == [False, True, True]
    assert device.ask(blocked, row("late", lora("a")), base) == [False, False, True]
    for user in [running, *(row(f"early-{step}", lora("a")) for step in range(PATIENCE_STEPS))]:
        device.adapters.release(user)
    device.run(blocked)


def test_admit_all_slots_pinned_refuses_instead_of_waiting_for_ever() -> None:
    device = Device(num_loras=1)
    device.adapters.pin(lora("a"))
    device.finish_loading()
    with pytest.raises(ResourceExhaustedError):
        device.ask(row("1", lora("b")))


def test_pin_keeps_an_adapter_until_unpinned() -> None:
    device = Device()
    assert device.adapters.pin(lora("a")) is False
    device.finish_loading()
    assert device.adapters.pin(lora("a")) is True
    for name in ("b", "c"):
        each = row(name, lora(name))
        device.run(each)
        device.adapters.release(each)
    assert set(device.adapters.resident) == {"a", "c"}
    device.adapters.unpin("a")
    device.adapters.unpin("a")
    device.adapters.unpin("unknown")
    device.run(row("d", lora("d")))
    assert set(device.adapters.resident) == {"c", "d"}


def test_pin_all_in_use_refuses() -> None:
    device = Device(num_loras=1)
    device.run(row("1", lora("a")))
    with pytest.raises(ResourceExhaustedError):
        device.adapters.pin(lora("b"))


def test_failed_load_names_its_waiters_and_frees_the_slot() -> None:
    device = Device(num_loras=1, is_instant=False)
    first, second = row("1", lora("a")), row("2", lora("a"))
    device.ask(first, second)
    device.adapters.failed(lora("a"))
    for each in (first, second):
        device.adapters.release(each)
    device.loading.clear()
    assert device.ask(row("3", lora("b"))) == [False]
    device.finish_loading()
    assert device.adapters.resident == ("b",)


def test_loading_slot_without_users_is_not_evicted() -> None:
    device = Device(num_loras=1, is_instant=False)
    cancelled = row("1", lora("a"))
    device.ask(cancelled)
    device.adapters.release(cancelled)
    assert device.ask(row("2", lora("b"))) == [False]
    device.finish_loading()
    assert device.adapters.resident == ("a",)


def test_slot_closed_is_the_one_that_empties_soonest() -> None:
    device = Device()
    short, long = row("short", lora("a"), max_new_tokens=5), row("long", lora("b"), max_new_tokens=50)
    device.run(short)
    device.run(long)
    blocked = row("blocked", lora("c"))
    for _ in range(PATIENCE_STEPS):
        device.ask(blocked)
    assert device.ask(blocked, row("1", lora("a")), row("2", lora("b"))) == [False, False, True]


def test_oldest_row_of_two_adapters_keeps_one_while_it_waits_for_the_other() -> None:
    device = Device(num_loras=1, num_prompts=1)
    lora_user, prompt_user = row("1", lora("a")), row("2", prompt("p"))
    device.run(lora_user)
    device.run(prompt_user)
    both, later = row("both", lora("b"), prompt("q")), row("later", lora("c"))
    assert device.ask(both, later) == [False, False]
    device.adapters.release(lora_user)
    assert device.ask(both, later) == [False, False]
    assert set(device.adapters.resident) == {"b", "p"}
    device.adapters.release(prompt_user)
    device.run(both)
    assert set(device.adapters.resident) == {"b", "q"}


def test_rows_of_two_adapters_that_are_asked_in_another_order_never_keep_what_the_other_needs() -> None:
    device = Device(num_loras=1, num_prompts=1)
    running = row("running", prompt("p0"))
    device.run(running)
    kept, urgent = row("kept", lora("w1"), prompt("p1")), row("urgent", lora("w2"), prompt("p2"))
    device.ask(kept)
    device.adapters.release(running)
    # From now on the other one is asked first, as one of an earlier class would be.
    answers = [device.ask(urgent, kept) for _ in range(3)]
    assert answers[-1] == [False, True]
    device.adapters.release(kept)
    device.ask(urgent)
    assert device.ask(urgent) == [True]


def test_keeper_that_is_gone_leaves_its_place_to_the_next() -> None:
    device = Device(num_loras=1, num_prompts=1)
    running = row("running", prompt("p0"))
    device.run(running)
    gone, later = row("gone", lora("w1"), prompt("p1")), row("later", lora("w2"), prompt("p2"))
    device.ask(gone, later)
    device.adapters.release(gone)
    device.ask(later)
    assert "w2" in device.adapters.resident


def test_row_of_two_adapters_behind_another_one_takes_none() -> None:
    device = Device(num_loras=1, num_prompts=1)
    user = row("1", prompt("p"))
    device.run(user)
    device.ask(row("first", prompt("q")), row("second", lora("a"), prompt("r")))
    assert device.adapters.resident == ("p",)


def test_release_of_a_row_that_still_waits_gives_its_slot_back() -> None:
    device = Device(num_loras=1, num_prompts=1)
    device.run(row("1", prompt("p")))
    waiting = row("2", lora("a"), prompt("q"))
    device.ask(waiting)
    device.adapters.release(waiting)
    device.run(row("3", lora("b")))
    assert "b" in device.adapters.resident


def test_prefetch_takes_empty_slots_and_tells_what_found_none() -> None:
    device = Device(num_loras=2)
    device.run(row("1", lora("a")))
    rows = [row(name, lora(name)) for name in "bcb"]
    assert device.adapters.prefetch(rows) == [lora("c")]
    device.finish_loading()
    assert set(device.adapters.resident) == {"a", "b"}
    assert device.adapters.prefetch(rows) == [lora("c")]


def test_prefetch_evicts_idle_adapters_nobody_in_the_queue_wants() -> None:
    device = Device(num_loras=2)
    for name in ("a", "b"):
        each = row(name, lora(name))
        device.run(each)
        device.adapters.release(each)
    assert device.adapters.prefetch([row("1", lora("c")), row("2", lora("a"))]) == []
    device.finish_loading()
    assert set(device.adapters.resident) == {"a", "c"}
