"""`medley study prompt-neighbours`: which words each row of a soft prompt lies nearest to, and how far it has drifted.

It reads a PEFT folder as the server would. It does not know how the prompt was trained.

Legend: P virtual tokens, D width, V vocabulary, K neighbours.

Source: Lester et al. 2021, arXiv:2104.08691, section 7 (nearest neighbours by cosine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from adapters.adapter_weights import SoftPromptWeights
from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, read_adapter
from training.errors import TrainingConfigError
from training.studies.config import NeighboursConfig, StudyPlaces
from training.studies.report import Series, plot, table, write_report

Array = NDArray[np.float32]
# A row this close to a word stands, for every purpose, on it: the published rows are bfloat16.
_ON_A_WORD = 0.999


@dataclass(frozen=True)
class VirtualToken:
    """One row of a soft prompt.

    Attributes:
        words: Its nearest vocabulary entries, nearest first, as text.
        cosines: How near each is, -1 to 1.
        norm: Length of the row over the median length of the vocabulary's rows.
        start: Cosine to the word it began as; None where that is not known.
    """

    words: tuple[str, ...]
    cosines: tuple[float, ...]
    norm: float
    start: float | None


def run(config: NeighboursConfig, places: StudyPlaces) -> Path:
    """Write the neighbours of every virtual token, and return the report's path.

    Raises:
        TrainingConfigError: the adapter is not a soft prompt.
        AdapterError: its files are broken, or belong to another base.
        OSError: no base where the study says.
    """
    base, adapter = Path(config.base), Path(config.adapter)
    weights = read_adapter(adapter, read_base_spec(base), CodecLimits())
    if not isinstance(weights, SoftPromptWeights):
        raise TrainingConfigError(f"{adapter} is not a soft prompt")
    tokens = virtual_tokens(weights.embeddings, base, config)
    _draw(tokens, places.out, adapter.name)
    sections = {
        "What stands out": _summary(tokens),
        "Nearest words": _table(tokens),
        "Drift": "![cosine to the nearest word](neighbours.png)",
        "How to read this": _READING,
    }
    return write_report(places.out, f"Neighbours of `{adapter.name}`", sections, [asdict(token) for token in tokens])


def virtual_tokens(rows_PD: Array, base: Path, config: NeighboursConfig) -> list[VirtualToken]:
    """Describe each row by the words of the base it is nearest to.

    Raises:
        OSError: no base in the folder.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    table_VD = _embedding_table(base)
    ids_PK, cosines_PK = nearest(rows_PD, table_VD, config.num_neighbours)
    norms_P = np.linalg.norm(rows_PD, axis=1) / np.median(np.linalg.norm(table_VD, axis=1))
    starts = _starts(rows_PD, table_VD, tokenizer, config.init_text)
    return [
        VirtualToken(tuple(map(tokenizer.decode, ids)), tuple(map(float, cosines)), float(norm), start)
        for ids, cosines, norm, start in zip(ids_PK.tolist(), cosines_PK, norms_P, starts, strict=True)
    ]


def nearest(rows_PD: Array, table_VD: Array, num: int) -> tuple[NDArray[np.int64], Array]:
    """Return, for each row, the ids of the `num` table rows of the largest cosine, and these cosines, largest first.

    Raises:
        Nothing.
    """
    cosines_PV = _unit(rows_PD) @ _unit(table_VD).T
    ids_PK = np.argsort(-cosines_PV, axis=1, kind="stable")[:, :num]
    return ids_PK, np.take_along_axis(cosines_PV, ids_PK, axis=1)


def _embedding_table(base: Path) -> Array:
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in ("shared.weight", "model.embed_tokens.weight") if name in tensors)
    return tensors[name].float().numpy()


def _starts(rows_PD: Array, table_VD: Array, tokenizer: PreTrainedTokenizerFast, text: str) -> list[float | None]:
    """Return each row's cosine to the row it began as: `text`'s tokens, repeated until every row had one."""
    if not text:
        return [None] * len(rows_PD)
    ids = np.resize(tokenizer(text, add_special_tokens=False)["input_ids"], len(rows_PD))
    return [float(cosine) for cosine in (_unit(rows_PD) * _unit(table_VD[ids])).sum(axis=1)]


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _summary(tokens: list[VirtualToken]) -> str:
    nearest_cosines = np.array([token.cosines[0] for token in tokens])
    on_words = int((nearest_cosines >= _ON_A_WORD).sum())
    norms = np.array([token.norm for token in tokens])
    lines = [
        f"- {on_words} of {len(tokens)} virtual tokens stand on a word; the others lie between words.",
        f"- Cosine to the nearest word: {_spread(nearest_cosines)}.",
        f"- Length of a row, in lengths of a word: {_spread(norms)}.",
    ]
    starts = [token.start for token in tokens if token.start is not None]
    if starts:
        kept = sum(token.start is not None and token.start >= token.cosines[0] - 1e-6 for token in tokens)
        lines.append(f"- Cosine to the word each began as: {_spread(starts)}; 1 is a row that only changed its length.")
        lines.append(f"- {kept} of {len(tokens)} still lie nearer to the word they began as than to any other.")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"median {np.median(values):.2f}, from {min(values):.2f} to {max(values):.2f}"


def _table(tokens: list[VirtualToken]) -> str:
    rows = [
        [
            number,
            ", ".join(f"`{_visible(word)}` {cosine:.2f}" for word, cosine in zip(t.words, t.cosines, strict=True)),
            f"{t.norm:.2f}",
            "" if t.start is None else f"{t.start:.2f}",
        ]
        for number, t in enumerate(tokens)
    ]
    return table(["virtual token", "nearest words and cosines", "length", "cosine to its start"], rows)


def _visible(word: str) -> str:
    """Show what a table's cell would hide: spaces, line ends, and the mark that quotes the word."""
    return word.replace(" ", "␣").replace("\n", "⏎").replace("`", "'") or "∅"


def _draw(tokens: list[VirtualToken], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    places = list(range(len(tokens)))
    series = [Series("nearest word", places, [token.cosines[0] for token in tokens])]
    if tokens[0].start is not None:
        series.append(Series("the word it began as", places, [token.start or 0.0 for token in tokens]))
    plot(folder / "neighbours.png", series, title=f"Drift of {name}", x="virtual token", y="cosine", join=False)


_READING = """
A virtual token is a row of numbers, not a word. A nearest word with a cosine near 1 is what the row is; one below about
0.5 is only the least distant of all words, and says little. Length is the row's over the median of the vocabulary's.
`␣` is a space, `⏎` the end of a line.
"""
