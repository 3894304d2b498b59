import pytest

from server.core.errors import InvalidArgumentError
from server.engine.base import EngineStats
from server.service.health import HealthService, Phase, Readiness
from server.service.models import ModelDirectory, ModelEntry
from tests.fixtures.peft_files import lora_files
from tests.unit.server.service.conftest import ANYONE, Room


async def test_health_follows_the_phases_and_the_engine(room: Room) -> None:
    health = HealthService(room.engine)
    assert (health.live(), health.ready()) == (True, Readiness(ready=False, reason="the server is starting"))
    health.enter(Phase.SERVING)
    assert (health.live(), health.ready().ready) == (True, True)
    health.enter(Phase.DRAINING)
    assert (health.live(), health.ready()) == (True, Readiness(ready=False, reason="the server is draining"))
    health.enter(Phase.SERVING)
    room.engine.kill()
    assert (health.live(), health.ready()) == (False, Readiness(ready=False, reason="the engine died"))


async def test_health_engine_that_restarts_by_itself_is_live_but_not_ready(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = HealthService(room.engine)
    health.enter(Phase.SERVING)
    stats = EngineStats(alive=False, num_waiting=0, num_running=0, is_restarting=True)
    monkeypatch.setattr(room.engine, "stats", lambda: stats)
    assert (health.live(), health.ready()) == (True, Readiness(ready=False, reason="the engine is being restarted"))


async def test_models_are_the_base_and_one_entry_per_adapter(room: Room) -> None:
    record = await room.upload(lora_files(), "lora")
    await room.upload(lora_files(2), "lora")
    models = await ModelDirectory("fake", room.catalog, 1024).list_models(ANYONE)
    assert models == (ModelEntry("fake"), ModelEntry("lora", record.created_s, "fake"))


@pytest.mark.parametrize(
    ("model", "references"),
    [("fake", ()), ("lora", ("lora",)), ("lora:2+soft@canary", ("lora:2", "soft@canary")), ("a+b+c", ("a", "b", "c"))],
)
async def test_model_names_become_references(room: Room, model: str, references: tuple[str, ...]) -> None:
    assert ModelDirectory("fake", room.catalog, 1024).parse_model(model) == references


@pytest.mark.parametrize("model", ["", "+", "lora+", "x" * 401])
async def test_model_names_with_empty_parts_are_refused(room: Room, model: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ModelDirectory("fake", room.catalog, 1024).parse_model(model)
