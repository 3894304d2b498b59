"""Answers to prompts, texts in and texts out: by our engine where it serves the adapter, else by `transformers`.

One function decides which, :func:`training.engine_generation.engine_serves`. Prompts over 512 tokens are cut at the
end of the text. It knows no data set and no metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.base_model import Base, base_folder, load_base
from training.batch import cut_source
from training.engine_generation import GREEDY, EngineGenerator, Sampling, engine_serves
from training.errors import EvaluationError
from training.evaluate import generate_texts
from training.export import export_adapter
from training.peft_warnings import without_false_alarms


class FolderAnswers:
    """Answers of adapters in folders, over one base in a folder, in float32; a context manager that frees the base.

    Args:
        base: the base's folder or hub id.
        max_new_tokens: most tokens of an answer.
        sampling: how tokens are chosen.

    Attributes:
        max_new_tokens: most tokens of an answer.

    Raises:
        TrainingConfigError: no such base.
    """

    def __init__(self, base: str | Path, max_new_tokens: int, sampling: Sampling = GREEDY) -> None:
        self._base, self.max_new_tokens, self._sampling = base_folder(str(base)), max_new_tokens, sampling
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(self._base)
        self._engine: EngineGenerator | None = None

    def __enter__(self) -> Self:
        """Return itself; the base is loaded at the first answer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.__exit__(kind, error, trace)

    def answer(self, adapters: Sequence[Path], prompts: Sequence[str]) -> list[str]:
        """Return the answer to each prompt, of the base alone if there are no adapters.

        Raises:
            EvaluationError: adapters that no one runs together, or the base cannot be loaded.
            AdapterError: an adapter's files are broken, or of another base.
        """
        if not engine_serves(self._base, adapters):
            return self._answer_without_engine(adapters, prompts)
        if self._engine is None:
            self._engine = EngineGenerator(self._base, self.max_new_tokens).__enter__()
        ids = [cut_source(row) for row in self._tokenizer(list(prompts))["input_ids"]]
        answers = self._engine.generate(ids, adapters, self._sampling)
        return [text.strip() for text in self._tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _answer_without_engine(self, adapters: Sequence[Path], prompts: Sequence[str]) -> list[str]:
        if len(adapters) > 1 or self._sampling != GREEDY:
            raise EvaluationError("what the engine does not serve is answered greedily, by one adapter at a time")
        base = load_base(str(self._base))
        model: PeftModel | PreTrainedModel = base.model
        for folder in adapters:
            with without_false_alarms():
                model = PeftModel.from_pretrained(model, folder)
        return generate_texts(model.eval(), base.tokenizer, prompts, self.max_new_tokens)


def answers_of_model(
    base: Base, model: PeftModel | PreTrainedModel, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Return the greedy answers of a model in training.

    An adapter the engine serves is exported as it would be published, in bfloat16, and answers over the base's files;
    any other model answers itself, as it is in memory.

    Raises:
        EvaluationError: the engine fails.
    """
    if isinstance(model, PeftModel):
        with TemporaryDirectory() as place:
            folder = Path(place) / "adapter"
            export_adapter(model, folder, base.name)
            if engine_serves(base.folder, [folder]):
                with FolderAnswers(base.folder, max_new_tokens) as answers:
                    return answers.answer([folder], prompts)
    return generate_texts(model, base.tokenizer, prompts, max_new_tokens)
