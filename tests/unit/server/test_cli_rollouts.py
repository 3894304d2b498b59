"""``medley adapters rollout``: what each command asks of the server and shows of its answer."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from tests.fixtures.scripted_server import Answer, ScriptedServer, scripted_server

ROLLOUT = {
    "id": "ro_1a",
    "adapter": "tweets",
    "alias": "stable",
    "stable_version": 1,
    "candidate_version": 3,
    "mode": "canary",
    "percent": 50,
    "metric": "rougeL",
    "automatic": True,
    "min_effect": 0.0,
    "max_num_requests": 5000,
    "max_error_rate_increase": 0.05,
    "max_latency_ratio": 2.0,
    "state": "rolled_back",
    "verdict": "WORSE",
    "arms": {
        "stable": {"num_requests": 60, "num_scored": 30, "mean": 25.125, "error_rate": 0.0, "p95_e2e_ms": 210.4},
        "candidate": {"num_requests": 61, "num_scored": 0, "mean": None, "error_rate": None, "p95_e2e_ms": None},
    },
    "decisions": [
        {"at_s": 1_700_000_000.0, "by": "key:3f", "action": "start", "reason": "", "data": {}},
        {"at_s": 1_700_000_060.0, "by": "server", "action": "roll_back", "reason": "lower \x1b[31m", "data": {}},
    ],
    "created_s": 1_700_000_000.0,
    "ended_s": 1_700_000_060.0,
}


@pytest.fixture
def fake() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        script.answers = [Answer(body=ROLLOUT)]
        yield script


def run(server: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["adapters", "rollout", *arguments, "--server", server.url])


def test_start_sends_what_was_said_under_a_key_and_leaves_the_rest_to_the_server(fake: ScriptedServer) -> None:
    result = run(fake, "start", "tweets:3", "--percent", "10", "--mode", "shadow", "--manual", "--min-effect", "0.5")
    assert result.exit_code == 0, result.output
    (sent,) = fake.sent
    assert (sent.method, sent.path) == ("POST", "/v1/adapters/tweets/rollouts")
    assert sent.headers["idempotency-key"]
    assert sent.json() == {
        "alias": "stable",
        "candidate": 3,
        "percent": 10,
        "mode": "shadow",
        "metric": "rougeL",
        "automatic": False,
        "min_effect": 0.5,
    }


def test_show_prints_arms_and_decisions_without_control_codes(fake: ScriptedServer) -> None:
    result = run(fake, "show", "tweets", "ro_1a")
    assert (fake.sent[0].method, fake.sent[0].path) == ("GET", "/v1/adapters/tweets/rollouts/ro_1a")
    for word in ("rolled_back", "WORSE", "25.12", "210 ms", "0.0%", "roll_back", "key:3f"):
        assert word in result.output
    assert "\x1b" not in result.output


def test_list_prints_a_line_each_or_json(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body={"rollouts": [ROLLOUT]})]
    table = run(fake, "list", "tweets").output
    assert "ro_1a" in table
    assert "25.12 → ?" in table
    assert json.loads(run(fake, "list", "tweets", "--json").output) == {"rollouts": [ROLLOUT]}
    fake.answers = [Answer(body={"rollouts": []})]
    assert "no rollouts" in run(fake, "list", "tweets").output


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_decision_by_hand_is_posted(fake: ScriptedServer, command: str) -> None:
    assert run(fake, command, "tweets", "ro_1a").exit_code == 0
    assert (fake.sent[0].method, fake.sent[0].path) == ("POST", f"/v1/adapters/tweets/rollouts/ro_1a/{command}")


@pytest.mark.parametrize("arguments", [("start", "tweets"), ("show", "tweets", "../x"), ("start", "tweets@stable")])
def test_what_names_no_version_or_rollout_is_refused_before_it_is_sent(
    fake: ScriptedServer, arguments: tuple[str, ...]
) -> None:
    assert run(fake, *arguments).exit_code != 0
    assert not fake.sent
