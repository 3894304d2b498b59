"""The loop: a resumed run equals an unbroken one, bit for bit; the fast norm equals the plain one."""

import json

import pytest

from training.errors import CheckpointError, TrainingDataError

pytestmark = pytest.mark.torch
LOOP = {
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "evaluate_every": 100,
    "log_every": 1,
    "checkpoint_every": 8,
    "num_threads": 1,
    "tensorboard": False,
}


def _trainer(folder, tokenizer, max_steps, fingerprint="f", **changes):
    from training.batch import Pair, length_batches
    from training.checkpoint import RunFolder
    from training.config import LoopConfig, ModelShape
    from training.loop import Trainer
    from training.model import build_model, speed_up

    shape = ModelShape(vocab_size=400, d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=1)
    model = build_model(shape, tokenizer, seed=1)
    speed_up(model)
    pairs = [Pair([40 + (i * k) % 300 for k in range(3 + i % 7)] + [1], [40 + i, 41 + i, 1]) for i in range(40)]
    return Trainer(
        model=model,
        config=LoopConfig(max_steps=max_steps, **(LOOP | changes)),
        batches=lambda epoch: length_batches(pairs, 80, (64, 16), 0, f"1/{epoch}"),
        folder=RunFolder(folder),
        fingerprint=fingerprint,
    )


def _losses(folder):
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def _weights(folder, step):
    return (folder / "checkpoints" / f"step-{step:06d}" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(("bfloat16", "num_threads"), [(False, 1), (True, 2)])
def test_resumed_run_equals_the_unbroken_run(tmp_path, tiny_tokenizer, bfloat16, num_threads):
    kind = {"bfloat16": bfloat16, "num_threads": num_threads}
    _trainer(tmp_path / "whole", tiny_tokenizer, 20, cooldown_share=0.2, **kind).run()
    # Stops in the stable phase of a longer run; the continuation must not notice.
    _trainer(tmp_path / "cut", tiny_tokenizer, 8, cooldown_share=0.01, **kind).run()
    continued = _trainer(tmp_path / "cut", tiny_tokenizer, 20, cooldown_share=0.2, **kind)
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "loss": 0.0}\n')  # done after the checkpoint, and lost
    continued.resume()
    continued.run()
    whole, cut = _losses(tmp_path / "whole"), _losses(tmp_path / "cut")
    assert [step for step, _ in whole] == list(range(1, 21))
    assert cut == whole
    assert _weights(tmp_path / "cut", 20) == _weights(tmp_path / "whole", 20)


def test_run_loss_falls(tmp_path, tiny_tokenizer):
    _trainer(tmp_path, tiny_tokenizer, 40).run()
    losses = [loss for _, loss in _losses(tmp_path)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_run_no_pair_that_fits_is_refused(tmp_path, tiny_tokenizer):
    trainer = _trainer(tmp_path, tiny_tokenizer, 4)
    trainer.batches = lambda _epoch: iter(())
    with pytest.raises(TrainingDataError, match="no training pair fits"):
        trainer.run()


def test_resume_checkpoint_of_another_recipe_is_refused(tmp_path, tiny_tokenizer):
    _trainer(tmp_path, tiny_tokenizer, 4).run()
    with pytest.raises(CheckpointError, match="another configuration"):
        _trainer(tmp_path, tiny_tokenizer, 8, fingerprint="other").resume()


def test_resume_to_another_length_while_cooling_down_is_refused(tmp_path, tiny_tokenizer):
    _trainer(tmp_path, tiny_tokenizer, 8, cooldown_share=0.5).run()
    with pytest.raises(CheckpointError, match="already falling"):
        _trainer(tmp_path, tiny_tokenizer, 20, cooldown_share=0.5).resume()


def test_resume_without_a_checkpoint_is_refused(tmp_path, tiny_tokenizer):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        _trainer(tmp_path, tiny_tokenizer, 8).resume()


def test_speed_up_model_gives_the_same_loss_and_gradients(tiny_tokenizer):
    import torch

    from training.config import ModelShape
    from training.model import build_model, speed_up

    shape = ModelShape(vocab_size=400, d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=2)
    plain, fast = (build_model(shape, tiny_tokenizer, seed=1) for _ in range(2))
    speed_up(fast)
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(3, 400, (2, n), generator=generator) for n in (9, 5))
    for model in (plain, fast):
        model(input_ids=ids, labels=labels).loss.backward()
    for (name, one), (other_name, two) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)


def test_learning_rate_warms_up_stays_and_cools_down():
    from training.optimizer import learning_rate_at

    def rate(step, max_steps=100):
        return learning_rate_at(step, peak=1.0, warmup_steps=10, max_steps=max_steps, cooldown_share=0.25)

    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == rate(50) == rate(75) == 1.0
    assert rate(99) == pytest.approx(0.04)
    assert rate(75, max_steps=1000) == 1.0
