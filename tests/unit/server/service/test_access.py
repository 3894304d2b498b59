"""Who calls and what it may, without any protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.registry_records import Change
from server.access.keys import KeyRing
from server.access.quotas import Quotas
from server.core.errors import PermissionDeniedError, ResourceExhaustedError, UnauthenticatedError
from server.core.principal import SYSTEM, Principal, Scope, anonymous
from server.service.access import PUBLIC, AccessService, Rule, bearer_token

NOBODY = Change("test")


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    ring = KeyRing(f"sqlite:///{tmp_path / 'registry.db'}")
    yield ring
    ring.close()


def service(ring: KeyRing, *, open_without_keys: bool = True) -> AccessService:
    return AccessService(ring, Quotas(), open_without_keys=open_without_keys)


def caller(*scopes: Scope, patterns: tuple[str, ...] = ("*",)) -> Principal:
    return Principal("key:x", frozenset(scopes), patterns)


def test_caller_of_a_key_is_named_by_its_id_and_has_its_rights(ring: KeyRing) -> None:
    token, key = ring.create("x", scopes={Scope.READ}, patterns=("a-*",), change=NOBODY)
    expected = Principal(f"key:{key.key_id}", frozenset({Scope.READ}), ("a-*",), "10.0.0.1", first_priority=0)
    assert service(ring).authenticate(token, "10.0.0.1") == expected


def test_without_keys_an_open_server_knows_nobody_and_lets_all_in(ring: KeyRing) -> None:
    for token in (None, "anything"):
        assert service(ring).authenticate(token, "127.0.0.1") == anonymous("127.0.0.1")


def test_without_keys_a_server_that_is_not_open_lets_nobody_in(ring: KeyRing) -> None:
    for token in (None, "anything"):
        with pytest.raises(UnauthenticatedError):
            service(ring, open_without_keys=False).authenticate(token, "10.0.0.1")


def test_with_a_key_a_call_without_one_is_told_how_to_send_it(ring: KeyRing) -> None:
    ring.create("x", scopes={Scope.READ}, change=NOBODY)
    with pytest.raises(UnauthenticatedError, match="authorization: Bearer"):
        service(ring).authenticate(None, "127.0.0.1")


def test_quota_counts_metered_rules_of_keys_only(ring: KeyRing) -> None:
    token, _ = ring.create("x", scopes={Scope.INFER}, max_concurrent=1, change=NOBODY)
    access = service(ring)
    limited = access.authenticate(token, "")
    metered, free = Rule((Scope.INFER,), metered=True), Rule((Scope.INFER,))
    with access.entered(metered, limited):
        with access.entered(free, limited), access.entered(metered, anonymous()), access.entered(metered, SYSTEM):
            pass
        with pytest.raises(ResourceExhaustedError), access.entered(metered, limited):
            pass
    with access.admit(limited):
        pass


def test_rule_is_met_by_one_of_its_scopes_and_by_what_includes_it() -> None:
    either = Rule((Scope.INFER, Scope.READ))
    for scope in Scope:
        either.check(caller(scope))
    Rule((Scope.READ,)).check(caller(Scope.OPERATE))
    with pytest.raises(PermissionDeniedError, match="scope infer or read"):
        either.check(caller())
    with pytest.raises(PermissionDeniedError, match="scope operate"):
        Rule((Scope.OPERATE,)).check(caller(Scope.READ, Scope.INFER))


def test_rule_for_every_name_is_not_met_by_a_tenant() -> None:
    rule = Rule((Scope.READ,), every_name=True)
    rule.check(caller(Scope.READ))
    with pytest.raises(PermissionDeniedError, match="all adapters"):
        rule.check(caller(Scope.ADMIN, patterns=("team-*",)))


def test_rule_without_scopes_is_met_by_nobody_when_it_is_asked() -> None:
    with pytest.raises(PermissionDeniedError):
        PUBLIC.check(anonymous())


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("abc", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer_token_is_read_from_its_header_only(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token
