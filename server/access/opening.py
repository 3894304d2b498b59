"""When a server may run without API keys: only where nobody else reaches it, or where it was told to."""

import ipaddress
from dataclasses import dataclass

from server.core.errors import FailedPreconditionError


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """What an operator can set about access.

    Attributes:
        allow_open: Whether a server that others can reach may run without any API key.
    """

    allow_open: bool = False


def may_run_open(host: str, *, allow_open: bool) -> bool:
    """Return whether a server on this address may answer everybody while no API key was ever made."""
    return allow_open or _is_loopback(host)


def check_may_open(host: str, *, any_keys: bool, allow_open: bool) -> None:
    """Do nothing if a server may start.

    Args:
        host: Address it is to listen on.
        any_keys: Whether an API key was ever made.
        allow_open: What the operator set.

    Raises:
        FailedPreconditionError: If others could reach it, there is no key, and it was not told to run open.
    """
    if not any_keys and not may_run_open(host, allow_open=allow_open):
        raise FailedPreconditionError(
            f"others can reach {host or 'every address'}, and there are no API keys yet: make one "
            "(medley keys create --name me --scope admin), listen on 127.0.0.1, or run open on purpose (--allow-open)"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
