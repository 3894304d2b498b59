"""Who calls: what a caller may do, which adapters exist for it, and how it is named in the audit log.

Knows no keys and no secrets (``server.access`` does), and no protocol.
"""

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from server.core.request import FIRST_PRIORITY


class Scope(StrEnum):
    """What a caller may do. ``admin`` includes all others, ``operate`` includes ``read``."""

    INFER = "infer"
    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


_INCLUDED = {
    Scope.INFER: frozenset({Scope.INFER}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.OPERATE: frozenset({Scope.OPERATE, Scope.READ}),
    Scope.ADMIN: frozenset(Scope),
}
EVERY_NAME = ("*",)
_ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller.

    Attributes:
        who: Name for logs and the audit log, as ``key:3f9a0c``; never a secret.
        scopes: What it was granted.
        patterns: Shell patterns of the adapter names that exist for it; ``*`` and ``?`` are wild.
        origin: Address it calls from; empty where there is none.
        first_priority: The earliest class its requests may have.
    """

    who: str
    scopes: frozenset[Scope]
    patterns: tuple[str, ...] = EVERY_NAME
    origin: str = ""
    first_priority: int = FIRST_PRIORITY

    def may(self, scope: Scope) -> bool:
        """Return whether it may do what a scope stands for."""
        return any(scope in _INCLUDED[granted] for granted in self.scopes)

    def sees(self, name: str) -> bool:
        """Return whether an adapter of this name may exist for it."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    @property
    def sees_all(self) -> bool:
        """Whether every adapter exists for it; figures over all adapters are for such callers only."""
        return "*" in self.patterns

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody asked who it is: the server has no keys."""
        return self.who == _ANONYMOUS


def anonymous(origin: str = "") -> Principal:
    """Return the caller of a server without keys: it may do everything."""
    return Principal(_ANONYMOUS, frozenset({Scope.ADMIN}), origin=origin)


SYSTEM = Principal("medley", frozenset({Scope.ADMIN}))
"""The server itself, as where it registers the adapters it ships with."""
