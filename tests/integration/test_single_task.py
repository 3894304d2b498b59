"""Fine-tuning on one task with some hundred examples: better than the base untrained, over seeds, on real dialogues."""

from pathlib import Path

import pytest

from training.studies.config import MethodRun, StudyPlaces

pytestmark = pytest.mark.torch
CORPORA = Path(__file__).parents[3] / "shared" / "data"
SEEDS = (17, 18, 19)
NUM_CASES = 48
# Once over the 500 examples, and a check on the held-out part at the end alone.
BUDGET = (
    "data.max_examples=500",
    "data.split.num_held_out=8",
    "batch_tokens=4000",
    "loop.max_steps=40",
    "loop.warmup_steps=4",
    "loop.evaluate_every=40",
    "loop.checkpoint_every=40",
    "loop.tensorboard=false",
)


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the repository")
def test_single_task_of_500_examples_beats_zero_shot_over_three_seeds(tmp_path):
    from training.studies.compare import collect, difference
    from training.studies.runs import train_here

    places = StudyPlaces(CORPORA, tmp_path)
    recipe = "training/configs/dialogsum.yaml"
    zero_shot = collect(MethodRun("base", "base", recipe), SEEDS[:1], NUM_CASES, places, train_here)
    tuned = collect(MethodRun("lora", "lora", recipe, BUDGET), SEEDS, NUM_CASES, places, train_here)
    assert (zero_shot.errors, tuned.errors, len(tuned.figures)) == ([], [], len(SEEDS))
    assert difference(tuned, zero_shot).low > 0
