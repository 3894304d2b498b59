"""The training benchmark, on few tokens: both sides see whole pairs, and figures leave out warm-up and padding."""

import argparse

import numpy as np
import pytest

from benchmarks import training
from training.batch import Batch

pytestmark = pytest.mark.torch


def test_watch_leaves_out_first_steps_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.0, 3.0, 5.0, 7.0])
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    watch = training._Watch()
    for num_steps in range(5):
        ids = np.ones((2, 6), dtype=np.int64)
        mask = np.ones_like(ids) if num_steps < 3 else np.tri(2, 6, 3, dtype=np.int64)
        watch.batch(Batch(ids, mask, np.full((2, 2), -100)))
        watch.step_ended()
    figures = watch.figures()
    # Two steps of 4 + 5 tokens in 4 seconds; each computes 2 * 6 inputs and 2 * 2 labels.
    assert figures.tokens_per_s == pytest.approx(18 / 4)
    assert figures.padding == pytest.approx(1 - 18 / 32)


@pytest.mark.parametrize("side", training._SIDES)
def test_training_side_trains_whole_pairs(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_NUM_PAIRS", 40)
    seen: list[int] = []
    note = training._Watch.batch
    monkeypatch.setattr(
        training._Watch, "batch", lambda self, batch: seen.append(batch.num_tokens) or note(self, batch)
    )
    figures = training._run_side(argparse.Namespace(side=side, steps=2, batch_tokens=400, threads=1))
    assert figures.tokens_per_s > 0
    assert 0 <= figures.padding < 0.6
    # A batch of 400 tokens holds one pair or a few.
    assert all(100 < num_tokens < 1_000 for num_tokens in seen)
