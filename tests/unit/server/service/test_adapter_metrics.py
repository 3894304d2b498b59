"""What a request leaves in the figures by adapter."""

import pytest

from adapters.errors import AdapterError
from server.core.errors import MedleyError
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.unit.server.service.conftest import AskFor, Room

REQUESTS = "medley_requests_total"
FAILURES = "medley_adapter_failures_total"


async def test_request_with_two_adapters_is_counted_once_under_the_pair(room: Room, ask: AskFor) -> None:
    await room.upload(prompt_files(), "a-prompt")
    await room.upload(lora_files(), "the-lora")
    for order in (("the-lora", "a-prompt"), ("a-prompt", "the-lora:1")):
        await (await room.open(ask(adapters=order))).result()
    await (await room.open(ask())).result()
    assert room.counted(REQUESTS, code="OK", adapters="a-prompt+the-lora") == 2
    assert room.counted(REQUESTS, adapters="base") == 1
    assert room.counted(REQUESTS) == 3
    for name in ("queue", "ttft", "e2e"):
        assert room.counted(f"medley_request_{name}_seconds_count", adapters="a-prompt+the-lora") == 2
    for name in ("prompt", "generated"):
        assert room.counted(f"medley_{name}_tokens_total", adapters="a-prompt+the-lora") > 0


async def test_request_for_unknown_adapters_names_no_label(room: Room, ask: AskFor) -> None:
    for index in range(3):
        with pytest.raises(AdapterError):
            await room.open(ask(adapters=(f"no-such-{index}",)))
    assert room.counted(REQUESTS, code="NOT_FOUND", adapters="unresolved") == 3
    assert room.counted(REQUESTS) == 3
    assert room.counted(FAILURES, stage="lookup", reason="AdapterNotFoundError") == 3


async def test_request_refused_after_its_adapter_was_found_counts_under_it(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(), "lora")
    with pytest.raises(MedleyError):
        await room.open(ask("x" * 3000, adapters=("lora",)))
    assert room.counted(REQUESTS, code="INVALID_ARGUMENT", adapters="lora") == 1
    assert room.counted(FAILURES) == 0


async def test_request_that_fails_while_served_counts_as_a_failure_of_adapters(room: Room, ask: AskFor) -> None:
    await room.upload(lora_files(), "lora")
    generation = await room.open(ask("x" * 200, adapters=("lora",)))
    room.engine.kill()
    with pytest.raises(MedleyError):
        await generation.result()
    assert room.counted(FAILURES, stage="serving", reason="UnavailableError") == room.counted(FAILURES) == 1


async def test_refused_upload_counts_under_the_class_of_its_error(room: Room) -> None:
    files = lora_files() | {"adapter_model.safetensors": b"short"}
    with pytest.raises(AdapterError) as caught:
        await room.upload(files, "lora")
    assert room.counted(FAILURES, stage="upload", reason=type(caught.value).__name__) == room.counted(FAILURES) == 1
