"""Templates of every format: one example against its golden input and target, byte for byte."""

import json

import pytest

from training.data.template_files import LIBRARY, find_template, library, read_templates
from training.data.templates import Template
from training.errors import TrainingDataError

PROMPTSOURCE = """
dataset: ag_news
templates:
  24e44a81-a18a-42dd-a71c-5b31b2d2cb39: !Template
    answer_choices: World ||| Sports ||| Business
    id: 24e44a81-a18a-42dd-a71c-5b31b2d2cb39
    jinja: "What label best describes this news article?\\n{{text}} |||\\n{{answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: classify_question_first
    reference: ''
  8fdc1056-1029-41a1-9c67-354fc2b8ceaf: !Template
    answer_choices: null
    id: 8fdc1056-1029-41a1-9c67-354fc2b8ceaf
    jinja: "{% if label == 1 %}{{ text }}\\nSports? ||| yes{% endif %}"
    metadata: !TemplateMetadata {original_task: false}
    name: sports_only
    reference: none
"""
PAIRS = {"sum": [["Summarize:\n{dialogue}", "{summary}"], ["{{literal}} {dialogue} {% x %}", "It says: {summary}"]]}
OWN = {"name": "t", "task": "s", "fields": ["text", "references"], "input": "{{ text }}", "target": "{{ reference }}"}


def _file(folder, content, name="templates.yaml"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_library_template_one_example_equals_the_golden_pair():
    template = find_template("dialogue-summary", LIBRARY)
    rendered = template.render({"text": "Ann: Hi!\nBob: “Hé” {{ x }}", "references": ("They greet.", "Hello.")})
    assert rendered.input == ("Summarize the following conversation.\n\nAnn: Hi!\nBob: “Hé” {{ x }}\n\nSummary:")
    assert rendered.targets == ("They greet.", "Hello.")


def test_library_every_template_renders_its_fields():
    values = {"references": ("r",), "choices": ["a", "b"], "label": 0, "text": "t", "section": "s", "premise": "p"}
    values |= {"hypothesis": "h", "question": "q", "answer": "a", "context": "c", "rationale": "r", "english": "e"}
    values |= {"french": "f"}
    for template in library().values():
        wanted = {**values, "label": "not_good"} if template.name == "intent" else values
        rendered = template.render({name: wanted[name] for name in template.fields})
        assert rendered.input.strip()
        assert all(target.strip() for target in rendered.targets)


def test_library_names_are_unique_over_all_files():
    assert len(library()) == sum(len(read_templates(path)) for path in LIBRARY.glob("*.yaml"))


def test_promptsource_template_one_example_equals_the_golden_pair(tmp_path):
    _file(tmp_path, PROMPTSOURCE)
    template = find_template("templates.yaml#classify_question_first", tmp_path)
    rendered = template.render({"text": "They won ||| again.", "label": 1})
    assert rendered.input == "What label best describes this news article?\nThey won ||| again."
    assert rendered.targets == ("Sports",)
    assert rendered.choices == ("World", "Sports", "Business")
    assert template.input_fields == ("text",)
    assert template.fields == {"text", "label"}


def test_promptsource_condition_leaves_out_what_it_does_not_fit(tmp_path):
    template = read_templates(_file(tmp_path, PROMPTSOURCE))["sports_only"]
    assert template.render({"text": "They lost.", "label": 0}) is None
    assert template.render({"text": "They lost.", "label": 1}).targets == ("yes",)
    assert set(template.input_fields) == {"text", "label"}


def test_flan_pairs_one_example_equals_the_golden_pair(tmp_path):
    templates = read_templates(_file(tmp_path, PAIRS, "pairs.json"))
    values = {"dialogue": "A: {hi}", "summary": "Greeting."}
    first, second = (templates[name].render(values) for name in ("sum-1", "sum-2"))
    assert (first.input, first.targets) == ("Summarize:\nA: {hi}", ("Greeting.",))
    assert (second.input, second.targets) == ("{literal} A: {hi} {% x %}", ("It says: Greeting.",))
    listed = read_templates(_file(tmp_path, PAIRS["sum"], "chats.yaml"))
    assert set(listed) == {"chats-1", "chats-2"}


def test_find_template_inline_takes_references_as_targets(tmp_path):
    rendered = find_template("TL;DR {{ body }}", tmp_path).render({"body": "b", "references": ("r",)})
    assert (rendered.input, rendered.targets) == ("TL;DR b", ("r",))
    parted = find_template("{{ body }} ||| {{ end }}", tmp_path).render({"body": "b", "end": "e"})
    assert (parted.input, parted.targets) == ("b", ("e",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{**OWN, "fields": ["text"]}], "uses but does not list the field 'references'"),
        ([{**OWN, "fields": ["text", "references", "more"]}], "lists but does not use the field 'more'"),
        ([{**OWN, "colour": "red"}], "unknown key 'colour'"),
        ([{"name": "t"}], "missing key 'task'"),
        ([{**OWN, "input": 3}], "everything else is text"),
        ([{**OWN, "input": "{{ text }} ||| x"}], "no meaning"),
        ([OWN, OWN], "two templates of one name"),
        ({"templates": {"a": {"name": "x"}}}, "`name` and `jinja`"),
        ([["only one"]], "holds neither"),
        ("", "holds neither"),
        ("a: [", "cannot read templates"),
        ("- !!python/object/apply:os.getcwd []", "cannot read templates"),
        ("x: !Other {}", "cannot read templates"),
    ],
)
def test_read_templates_malformed_file_is_refused(tmp_path, content, reason):
    with pytest.raises(TrainingDataError, match=reason):
        read_templates(_file(tmp_path, content))


def test_find_template_unknown_name_lists_those_there_are(tmp_path):
    with pytest.raises(TrainingDataError, match=r"no template 'nope' in the library; it has .*dialogue-summary"):
        find_template("nope", tmp_path)


def test_template_without_separator_is_an_error():
    with pytest.raises(TrainingDataError, match=r"no `\|{3}`"):
        Template("t", "", "{{ text }}").render({"text": "x"})


def test_template_data_with_the_separators_stand_in_is_refused():
    with pytest.raises(TrainingDataError, match="control character"):
        Template("t", "", "{{ text }} ||| x").render({"text": "a\x1eb"})
