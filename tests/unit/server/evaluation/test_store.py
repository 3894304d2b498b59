"""The store on both databases: what is written is there for every server on it, and texts only where allowed."""

import pytest
import sqlalchemy as sa

from adapters.errors import StoreError
from server.evaluation import store as store_module
from server.evaluation.outcome import Arm, RolloutOutcome, RolloutPart
from server.evaluation.records import Entry, Record, hash_text
from server.evaluation.schema import METADATA, REQUESTS, SCORES
from server.evaluation.store import EvaluationStore
from tests.fixtures.outcomes import outcome_of, record_of
from tests.fixtures.registry import Clock
from tests.unit.server.evaluation.conftest import OpenStore


def rows(store: EvaluationStore, table: sa.Table) -> list[dict[str, object]]:
    with store.reader.begin() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def test_migrated_tables_are_those_of_the_schema(store: EvaluationStore) -> None:
    inspector = sa.inspect(store.reader)
    for table in METADATA.sorted_tables:
        assert {column["name"] for column in inspector.get_columns(table.name)} == set(table.c.keys())
        assert {index["name"] for index in inspector.get_indexes(table.name)} == {index.name for index in table.indexes}


def test_written_request_is_found_by_another_server_where_texts_are_kept(open_store: OpenStore) -> None:
    first, second = open_store(store_texts=True), open_store(store_texts=True)
    part = RolloutPart("ro_1", Arm.CANDIDATE)
    record = Record("k1", outcome_of(request_id="a", adapters="lora:1", rollout=part, ttft_s=None), ("bleu",))
    first.write([Entry(record)])
    assert second.find("me", ["a", "b"]) == {"a": record}
    assert second.find("you", ["a"]) == {}


def test_newest_request_of_an_id_is_found(open_store: OpenStore) -> None:
    store = open_store(store_texts=True)
    records = [record_of(request_id="a", finished_s=at_s, text=text) for at_s, text in [(2.0, "new"), (1.0, "old")]]
    store.write([Entry(record) for record in records])
    assert store.find("me", ["a"])["a"].outcome.text == "new"


def test_texts_are_not_written_unless_allowed(open_store: OpenStore) -> None:
    secret, reference = "the private answer", "the private reference"
    store = open_store()
    record = record_of(text=secret)
    store.write(
        [Entry(record, references=(reference,)), Entry(record, references=(reference,), scores={"rouge1": 1.0})]
    )
    [request], [score] = rows(store, REQUESTS), rows(store, SCORES)
    assert "private" not in str(request) + str(score)
    assert request["input_sha256"] == record.outcome.input_sha256
    assert score["reference_sha256"] == [hash_text(reference)]
    assert store.find("me", ["r"]) == {}


def test_references_wait_only_where_their_texts_are_kept(open_store: OpenStore) -> None:
    hashing, keeping = open_store(), open_store(store_texts=True)
    hashing.write([Entry(record_of(), references=("x",))])
    assert rows(hashing, SCORES) == []
    keeping.write([Entry(record_of(), references=("x",))])
    assert [row["is_waiting"] for row in rows(keeping, SCORES)] == [True]


def test_waiting_references_are_claimed_once_until_the_lease_ends(open_store: OpenStore, clock: Clock) -> None:
    first, second = open_store(store_texts=True), open_store(store_texts=True)
    record = record_of()
    first.write([Entry(record, references=("x", "y"))])
    assert second.claim(older_than_s=60.0, limit=9) == []  # whoever took it may be scoring it
    clock.now_s += 61.0
    assert second.claim(older_than_s=60.0, limit=9) == [(record, ("x", "y"))]
    assert first.claim(older_than_s=60.0, limit=9) == []
    clock.now_s += 61.0
    assert len(first.claim(older_than_s=60.0, limit=9)) == 1
    second.write([Entry(record, references=("x", "y"), scores={"rouge1": 4.0})])
    clock.now_s += 61.0
    assert first.claim(older_than_s=60.0, limit=9) == []


def test_later_scores_replace_earlier_ones_and_the_request_stays(open_store: OpenStore) -> None:
    store = open_store()
    record = record_of()
    store.write([Entry(record, {"repetition": 3.0})])
    store.write([Entry(record, references=("x",), scores={"rouge1": 1.0})])
    store.write([Entry(record, references=("y",), scores={"rouge1": 2.0}), Entry(record)])
    [request], [score] = rows(store, REQUESTS), rows(store, SCORES)
    assert (request["signals"], score["scores"]) == ({"repetition": 3.0}, {"rouge1": 2.0})


def test_entries_of_one_request_in_one_transaction_keep_signals_and_last_scores(store: EvaluationStore) -> None:
    record = record_of()
    store.write(
        [
            Entry(record, {"repetition": 3.0}),
            Entry(record, references=("x",), scores={"rouge1": 1.0}),
            Entry(record, references=("x",), scores={"rouge1": 2.0}),
        ]
    )
    [request], [score] = rows(store, REQUESTS), rows(store, SCORES)
    assert (request["signals"], score["scores"]) == ({"repetition": 3.0}, {"rouge1": 2.0})


def test_write_of_entries_is_all_or_nothing(store: EvaluationStore) -> None:
    bad = record_of(num_prompt_tokens=None)
    with pytest.raises(StoreError):
        store.write([Entry(record_of()), Entry(bad)])
    assert rows(store, REQUESTS) == []


def test_texts_of_every_kind_are_kept(open_store: OpenStore) -> None:
    store = open_store(store_texts=True)
    text = "nul \x00 quote ' \" \N{GRINNING FACE} \u202e"
    record = record_of(text=text)
    store.write([Entry(record, references=(text,))])
    assert store.find("me", ["r"])["r"].outcome.text == text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def test_trim_removes_the_old_and_the_too_many_with_their_scores(
    open_store: OpenStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_MAX_NUM_GONE", 2)
    store = open_store()
    for age_s in range(10):
        record = record_of(request_id=f"r{age_s}", finished_s=clock.now_s - age_s)
        store.write([Entry(record, references=("x",), scores={"rouge1": 1.0})])
    assert store.trim(max_age_s=7.5, max_num=100) == 2
    assert store.trim(max_age_s=7.5, max_num=5) == 3
    assert store.trim(max_age_s=7.5, max_num=5) == 0
    kept = rows(store, REQUESTS)
    assert {row["request_id"] for row in kept} == {f"r{age_s}" for age_s in range(5)}
    assert {row["key"] for row in rows(store, SCORES)} == {row["key"] for row in kept}


def test_rollout_outcomes_are_those_of_all_servers_oldest_first(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    stable = record_of(rollout=RolloutPart("ro_1", Arm.STABLE), finished_s=2.0, e2e_s=0.5)
    shadow = record_of(rollout=RolloutPart("ro_1", Arm.SHADOW), finished_s=1.0, e2e_s=0.7, code="INTERNAL", text="")
    first.write([Entry(stable, references=("x",), scores={"rougeL": 3.0})])
    second.write([Entry(shadow), Entry(record_of()), Entry(record_of(rollout=RolloutPart("ro_2", Arm.STABLE)))])
    assert first.rollout_outcomes("ro_1") == [
        RolloutOutcome(Arm.SHADOW, "INTERNAL", 0.7, {}, 1.0),
        RolloutOutcome(Arm.STABLE, "OK", 0.5, {"rougeL": 3.0}, 2.0),
    ]
    assert second.rollout_outcomes("none") == []
