"""When a server may start without keys."""

import pytest

from server.access.opening import check_may_open, may_run_open
from server.core.errors import FailedPreconditionError

LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "localhost"]
REACHABLE = ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.1", "example.org", "localhost.example.org", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_may_run_open(host: str) -> None:
    assert may_run_open(host, allow_open=False)
    check_may_open(host, any_keys=False, allow_open=False)


@pytest.mark.parametrize("host", REACHABLE)
def test_reachable_address_without_keys_is_refused_with_the_way_out(host: str) -> None:
    assert not may_run_open(host, allow_open=False)
    with pytest.raises(FailedPreconditionError, match="medley keys create"):
        check_may_open(host, any_keys=False, allow_open=False)


@pytest.mark.parametrize("host", REACHABLE)
def test_reachable_address_may_start_with_keys_or_when_told_to(host: str) -> None:
    check_may_open(host, any_keys=True, allow_open=False)
    check_may_open(host, any_keys=False, allow_open=True)
    assert may_run_open(host, allow_open=True)
