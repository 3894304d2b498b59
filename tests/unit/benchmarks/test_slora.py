"""S-LoRA's workload by number of adapters: what is asked, adapters put in by thousands, and the report."""

import argparse
import json
from pathlib import Path

import pytest
from rich.console import Console

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="writes the adapters")

from adapters.base_spec import read_base_spec  # noqa: E402
from adapters.codec import CodecLimits, read_adapter  # noqa: E402
from adapters.registry import Registry  # noqa: E402
from adapters.store import AdapterStore  # noqa: E402
from benchmarks import models  # noqa: E402
from benchmarks.bulk import put_in_bulk, register_in_bulk  # noqa: E402
from benchmarks.many_loras import write_many_loras  # noqa: E402
from benchmarks.slora import Plan, add_command, plan_of, saturated, scenario_of  # noqa: E402
from benchmarks.slora_report import SLoraPoint, write_report  # noqa: E402
from loadtest.arrivals import ClosedLoop, Gamma  # noqa: E402
from loadtest.clients.target import Protocol  # noqa: E402
from tests.fixtures.t5_models import TINY  # noqa: E402


def test_adapters_put_in_bulk_are_ready_sound_and_of_their_own_bytes(tmp_path: Path) -> None:
    base = models.save_base(tmp_path / "base", models.random_base(TINY, seed=0))
    adapters = write_many_loras(tmp_path / "many", base, 6, ranks=(2, 4))
    digests = put_in_bulk(tmp_path / "store", adapters)

    register_in_bulk(tmp_path / "data" / "registry.db", base, adapters[:5], digests)

    registry, store = (
        Registry(f"sqlite:///{tmp_path / 'data' / 'registry.db'}"),
        AdapterStore(str(tmp_path / "store"), tmp_path / "local"),
    )
    try:
        found = [registry.resolve(adapter.path.name) for adapter in adapters[:5]]
        assert len(registry.list()) == 5
    finally:
        registry.close()
    assert [version.rank for version in found] == [2, 4, 2, 4, 2]
    assert len({version.digest for version in found}) == 5
    limits = CodecLimits(max_rank=4, max_virtual_tokens=1)
    for version in found:
        assert read_adapter(store.local_path(version.digest), read_base_spec(base), limits).linears


def test_scenario_is_the_shipped_one_for_adapters_that_are_there() -> None:
    asked = scenario_of(Plan(rate=3.0), 2000, Protocol.GRPC, "127.0.0.1:9")
    assert isinstance(asked.arrivals, Gamma)
    assert (asked.arrivals.rate, asked.arrivals.per_adapter, asked.prepare) == (3.0, True, None)
    kinds = asked.adapters.entries()
    assert (len(kinds), kinds[0].adapters, kinds[-1].adapters) == (2000, ("many-0",), ("many-1999",))
    full = saturated(Plan(num_users=7), asked)
    assert full.arrivals == ClosedLoop(num_users=7, think_s=0.0)
    assert (full.adapters, full.lengths, full.target) == (asked.adapters, asked.lengths, asked.target)


def test_plan_of_the_command_line_takes_counts_in_order() -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    plan = plan_of(parser.parse_args(["slora", "--counts", "100", "5", "--rate", "2"]))
    assert (plan.counts, plan.rate, plan.seconds) == ((5, 100), 2.0, Plan().seconds)


def test_report_has_every_point_and_says_which_client_was_late(tmp_path: Path) -> None:
    points = [
        SLoraPoint(count, protocol, load, 50, 49, 5, 10.0, 300.0, 20.0, None, 90.0, 0.98, None, count == 2000)
        for count in (5, 2000)
        for protocol in ("http", "grpc")
        for load in ("open loop", "saturated")
    ]
    write_report(points, {"plan": {"counts": (5, 2000)}}, tmp_path / "out", Console(quiet=True))
    shown = json.loads((tmp_path / "out" / "slora.json").read_text())
    assert len(shown["points"]) == 8
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("client late") == 4
    assert page.count("<td>98.0%</td>") == 8
    assert (tmp_path / "out" / "slora.png").read_bytes().startswith(b"\x89PNG")
