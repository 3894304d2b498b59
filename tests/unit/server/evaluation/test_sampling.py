import pytest

from server.core.errors import InvalidArgumentError
from server.evaluation.config import EvaluationConfig
from server.evaluation.outcome import Arm, RolloutPart
from server.evaluation.sampling import Sampler
from tests.fixtures.outcomes import outcome_of


def num_taken(sampler: Sampler, adapters: str, num: int = 4000) -> int:
    return sum(sampler.takes(outcome_of(request_id=f"request-{each}", adapters=adapters)) for each in range(num))


def test_sampler_takes_the_share_of_each_adapter() -> None:
    sampler = Sampler(0.25, {"lora": 0.5, "base": 0.0, "all": 1.0})
    assert num_taken(sampler, "other:1") == pytest.approx(1000, abs=120)
    assert num_taken(sampler, "lora:3") == pytest.approx(2000, abs=140)
    assert num_taken(sampler, "other:1+lora:3") == pytest.approx(2000, abs=140)
    assert num_taken(sampler, "base") == 0
    assert num_taken(sampler, "all:1") == 4000


def test_sampler_decides_the_same_request_alike_everywhere() -> None:
    first, second = Sampler(0.5, {}), Sampler(0.5, {})
    outcomes = [outcome_of(request_id=f"r{each}") for each in range(200)]
    assert [first.takes(each) for each in outcomes] == [second.takes(each) for each in outcomes]
    # A higher share takes what a lower one does, and more.
    assert all(Sampler(0.9, {}).takes(each) for each in outcomes if first.takes(each))


def test_request_of_a_rollout_is_always_taken() -> None:
    assert Sampler(0.0, {}).takes(outcome_of(rollout=RolloutPart("ro_1", Arm.STABLE)))


@pytest.mark.parametrize(
    "wrong",
    [{"sample_rate": 1.1}, {"sample_rate": -0.1}, {"sample_rates": {"a": 2.0}}, {"max_age_s": 0}, {"max_num_kept": 0}],
)
def test_config_refuses_what_keeps_nothing_or_too_much(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        EvaluationConfig(**wrong)  # type: ignore[arg-type]
