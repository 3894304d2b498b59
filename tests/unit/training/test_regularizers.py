"""Penalties against their closed forms and autograd, and a strength of nought against plain fine-tuning."""

import numpy as np
import pytest

pytestmark = pytest.mark.torch
BATCH_ARGUMENTS = ([[5, 6, 7, 1], [8, 9, 1, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]], [[11, 12, 1], [13, 1, -100]])


@pytest.fixture
def batch():
    from training.batch import Batch

    return Batch(*(np.array(rows, dtype=np.int64) for rows in BATCH_ARGUMENTS))


@pytest.fixture
def model(tiny_tokenizer):
    from training.config import ModelShape
    from training.model import build_model

    shape = ModelShape(vocab_size=400, d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=1)
    return build_model(shape, tiny_tokenizer, seed=1)


def _logits(model, batch):
    import torch

    from training.objective import seq2seq_logits

    return seq2seq_logits(model, *map(torch.from_numpy, (batch.input_ids, batch.attention_mask, batch.labels)))


def _moved(model, by):
    import torch

    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(by * (number + 1))


def test_l2_to_start_value_and_gradient_equal_the_closed_form(model, batch):
    import torch

    from training.regularizers import L2ToStart, start_of

    start = start_of(model)
    penalty = L2ToStart(start, 0.3)
    assert penalty(model, batch, None).item() == 0.0
    _moved(model, 0.01)
    value = penalty(model, batch, None)
    expected = 0.15 * sum((0.01 * (n + 1)) ** 2 * p.numel() for n, p in enumerate(model.parameters()))
    assert value.item() == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, 0.3 * (parameter - start[name]))


def test_elastic_weights_gradient_is_scaled_by_importance(model, batch):
    import torch

    from training.regularizers import ElasticWeights, start_of

    start = start_of(model)
    importance = {name: torch.rand_like(value) for name, value in start.items()}
    _moved(model, 0.01)
    value = ElasticWeights(start, importance, 2.0)(model, batch, None)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, 2.0 * importance[name] * (parameter - start[name]))


def test_kl_is_nought_at_the_start_and_equals_the_sum_over_the_vocabulary(model, batch):
    import copy

    import torch

    from training.objective import seq2seq_logits
    from training.regularizers import KlToReference

    reference = copy.deepcopy(model)
    penalty = KlToReference(reference, seq2seq_logits, 0.5)
    assert penalty(model, batch, _logits(model, batch)).item() == pytest.approx(0.0, abs=1e-6)
    _moved(model, 0.02)
    before, now = (_logits(m, batch).log_softmax(-1) for m in (reference, model))
    each = (before.exp() * (before - now)).sum(-1)[torch.from_numpy(batch.labels) != -100]
    assert penalty(model, batch, _logits(model, batch)).item() == pytest.approx(0.5 * each.mean().item(), rel=1e-4)
    assert each.min() > 0
    penalty(model, batch, _logits(model, batch)).backward()
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_fisher_diagonal_is_the_mean_of_squared_gradients_of_single_examples(model, batch):
    import torch
    from torch.nn.functional import cross_entropy

    from training.batch import Batch
    from training.objective import seq2seq_logits
    from training.regularizers import fisher_diagonal

    singles = [Batch(*(a[i : i + 1] for a in (batch.input_ids, batch.attention_mask, batch.labels))) for i in (0, 1)]
    fisher = fisher_diagonal(model, singles, seq2seq_logits)
    weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
    squares = []
    for single in singles:
        labels = torch.from_numpy(single.labels).flatten()
        loss = cross_entropy(_logits(model, single).flatten(0, 1), labels, reduction="sum")
        squares.append(torch.autograd.grad(loss, weight)[0] ** 2)
    torch.testing.assert_close(fisher["encoder.block.0.layer.0.SelfAttention.q.weight"], sum(squares) / 2)
    assert squares[0].sum() > 0
    with pytest.raises(ValueError, match="example by example"):
        fisher_diagonal(model, [batch], seq2seq_logits)
    with pytest.raises(ValueError, match="no examples"):
        fisher_diagonal(model, [], seq2seq_logits)


def _trained(folder, model, num_threads, penalty):
    from training.batch import Pair, length_batches
    from training.checkpoint import RunFolder
    from training.config import LoopConfig
    from training.loop import Trainer

    pairs = [Pair([40 + i, 50 + i, 60 + i, 1], [40 + i, 41 + i, 1]) for i in range(16)]
    config = LoopConfig(max_steps=6, warmup_steps=1, bfloat16=False, num_threads=num_threads, checkpoint_every=6)
    Trainer(
        model=model,
        config=config,
        batches=lambda epoch: length_batches(pairs, 40, (64, 16), 0, f"1/{epoch}"),
        folder=RunFolder(folder),
        fingerprint="f",
        penalty=penalty,
    ).run()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["l2sp", "ewc", "kl"])
def test_strength_of_nought_equals_plain_fine_tuning_bit_for_bit(tmp_path, model, kind):
    import copy

    import torch

    from training.objective import seq2seq_logits
    from training.regularizers import ElasticWeights, KlToReference, L2ToStart, start_of

    def penalty(of, strength):
        start = start_of(of)
        if kind == "kl":
            return KlToReference(copy.deepcopy(of), seq2seq_logits, strength)
        return L2ToStart(start, strength) if kind == "l2sp" else ElasticWeights(start, start, strength)

    plain, nought, strong = (copy.deepcopy(model) for _ in range(3))
    expected = _trained(tmp_path / "plain", plain, 2, None)
    actual = _trained(tmp_path / "nought", nought, 2, penalty(nought, 0.0))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    held = _trained(tmp_path / "strong", strong, 2, penalty(strong, 1.0))
    assert not all(torch.equal(expected[name], held[name]) for name in expected)


def test_penalty_does_not_depend_on_how_many_parts_a_batch_is_cut_into(tmp_path, model):
    import copy

    import torch

    from training.regularizers import L2ToStart, start_of

    one, two = (
        _trained(tmp_path / str(n), held, n, L2ToStart(start_of(held), 0.1))
        for n, held in ((1, copy.deepcopy(model)), (2, copy.deepcopy(model)))
    )
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-4)
