"""The table of addresses follows the adapters of the batch."""

import gc
import weakref

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from server.engine.native.layers.lora import LoraAdapter  # noqa: E402
from server.engine.native.layers.lora_addresses import Addresses, AddressTable  # noqa: E402
from tests.fixtures.mixed_loras import draw_adapters  # noqa: E402

CPU = torch.device("cpu")


def table() -> AddressTable:
    return AddressTable(device=CPU, columns_at_once=64)


def adapters(*ranks: int) -> list[LoraAdapter]:
    return list(draw_adapters(ranks, dtype=torch.float32, device=CPU).values())


def assert_holds(found: Addresses, held: list[LoraAdapter]) -> None:
    """Every address in the table, and no other."""
    assert set(found.place) == {id(adapter) for adapter in held}
    site = found.sites["qkv"]
    for adapter in held:
        place, weights = found.place[id(adapter)], adapter["qkv"]
        assert site.adapters_C2[place].tolist() == [weights.a_IR.data_ptr(), weights.a_IR.shape[1]]
        written = [part for part in found.parts_PC3[:, place].tolist() if part[0]]
        assert [(address, rank) for address, _, rank in written] == [
            (part.b_RO.data_ptr(), len(part.b_RO)) for part in weights.parts
        ]
        ranks = [len(part.b_RO) for part in weights.parts]
        assert [first for _, first, _ in written] == [sum(ranks[:index]) for index in range(len(ranks))]
    assert int((site.adapters_C2[:, 0] != 0).sum()) == len(held)


def test_adapters_that_come_and_go_are_written_and_erased() -> None:
    made, (first, second, third, fourth) = table(), adapters(4, 8, 3, 16)
    sets = ([first], [first, second], [second, third], [fourth], [first, second, third, fourth])
    found = [made.hold(held) for held in sets]
    for addresses, held in zip(found, sets, strict=True):
        assert_holds(addresses, held)


def test_more_adapters_than_places_make_the_table_grow() -> None:
    made, many = table(), adapters(*range(1, 41))
    made.hold(many[:5])
    assert_holds(made.hold(many), many)
    assert_holds(made.hold(many[30:]), many[30:])


def test_unseen_part_keeps_what_was_written() -> None:
    made, (first, second) = table(), adapters(4, 8)
    first_only = {"qkv": type(first["qkv"])(first["qkv"].a_IR[:, :4].contiguous(), first["qkv"].parts[:1])}
    made.hold([first_only])
    assert_holds(made.hold([first_only, second]), [first_only, second])


def test_steps_divide_every_number() -> None:
    made = table()
    assert made.hold(adapters(8, 16)).rank_step == 8
    found = made.hold(adapters(8, 3))
    site = found.sites["qkv"]
    assert found.rank_step == 1
    assert site.max_rank == found.max_rank == 16
    assert site.width_step == 4, "the parts are 48, 100 and 200 wide"
    assert made.hold(adapters(4, 16)).rank_step == 1, "the first adapter's second part begins at rank 4 of 8"


def test_columns_cover_every_part_once() -> None:
    found = table().hold(adapters(8, 8))
    covered = [
        column
        for _, start, width, first in found.sites["qkv"].columns_Q4.tolist()
        for column in range(start + first, start + min(first + 64, width))
    ]
    assert covered == list(range(348))


def test_adapters_of_an_earlier_set_are_let_go() -> None:
    made, (first, second) = table(), adapters(4, 8)
    made.hold([first])
    address = weakref.ref(first["qkv"].a_IR)
    made.hold([second])
    del first
    gc.collect()
    assert address() is None
