"""The peer without adapters of its own: CTranslate2, the base alone or one merged model per LoRA, group by group.

Its threads and batch size are chosen per case by trying a few settings. Models are converted once in float32;
CTranslate2 quantizes to int8 when it loads one.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from ctranslate2 import Translator
from ctranslate2.converters import TransformersConverter
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from benchmarks.closed_batch import ClosedBatch, Tokens
from server.engine.base import ResolvedAdapter

BASE_FOLDER = "base"
_SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


@dataclass(frozen=True, slots=True)
class Setting:
    """How CTranslate2 uses the cores.

    Attributes:
        inter_threads: Batches at once; of several models, models at once.
        intra_threads: Threads of each.
        max_batch_size: Most rows of a batch.
    """

    inter_threads: int
    intra_threads: int
    max_batch_size: int


class CTranslate2Side:
    """Models of CTranslate2 and the rows each serves.

    Args:
        folders: Converted model → its rows.
        batch: What is served.
        compute_type: ``float32`` or ``int8``.
        setting: How the cores are used.
    """

    def __init__(
        self, folders: dict[Path, list[int]], batch: ClosedBatch, *, compute_type: str, setting: Setting
    ) -> None:
        self._rows = list(folders.values())
        self._prompts = [[_word(token) for token in prompt] for prompt in batch.prompts]
        self._setting = setting
        self._translators = [
            Translator(
                str(folder),
                compute_type=compute_type,
                inter_threads=setting.inter_threads if len(folders) == 1 else 1,
                intra_threads=setting.intra_threads,
            )
            for folder in folders
        ]
        self._num_new_tokens = batch.num_new_tokens

    def serve(self) -> Tokens:
        """Generate for all rows."""
        return self._serve(self._num_new_tokens)

    def seconds(self) -> float:
        """Return how long one pass takes, after a short one to warm up."""
        self._serve(max(1, self._num_new_tokens // 8))
        start_s = time.perf_counter()
        self.serve()
        return time.perf_counter() - start_s

    def _serve(self, num_new_tokens: int) -> Tokens:
        def one(translator: Translator, rows: list[int]) -> list[list[int]]:
            results = translator.translate_batch(
                [self._prompts[row] for row in rows],
                beam_size=1,
                max_decoding_length=num_new_tokens,
                max_batch_size=self._setting.max_batch_size,
            )
            return [[_token_id(word) for word in result.hypotheses[0]] for result in results]

        tokens: Tokens = [[] for _ in self._prompts]
        with ThreadPoolExecutor(self._setting.inter_threads) as pool:
            for rows, generated in zip(self._rows, pool.map(one, self._translators, self._rows), strict=True):
                for row, found in zip(rows, generated, strict=True):
                    tokens[row] = found
        return tokens


def best_side(
    folders: dict[Path, list[int]], batch: ClosedBatch, *, compute_type: str
) -> tuple[CTranslate2Side, Setting]:
    """Return the models under the setting that serves this batch fastest, and that setting."""
    group_rows = max(len(rows) for rows in folders.values())
    seconds = {
        setting: CTranslate2Side(folders, batch, compute_type=compute_type, setting=setting).seconds()
        for setting in settings(len(folders), group_rows, batch.num_threads)
    }
    best = min(seconds, key=lambda setting: seconds[setting])
    return CTranslate2Side(folders, batch, compute_type=compute_type, setting=best), best


def settings(num_groups: int, group_rows: int, num_threads: int) -> list[Setting]:
    """Return the settings worth trying: all threads on one batch, a batch per thread, and smaller batches."""
    found = [Setting(1, num_threads, group_rows)]
    if num_threads > 1 and num_groups > 1:
        found.append(Setting(num_threads, 1, group_rows))
    elif num_threads > 1 and group_rows > 1:
        found.append(Setting(num_threads, 1, -(-group_rows // num_threads)))
    if group_rows > 16:
        found += [Setting(setting.inter_threads, setting.intra_threads, 16) for setting in found]
    return list(dict.fromkeys(found))


def convert(folder: Path, base: Path, loras: Sequence[ResolvedAdapter]) -> Path:
    """Convert the base, and the base merged with each LoRA, into folders ``base`` and one by each LoRA's digest."""
    model = T5ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    tokenizer = _tokenizer(model.config.vocab_size)
    _Converter(base, model, tokenizer).convert(folder / BASE_FOLDER)
    for lora in loras:
        model = T5ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(model, lora.path).merge_and_unload()
        _Converter(base, merged, tokenizer).convert(folder / lora.digest)
    return folder


class _Converter(TransformersConverter):
    """Converts a model in memory, with a tokenizer that need not be on disk."""

    def __init__(self, base: Path, model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(str(base))
        self._model = model
        self._tokenizer = tokenizer

    def load_model(self, *_: object, **__: object) -> T5ForConditionalGeneration:
        return self._model

    def load_tokenizer(self, *_: object, **__: object) -> PreTrainedTokenizerFast:
        return self._tokenizer


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the token ids: CTranslate2 takes and gives words."""
    words = {_word(token): token for token in range(vocab_size)}
    pad, eos, unk = _SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unk))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk)


def _word(token_id: int) -> str:
    return _SPECIAL_TOKENS[token_id] if token_id < len(_SPECIAL_TOKENS) else str(token_id)


def _token_id(word: str) -> int:
    return _SPECIAL_TOKENS.index(word) if word in _SPECIAL_TOKENS else int(word)
