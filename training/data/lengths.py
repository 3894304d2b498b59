"""Find examples longer than the model reads, and do with them what the recipe says. It knows a tokenizer, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.batch import MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS
from training.data.adaptation import Case, Tokenizes
from training.data.problems import ProblemLog


@dataclass(frozen=True)
class Measured:
    """Cases that remain, the tokens of their prompts and answers after cutting, and how many are cut or gone."""

    cases: list[Case]
    num_tokens: int
    num_cut: int
    num_dropped: int


def measure_lengths(cases: Sequence[Case], tokenizer: Tokenizes, on_over_long: str, log: ProblemLog) -> Measured:
    """Measure every prompt and answer; over 512 and 192 tokens they are cut later, dropped here, or noted in `log`.

    Raises:
        Nothing.
    """
    texts = [text for case in cases for text in (case.prompt, *case.references)]
    lengths = iter([len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else [])
    kept: list[Case] = []
    num_tokens = num_cut = 0
    for case in cases:
        prompt, answers = next(lengths), [next(lengths) for _ in case.references]
        is_long = prompt > MAX_SOURCE_TOKENS or max(answers) > MAX_TARGET_TOKENS
        if is_long and on_over_long == "error":
            detail = f"{prompt} tokens of prompt, {max(answers)} of answer; read are {MAX_SOURCE_TOKENS} and "
            advice = "shorten it, or set data.on_over_long to cut or drop"
            log.add("over-long example", case.origin, f"{detail}{MAX_TARGET_TOKENS}", advice)
        if is_long and on_over_long == "drop":
            continue
        kept.append(case)
        num_cut += is_long
        num_tokens += min(prompt, MAX_SOURCE_TOKENS) + sum(min(length, MAX_TARGET_TOKENS) for length in answers)
    return Measured(kept, num_tokens, num_cut, len(cases) - len(kept))
