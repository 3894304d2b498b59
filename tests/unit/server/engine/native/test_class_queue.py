"""Classes among the waiting rows: earlier ones go first, later ones do not starve, and each shares its starts out."""

from collections import Counter

from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest
from server.engine.native.batch import Row
from server.engine.native.class_queue import MAX_PASSES, ClassQueue


def row(name: str, priority: int = 0, tenant: str = "a") -> Row:
    request = EngineRequest(name, (7,) * 10, SamplingParams(max_new_tokens=5), tenant=tenant, priority=priority)
    return Row(request, arrival_s=0.0, seed=0)


def filled(*rows: Row) -> ClassQueue:
    queue = ClassQueue()
    for each in rows:
        queue.add(each)
    return queue


def take(queue: ClassQueue) -> str:
    taken = queue.pop()
    assert taken is not None
    queue.start(taken)
    return taken.request.request_id


def test_rows_of_an_earlier_class_start_first_and_those_of_one_class_in_order() -> None:
    queue = filled(row("later", 1), row("first"), row("second"), row("urgent", -2))
    assert [take(queue) for _ in range(4)] == ["urgent", "first", "second", "later"]
    assert (queue.pop(), len(queue)) == (None, 0)


def test_class_that_is_passed_over_has_one_start_in_so_many() -> None:
    queue = filled(*(row(f"{i}") for i in range(200)), *(row(f"low-{i}", 2) for i in range(20)))
    order = [take(queue) for _ in range(5 * (MAX_PASSES + 1))]
    assert [index for index, name in enumerate(order) if name.startswith("low")] == [
        turn * (MAX_PASSES + 1) + MAX_PASSES for turn in range(5)
    ]
    assert [name for name in order if name.startswith("low")] == [f"low-{i}" for i in range(5)]


def test_several_classes_that_are_passed_over_all_have_their_turns() -> None:
    queue = filled(*(row(f"{p} {i}", p) for p in (-1, 0, 1) for i in range(500)))
    starts = Counter(take(queue).split()[0] for _ in range(340))
    assert min(starts["0"], starts["1"]) >= 340 // (MAX_PASSES + 2) - 1
    assert starts["-1"] > 290


def test_class_that_waited_in_vain_and_came_back_starts_anew() -> None:
    gone = row("gone", 1)
    queue = filled(gone, *(row(f"{i}") for i in range(100)))
    for _ in range(MAX_PASSES):
        take(queue)
    gone.ended = True
    queue.remove_ended()
    take(queue)
    queue.add(row("back", 1))
    assert "back" not in [take(queue) for _ in range(MAX_PASSES)]
    assert take(queue) == "back"


def test_class_whose_row_is_put_back_at_its_turn_keeps_the_turn() -> None:
    queue = filled(row("later", 1), *(row(f"{i}") for i in range(100)))
    for _ in range(MAX_PASSES):
        take(queue)
    refused = queue.pop()
    assert refused is not None
    assert refused.request.request_id == "later"
    take(queue)
    queue.put_back([refused])
    assert take(queue) == "later"


def test_flood_of_one_tenant_ages_past_nobody() -> None:
    queue = filled(*(row(f"flood-{i}", tenant="flood") for i in range(500)))
    for _ in range(300):
        take(queue)
    queue.add(row("light", tenant="light"))
    assert "light" in [take(queue) for _ in range(2)]


def test_rows_put_back_are_next_in_their_classes() -> None:
    rows = [row("urgent", -1), row("x"), row("y"), row("later", 1)]
    queue = filled(*rows)
    taken = [queue.pop() for _ in range(4)]
    rows[1].ended = True
    queue.put_back([each for each in taken if each is not None])
    assert [take(queue) for _ in range(3)] == ["urgent", "y", "later"]


def test_first_rows_are_those_of_the_earliest_classes_and_stay() -> None:
    queue = filled(row("later", 1), row("x"), row("y"), row("urgent", -1))
    assert [each.request.request_id for each in queue.first(3)] == ["urgent", "x", "y"]
    assert [each.request.request_id for each in queue] == ["urgent", "x", "y", "later"]
    newest = queue.newest("a", 0)
    assert newest is not None
    assert (newest.request.request_id, queue.newest("b", 0), queue.newest("a", 2)) == ("y", None, None)
