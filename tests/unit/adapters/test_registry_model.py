"""Two servers on one registry do what a plain model of it does, whatever is done in whatever order."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adapters.errors import AdapterError, AdapterInUseError, AdapterNotFoundError, AdapterNotReadyError, RollbackError
from adapters.registry import Registry
from tests.fixtures.registry import ANNA, MANIFEST, digest

NAMES = st.sampled_from(["news", "mail"])
ALIASES = st.sampled_from(["stable", "canary"])
VERSIONS = st.integers(1, 4)
BYTES = st.integers(0, 3)
SERVERS = st.integers(0, 1)


@dataclass
class Adapter:
    """The model: version → (state, bytes), alias → targets, oldest first, the last is the one it has."""

    versions: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    aliases: dict[str, list[int]] = field(default_factory=dict)

    def is_ready(self, version: int) -> bool:
        return self.versions.get(version, ("", None))[0] == "ready"

    def check_ready(self, version: int) -> None:
        if version not in self.versions:
            raise AdapterNotFoundError("")
        if not self.is_ready(version):
            raise AdapterNotReadyError("")

    def point(self, alias: str, version: int) -> None:
        targets = self.aliases.setdefault(alias, [])
        if not targets or targets[-1] != version:
            targets.append(version)

    def targets(self, alias: str) -> list[int]:
        if alias not in self.aliases:
            raise AdapterNotFoundError("")
        return self.aliases[alias]

    def complete(self, version: int, content: int, alias: str | None) -> int:
        live = [number for number, (state, had) in self.versions.items() if (state, had) == ("ready", content)]
        if live:
            del self.versions[version]
            version = live[0]
        else:
            self.versions[version] = ("ready", content)
        if alias is not None:
            self.point(alias, version)
        return version

    def roll_back(self, alias: str) -> None:
        targets = self.targets(alias)
        for place in range(len(targets) - 2, -1, -1):
            if self.is_ready(targets[place]) and targets[place] != targets[-1]:
                self.aliases[alias] = targets[: place + 1]
                return
        raise RollbackError("")

    def retire(self, version: int, *, force: bool) -> None:
        if self.versions.get(version, ("", None))[0] == "retired":
            return
        self.check_ready(version)
        held_by = [alias for alias, targets in self.aliases.items() if targets[-1] == version]
        if held_by and not force:
            raise AdapterInUseError("")
        for alias in held_by:
            del self.aliases[alias]
        self.versions[version] = ("retired", self.versions[version][1])


class RegistryMachine(RuleBasedStateMachine):
    """Runs each step on a real registry and on the model."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.url = f"sqlite:///{self.folder / 'registry.db'}"
        self.servers = [self.start(0), self.start(1)]
        self.model: dict[str, Adapter] = {}
        self.begun: list[tuple[int, str, int]] = []
        self.num_changes = 0

    def start(self, server: int) -> Registry:
        return Registry(self.url, instance=f"server-{server}")

    def teardown(self) -> None:
        for server in self.servers:
            server.close()
        shutil.rmtree(self.folder)

    def adapter(self, name: str) -> Adapter:
        if name not in self.model:
            raise AdapterNotFoundError("")
        return self.model[name]

    def both(self, real: object, modelled: object) -> None:
        """Call both; they must agree on the kind of error, or that there is none."""
        errors = []
        for call in (real, modelled):
            try:
                call()  # type: ignore[operator]
                errors.append(None)
            except AdapterError as error:
                errors.append(type(error))
        assert errors[0] == errors[1]

    @rule(server=SERVERS, name=NAMES)
    def begin_only(self, server: int, name: str) -> None:
        self.begin(server, name)

    def begin(self, server: int, name: str) -> None:
        number = self.servers[server].begin_version(name, ANNA, lease_s=1e6).version
        adapter = self.model.setdefault(name, Adapter())
        assert number not in adapter.versions
        assert number > max(adapter.versions, default=0)
        adapter.versions[number] = ("uploading", None)
        self.begun.append((server, name, number))

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), content=BYTES, alias=st.none() | ALIASES)
    def complete(self, data: st.DataObject, content: int, alias: str | None) -> None:
        self.end(*self.begun.pop(data.draw(st.integers(0, len(self.begun) - 1))), content, alias)

    @rule(server=SERVERS, name=NAMES, content=BYTES, alias=st.none() | ALIASES)
    def upload(self, server: int, name: str, content: int, alias: str | None) -> None:
        self.begin(server, name)
        self.end(*self.begun.pop(), content, alias)

    def end(self, server: int, name: str, number: int, content: int, alias: str | None) -> None:
        record = self.servers[server].complete_version(
            name, number, digest=digest(content), manifest=MANIFEST, size_bytes=1, alias=alias, tags=(), change=ANNA
        )
        assert record.version == self.model[name].complete(number, content, alias)

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        server, name, number = self.begun.pop(data.draw(st.integers(0, len(self.begun) - 1)))
        self.servers[server].abandon_version(name, number)
        self.forget(name, number)

    def forget(self, name: str, number: int) -> None:
        del self.model[name].versions[number]
        if not self.model[name].versions:
            del self.model[name]

    @rule(server=SERVERS)
    def restart(self, server: int) -> None:
        self.servers[server].close()
        self.servers[server] = self.start(server)
        for _, name, number in [begun for begun in self.begun if begun[0] == server]:
            self.forget(name, number)
        self.begun = [begun for begun in self.begun if begun[0] != server]

    @rule(server=SERVERS, name=NAMES, alias=ALIASES, version=VERSIONS)
    def set_alias(self, server: int, name: str, alias: str, version: int) -> None:
        def point() -> None:
            self.adapter(name).check_ready(version)
            self.adapter(name).point(alias, version)

        self.both(lambda: self.servers[server].set_alias(name, alias, version, ANNA), point)

    @rule(server=SERVERS, name=NAMES, alias=ALIASES)
    def delete_alias(self, server: int, name: str, alias: str) -> None:
        def delete() -> None:
            self.adapter(name).targets(alias)
            del self.adapter(name).aliases[alias]

        self.both(lambda: self.servers[server].delete_alias(name, alias, ANNA), delete)

    @rule(server=SERVERS, name=NAMES, alias=ALIASES)
    def roll_back(self, server: int, name: str, alias: str) -> None:
        self.both(lambda: self.servers[server].rollback(name, alias, ANNA), lambda: self.adapter(name).roll_back(alias))

    @rule(server=SERVERS, name=NAMES, version=VERSIONS, force=st.booleans())
    def retire(self, server: int, name: str, version: int, force: bool) -> None:
        self.both(
            lambda: self.servers[server].retire(name, version, reason="", change=ANNA, force=force),
            lambda: self.adapter(name).retire(version, force=force),
        )

    @invariant()
    def every_server_knows_the_same_after_a_look(self) -> None:
        if not hasattr(self, "servers"):
            return
        wanted = {
            name: (
                {number: state for number, (state, _) in adapter.versions.items()},
                {alias: targets[-1] for alias, targets in adapter.aliases.items()},
            )
            for name, adapter in self.model.items()
        }
        for server in self.servers:
            server.refresh()
            known = {
                record.name: ({v.version: str(v.state) for v in record.versions}, dict(record.aliases))
                for record in server.list()
            }
            assert known == wanted


class TestRegistryMachine(RegistryMachine.TestCase):  # type: ignore[misc,valid-type]
    # Not shrunk: a shorter example takes minutes of databases, and the session's time limit would hide it.
    settings = settings(
        max_examples=30, stateful_step_count=50, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
    )


pytestmark = pytest.mark.slow
