"""Pairs become batches: padding, limits, order; shards come back from disk."""

import pytest

from training.batch import IGNORED_LABEL, Pair, collate, length_batches

PAIRS = [Pair([10 + i] * (3 + i % 40) + [1], [20 + i] * (2 + i % 9) + [1]) for i in range(120)]


def _batches(seed):
    return list(length_batches(PAIRS, max_tokens=200, limits=(30, 10), pad_id=0, seed=seed))


def test_collate_labels_are_padded_with_minus_100():
    batch = collate([Pair([5, 6, 1], [7, 1]), Pair([5, 1], [7, 8, 9, 1])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 1], [5, 1, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[7, 1, IGNORED_LABEL, IGNORED_LABEL], [7, 8, 9, 1]]
    assert batch.num_tokens == 5 + 6


def test_length_batches_every_fitting_pair_comes_once():
    seen = sorted(tuple(row[row > 0]) for batch in _batches("a") for row in batch.input_ids)
    fitting = [pair for pair in PAIRS if len(pair.source) <= 30 and len(pair.target) <= 10]
    assert seen == sorted(tuple(pair.source) for pair in fitting)
    assert len(fitting) < len(PAIRS)


def test_length_batches_no_batch_is_over_the_token_limit():
    for batch in _batches("a"):
        assert batch.input_ids.size + batch.labels.size <= 200


def test_length_batches_order_depends_on_the_seed_alone():
    first, again, other = ([b.input_ids.tolist() for b in _batches(seed)] for seed in ("a", "a", "b"))
    assert first == again != other


@pytest.mark.torch
def test_save_shard_pairs_come_back(tmp_path):
    from training.data.shards import load_shard, save_shard

    save_shard(PAIRS, tmp_path / "deep" / "shard.safetensors")
    assert load_shard(tmp_path / "deep" / "shard.safetensors") == PAIRS


@pytest.mark.torch
def test_make_shard_same_seed_gives_same_pairs(tiny_tokenizer):
    from training.data.mixture import Corpora, Mixture
    from training.data.shards import make_shard
    from training.data.sources import Turn

    turns = [Turn("A", f"I want to buy {n} apples and a melon today.") for n in range(6)]
    corpora = Corpora(
        {name: [turns] for name in ("sgd", "self_dialogue", "crd3", "taskmaster4")}, ["A book. " * 40], {}, {}
    )
    mixture = Mixture(corpora, {"copy": 1.0, "reported_summary": 1.0})
    first, again, other = (make_shard(mixture, tiny_tokenizer, seed, 30, 0.3) for seed in ("1/0", "1/0", "1/1"))
    assert first == again != other
