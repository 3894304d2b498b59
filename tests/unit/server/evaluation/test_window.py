from server.evaluation.records import Record
from server.evaluation.window import FinishedWindow
from tests.fixtures.outcomes import record_of


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def finished(request_id: str, text: str = "text", who: str = "me") -> Record:
    return record_of(request_id=request_id, text=text, who=who)


def test_window_keeps_the_newest_and_no_more() -> None:
    window = FinishedWindow(2, 10.0, Clock())
    for request_id in ("a", "b", "c"):
        window.add(finished(request_id))
    assert [window.get("me", request_id) is not None for request_id in ("a", "b", "c")] == [False, True, True]
    assert len(window) == 2


def test_window_forgets_by_age() -> None:
    clock = Clock()
    window = FinishedWindow(10, 10.0, clock)
    window.add(finished("old"))
    clock.now_s += 9.9
    assert window.get("me", "old") is not None
    clock.now_s += 0.2
    assert window.get("me", "old") is None
    window.add(finished("new"))
    assert len(window) == 1


def test_window_takes_the_newest_of_one_id() -> None:
    window = FinishedWindow(2, 10.0, Clock())
    window.add(finished("a", "first"))
    window.add(finished("b"))
    window.add(finished("a", "second"))
    window.add(finished("c"))
    kept = window.get("me", "a")
    assert kept is not None
    assert kept.outcome.text == "second"
    assert window.get("me", "b") is None


def test_window_gives_nobody_the_request_of_another() -> None:
    window = FinishedWindow(10, 10.0, Clock())
    window.add(finished("a", "mine"))
    assert window.get("you", "a") is None
    window.add(finished("a", "yours", who="you"))
    assert [kept.outcome.text for who in ("me", "you") if (kept := window.get(who, "a")) is not None] == [
        "mine",
        "yours",
    ]
