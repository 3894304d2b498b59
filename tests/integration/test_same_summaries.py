"""One adapter, three ways to run it, the same summaries token for token: training's evaluation, ``transformers`` with
PEFT, and a running server over HTTP. The shipped LoRA and the shipped soft prompt, in float32, greedy.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the reference is PEFT")

from peft import PeftModel  # noqa: E402
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration  # noqa: E402

from adapters.prompting import render  # noqa: E402
from loadtest.examples import SHIPPED_EXAMPLES, read_examples  # noqa: E402
from server.engine.factory import EngineConfig  # noqa: E402
from tests.fixtures.running_server import running_server  # noqa: E402
from training.adapter_evaluation import evaluate_adapters, prompt_template  # noqa: E402
from training.answers import FolderAnswers  # noqa: E402
from training.engine_generation import EngineGenerator  # noqa: E402
from training.evaluation import EvaluationCase, EvaluationOptions  # noqa: E402

LIBRARY = Path(__file__).parents[2] / "adapters" / "library"
BASE = LIBRARY / "medley-mini"
MAX_NEW_TOKENS = 48


def shipped_dialogues() -> list[str]:
    """The five shipped dialogues, and their first halves, which end elsewhere and are summed up otherwise."""
    whole = [example.text for example in read_examples(SHIPPED_EXAMPLES)]
    lines = [text.split("\n") for text in whole]
    return whole + ["\n".join(each[: len(each) // 2]) for each in lines]


def by_transformers(adapter: Path, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Each prompt alone, so that no padding touches it; the start and end tokens are left out."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    base = T5ForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            found = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1)
        answers.append(tuple(token for token in found[0, 1:].tolist() if token != tokenizer.eos_token_id))
    return answers


async def by_server(data_dir: Path, names: Sequence[str], dialogues: Sequence[str]) -> dict[str, list[dict]]:
    """All of it at once, so that both adapters and all dialogues share batches."""
    engine = EngineConfig(name="native", model=str(BASE), dtype="float32", device="cpu")
    async with running_server(data_dir, engine, library=LIBRARY) as server, httpx.AsyncClient(timeout=120) as client:

        async def ask(name: str, dialogue: str) -> dict:
            body = {"text": dialogue, "adapters": [name], "max_new_tokens": MAX_NEW_TOKENS}
            answer = await client.post(f"{server.http}/v1/summarize", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        asked = [(name, dialogue) for name in names for dialogue in dialogues]
        answers = await asyncio.gather(*(ask(*each) for each in asked))
    size = len(dialogues)
    return {name: list(answers[place * size : (place + 1) * size]) for place, name in enumerate(names)}


@pytest.mark.timeout(600)
async def test_shipped_adapters_evaluation_transformers_and_server_give_the_same_summaries(tmp_path: Path) -> None:
    dialogues = shipped_dialogues()
    assert len(dialogues) >= 8
    names = ("dialogsum", "dialogsum-prompt")
    served = await by_server(tmp_path, names, dialogues)
    # The engine of an evaluation has an event loop of its own.
    await asyncio.to_thread(compare, dialogues, served)


def compare(dialogues: Sequence[str], served: dict[str, list[dict]]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    cases = [EvaluationCase(dialogue, ("a reference",)) for dialogue in dialogues]
    options = EvaluationOptions(max_new_tokens=MAX_NEW_TOKENS)
    evaluated = evaluate_adapters(BASE, {name: [LIBRARY / name] for name in served}, cases, options)
    texts = {system.name: system.predictions for system in evaluated.systems}
    for name, answers in served.items():
        prompts = [render(prompt_template(BASE, [LIBRARY / name]), dialogue) for dialogue in dialogues]
        expected = by_transformers(LIBRARY / name, prompts)
        with EngineGenerator(BASE, MAX_NEW_TOKENS) as engine:
            ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
            assert engine.generate(ids, [LIBRARY / name]) == expected
        decoded = tokenizer.batch_decode(expected, skip_special_tokens=True)
        assert [answer["summary"] for answer in answers] == decoded
        # A token that ends a text is generated, too.
        assert [answer["usage"]["completion_tokens"] for answer in answers] == [len(tokens) for tokens in expected]
        assert list(texts[name]) == [text.strip() for text in decoded]
        with FolderAnswers(BASE, MAX_NEW_TOKENS) as answered:
            assert answered.answer([LIBRARY / name], prompts) == list(texts[name])
        assert len(set(decoded)) >= 8, "answers that are all alike prove nothing"
    assert texts["base"] != texts["dialogsum"] != texts["dialogsum-prompt"]
