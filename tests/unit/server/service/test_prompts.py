"""Prompts as texts, token ids and conversations, and what of them is told back."""

import pytest

from adapters.errors import UnsupportedAdapterError
from adapters.manifest import AdapterKind
from server.core.errors import InvalidArgumentError, MedleyError
from server.core.outputs import FinishReason, GenerationChunk
from server.core.request import Conversation, Echo, GenerationRequest, Message
from server.engine.fake import FakeEngineConfig
from server.service.chat import ChatTemplate
from server.service.inference import InferenceConfig
from tests.fixtures.peft_files import lora_files, prefix_files
from tests.unit.server.service.conftest import AskFor, MakeRoom, Room

CONTINUES = FakeEngineConfig(is_encoder_decoder=False, max_model_len=200, max_new_tokens=199)
TALK = Conversation((Message("system", "Be brief."), Message("user", "Hi")))
TEMPLATE = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]", {})


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte + 3 for byte in text.encode())


async def answered(room: Room, request: GenerationRequest) -> str:
    return (await (await room.open(request)).result()).text


async def refused(room: Room, request: GenerationRequest) -> MedleyError:
    with pytest.raises(MedleyError) as caught:
        await room.open(request)
    assert room.nothing_left()
    return caught.value


async def chunks_of(room: Room, request: GenerationRequest) -> list[GenerationChunk]:
    return [chunk async for chunk in await room.open(request)]


async def test_token_ids_are_the_prompt_as_they_are(room: Room) -> None:
    result = await (await room.open(GenerationRequest("r", prompt_token_ids=ids("as it is")))).result()
    assert (result.text, result.usage.num_prompt_tokens) == ("as it is", 8)


@pytest.mark.parametrize("token_id", [-1, 259, 10**9])
async def test_token_id_outside_the_vocabulary_is_refused(room: Room, token_id: int) -> None:
    error = await refused(room, GenerationRequest("r", prompt_token_ids=(5, token_id)))
    assert (error.param, "0 to 258" in error.message) == ("prompt_token_ids", True)


async def test_more_token_ids_than_fit_are_refused_unread(room: Room) -> None:
    error = await refused(room, GenerationRequest("r", prompt_token_ids=(-1,) * 1025))
    assert error.message == "the prompt has 1025 tokens; at most 1024 fit"


