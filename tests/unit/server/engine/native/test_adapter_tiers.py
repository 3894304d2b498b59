"""Files, host memory, device: read once, kept within bounds, given back without a copy."""

from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from adapters.manifest import AdapterKind  # noqa: E402
from server.engine.base import ResolvedAdapter  # noqa: E402
from server.engine.native.adapter_tiers import AdapterTiers  # noqa: E402
from server.engine.native.host_tier import HostTier  # noqa: E402
from server.engine.native.payload_tensors import map_tensors, payload_bytes, to_device  # noqa: E402

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Part:
    start: int
    weight: torch.Tensor


def lora(name: str) -> ResolvedAdapter:
    return ResolvedAdapter(name, AdapterKind.LORA, Path(name), rank=4)


class Files:
    """Adapters of 100 bytes each, and how often each was read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, adapter: ResolvedAdapter) -> torch.Tensor:
        self.read.append(adapter.digest)
        return torch.zeros(25)


def tier(max_bytes: int) -> HostTier[str]:
    return HostTier(max_bytes, len)


def test_host_tier_full_drops_the_least_recently_used() -> None:
    kept = tier(10)
    for digest in ("a", "b"):
        kept.put(digest, "12345")
    assert kept.get("a") == "12345"
    kept.put("c", "123")
    assert [digest in kept for digest in "abc"] == [True, False, True]
    assert (kept.num_bytes, len(kept), kept.num_hits) == (8, 2, 1)


def test_host_tier_payload_larger_than_all_of_it_is_not_kept_and_drops_nothing() -> None:
    kept = tier(4)
    kept.put("a", "1")
    kept.put("b", "12345")
    assert (kept.get("b"), kept.get("a"), kept.num_bytes) == (None, "1", 1)


def test_host_tier_same_digest_twice_counts_once() -> None:
    kept = tier(10)
    kept.put("a", "123")
    kept.put("a", "123")
    assert (kept.num_bytes, len(kept)) == (3, 1)


def test_load_twice_reads_the_files_once() -> None:
    files = Files()
    tiers = AdapterTiers(files, CPU, max_host_bytes=1000)
    assert tiers.at_once(lora("a")) is None
    first = tiers.load(lora("a"))
    assert tiers.load(lora("a")) is tiers.at_once(lora("a")) is first
    assert files.read == ["a"]


def test_load_is_timed_unless_it_fails() -> None:
    tiers = AdapterTiers(Files(), CPU, max_host_bytes=1000)
    tiers.load(lora("a"))
    assert sum(tiers.load_times.counted.counts) == 1
    assert tiers.load_times.counted.sum_s > 0
    assert [load.digest for load in tiers.load_times.counted.latest] == ["a"]

    def broken(_adapter: ResolvedAdapter) -> torch.Tensor:
        raise OSError

    tiers = AdapterTiers(broken, CPU, max_host_bytes=1000)
    with pytest.raises(OSError):  # noqa: PT011 - of our own making
        tiers.load(lora("a"))
    assert sum(tiers.load_times.counted.counts) == 0


def test_fetch_reads_ahead_once() -> None:
    files = Files()
    tiers = AdapterTiers(files, CPU, max_host_bytes=1000)
    tiers.fetch(lora("a"))
    tiers.fetch(lora("a"))
    assert files.read == ["a"]
    assert tiers.at_once(lora("a")) is not None


def test_gave_up_is_the_last_to_be_dropped() -> None:
    tiers = AdapterTiers(Files(), CPU, max_host_bytes=200)
    payload = tiers.load(lora("a"))
    tiers.load(lora("b"))
    tiers.gave_up("a", payload)
    tiers.load(lora("c"))
    assert ["a" in tiers.host, "b" in tiers.host, "c" in tiers.host] == [True, False, True]


def test_payload_tensors_of_any_build_are_found_counted_and_changed() -> None:
    payload = ({"site": Part(3, torch.ones(2)), "other": (torch.ones(4), None)}, torch.ones(1, dtype=torch.bfloat16))
    assert payload_bytes(payload) == 2 * 4 + 4 * 4 + 2
    doubled = map_tensors(payload, lambda tensor: tensor * 2)
    assert doubled[0]["site"].start == 3
    assert doubled[0]["site"].weight.tolist() == [2, 2]
    assert doubled[0]["other"][0].tolist() == [2, 2, 2, 2]
    assert payload_bytes(to_device(payload, CPU)) == payload_bytes(payload)
