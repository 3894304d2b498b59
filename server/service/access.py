"""Who calls, what it needs for a route and how much it may: keys and quotas as the front ends use them.

Knows no protocol. Event loop's thread only.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from server.access.api_key import ApiKey
from server.access.keys import KeyRing
from server.access.quotas import Quotas
from server.core.errors import PermissionDeniedError, UnauthenticatedError
from server.core.principal import Principal, Scope, anonymous

_WHO_PREFIX = "key:"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a caller needs for a route of one front end or a method of the other.

    Attributes:
        scopes: One of these is enough.
        every_name: Whether every adapter must exist for the caller, too.
        metered: Whether its key's quota counts it.
    """

    scopes: tuple[Scope, ...]
    every_name: bool = False
    metered: bool = False

    def check(self, principal: Principal) -> None:
        """Do nothing if the caller may.

        Raises:
            PermissionDeniedError: If it may not.
        """
        if not any(principal.may(scope) for scope in self.scopes):
            raise PermissionDeniedError(f"this needs a key with the scope {' or '.join(self.scopes)}")
        if self.every_name and not principal.sees_all:
            raise PermissionDeniedError("this needs a key for all adapters")


PUBLIC = Rule(())
"""Needs no key: health, and the page of operators, which shows nothing without one."""


def closed() -> PermissionDeniedError:
    """Return the refusal of what a front end has and its table does not."""
    return PermissionDeniedError("nobody may call this: it is in no table of access")


class AccessService:
    """Turns tokens into callers. No method waits for the database.

    Args:
        key_ring: The keys.
        quotas: What they have used.
        open_without_keys: Whether everybody may call while no key was ever made.
    """

    def __init__(self, key_ring: KeyRing, quotas: Quotas, *, open_without_keys: bool) -> None:
        """Keep the parts."""
        self._key_ring = key_ring
        self._quotas = quotas
        self._open_without_keys = open_without_keys

    @property
    def is_open(self) -> bool:
        """Whether everybody may call: no key was ever made, and that is allowed here."""
        return self._open_without_keys and not self._key_ring.any_keys

    def authenticate(self, token: str | None, origin: str) -> Principal:
        """Return who calls.

        Args:
            token: What the caller sent, or None.
            origin: Address of the connection's other end.

        Raises:
            UnauthenticatedError: If a key is needed and the token is none, or one that is not valid any more.
        """
        if self.is_open:
            return anonymous(origin)
        if token is None:
            raise UnauthenticatedError("this needs an API key, sent as 'authorization: Bearer <key>'")
        key = self._key_ring.authenticate(token)
        return Principal(_WHO_PREFIX + key.key_id, key.scopes, key.patterns, origin, key.first_priority)

    def key_of(self, principal: Principal) -> ApiKey | None:
        """Return the key a caller came with; None where it came without."""
        return self._key_ring.find(principal.who.removeprefix(_WHO_PREFIX))

    def admit(self, principal: Principal, count: int = 1) -> AbstractContextManager[None]:
        """Count requests of a caller until the returned context ends: all of them, or none.

        Raises:
            ResourceExhaustedError: On entering, if the caller's key has used up its quota.
        """
        key = self.key_of(principal)
        return nullcontext() if key is None else self._quotas.admit(key, count)

    def entered(self, rule: Rule, principal: Principal) -> AbstractContextManager[None]:
        """Let a caller through by a rule, for as long as the returned context lasts.

        Raises:
            PermissionDeniedError: If it may not.
            ResourceExhaustedError: On entering, if the rule counts the call and the quota is used up.
        """
        rule.check(principal)
        return self.admit(principal) if rule.metered else nullcontext()


def bearer_token(header: str | None) -> str | None:
    """Return the token of an ``authorization`` header or metadata value; None where there is none.

    Source:
        https://datatracker.ietf.org/doc/html/rfc6750#section-2.1
    """
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
