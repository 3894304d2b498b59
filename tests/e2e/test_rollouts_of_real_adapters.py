"""The story of a rollout with real adapters and real ROUGE: ``dialogsum`` beside itself weakened to almost nothing."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

pytest.importorskip("torch", reason="needs torch")

from loadtest.examples import SHIPPED_EXAMPLES, Example, read_examples  # noqa: E402
from server.engine.factory import EngineConfig  # noqa: E402
from server.service.rollouts import RolloutConfig  # noqa: E402
from tests.fixtures.real_rollouts import LIBRARY, cut, files_of, weakened  # noqa: E402
from tests.fixtures.rollout_story import NAME, RolloutStory  # noqa: E402
from tests.fixtures.running_server import running_server  # noqa: E402

# Of what the adapter adds to the base.
LEFT = 0.02
BATCH = 20
MAX_NUM_CALLS = 1200


async def call_until_ended(story: RolloutStory, rollout_id: str, examples: Sequence[Example]) -> dict[str, Any]:
    draws = random.Random(3)
    for _ in range(MAX_NUM_CALLS // BATCH):
        chosen = draws.choices(examples, k=BATCH)
        asked = (
            story.ask(cut(example, draws), references=list(example.summaries), max_new_tokens=32) for example in chosen
        )
        await asyncio.gather(*asked)
        found = await story.rollout(rollout_id)
        if found["state"] != "running":
            return found
    raise AssertionError(f"still undecided: {found}")


@pytest.mark.timeout(600)
async def test_weakened_adapter_is_rolled_back_and_the_whole_one_promoted_by_themselves(tmp_path: Path) -> None:
    engine = EngineConfig(name="native", model=str(LIBRARY / "medley-mini"), device="cpu")
    examples = read_examples(SHIPPED_EXAMPLES)
    folder = LIBRARY / "dialogsum"
    async with (
        running_server(tmp_path, engine, rollouts=RolloutConfig(look_s=0.1)) as server,
        httpx.AsyncClient(base_url=server.http, timeout=120) as client,
    ):
        story = RolloutStory(client)
        good, weak = await story.upload(files_of(folder), "stable"), await story.upload(weakened(folder, LEFT))

        begun = await story.begin(weak, percent=50)
        ended = await call_until_ended(story, begun["id"], examples)
        assert (ended["state"], ended["verdict"], await story.stable()) == ("rolled_back", "WORSE", good)
        assert ended["decisions"][-1]["by"] == "server"

        # And the other way round: callers get the weak one, until the better one takes its place.
        await client.put(f"/v1/adapters/{NAME}/aliases/stable", json={"version": weak})
        begun = await story.begin(good, percent=50)
        ended = await call_until_ended(story, begun["id"], examples)
        assert (ended["state"], ended["verdict"], await story.stable()) == ("promoted", "BETTER", good)
        arms = ended["arms"]
        assert arms["candidate"]["mean"] > arms["stable"]["mean"] + 2
        assert arms["candidate"]["num_scored"] >= 10
