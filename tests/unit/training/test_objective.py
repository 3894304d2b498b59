"""What the loss is about: the completion alone, on both kinds of base; and that it can be learnt by heart."""

import random

import pytest

from training.batch import IGNORED_LABEL, Pair, collate, collate_causal

pytestmark = pytest.mark.torch
PAIRS = [Pair([5, 6, 7, 8], [20, 21, 1]), Pair([9, 10], [22, 1])]


def _loss(model, objective, batch):
    import torch

    ids, mask, labels = (torch.from_numpy(a) for a in (batch.input_ids, batch.attention_mask, batch.labels))
    logits = objective(model, ids, mask, labels)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def _log_prob(logits, tokens):
    """Return the sum of log-probabilities of tokens at the last positions but one."""
    import torch

    chosen = torch.log_softmax(logits[-len(tokens) :], dim=-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
    return chosen.sum()


def test_collate_causal_labels_are_the_answer_alone():
    batch = collate_causal(PAIRS, pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 20, 21], [9, 10, 22, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    none = IGNORED_LABEL
    assert batch.labels.tolist() == [[none, none, none, 20, 21, 1], [none, 22, 1, none, none, none]]


def test_causal_loss_is_that_of_the_completions_one_by_one(tiny_llama):
    import torch

    from training.base_model import load_base
    from training.objective import causal_logits

    model = load_base(str(tiny_llama)).model
    found = _loss(model, causal_logits, collate_causal(PAIRS, pad_id=0))
    expected = 0.0
    for pair in PAIRS:
        logits = model(input_ids=torch.tensor([[*pair.source, *pair.target[:-1]]])).logits[0]
        expected -= _log_prob(logits, pair.target)
    torch.testing.assert_close(found, expected)


def test_causal_loss_soft_prompt_does_not_shift_the_labels(tiny_llama):
    import torch
    from peft import PromptTuningConfig, get_peft_model

    from training.base_model import load_base
    from training.objective import causal_logits

    model = get_peft_model(
        load_base(str(tiny_llama)).model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    found = _loss(model, causal_logits, collate_causal(PAIRS[:1], pad_id=0))
    logits = model(input_ids=torch.tensor([[*PAIRS[0].source, *PAIRS[0].target[:-1]]])).logits[0]
    torch.testing.assert_close(found, -_log_prob(logits, PAIRS[0].target))


def test_seq2seq_loss_is_that_of_the_completions_one_by_one(tiny_base):
    import torch

    from training.base_model import load_base
    from training.objective import seq2seq_logits

    model = load_base(str(tiny_base)).model
    found = _loss(model, seq2seq_logits, collate(PAIRS, pad_id=0))
    expected = 0.0
    for pair in PAIRS:
        logits = model(
            input_ids=torch.tensor([pair.source]), decoder_input_ids=torch.tensor([[0, *pair.target[:-1]]])
        ).logits[0]
        expected -= _log_prob(logits, pair.target)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_full_fine_tuning_learns_32_examples_by_heart(kind, tmp_path, tiny_tokenizer, request):
    import torch

    from training.base_model import load_base
    from training.batch import length_batches
    from training.checkpoint import RunFolder
    from training.config import LoopConfig, ModelShape
    from training.loop import Trainer
    from training.model import build_model, speed_up
    from training.objective import causal_logits, seq2seq_logits

    rng = random.Random(4)
    pairs = [Pair([rng.randrange(3, 300) for _ in range(6)], [rng.randrange(3, 300), 1]) for _ in range(32)]
    if kind == "seq2seq":
        shape = ModelShape(vocab_size=400, d_model=64, d_kv=16, num_heads=4, d_ff=64, num_layers=1)
        model, join, objective = build_model(shape, tiny_tokenizer, seed=1), collate, seq2seq_logits
        speed_up(model)
    else:
        model = load_base(str(request.getfixturevalue("tiny_llama"))).model.requires_grad_(requires_grad=True)
        join, objective = collate_causal, causal_logits
    config = LoopConfig(
        max_steps=160, learning_rate=0.01, warmup_steps=5, relative_updates=False, update_clip=0.0, bfloat16=False,
        num_threads=1, tensorboard=False, max_grad_norm=1.0,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        config=config,
        batches=lambda epoch: length_batches(pairs, 10_000, (64, 16), 0, str(epoch), join=join),
        folder=RunFolder(tmp_path / "run"),
        fingerprint="f",
        objective=objective,
    )
    trainer.run()
    batch = join(pairs, 0)
    with torch.no_grad():
        loss = _loss(model.eval(), objective, batch) / (batch.labels != IGNORED_LABEL).sum()
    assert loss < 0.05
