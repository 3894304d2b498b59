"""Fine-tuning on one task with 1,000 examples: better than the base untrained, over seeds, on real dialogues."""

from pathlib import Path

import pytest

from training.studies.config import MethodRun, StudyPlaces

# Minutes on two cores: most go into answering the validation split.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]
CORPORA = Path(__file__).parents[3] / "shared" / "data"
SEEDS = (17, 18, 19)
NUM_CASES = 300
# Once over the 1,000 examples, and a check on the held-out part at the end alone.
BUDGET = (
    "data.max_examples=1000",
    "data.split.num_held_out=8",
    "batch_tokens=4000",
    "loop.max_steps=80",
    "loop.warmup_steps=8",
    "loop.learning_rate=0.003",
    "loop.evaluate_every=80",
    "loop.checkpoint_every=80",
    "loop.tensorboard=false",
)


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the repository")
def test_single_task_of_1000_examples_beats_zero_shot_over_three_seeds(tmp_path):
    from training.studies.compare import collect, difference
    from training.studies.runs import train_here

    places = StudyPlaces(CORPORA, tmp_path)
    untrained = MethodRun("base", "base", "training/configs/dialogsum-full.yaml")
    lora = MethodRun("lora", "lora", "training/configs/dialogsum.yaml", BUDGET)
    zero_shot = collect(untrained, SEEDS[:1], NUM_CASES, places, train_here)
    tuned = collect(lora, SEEDS, NUM_CASES, places, train_here)
    assert (zero_shot.errors, tuned.errors, len(tuned.figures)) == ([], [], len(SEEDS))
    assert difference(tuned, zero_shot).low > 0
