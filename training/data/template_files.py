"""Read templates from files: our own YAML, promptsource's `templates.yaml`, and FLAN-style pairs; and find one by name.

It reads plain data with a safe YAML loader, never objects. It does not render.

Source: promptsource's file format, https://github.com/bigscience-workshop/promptsource; FLAN's pairs of patterns,
https://github.com/google-research/FLAN.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import yaml

from training.data.template_sandbox import SEPARATOR
from training.data.templates import Template
from training.errors import TrainingDataError

PLAIN = Template("plain", "", "{{ text }}", "{{ reference }}")
LIBRARY = Path(__file__).parents[1] / "templates"
_KEYS = ("name", "task", "fields", "input", "target", "answer_choices", "rationale")
_REQUIRED = ("name", "task", "fields", "input", "target")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+)\}|[{}]")


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes promptsource's two tags for the plain mappings they mark."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _mapping)
_Loader.add_constructor("!TemplateMetadata", _mapping)


def find_template(reference: str, data_dir: Path) -> Template:
    """Return the template a recipe names: inline Jinja, `file#name`, or a name in the library.

    Inline Jinja is an input alone, whose targets are the record's `references`, or both, parted by `|||`. A relative
    file starts at the data folder.

    Raises:
        TrainingDataError: there is none of that name, or it does more than a template may.
    """
    if "{{" in reference:
        found = Template("inline", "", reference, "" if SEPARATOR in reference else PLAIN.target)
    else:
        file, hash_, name = reference.rpartition("#")
        templates = read_templates(data_dir / file) if hash_ else library()
        if name not in templates:
            where = file or "the library"
            raise TrainingDataError(f"no template {name!r} in {where}; it has {', '.join(sorted(templates))}")
        found = templates[name]
    _ = found.fields
    return found


@lru_cache(maxsize=1)
def library() -> dict[str, Template]:
    """Return the templates that ship, by name.

    Raises:
        TrainingDataError: a file of the library is broken.
    """
    found: dict[str, Template] = {}
    for path in sorted(LIBRARY.glob("*.yaml")):
        found.update(read_templates(path))
    return found


def read_templates(path: Path) -> dict[str, Template]:
    """Return the templates of one YAML or JSON file, by name; its form tells the format.

    Raises:
        TrainingDataError: the file cannot be read, or is of none of the three formats.
    """
    try:
        # Every JSON file is YAML, too.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise TrainingDataError(f"cannot read templates from {path}: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("templates"), dict):
        found = [_promptsource(item, str(content.get("dataset", "")), path) for item in content["templates"].values()]
    elif _is_pairs(content):
        found = _pairs(path.stem, content)
    elif isinstance(content, dict) and content and all(map(_is_pairs, content.values())):
        found = [template for task, pairs in content.items() for template in _pairs(str(task), pairs)]
    elif isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        found = [_own(item, path) for item in content]
    else:
        raise TrainingDataError(f"{path} holds neither our templates, promptsource's, nor pairs of patterns")
    by_name = {template.name: template for template in found}
    if len(by_name) < len(found):
        raise TrainingDataError(f"{path} has two templates of one name")
    return by_name


def _own(item: dict[str, object], path: Path) -> Template:
    where = f"{path}, template {item.get('name')!r}"
    if unknown := sorted(str(key) for key in item if key not in _KEYS):
        raise TrainingDataError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    if missing := [key for key in _REQUIRED if not item.get(key)]:
        raise TrainingDataError(f"{where}: missing key {missing[0]!r}")
    fields = item["fields"]
    texts = {key: value for key, value in item.items() if key != "fields"}
    if not (isinstance(fields, list) and all(isinstance(value, str) for value in [*fields, *texts.values()])):
        raise TrainingDataError(f"{where}: `fields` is a list of names, everything else is text")
    template = Template(**{key: str(value) for key, value in texts.items()})
    if differing := template.fields ^ set(fields):
        name = min(differing)
        does = "uses but does not list" if name in template.fields else "lists but does not use"
        raise TrainingDataError(f"{where}: it {does} the field {name!r}")
    return template


def _promptsource(item: object, dataset: str, path: Path) -> Template:
    if not (isinstance(item, dict) and isinstance(item.get("jinja"), str) and isinstance(item.get("name"), str)):
        raise TrainingDataError(f"{path}: a promptsource template needs the texts `name` and `jinja`")
    choices = item.get("answer_choices") or ""
    return Template(item["name"], dataset, item["jinja"], "", str(choices))


def _is_pairs(content: object) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(p, list) and len(p) == 2 and all(isinstance(side, str) for side in p) for p in content)
    )


def _pairs(task: str, pairs: list[list[str]]) -> list[Template]:
    return [
        Template(f"{task}-{number}", task, _as_jinja(source), _as_jinja(target))
        for number, (source, target) in enumerate(pairs, start=1)
    ]


def _as_jinja(pattern: str) -> str:
    """Return a `{field}` pattern, in which `{{` and `}}` stand for braces, as Jinja."""

    def jinja(match: re.Match[str]) -> str:
        if match.group(1):
            return f"{{{{ {match.group(1)} }}}}"
        return f"{{{{ '{match.group()[0]}' }}}}"

    return _PLACEHOLDER.sub(jinja, pattern)
