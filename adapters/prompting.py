"""The one prompt-template renderer, for training and for serving, so that they cannot drift.

A template is Jinja2 with a single field, ``{{ text }}``. It runs in a sandbox, but a template is still the adapter
author's input: nothing beyond printing that field is accepted, and only a few times, so that rendering costs no more
than copying the text.
Knows no adapters and no tokens. Every function may be called from any thread.
"""

from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapters.errors import PromptTemplateError
from adapters.strict_json import show

DEFAULT_TEMPLATE = "Summarize the following conversation.\n\n{{ text }}\n\nSummary:"
MAX_TEMPLATE_BYTES = 4096
MAX_NUM_USES = 4
_FIELD = "text"
_ALLOWED_NODES = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const)

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)


def render(template: str, text: str) -> str:
    """Return ``template`` with ``{{ text }}`` replaced by ``text``; the text itself is never read as a template.

    Raises:
        PromptTemplateError: If :func:`check_template` refuses the template.
    """
    return _compiled(template).render(text=text)


def check_template(template: str) -> None:
    """Accept a template that prints ``text`` one to four times and does nothing else.

    Raises:
        PromptTemplateError: If it is longer than 4096 bytes of UTF-8, does not parse, prints ``{{ text }}`` never or
            more than four times, or holds NUL or any other field, filter, test, call, statement or number.
    """
    _compiled(template)


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    if not _is_unicode(template) or "\0" in template:
        raise PromptTemplateError("the prompt template holds NUL or characters that are not valid Unicode")
    num_bytes = len(template.encode())
    if num_bytes > MAX_TEMPLATE_BYTES:
        raise PromptTemplateError(f"the prompt template has {num_bytes} bytes; at most {MAX_TEMPLATE_BYTES} are taken")
    try:
        tree = _ENVIRONMENT.parse(template)
        # Walking what was parsed recurses too: a long chain of operators is a deep tree.
        _check_tree(tree)
    except (TemplateError, RecursionError) as error:
        raise PromptTemplateError(f"the prompt template does not parse: {show(str(error))}") from error
    return _ENVIRONMENT.from_string(template)


def _check_tree(tree: nodes.Template) -> None:
    found = list(tree.find_all(nodes.Node))
    names = [node.name for node in found if isinstance(node, nodes.Name)]
    if others := sorted(set(names) - {_FIELD}):
        raise PromptTemplateError(f"the prompt template may use {{{{ text }}}} only, not {show(others)}")
    for node in found:
        if not isinstance(node, _ALLOWED_NODES):
            raise PromptTemplateError(
                f"the prompt template may print {{{{ text }}}} and nothing else; it has a {type(node).__name__.lower()}"
            )
        # An escape in a quoted text can spell what the template itself could not hold.
        if isinstance(node, nodes.Const) and not (isinstance(node.value, str) and _is_unicode(node.value)):
            raise PromptTemplateError("a constant in the prompt template must be text, and valid Unicode")
    if _FIELD not in names:
        raise PromptTemplateError("the prompt template must hold {{ text }}")
    if len(names) > MAX_NUM_USES:
        raise PromptTemplateError(f"the prompt template prints the text {len(names)} times; at most {MAX_NUM_USES}")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
