"""`medley train base`: pre-train the embedded base from nothing, on commercially usable data only.

Tokenizer, then span corruption mixed with tasks (copying first and heavily).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from adapters.prompting import DEFAULT_TEMPLATE
from training.batch import Batch, Pair, collate, length_batches
from training.card import BaseFacts, base_card
from training.checkpoint import RunFolder
from training.config import BaseRecipe, fingerprint
from training.curve import draw_loss_curve
from training.data.mixture import Corpora, Mixture, load_corpora, tokenizer_texts
from training.data.shards import load_shard, make_shard, save_shard
from training.data.tokenizer import train_tokenizer
from training.export import export_model, write_base_manifest
from training.loop import Trainer, seed_everything
from training.model import build_model, speed_up

_PROBES = ("copy", "reported_summary", "crd3_summary", "tweetsumm")


@dataclass
class ShardCache:
    """Gives a shard's batches, made once and kept on disk."""

    recipe: BaseRecipe
    corpora: Corpora
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    def batches(self, index: int) -> Iterator[Batch]:
        """Return the batches of shard `index`.

        Raises:
            OSError: the cache folder cannot be written.
        """
        path = self.folder / f"shard-{index:04d}.safetensors"
        if not path.is_file():
            early = index < self.recipe.early_shards
            weights = self.recipe.early_mixture if early else self.recipe.mixture
            span_share = self.recipe.early_span_share if early else self.recipe.span_share
            mixture = Mixture(self.corpora, weights)
            seed = f"{self.recipe.loop.seed}/{index}"
            save_shard(make_shard(mixture, self.tokenizer, seed, self.recipe.shard_examples, span_share), path)
        return length_batches(
            load_shard(path),
            self.recipe.batch_tokens,
            self.recipe.length_limits,
            self.tokenizer.pad_token_id,
            f"{self.recipe.loop.seed}/order/{index}",
        )


def train_base(
    recipe: BaseRecipe, data_dir: Path, run_dir: Path, out_dir: Path, *, resume: bool, from_step: int | None = None
) -> None:
    """Pre-train the base and publish it to `out_dir`, with its card.

    Args:
        recipe: what to train.
        data_dir: folder of the corpora.
        run_dir: checkpoints, shard cache, log; may be deleted afterwards.
        out_dir: receives the finished model folder.
        resume: go on from a checkpoint of the run folder.
        from_step: which one; None for the latest.

    Raises:
        TrainingError: missing data, or a checkpoint of another run.
    """
    seed_everything(recipe.loop.seed)
    corpora = load_corpora(data_dir)
    tokenizer = _tokenizer(recipe, corpora, run_dir)
    model = build_model(recipe.model, tokenizer, recipe.loop.seed)
    speed_up(model)
    probes = _probe_batches(data_dir, tokenizer)

    def evaluate(_step: int) -> dict[str, float]:
        export_model(model, tokenizer, run_dir / "latest")
        return {key: value for name, batch in probes.items() for key, value in probe(model, name, batch).items()}

    cache = ShardCache(recipe, corpora, tokenizer, run_dir / "shards")
    folder = RunFolder(run_dir)
    trainer = Trainer(
        model=model,
        config=recipe.loop,
        batches=cache.batches,
        folder=folder,
        fingerprint=fingerprint(recipe),
        evaluate=evaluate,
        title=recipe.name,
    )
    if resume:
        trainer.resume(from_step)
    state = trainer.run()
    export_model(model, tokenizer, out_dir)
    write_base_manifest(recipe.name, DEFAULT_TEMPLATE, out_dir)
    facts = BaseFacts(recipe, model.num_parameters(), state.step, state.num_tokens, state.elapsed_s)
    (out_dir / "card.md").write_text(base_card(facts, evaluate(state.step)), encoding="utf-8")
    draw_loss_curve(folder.log, run_dir / "loss.png", f"{recipe.name}: pre-training")


def _tokenizer(recipe: BaseRecipe, corpora: Corpora, run_dir: Path) -> PreTrainedTokenizerFast:
    folder = run_dir / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        texts = tokenizer_texts(corpora, recipe.loop.seed)
        train_tokenizer(texts, recipe.model.vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _probe_batches(data_dir: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Batch]:
    """Return one fixed batch of held-out dialogues for each probed kind of task."""
    corpora = load_corpora(data_dir, held_out=True, num_paragraphs=100)
    probes: dict[str, Batch] = {}
    for kind in _PROBES:
        rng = random.Random(f"probe/{kind}")  # noqa: S311 - not for secrets
        mixture, pairs = Mixture(corpora, {kind: 1.0}, max_words=130), []
        while len(pairs) < 32:
            example = mixture.draw(rng)
            source, target = tokenizer([example.source, example.target])["input_ids"]
            if len(source) <= 256 and len(target) <= 64:
                pairs.append(Pair(source, target))
        probes[kind] = collate(pairs, tokenizer.pad_token_id)
    return probes


@torch.no_grad()
def probe(model: torch.nn.Module, name: str, batch: Batch) -> dict[str, float]:
    """Return loss and token accuracy on a held-out batch, and the loss when every row reads its neighbour's text.

    A decoder that listens to the encoder loses much by the exchange; one that ignores it loses nothing.

    Raises:
        Nothing.
    """
    arrays = (batch.input_ids, batch.attention_mask, batch.labels)
    ids, mask, labels = (torch.from_numpy(a).to(model.device) for a in arrays)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    exchanged = model(input_ids=ids.roll(1, 0), attention_mask=mask.roll(1, 0), labels=labels)
    real = labels >= 0
    accuracy = (output.logits.argmax(-1) == labels)[real].float().mean().item()
    return {
        f"{name}_loss": round(output.loss.item(), 4),
        f"{name}_accuracy": round(accuracy, 4),
        f"{name}_loss_exchanged": round(exchanged.loss.item(), 4),
    }
