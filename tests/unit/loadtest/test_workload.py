from collections import Counter

import pytest

from loadtest.examples import Example
from loadtest.workload import MixError, parse_mix, plan

EXAMPLES = [Example("1", "one"), Example("2", "two")]


def test_mix_names_weights_and_base() -> None:
    mix = parse_mix("base=1, dialogsum=2.5,dialogsum+dialogsum-prompt")
    assert [entry.adapters for entry in mix] == [(), ("dialogsum",), ("dialogsum", "dialogsum-prompt")]
    assert [entry.weight for entry in mix] == [1.0, 2.5, 1.0]
    assert [entry.label for entry in mix] == ["base", "dialogsum", "dialogsum+dialogsum-prompt"]


@pytest.mark.parametrize("mix", ["", "a=0", "a=-1", "a=nan", "a=inf", "a=x", "=1", "a+=1", "a,,b", "a=1,a=2"])
def test_mix_malformed_is_refused(mix: str) -> None:
    with pytest.raises(MixError):
        parse_mix(mix)


def test_plan_follows_weights_and_seed() -> None:
    times = [float(index) for index in range(8000)]
    planned = plan(times, parse_mix("base=1,a=3"), EXAMPLES, seed=3)
    counts = Counter(request.label for request in planned)
    assert counts["a"] / counts["base"] == pytest.approx(3.0, rel=0.1)
    assert Counter(request.text for request in planned)["one"] == pytest.approx(4000, rel=0.05)
    assert [request.scheduled_s for request in planned] == times
    assert planned == plan(times, parse_mix("base=1,a=3"), EXAMPLES, seed=3)
    assert planned != plan(times, parse_mix("base=1,a=3"), EXAMPLES, seed=4)
