"""A run dealt out: everything is sent once, whoever sends it."""

import json

import pytest

from loadtest.scenario_file import load_scenario
from loadtest.shares import Share, deal


def _deal(**more: object) -> list[Share]:
    return deal(load_scenario("default", [(key.replace("__", "."), value) for key, value in more.items()]))


def test_deal_open_loop_gives_every_nth_request_to_a_process() -> None:
    whole = _deal(num_requests=31, duration_s=None)[0].planned
    shares = _deal(num_requests=31, duration_s=None, client__num_processes=4, client__max_in_flight=10)
    assert [share.planned for share in shares] == [whole[index::4] for index in range(4)]
    assert [share.max_in_flight for share in shares] == [3, 3, 2, 2]


def test_deal_closed_loop_gives_every_nth_user_to_a_process() -> None:
    arrivals = {"kind": "closed", "num_users": 5, "think_s": 0.1}
    shares = _deal(arrivals=arrivals, num_requests=7, client__num_processes=2)
    users = [share.users for share in shares]
    assert [one.numbers for one in users if one] == [(0, 2, 4), (1, 3)]
    assert [one.num_requests for one in users if one] == [4, 3]
    assert not {request.text for request in shares[0].planned} - {request.text for request in shares[1].planned}


@pytest.mark.parametrize("arrivals", [{"kind": "poisson"}, {"kind": "closed", "num_users": 2}])
def test_share_survives_json(arrivals: dict[str, object]) -> None:
    for share in _deal(arrivals=arrivals, adapters__mix="base,a+b", client__num_processes=2):
        assert Share.from_json(json.loads(json.dumps(share.as_json()))) == share
