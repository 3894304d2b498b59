"""Who is next: work is shared out among tenants that wait, and nobody saves up turns."""

import random
from collections import Counter

import pytest

from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest
from server.engine.native.batch import Row
from server.engine.native.fair_queue import FairQueue


def row(tenant: str, number: int = 0, *, num_prompt_tokens: int = 10, max_new_tokens: int = 10) -> Row:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    request = EngineRequest(f"{tenant}{number}", (7,) * num_prompt_tokens, sampling, tenant=tenant)
    return Row(request, arrival_s=float(number), seed=0)


def take(queue: FairQueue) -> Row:
    taken = queue.pop()
    assert taken is not None
    queue.start(taken)
    return taken


def end(queue: FairQueue, started: Row, num_generated: int | None = None) -> None:
    count = started.request.sampling.max_new_tokens if num_generated is None else num_generated
    started.token_ids.extend([9] * count)
    queue.leave(started)


def ids(rows: "list[Row] | tuple[Row, ...]") -> list[str]:
    return [each.request.request_id for each in rows]


def test_rows_of_one_tenant_start_in_order() -> None:
    queue = FairQueue()
    for number in range(5):
        queue.add(row("a", number, num_prompt_tokens=1 + 7 * number % 5))
    assert ids([take(queue) for _ in range(5)]) == ["a0", "a1", "a2", "a3", "a4"]
    assert queue.pop() is None


def test_row_of_another_tenant_does_not_wait_behind_a_flood() -> None:
    queue = FairQueue()
    for number in range(100):
        queue.add(row("flood", number))
    for _ in range(20):
        take(queue)
    queue.add(row("light", 100))
    assert "light100" in ids([take(queue) for _ in range(2)])


def test_tenants_that_both_wait_get_equal_work_however_large_their_rows() -> None:
    queue, generator, work = FairQueue(), random.Random(3), Counter[str]()
    sizes = {"long": (400, 100), "short": (10, 5), "middle": (60, 30)}
    waiting = Counter[str]()
    for number in range(3000):
        for tenant, (num_prompt_tokens, max_new_tokens) in sizes.items():
            while waiting[tenant] < 3:
                queue.add(row(tenant, number, num_prompt_tokens=num_prompt_tokens, max_new_tokens=max_new_tokens))
                waiting[tenant] += 1
        taken = take(queue)
        tenant = taken.request.tenant
        waiting[tenant] -= 1
        num_generated = generator.randint(1, sizes[tenant][1])
        work[tenant] += sizes[tenant][0] + 2 * num_generated
        end(queue, taken, num_generated)
    assert max(work.values()) - min(work.values()) <= 2 * (400 + 2 * 100)


def test_what_was_not_generated_is_given_back() -> None:
    queue = FairQueue()
    for number in range(40):
        queue.add(row("asks-for-much", number, max_new_tokens=100))
        queue.add(row("asks-for-little", number, max_new_tokens=10))
    taken = []
    for _ in range(30):
        taken.append(take(queue))
        end(queue, taken[-1], 10)
    assert Counter(each.request.tenant for each in taken) == {"asks-for-much": 15, "asks-for-little": 15}


def test_tenant_that_was_away_saved_up_no_turns_and_pays_for_none() -> None:
    queue = FairQueue()
    for number in range(50):
        queue.add(row("alone", number))
        end(queue, take(queue))
    for number in range(50, 60):
        queue.add(row("alone", number))
        queue.add(row("new", number))
    order = [take(queue).request.tenant for _ in range(10)]
    assert Counter(order) == {"alone": 5, "new": 5}


def test_rows_put_back_are_next_again_and_those_that_ended_are_gone() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.add(row("a", number))
    queue.add(row("b", 3))
    taken = [queue.pop(), queue.pop(), queue.pop(), queue.pop()]
    rows = [each for each in taken if each is not None]
    next(each for each in rows if each.request.request_id == "b3").ended = True
    next(each for each in rows if each.request.request_id == "a0").ended = True
    queue.put_back(rows)
    assert ids(list(queue)) == ["a1", "a2"]


def test_rows_that_could_not_start_do_not_set_newcomers_back() -> None:
    queue = FairQueue()
    for number in range(20):
        queue.add(row("busy", number))
    for _ in range(10):
        take(queue)
    queue.add(row("waits-for-its-adapter", 20))
    queue.put_back([taken for _ in range(11) if (taken := queue.pop()) is not None])
    queue.add(row("new", 21))
    assert "new21" in ids([take(queue) for _ in range(2)])


def test_first_rows_are_those_of_all_tenants_in_turns_and_stay() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.add(row("a", number))
    queue.add(row("b", 5))
    assert ids(queue.first(3)) == ["a0", "b5", "a1"]
    assert len(queue) == 4
    newest = queue.newest("a")
    assert newest is not None
    assert (newest.request.request_id, queue.newest("nobody")) == ("a2", None)


@pytest.mark.parametrize("how", ["served", "ended while waiting"])
def test_nothing_is_kept_of_tenants_that_left(how: str) -> None:
    queue = FairQueue()
    rows = [row(f"tenant-{number}", number) for number in range(50)]
    for each in rows:
        queue.add(each)
    if how == "served":
        for _ in range(50):
            end(queue, take(queue), 3)
    else:
        for each in rows:
            each.ended = True
        queue.remove_ended()
    assert len(queue) == 0
    assert not queue._tenants
