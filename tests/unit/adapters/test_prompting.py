"""The prompt-template renderer."""

import pytest

from adapters.errors import PromptTemplateError
from adapters.prompting import DEFAULT_TEMPLATE, MAX_TEMPLATE_BYTES, check_template, render


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ text }}", "a & <b>"),
        ("{{text}}\n", "a & <b>\n"),
        ("Summarize:\n\n{{ text }}\n\nSummary:", "Summarize:\n\na & <b>\n\nSummary:"),
        ("{{ text }} | {{ text }}", "a & <b> | a & <b>"),
        ("{# note #}{{ text }}", "a & <b>"),
        ("é {{ text }}", "é a & <b>"),
    ],
)
def test_render_template_puts_the_text_in_unchanged(template: str, expected: str) -> None:
    assert render(template, "a & <b>") == expected


def test_render_text_that_looks_like_a_template_is_not_run() -> None:
    assert render("> {{ text }}", "{{ 7 * 7 }}{% for x in y %}\n") == "> {{ 7 * 7 }}{% for x in y %}\n"


def test_default_template_is_sound() -> None:
    check_template(DEFAULT_TEMPLATE)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no field",
        "{{ text",
        "{{ other }}",
        "{{ text }}{{ other }}",
        "{{ text | upper }}",
        "{{ text.__class__ }}",
        "{{ text[0] }}",
        "{{ text * 1000000 }}",
        "{{ text() }}",
        "{{ cycler.__init__ }}{{ text }}",
        "{% for a in text %}{{ text }}{% endfor %}",
        "{% set text = 'x' %}{{ text }}",
        "{% if text %}{{ text }}{% endif %}",
        "{% include 'x' %}{{ text }}",
        "{% raw %}{{ text }}{% endraw %}",
        "{{ '{{ text }}' }}",
        "{{ " + "(" * 3000 + "text" + ")" * 1000 + " }}",
        "{{ text }}" + "x" * MAX_TEMPLATE_BYTES,
        "{{ text }}" + "é" * (MAX_TEMPLATE_BYTES // 2),
        "{{ text }}\ud800",
        "{{ text }}{{ " + "long" * 500 + " }}",
        "{{ text " + "long" * 500 + " }}",
    ],
)
def test_check_template_that_does_more_or_less_is_refused(template: str) -> None:
    with pytest.raises(PromptTemplateError) as caught:
        check_template(template)
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()
    with pytest.raises(PromptTemplateError):
        render(template, "x")
