"""The cards that travel with weights: what they are, from which data, by which command, how good, and their limits.

It formats facts it is given; it measures nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from training.config import AdapterRecipe, BaseRecipe
from training.methods import Method, method_name

_COLUMNS = (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L"))


class Sample(NamedTuple):
    """An answer of the published adapter beside what it was compared with."""

    reference: str
    answer: str


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter's run was.

    Attributes:
        recipe: What was trained, on what, how.
        about: The method in a few words.
        next_step: What can be done with the folder.
        num_trainable: Parameters that were trained.
        num_train: Pairs it learned from.
        num_validation: Examples it was measured on.
        num_steps: Updates.
        num_tokens: Tokens that counted, source and target.
        elapsed_s: Seconds of training, without evaluation.
        samples: Answers to the first validation examples, as many as the recipe asks for.
    """

    recipe: AdapterRecipe[Method]
    about: str
    next_step: str
    num_trainable: int
    num_train: int
    num_validation: int
    num_steps: int
    num_tokens: int
    elapsed_s: float
    samples: Sequence[Sample]


@dataclass(frozen=True)
class BaseFacts:
    """What the base's run was."""

    recipe: BaseRecipe
    num_parameters: int
    num_steps: int
    num_tokens: int
    elapsed_s: float


def adapter_card(facts: AdapterFacts, table: Mapping[str, Mapping[str, float]]) -> str:
    """Return an adapter's card as Markdown; `table` maps who answered to ROUGE F-measures in percent.

    Raises:
        KeyError: the table lacks a score.
    """
    recipe, about = facts.recipe, facts.recipe.adapter
    names = {"adapter": f"**{about.name}**", "base": "the base, same prompt", "lead-3": "LEAD-3 (first three lines)"}
    return f"""# {about.name}

{about.description}

- Base: `{recipe.base.rsplit("/", 1)[-1]}` · method: {facts.about}; {facts.num_trainable:,} parameters trained
- What it is for: {facts.next_step}
- Licence of these weights: **{about.licence}**
- Data: {about.data_title} ({about.data_licence}); {facts.num_train:,} pairs of its training split, \
{recipe.data.split.held_out_percent:g} % of that split held out to choose the checkpoint
- Made by `medley train {method_name(recipe.method)} --config {about.name}.yaml`, \
seed {recipe.loop.seed}, {facts.num_steps:,} steps, {facts.num_tokens / 1e6:.1f} M tokens, \
{facts.elapsed_s / 60:.0f} min on {_hardware(recipe.loop.num_threads)}

Prompt template:

```
{about.prompt_template}
```

## Measured

ROUGE F-measure in percent (`rouge_score`, stemmed), over the whole validation split \
({facts.num_validation} dialogues), greedy, at most {recipe.data.max_new_tokens} new tokens, float32:

{_table(table, names)}
{_sample_section(facts.samples)}
## Limits

{about.limits.strip()}
"""


def base_card(facts: BaseFacts, held_out: Mapping[str, float]) -> str:
    """Return the base's card as Markdown; `held_out` maps names of held-out figures to values.

    Raises:
        Nothing.
    """
    shape = facts.recipe.model
    mixture = {
        key: getattr(facts.recipe, key) for key in ("early_mixture", "mixture", "early_span_share", "span_share")
    }
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in held_out.items())
    return f"""# {facts.recipe.name}

A small encoder-decoder of T5's architecture, trained from nothing for Medley, so that the server, its demo and its
tests have a real model without any download. It reads instructions in English, mostly about dialogues.

- {facts.num_parameters / 1e6:.1f} M parameters, width {shape.d_model}, {shape.num_layers} + {shape.num_layers} \
layers, {shape.num_heads} heads of {shape.d_kv}, gated GELU of {shape.d_ff}, tied output head; own byte-level BPE of \
{shape.vocab_size:,} entries that gives back any text exactly; bfloat16; reads up to 512 tokens
- Licence of these weights: **CC-BY-SA-4.0**, commercial use allowed
- Made by `medley train base`, seed {facts.recipe.loop.seed}, {facts.num_steps:,} steps, \
{facts.num_tokens / 1e6:.1f} M tokens, {facts.elapsed_s / 60:.0f} min on {_hardware(facts.recipe.loop.num_threads)}

## Data

Nothing here forbids commercial use; DialogSum (CC BY-NC-SA) is *not* part of it.

| data | licence | used for |
| --- | --- | --- |
| Schema-Guided Dialogue | CC BY-SA 4.0 | span corruption, copying, summaries and titles made by rule |
| self_dialogue corpus | BSD-3-Clause | the same |
| CRD3 | CC BY-SA 4.0 | the same, and its aligned summaries with a score of 0.3 or more |
| Taskmaster (coffee orders) | CC BY 4.0 | span corruption, copying, summaries made by rule |
| TweetSumm, training split | CDLA-Sharing-1.0 | summaries |
| MTS-Dialog, training split | CC BY 4.0 | notes and section headers |
| banking77, sentence polarity | CC BY 4.0 | instructions |
| Tatoeba English-French | CC BY 2.0 FR | translation |
| Project Gutenberg | public domain in the US | span corruption |

CRD3 and Schema-Guided Dialogue ask that works built on them are shared alike, so the weights are CC-BY-SA-4.0.

## Measured on held-out dialogues

`exchanged` is the loss when each row reads its neighbour's text: a decoder that ignored the text would lose nothing.

| figure | value |
| --- | --- |
{rows}

## Limits

It is tiny and saw few tokens. It copies and rephrases; it does not reason, know facts, or speak any language but
English tolerably. Summaries leave things out and mix up who did what. It may repeat rude, biased or private-looking
text of its corpora. Meant for demonstrations and tests, and as a base for adapters, not for decisions about people.

## Recipe

```json
{json.dumps(mixture, indent=1)}
```
"""


def _table(table: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> str:
    header = "| | " + " | ".join(title for _, title in _COLUMNS) + " |\n| --- |" + " --- |" * len(_COLUMNS)
    rows = [
        f"| {names[who]} | " + " | ".join(f"{scores[key]:.1f}" for key, _ in _COLUMNS) + " |"
        for who, scores in table.items()
    ]
    return "\n".join([header, *rows])


def _sample_section(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    rows = "\n".join(f"| {_in_cell(sample.reference)} | {_in_cell(sample.answer)} |" for sample in samples)
    return f"""
## Samples

The first of the validation split, not chosen:

| a person's | its own |
| --- | --- |
{rows}
"""


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _hardware(num_threads: int) -> str:
    return f"{num_threads} CPU threads ({platform.machine()}), no GPU"
