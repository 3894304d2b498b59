"""The parts of the closed-batch benchmark that decide what a figure means."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="a peer of the benchmark")
pytest.importorskip("ctranslate2", reason="a peer of the benchmark")

from benchmarks.closed_batch import ClosedBatch, agreement, measure_in_turn  # noqa: E402
from benchmarks.ctranslate2_peer import Setting, settings  # noqa: E402
from benchmarks.models import random_base, random_prompts, save_base, write_loras  # noqa: E402
from benchmarks.ours import ServedBatch, ServedRow  # noqa: E402
from benchmarks.roofline import step_bytes  # noqa: E402
from tests.fixtures.t5_models import TINY  # noqa: E402


def test_measure_in_turn_of_two_sides_alternates_and_leaves_the_warm_up_out() -> None:
    calls: list[str] = []

    def side(name: str) -> list[list[int]]:
        calls.append(name)
        return [[5, 6]]

    measured = measure_in_turn(
        {"a": lambda: side("a"), "b": lambda: side("b")}, num_rows=1, num_new_tokens=2, num_rounds=2
    )

    assert calls == ["a", "b"] * 3
    assert [len(found.durations_s) for found in measured.values()] == [2, 2]


def test_measure_in_turn_of_a_side_that_stops_early_fails() -> None:
    with pytest.raises(RuntimeError, match="early did not generate 2 tokens"):
        measure_in_turn({"early": lambda: [[5]]}, num_rows=1, num_new_tokens=2, num_rounds=1)


def test_agreement_of_one_token_in_four_different_is_three_quarters() -> None:
    assert agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.75


def test_step_of_a_batch_counts_only_the_time_all_rows_decode() -> None:
    early = ServedRow((1, 2, 3, 4), (1.0, 2.0, 2.5, 3.0), start_s=0.0)
    late = ServedRow((1, 2, 3, 4), (2.0, 2.5, 3.0, 9.0), start_s=0.0)

    assert ServedBatch((early, late), 9.0).step_s() == 0.5


def test_step_of_rows_that_never_decode_together_is_none() -> None:
    early = ServedRow((1, 2), (1.0, 2.0), start_s=0.0)
    late = ServedRow((1, 2), (3.0, 4.0), start_s=0.0)

    assert ServedBatch((early, late), 4.0).step_s() is None


def test_settings_of_one_model_split_its_rows_and_of_several_take_them_side_by_side() -> None:
    assert settings(1, 16, 2) == [Setting(1, 2, 16), Setting(2, 1, 8)]
    assert settings(8, 2, 2) == [Setting(1, 2, 2), Setting(2, 1, 2)]
    assert settings(1, 1, 2) == [Setting(1, 2, 1)]


def test_step_bytes_of_a_tiny_base_are_those_counted_by_hand(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", random_base(TINY, seed=0))
    loras = write_loras(tmp_path, base, [2, 4])
    batch = ClosedBatch(base, tuple(random_prompts(base, [10] * 3)), (loras[0], loras[1], loras[0]), 7, "float32", 1)

    found = step_bytes(batch)

    # D 32, H·K 32, feed-forward 64, V 300, 2 layers: q k v o, cross q o, wi_0 wi_1 wo; the head.
    assert found.weights_bytes == 4 * (2 * (6 * 32 * 32 + 3 * 32 * 64) + 300 * 32)
    assert found.cross_bytes == 4 * 3 * 10 * 2 * 2 * 32
    assert found.self_bytes == 4 * 3 * 4 * 2 * 2 * 32
    # A and B of q, v and cross q in 2 layers, ranks 2 and 4.
    assert found.lora_bytes == 4 * (2 + 4) * 2 * 3 * (32 + 32)
