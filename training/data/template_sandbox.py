"""Run Jinja that somebody else may have written: values, conditions, loops, a few harmless methods and filters.

There are no globals, text can hardly be multiplied, and what comes out is bounded. It does not know what a template
is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, meta, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.errors import TrainingDataError

MAX_TEMPLATE_CHARS = 8192
MAX_RENDERED_CHARS = 200_000
SEPARATOR = "|||"
# Stands for the separator while a template renders, so that one inside the data parts nothing.
MARK = "\x1e"
_FILTER_NAMES = """
    abs capitalize count default d first float int join last length list lower max min reject replace round select sort
    string sum title trim unique upper wordcount
"""
_METHOD_NAMES = """
    capitalize count endswith find get index items join keys lower lstrip replace rstrip split startswith strip title
    upper values
"""
_FILTERS = frozenset(_FILTER_NAMES.split())
_METHODS = frozenset(_METHOD_NAMES.split())
_REFUSED = {
    nodes.Mul: "multiplies",
    nodes.Pow: "takes a power",
    nodes.Mod: "uses %",
    nodes.Macro: "defines a macro",
    nodes.CallBlock: "calls a block",
    nodes.FilterBlock: "filters a block",
    nodes.AssignBlock: "assigns a block",
    nodes.Include: "includes another",
    nodes.Import: "imports another",
    nodes.FromImport: "imports another",
    nodes.Extends: "extends another",
    nodes.Block: "defines a block",
}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which keeps code out, made smaller so that it keeps huge texts out as well."""

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
        self.globals.clear()
        own = {"join": lambda items, with_="": _join(with_, items), "replace": _replace}
        self.filters = {name: own.get(name, self.filters[name]) for name in _FILTERS}

    def call(self, context: Context, obj: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Call a method of a value; the two that can make a text much longer go through bounded ones."""
        bounded = {"join": _join, "replace": _replace}.get(getattr(obj, "__name__", ""))
        owner = getattr(obj, "__self__", None)
        if bounded and isinstance(owner, str):
            return bounded(owner, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


def _join(separator: str, items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    _check_length(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: str, old: str, new: str) -> str:
    _check_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _check_length(num_chars: int) -> None:
    if num_chars > MAX_RENDERED_CHARS:
        raise ValueError(f"a text of more than {MAX_RENDERED_CHARS:,} characters")


_SANDBOX = _Sandbox()


def render_source(name: str, source: str, context: Mapping[str, object]) -> str:
    """Return what the Jinja `source` of the template `name` makes of `context`, with :data:`MARK` for `|||`.

    Raises:
        TrainingDataError: `source` is refused, a field is missing, or rendering fails or grows too long.
    """
    template, _ = _compiled(name, source)
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(context):
            pieces.append(piece)
            length += len(piece)
            _check_length(length)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise TrainingDataError(f"template {name!r} fails here: {error}") from error
    return "".join(pieces)


def fields_of(name: str, source: str) -> tuple[str, ...]:
    """Return the names `source` needs from outside, in the order they first occur.

    Raises:
        TrainingDataError: it does not parse, is too long, or does more than a template may.
    """
    return _compiled(name, source)[1]


@lru_cache(maxsize=1024)
def _compiled(name: str, source: str) -> tuple[Template, tuple[str, ...]]:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TrainingDataError(f"template {name!r} is over {MAX_TEMPLATE_CHARS:,} characters long")
    marked = source.replace(SEPARATOR, MARK)
    try:
        tree = _SANDBOX.parse(marked)
        _check(name, tree)
        compiled = _SANDBOX.from_string(marked)
        undeclared = meta.find_undeclared_variables(tree)
    except (TemplateError, RecursionError) as error:
        raise TrainingDataError(f"template {name!r} does not parse: {error}") from error
    used = dict.fromkeys(node.name for node in tree.find_all(nodes.Name) if node.name in undeclared)
    return compiled, tuple(used)


def _check(name: str, tree: nodes.Template) -> None:
    assigned = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"}
    for node in tree.find_all(nodes.Node):
        if does := _refused(node, assigned):
            raise TrainingDataError(f"template {name!r} {does}; a template may not")


def _refused(node: nodes.Node, assigned: set[str]) -> str:
    """Return what `node` does that a template may not, or nothing."""
    if isinstance(node, nodes.Filter | nodes.Test) and node.name not in {*_FILTERS, *_SANDBOX.tests}:
        return f"uses the filter or test {node.name!r}"
    if isinstance(node, nodes.Call) and not (isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS):
        return "calls something other than a plain method of a text, list or mapping"
    if isinstance(node, nodes.For) and node.find(nodes.For):
        return "puts a loop into a loop"
    # Each would double what it names: twenty lines make a million copies.
    if isinstance(node, nodes.Assign) and any(inner.name in assigned for inner in node.node.find_all(nodes.Name)):
        return "assigns what was itself assigned"
    return _REFUSED.get(type(node), "")
