"""Chat templates: what transformers renders, we render, and nothing without bounds."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.core.request import Conversation, Message
from server.service.chat import MAX_CHAT_TEMPLATE_CHARS, ChatTemplate

LLAMA_LIKE = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if tools is not none %}{{ raise_exception("no tools here") }}{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" + system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if message.role not in ("user", "assistant") %}{% continue %}{% endif %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
CHATML = """{% for message in messages %}
{% if message.role == "assistant" %}
<|im_start|>assistant
{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
{% else %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{{ {"a": "<b>", "é": [1]} | tojson }}"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = (
    Message("system", " Be brief. "),
    Message("user", "Hi {{ bos_token }} <b>\n"),
    Message("assistant", "Hello  "),
    Message("user", "And?"),
)


def theirs(template: str, conversation: Conversation) -> str:
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    [rendered], _ = render_jinja_template(
        [messages],
        chat_template=template,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        **TOKENS,
        **conversation.template_kwargs,
    )
    return rendered


@pytest.mark.parametrize("template", [LLAMA_LIKE, CHATML])
@pytest.mark.parametrize("messages", [TALK, TALK[:3], TALK[1:], TALK[1:2]])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_conversation_is_rendered_as_transformers_does(
    template: str, messages: tuple[Message, ...], add_generation_prompt: bool
) -> None:
    conversation = Conversation(messages, add_generation_prompt, template_kwargs={"enable_thinking": False})
    rendered = ChatTemplate(template, TOKENS).render(conversation, max_chars=10_000)
    assert rendered == theirs(template, conversation)
    assert "Hi {{ bos_token }} <b>" in rendered


@pytest.mark.parametrize("template", [LLAMA_LIKE, CHATML])
@pytest.mark.parametrize("last", ["Once upon ", "Once", " spaced  "])
def test_last_message_is_continued_as_transformers_does(template: str, last: str) -> None:
    messages = (Message("user", "A tale."), Message("assistant", last))
    conversation = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
    rendered = ChatTemplate(template, TOKENS).render(conversation, max_chars=10_000)
    assert rendered == theirs(template, conversation)
    assert rendered.endswith((last, last.strip()))


def test_last_message_that_is_not_shown_cannot_be_continued() -> None:
    conversation = Conversation((Message("user", "x"),), add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidArgumentError) as caught:
        ChatTemplate("nothing of it", {}).render(conversation, max_chars=100)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(("template", "role"), [(CHATML, "system"), (CHATML + "{# developer #}", "developer")])
def test_developer_is_the_system_to_a_template_that_does_not_know_it(template: str, role: str) -> None:
    conversation = Conversation((Message("developer", "be brief"),))
    assert f"<|im_start|>{role}\nbe brief" in ChatTemplate(template, TOKENS).render(conversation, max_chars=1000)


def test_time_is_the_templates_to_format() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y')[:2] }}", {}).render(Conversation(TALK), max_chars=100)
    assert rendered == "20"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[99].content.x }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10000000) %}x{% endfor %}",
    ],
)
def test_template_that_fails_refuses_the_conversation(template: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ChatTemplate(template, {}).render(Conversation(TALK), max_chars=1000)
    assert caught.value.param == "messages"


def test_prompt_that_grows_without_end_is_refused_soon() -> None:
    template = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(InvalidArgumentError, match="over 1000 characters"):
        ChatTemplate(template, {}).render(Conversation(TALK), max_chars=1000)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_names_that_are_not_the_callers_to_set_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        ChatTemplate("x", {}).render(Conversation(TALK, template_kwargs={name: 1}), max_chars=1000)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "x" * (MAX_CHAT_TEMPLATE_CHARS + 1)])
def test_template_that_is_none_is_refused_at_once(source: str) -> None:
    with pytest.raises(FailedPreconditionError, match="chat template"):
        ChatTemplate(source, {})
