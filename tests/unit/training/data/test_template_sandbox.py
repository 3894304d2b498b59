"""What a template may do, and what it may not."""

import pytest

from training.data.template_sandbox import MAX_RENDERED_CHARS, MAX_TEMPLATE_CHARS, fields_of, render_source
from training.errors import TrainingDataError

VALUES = {"text": "a & <b>", "label": 1, "names": ["x", "y"], "deep": {"inner": ["z"]}}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ text }}\n", "a & <b>\n"),
        ("{{ ['no', 'yes'][label] }}", "yes"),
        ("{{ deep.inner[0] }}", "z"),
        ("{% for name in names %}- {{ name }}\n{% endfor %}", "- x\n- y\n"),
        ("{% if label == 1 %}one{% else %}other{% endif %}", "one"),
        ("{% set n = names | length %}{{ n }}", "2"),
        ("{{ names | join(', ') }} {{ text.replace('a', 'c').upper() }}", "x, y C & <B>"),
        ("{{ ', '.join(names) }}", "x, y"),
    ],
)
def test_render_source_ordinary_template_gives_its_text(source, expected):
    assert render_source("t", source, VALUES) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ text['__class__'] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ range(3) }}",
        "{{ text.format(1) }}",
        "{{ text * 3 }}",
        "{{ 9 ** 9 }}",
        "{{ '%1000d' % 3 }}",
        "{{ text | center(1000) }}",
        "{{ text.ljust(1000) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% for a in text %}{% for b in text %}{{ b }}{% endfor %}{% endfor %}",
        "{% set a = text ~ text %}{% set b = a ~ a %}{{ b }}",
        "{% set a %}{{ text }}{% endset %}{{ a }}",
        "{{ text",
        "x" * (MAX_TEMPLATE_CHARS + 1),
        "{{ " + "(" * 3000 + "text" + ")" * 1000 + " }}",
    ],
)
def test_fields_of_template_that_does_more_is_refused(source):
    with pytest.raises(TrainingDataError, match="template 't'"):
        render_source("t", source, VALUES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing }}",
        "{{ lipsum }}",
        "{% if missing %}x{% endif %}",
        "{{ deep.absent }}",
        "{{ names[9] }}",
        "{{ text + label }}",
        "{{ long.replace('', long) }}",
        "{{ long | replace('', long) }}",
        "{{ long.join(long) }}",
        "{{ long | join(long) }}",
        "{% for c in long %}{{ long }}{% endfor %}",
    ],
)
def test_render_source_missing_field_or_too_long_is_an_error(source):
    with pytest.raises(TrainingDataError, match="fails here"):
        render_source("t", source, {**VALUES, "long": "x" * (MAX_RENDERED_CHARS // 20)})


def test_fields_of_lists_outer_names_in_order():
    assert fields_of("t", "{{ b }}{% for c in a %}{{ c }}{% endfor %}{{ b }}") == ("b", "a")
