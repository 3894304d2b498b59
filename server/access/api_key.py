"""What an API key is, and what its token looks like. Knows no database; of a secret it makes only the hash.

A token is ``mdl_<key id>_<secret>``: the prefix lets secret scanners find a leaked one, the id finds the key without
looking through all, the secret has 192 random bits. With that many, one SHA-256 keeps it as safe as a slow hash would.
Every function may be called from any thread.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass

from server.core.errors import InvalidArgumentError
from server.core.principal import EVERY_NAME, Scope
from server.core.request import FIRST_PRIORITY, LAST_PRIORITY

_PREFIX = "mdl_"
_NUM_ID_BYTES = 6
_NUM_SECRET_BYTES = 24
_NUM_TOKEN_CHARS = len(_PREFIX) + 2 * _NUM_ID_BYTES + 1 + 2 * _NUM_SECRET_BYTES
_MAX_NAME_CHARS = 100
_MAX_NUM_PATTERNS = 64
_MAX_LIMIT = 10**9
_PATTERN = re.compile(r"[a-z0-9._*?-]{1,63}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret.

    Attributes:
        key_id: Names it in the audit log and the command line; no secret.
        name: Whom or what it is for.
        scopes: What it may do.
        patterns: Shell patterns of the adapter names that exist for it.
        max_requests_per_minute: Of inference and uploads; 0 for any number.
        max_concurrent: Most of them at once; 0 for any number.
        first_priority: The earliest class its requests may have.
        created_s: Unix time.
        expires_s: Unix time from which it is refused, or None.
        revoked_s: Unix time since which it is refused, or None.
    """

    key_id: str
    name: str
    scopes: frozenset[Scope]
    patterns: tuple[str, ...] = EVERY_NAME
    max_requests_per_minute: int = 0
    max_concurrent: int = 0
    first_priority: int = 0
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None


def new_key_id() -> str:
    """Return a random id."""
    return secrets.token_hex(_NUM_ID_BYTES)


def new_secret() -> str:
    """Return a random secret."""
    return secrets.token_hex(_NUM_SECRET_BYTES)


def token_of(key_id: str, secret: str) -> str:
    """Return what a caller sends."""
    return f"{_PREFIX}{key_id}_{secret}"


def split_token(token: str) -> tuple[str, str]:
    """Return a token's key id and secret, both empty if it is none of ours."""
    if len(token) != _NUM_TOKEN_CHARS or not token.startswith(_PREFIX):
        return "", ""
    key_id, _, secret = token.removeprefix(_PREFIX).partition("_")
    return key_id, secret


def hash_secret(secret: str) -> bytes:
    """Return what is kept of a secret: 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def check_key(key: ApiKey) -> ApiKey:
    """Return a key that is to be made.

    Raises:
        InvalidArgumentError: If its name, scopes, patterns, limits or expiry are out of range.
    """
    if not (1 <= len(key.name) <= _MAX_NAME_CHARS and key.name.isprintable()):
        raise InvalidArgumentError(f"a key's name is 1 to {_MAX_NAME_CHARS} printable characters", param="name")
    if not key.scopes:
        raise InvalidArgumentError(f"a key needs a scope: {', '.join(Scope)}", param="scopes")
    if not 1 <= len(key.patterns) <= _MAX_NUM_PATTERNS or not all(map(_PATTERN.fullmatch, key.patterns)):
        raise InvalidArgumentError(
            f"a key has 1 to {_MAX_NUM_PATTERNS} patterns of adapter names: lower-case letters, digits, '.', '_', '-', "
            f"'*' and '?', at most 63 characters each",
            param="patterns",
        )
    for param in ("max_requests_per_minute", "max_concurrent"):
        if not 0 <= getattr(key, param) <= _MAX_LIMIT:
            raise InvalidArgumentError(f"{param} is 0 (any number) to {_MAX_LIMIT}", param=param)
    if not FIRST_PRIORITY <= key.first_priority <= LAST_PRIORITY:
        raise InvalidArgumentError(
            f"first_priority is {FIRST_PRIORITY} (first) to {LAST_PRIORITY} (last)", param="first_priority"
        )
    if key.expires_s is not None and not key.created_s < key.expires_s < float("inf"):
        raise InvalidArgumentError("a key must expire in the future", param="expires_s")
    return key
