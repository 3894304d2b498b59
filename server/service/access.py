"""Who calls and how much it may: API keys and quotas as the front ends use them. Event loop's thread only."""

from contextlib import AbstractContextManager, nullcontext

from server.access.keys import KeyRing
from server.access.quotas import Quotas
from server.core.errors import UnauthenticatedError
from server.core.principal import Principal, anonymous

_WHO_PREFIX = "key:"


class AccessService:
    """Turns tokens into callers. Neither method waits for the database.

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

    def authenticate(self, token: str | None, origin: str) -> Principal:
        """Return who calls.

        Args:
            token: What the caller sent, or None.
            origin: Address of the connection's other end.

        Raises:
            UnauthenticatedError: If a key is needed and the token is none, or one that is not valid any more.
        """
        if self._open_without_keys and not self._key_ring.any_keys:
            return anonymous(origin)
        if token is None:
            raise UnauthenticatedError("this needs an API key, sent as 'authorization: Bearer <key>'")
        key = self._key_ring.authenticate(token)
        return Principal(_WHO_PREFIX + key.key_id, key.scopes, key.patterns, origin)

    def admit(self, principal: Principal) -> AbstractContextManager[None]:
        """Count one request of a caller until the returned context ends; entering it raises if that is too much.

        Raises:
            ResourceExhaustedError: On entering, if the caller's key has used up its quota.
        """
        key = self._key_ring.find(principal.who.removeprefix(_WHO_PREFIX))
        return nullcontext() if key is None else self._quotas.admit(key)
