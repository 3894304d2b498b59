"""The loop: a resumed run equals an unbroken one, bit for bit; the fast norm equals the plain one."""

import json

import pytest

from training.errors import CheckpointError, TrainingDataError, TrainingRunError

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


def _trainer(folder, tokenizer, max_steps, fingerprint="f", prepare=None, penalty=None, **changes):
    from training.batch import Pair, length_batches
    from training.checkpoint import RunFolder
    from training.config import LoopConfig, ModelShape
    from training.loop import Trainer
    from training.model import build_model, speed_up

    shape = ModelShape(vocab_size=400, d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=1)
    model = build_model(shape, tokenizer, seed=1)
    speed_up(model)
    model = prepare(model) if prepare else model
    pairs = [Pair([40 + (i * k) % 300 for k in range(3 + i % 7)] + [1], [40 + i, 41 + i, 1]) for i in range(40)]
    return Trainer(
        model=model,
        config=LoopConfig(max_steps=max_steps, **(LOOP | changes)),
        batches=lambda epoch: length_batches(pairs, 80, (64, 16), 0, f"1/{epoch}"),
        folder=RunFolder(folder),
        fingerprint=fingerprint,
        penalty=penalty,
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


def _with_dropout(model):
    """Put a LoRA with dropout on the model, which itself drops out, too."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, lora_dropout=0.3))


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_run_from_any_kept_checkpoint_equals_the_unbroken_run_with_dropout(tmp_path, tiny_tokenizer, step):
    options = {"prepare": _with_dropout, "checkpoint_every": 2, "keep_checkpoints": 3, "num_threads": 2}
    whole = _trainer(tmp_path / "whole", tiny_tokenizer, 6, **options)
    assert whole.num_lanes == 1
    whole.run()
    _trainer(tmp_path / "cut", tiny_tokenizer, 6, **options).run()
    continued = _trainer(tmp_path / "cut", tiny_tokenizer, 6, **options)
    continued.resume(step)
    assert continued.state.step == step
    assert continued.folder.checkpoint_steps() == [2, 4][: step // 2]
    continued.run()
    assert _weights(tmp_path / "cut", 6) == _weights(tmp_path / "whole", 6)
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")


def test_run_dropout_draws_anew_each_step(tmp_path, tiny_tokenizer):
    import torch

    trainer = _trainer(tmp_path, tiny_tokenizer, 6, prepare=_with_dropout, learning_rate=0.0)
    batch = next(trainer.batches(0))
    trainer.batches = lambda _shard: iter([batch])
    trainer.run()
    losses = [loss for _, loss in _losses(tmp_path)]
    assert len(set(losses)) == 6
    assert torch.is_grad_enabled()


def test_run_keeps_the_latest_checkpoints_and_their_best_exports(tmp_path, tiny_tokenizer):
    figures = iter([3.0, 5.0, 1.0, 4.0])

    def export(folder):
        folder.mkdir(parents=True)

    trainer = _trainer(tmp_path, tiny_tokenizer, 8, checkpoint_every=2, evaluate_every=2)
    trainer.evaluate, trainer.score, trainer.export = lambda _step: {"x": next(figures)}, lambda f: f["x"], export
    state = trainer.run()
    assert (state.best, state.best_step) == (5.0, 4)
    assert trainer.folder.checkpoint_steps() == [6, 8]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-000004"]


def test_resume_from_a_step_that_is_not_kept_is_refused(tmp_path, tiny_tokenizer):
    _trainer(tmp_path, tiny_tokenizer, 4, checkpoint_every=2).run()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3.*kept: 2, 4"):
        _trainer(tmp_path, tiny_tokenizer, 4, checkpoint_every=2).resume(3)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_accumulation_gives_the_same_gradient(tmp_path, tiny_tokenizer, num_threads):
    import torch
    from safetensors.torch import load

    for name, pieces in (("whole", 1), ("pieces", 3)):
        kind = {"accumulation": pieces, "num_threads": num_threads, "bfloat16": False}
        _trainer(tmp_path / name, tiny_tokenizer, 8, **kind).run()
    whole, pieces = (load(_weights(tmp_path / name, 8)) for name in ("whole", "pieces"))
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-2, atol=1e-4)


class _Pull:
    """A pull of every weight towards zero, or of the logits."""

    def __init__(self, strength, per_batch):
        self.strength, self.per_batch = strength, per_batch

    def __call__(self, model, part, logits):
        import torch

        if self.per_batch:
            return self.strength * logits[torch.from_numpy(part.labels) != -100].square().mean()
        return self.strength * sum(parameter.square().sum() for parameter in model.parameters())


@pytest.mark.parametrize("per_batch", [False, True])
def test_penalty_of_strength_zero_equals_none_bit_for_bit(tmp_path, tiny_tokenizer, per_batch):
    kind = {"num_threads": 2, "bfloat16": False}
    _trainer(tmp_path / "plain", tiny_tokenizer, 8, **kind).run()
    _trainer(tmp_path / "zero", tiny_tokenizer, 8, penalty=_Pull(0.0, per_batch), **kind).run()
    _trainer(tmp_path / "pulled", tiny_tokenizer, 8, penalty=_Pull(0.01, per_batch), **kind).run()
    assert _weights(tmp_path / "zero", 8) == _weights(tmp_path / "plain", 8) != _weights(tmp_path / "pulled", 8)


@pytest.mark.parametrize("per_batch", [False, True])
def test_penalty_counts_the_same_however_the_batch_is_cut(tmp_path, tiny_tokenizer, per_batch):
    losses = []
    for num_threads, accumulation in ((1, 1), (2, 2)):
        kind = {"num_threads": num_threads, "accumulation": accumulation, "bfloat16": False, "checkpoint_every": 1}
        folder = tmp_path / str(num_threads)
        _trainer(folder, tiny_tokenizer, 1, penalty=_Pull(0.01, per_batch), **kind).run()
        losses.append(_losses(folder)[0][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_run_loss_that_is_no_number_stops_with_advice(tmp_path, tiny_tokenizer):
    import torch

    trainer = _trainer(tmp_path, tiny_tokenizer, 8, checkpoint_every=2)
    plain = trainer.objective

    def spoilt(model, ids, mask, labels):
        return plain(model, ids, mask, labels) * (torch.nan if trainer.state.step == 3 else 1)

    trainer.objective = spoilt
    with pytest.raises(TrainingRunError, match=r"loss is nan at step 4 .*step-000002.*loop\.learning_rate"):
        trainer.run()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_run_out_of_memory_stops_with_advice(tmp_path, tiny_tokenizer, error):
    trainer = _trainer(tmp_path, tiny_tokenizer, 8)

    def too_large(*_):
        raise error

    trainer.objective = too_large
    with pytest.raises(TrainingRunError, match=r"memory ran out after step 0.*batch_tokens.*loop\.accumulation"):
        trainer.run()


def test_run_other_error_is_not_called_a_lack_of_memory(tmp_path, tiny_tokenizer):
    trainer = _trainer(tmp_path, tiny_tokenizer, 8)

    def broken(*_):
        raise RuntimeError("mat1 and mat2 do not fit")

    trainer.objective = broken
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.run()