async def test_text_without_special_tokens_gets_none(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(CONTINUES)
    plain = ask("abc", apply_template=False, add_special_tokens=False)
    assert (await (await room.open(plain)).result()).usage.num_prompt_tokens == 3


async def test_conversation_goes_through_the_bases_chat_template(make_room: MakeRoom) -> None:
    room = await make_room(CONTINUES, chat_template=TEMPLATE)
    result = await (await room.open(GenerationRequest("r", conversation=TALK))).result()
    assert result.text == "[system]Be brief.[user]Hi[assistant]"
    # Nothing is added to what the template writes.
    assert result.usage.num_prompt_tokens == len(result.text)


async def test_conversation_without_a_chat_template_goes_into_the_prompt_template(room: Room, ask: AskFor) -> None:
    assert await answered(room, GenerationRequest("r", conversation=TALK)) == "base: Be brief.\nHi"
    assert await answered(room, ask("Be brief.\nHi")) == "base: Be brief.\nHi"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"add_generation_prompt": False, "continue_final_message": True}, "continue_final_message"),
        ({"template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ],
)
async def test_what_only_a_chat_template_understands_is_refused_without_one(
    room: Room, options: dict[str, object], param: str
) -> None:
    conversation = Conversation(TALK.messages, **options)  # type: ignore[arg-type]
    assert (await refused(room, GenerationRequest("r", conversation=conversation))).param == param


@pytest.mark.parametrize(
    "messages", [(Message("user", " "),), (Message("user", "lone \ud800"),), (Message("user", "x" * 200_001),)]
)
async def test_conversation_that_can_be_no_prompt_is_refused_by_name(
    make_room: MakeRoom, messages: tuple[Message, ...]
) -> None:
    room = await make_room(CONTINUES, chat_template=TEMPLATE)
    assert (await refused(room, GenerationRequest("r", conversation=Conversation(messages)))).param == "messages"


async def test_long_conversation_is_read_beside_the_loop_with_the_same_answer(make_room: MakeRoom) -> None:
    room = await make_room(CONTINUES, InferenceConfig(inline_text_chars=1), chat_template=TEMPLATE)
    assert await answered(room, GenerationRequest("r", conversation=TALK)) == "[system]Be brief.[user]Hi[assistant]"


def test_conversation_is_not_opened_and_continued_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Conversation(TALK.messages, add_generation_prompt=True, continue_final_message=True)
    assert caught.value.param == "continue_final_message"
    with pytest.raises(InvalidArgumentError, match="no messages"):
        Conversation(())


async def test_space_alone_is_a_prompt_for_a_base_that_continues_it(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(CONTINUES)
    assert await answered(room, ask(" ", apply_template=False)) == " "
    assert (await refused(room, ask(" "))).message == "the text is empty"
    nothing = ask("", apply_template=False, add_special_tokens=False)
    assert (await refused(room, nothing)).message == "the text is empty"


async def test_answer_takes_what_the_prompt_leaves_of_the_context(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(CONTINUES)
    endless = ask("x" * 150, apply_template=False, max_new_tokens=None, ignore_eos=True)
    result = await (await room.open(endless)).result()
    assert (result.usage.num_prompt_tokens, result.usage.num_completion_tokens) == (151, 49)
    assert result.finish_reason is FinishReason.LENGTH
    error = await refused(room, ask("x" * 150, apply_template=False, max_new_tokens=50))
    assert error.param == "max_new_tokens"


async def test_echoed_text_comes_with_the_first_chunk_and_is_no_part_of_the_answer(room: Room, ask: AskFor) -> None:
    first, *others = await chunks_of(room, ask("hi", echo=Echo.BEFORE))
    assert first.prompt is not None
    assert (first.prompt.text, first.prompt.logprobs, first.text) == ("base: hi", (), "b")
    assert all(chunk.prompt is None for chunk in others)
    assert "".join(chunk.text for chunk in (first, *others)) == "base: hi"


async def test_echo_tells_every_prompt_token_with_its_logprobs(room: Room, ask: AskFor) -> None:
    request = ask("hi", apply_template=False, echo=Echo.BEFORE, num_logprobs=1, num_prompt_logprobs=1)
    result = await (await room.open(request)).result()
    assert result.prompt is not None
    assert (result.prompt.tokens, result.prompt.token_ids) == (("h", "i", "</s>"), (*ids("hi"), 1))
    assert [entry and (entry.text, len(entry.top)) for entry in result.prompt.logprobs] == [None, ("i", 1), ("</s>", 1)]
    assert [entry.text for entry in result.logprobs] == ["h", "i"]


async def test_echo_of_token_ids_names_the_special_ones(room: Room) -> None:
    request = GenerationRequest("r", prompt_token_ids=(*ids("hi"), 1), echo=Echo.BEFORE)
    result = await (await room.open(request)).result()
    assert result.prompt is not None
    assert result.prompt.text == "hi</s>"


async def test_echo_alone_reports_no_answer(room: Room, ask: AskFor) -> None:
    request = ask("hi", apply_template=False, echo=Echo.ONLY, num_logprobs=1, num_prompt_logprobs=1, max_new_tokens=50)
    result = await (await room.open(request)).result()
    assert result.prompt is not None
    assert (result.prompt.text, len(result.prompt.logprobs)) == ("hi", 3)
    assert (result.text, result.logprobs, result.usage.num_completion_tokens) == ("", (), 0)
    assert result.finish_reason is FinishReason.LENGTH


async def test_prompt_is_not_told_where_nobody_asks(room: Room, ask: AskFor) -> None:
    assert all(chunk.prompt is None for chunk in await chunks_of(room, ask()))


async def test_chunks_count_the_tokens_whose_text_is_still_to_come(room: Room) -> None:
    chunks = await chunks_of(room, GenerationRequest("r", prompt_token_ids=ids("é👋x")))
    assert [(chunk.text, chunk.num_tokens) for chunk in chunks] == [("é", 2), ("👋", 4), ("x", 1), ("", 0)]


async def test_parameter_the_engine_has_not_is_refused_before_its_queue(make_room: MakeRoom, ask: AskFor) -> None:
    room = await make_room(FakeEngineConfig(features=frozenset()))
    error = await refused(room, ask(min_p=0.5))
    assert (error.param, error.message) == ("min_p", "the fake engine has no min_p; leave it out")


async def test_adapter_of_a_family_the_engine_does_not_serve_is_refused_at_upload(make_room: MakeRoom) -> None:
    room = await make_room(FakeEngineConfig(kinds=frozenset({AdapterKind.LORA})))
    with pytest.raises(UnsupportedAdapterError, match="fake engine serves no prefix adapters; it serves lora"):
        await room.upload(prefix_files(), "prefix")
    assert room.nothing_left()


async def test_adapter_of_another_servers_rank_is_refused_when_it_is_asked_for(
    make_room: MakeRoom, ask: AskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await make_room(FakeEngineConfig(max_lora_rank=1))
    monkeypatch.setattr(room.engine, "check_adapter", _all_is_well)
    await room.upload(lora_files(), "lora")
    with pytest.raises(UnsupportedAdapterError, match="rank"):
        await room.open(ask(adapters=("lora",)))
    assert room.nothing_left()


async def _all_is_well(_adapter: object) -> None:
    pass
