"""Realised shares are the configured ones, and a capped source shows all of its items in time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.config import MixtureConfig
from training.data.mixing import mixture_counts, mixture_epoch, mixture_rates
from training.errors import TrainingConfigError

# Five tasks as FLAN's: one huge, some middling, one tiny; 70,500 examples an epoch.
SIZES = {"huge": 1_000_000, "large": 30_000, "middling": 9_000, "small": 1_300, "tiny": 200}
CAPPED = MixtureConfig(cap=30_000)


def test_mixture_rates_are_capped_and_proportional_to_examples():
    rates = mixture_rates(SIZES, CAPPED)
    assert rates["huge"] == rates["large"] == pytest.approx(30_000 / 70_500)
    assert rates["tiny"] == pytest.approx(200 / 70_500)
    assert sum(rates.values()) == pytest.approx(1.0)


def test_mixture_rates_temperature_draws_them_together():
    plain, warm = mixture_rates(SIZES, CAPPED), mixture_rates(SIZES, MixtureConfig(cap=30_000, temperature=2.0))
    assert warm["large"] / warm["tiny"] == pytest.approx((plain["large"] / plain["tiny"]) ** 0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_mixture_epoch_of_70500_examples_realises_rates_within_one_percent(temperature):
    config = MixtureConfig(cap=30_000, temperature=temperature)
    groups = {name: [name] * size for name, size in SIZES.items()}
    drawn = mixture_epoch(groups, config, 0)
    assert len(drawn) == 70_500
    for name, rate in mixture_rates(SIZES, config).items():
        assert drawn.count(name) / len(drawn) == pytest.approx(rate, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 500), min_size=1, max_size=6),
    st.integers(0, 60),
    st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_mixture_counts_any_sizes_are_within_one_of_their_rates(sizes, cap, temperature):
    config = MixtureConfig(cap=cap, temperature=temperature)
    rates, counts = mixture_rates(sizes, config), mixture_counts(sizes, config)
    total = sum(counts.values())
    assert total == sum(min(size, cap or size) for size in sizes.values())
    assert all(abs(counts[name] - rates[name] * total) < 1.0 + 1e-9 for name in sizes)


def test_mixture_epoch_capped_source_shows_every_item_before_any_comes_again():
    groups = {"a": list(range(10)), "b": list(range(100, 104))}
    config = MixtureConfig(cap=5)
    epochs = [mixture_epoch(groups, config, number) for number in range(2)]
    first, second = ([item for item in epoch if item < 100] for epoch in epochs)
    assert len(first) == len(second) == 5
    assert sorted(first + second) == list(range(10))
    assert [item for item in epochs[1] if item >= 100] == groups["b"]


def test_mixture_epoch_depends_on_seed_and_number_alone():
    groups = {"a": list(range(50)), "b": list(range(50))}
    config, other = MixtureConfig(cap=20), MixtureConfig(cap=20, seed=14)
    assert mixture_epoch(groups, config, 3) == mixture_epoch(groups, config, 3)
    assert mixture_epoch(groups, config, 3) != mixture_epoch(groups, config, 4)
    assert mixture_epoch(groups, config, 3) != mixture_epoch(groups, other, 3)


def test_mixture_epoch_single_source_is_returned_whole_and_in_order():
    assert mixture_epoch({"a": [3, 1, 2]}, MixtureConfig(), 5) == [3, 1, 2]


@pytest.mark.parametrize("config", [MixtureConfig(cap=-1), MixtureConfig(temperature=0.0)])
def test_mixture_rates_meaningless_value_is_refused(config):
    with pytest.raises(TrainingConfigError, match=r"data\.mixture"):
        mixture_rates(SIZES, config)
