"""Requests a minute and at once, by a clock that goes on when it is told to."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from server.access.api_key import ApiKey
from server.access.quotas import Quotas
from server.core.errors import ResourceExhaustedError
from server.core.principal import Scope
from tests.fixtures.registry import Clock


def key(key_id: str = "a", **limits: int) -> ApiKey:
    return ApiKey(key_id, "x", frozenset({Scope.INFER}), **limits)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def use(quotas: Quotas, limited: ApiKey) -> None:
    with quotas.admit(limited):
        pass


def refused(action: Callable[[], None]) -> ResourceExhaustedError:
    with pytest.raises(ResourceExhaustedError) as caught:
        action()
    return caught.value


def test_key_without_limits_is_never_refused(quotas: Quotas) -> None:
    with ExitStack() as running:
        for _ in range(1000):
            running.enter_context(quotas.admit(key()))


def test_burst_of_a_minute_is_taken_and_the_next_is_told_when(quotas: Quotas, clock: Clock) -> None:
    limited = key(max_requests_per_minute=30)
    for _ in range(30):
        use(quotas, limited)
    error = refused(lambda: use(quotas, limited))
    assert error.retry_after_s == pytest.approx(2.0)
    assert "30 requests a minute" in error.message
    clock.now_s += 1.5
    assert refused(lambda: use(quotas, limited)).retry_after_s == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("limit", [1, 7, 60, 999, 1_000_000])
def test_waiting_as_long_as_told_is_enough_and_not_too_long(quotas: Quotas, clock: Clock, limit: int) -> None:
    limited = key(max_requests_per_minute=limit)
    clock.now_s = 0.1
    for _ in range(min(limit, 2000)):
        use(quotas, limited)
    quotas._used["a"].num_left = min(quotas._used["a"].num_left, 0.25)
    for _ in range(5):
        wait_s = refused(lambda: use(quotas, limited)).retry_after_s
        assert wait_s is not None
        clock.now_s += wait_s * 0.99
        refused(lambda: use(quotas, limited))
        clock.now_s += wait_s * 0.01
        use(quotas, limited)


def test_rate_holds_over_ten_minutes_and_unused_minutes_are_not_saved_up(quotas: Quotas, clock: Clock) -> None:
    limited, num_admitted = key(max_requests_per_minute=10), 0
    clock.now_s += 3600
    for _ in range(6000):
        clock.now_s += 0.1
        try:
            use(quotas, limited)
            num_admitted += 1
        except ResourceExhaustedError:
            pass
    assert 10 * 10 <= num_admitted <= 10 * 11


def test_requests_at_once_are_counted_until_they_end(quotas: Quotas) -> None:
    limited = key(max_concurrent=2)
    with quotas.admit(limited):
        with quotas.admit(limited):
            error = refused(lambda: use(quotas, limited))
            assert error.retry_after_s == 1.0
            assert "2 requests at once" in error.message
        use(quotas, limited)


def test_request_that_fails_gives_its_place_back(quotas: Quotas) -> None:
    limited = key(max_concurrent=1)
    with pytest.raises(KeyError), quotas.admit(limited):
        raise KeyError
    use(quotas, limited)


def test_refused_request_uses_nothing_up(quotas: Quotas, clock: Clock) -> None:
    limited = key(max_concurrent=1, max_requests_per_minute=2)
    with quotas.admit(limited):
        for _ in range(10):
            refused(lambda: use(quotas, limited))
    use(quotas, limited)
    for _ in range(10):
        refused(lambda: use(quotas, limited))
    clock.now_s += 30
    use(quotas, limited)


def test_keys_do_not_share_quotas(quotas: Quotas) -> None:
    use(quotas, key("a", max_requests_per_minute=1))
    use(quotas, key("b", max_requests_per_minute=1))
    refused(lambda: use(quotas, key("a", max_requests_per_minute=1)))


def test_several_are_counted_together_or_not_at_all(quotas: Quotas, clock: Clock) -> None:
    limited = key(max_requests_per_minute=6, max_concurrent=5)
    with quotas.admit(limited, 4):
        refused(lambda: quotas.admit(limited, 2).__enter__())
        use(quotas, limited)
    error = refused(lambda: quotas.admit(limited, 3).__enter__())
    assert error.retry_after_s == pytest.approx(20.0)
    clock.now_s += 20.0
    with quotas.admit(limited, 3):
        pass


@pytest.mark.parametrize("limits", [{"max_requests_per_minute": 3}, {"max_concurrent": 3}])
def test_more_at_once_than_the_key_may_ever_make_are_not_told_to_wait(quotas: Quotas, limits: dict[str, int]) -> None:
    error = refused(lambda: quotas.admit(key(**limits), 4).__enter__())
    assert error.retry_after_s is None


def test_none_at_all_are_never_refused(quotas: Quotas) -> None:
    limited = key(max_concurrent=1)
    with quotas.admit(limited), quotas.admit(limited, 0):
        pass
