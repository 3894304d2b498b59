"""``medley eval replay``: what it sends, keeps, goes on with, and makes of the answers."""

import asyncio
import json
import lzma
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.scoring.bootstrap import Bootstrap
from server.cli import app
from server.cli.client import Attempt
from server.cli.evaluation.dataset import Case, DatasetError, digest_cases, read_cases
from server.cli.evaluation.records import Playing, RecordsError, RecordsFile, ReplayRecord
from server.cli.evaluation.replay import Replay, ReplayConfig, StoppedError, Task
from server.cli.evaluation.summary import summarize_replay
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import fake_engine, running_server
from tests.fixtures.scripted_server import Answer, scripted_server

CASES = [Case(str(number), f"text {number}", (f"text {number} is it",)) for number in range(1, 5)]
PLAYING = Playing("ab" * 32, 16, ("rouge",))


def answer(summary: str = "x", **fields: object) -> Attempt:
    return Attempt("OK", {"summary": summary, "adapters": [{"name": "lora", "version": 2}], **fields})


def length(prediction: str, _references: object, _source: str) -> dict[str, float]:
    return {"length": float(len(prediction))}


def tasks(*systems: str) -> list[Task]:
    return [Task(system, place, case) for place, case in enumerate(CASES) for system in systems]


def record(system: str, case: int, rouge: float | None, *, code: str = "OK", latency_ms: float = 1.0) -> ReplayRecord:
    figures = {} if rouge is None else {"rougeL": rouge}
    return ReplayRecord(case, system, code, "", f"{system}:1", "x", latency_ms, 1, figures)


def test_dataset_is_read_in_every_form_there_is(tmp_path: Path) -> None:
    lines = [
        {"text": "one", "references": ["a", "b"], "id": "first"},
        {"dialogue": "two", "summaries": ["c"], "split": "test"},
        {"text": "three", "reference": "d"},
        {"dialogue": "four", "summary": "e"},
    ]
    text = "\n\n".join(map(json.dumps, lines))
    (tmp_path / "plain.jsonl").write_text(text)
    with lzma.open(tmp_path / "packed.jsonl.xz", "wt") as file:
        file.write(text)
    found = read_cases(tmp_path / "plain.jsonl")
    assert [case.text for case in found] == ["one", "two", "three", "four"]
    assert [case.references for case in found] == [("a", "b"), ("c",), ("d",), ("e",)]
    assert [case.name for case in found] == ["first", "3", "5", "7"]
    assert read_cases(tmp_path / "packed.jsonl.xz") == found
    assert [case.text for case in read_cases(tmp_path / "plain.jsonl", "test")] == ["two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"}', ":1: needs a reference"),
        ('{"text": "x", "references": []}', ":1: needs a reference"),
        ('{"text": "x", "references": ["a", 1]}', ":1: needs a reference"),
        ('{"text": " ", "references": ["a"]}', ":1: needs a text"),
        ("[]", ":1: a line must be a JSON object"),
        ("{", ":1: not JSON"),
        ("", "has no case"),
    ],
)
def test_dataset_that_cannot_be_played_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=message):
        read_cases(tmp_path / "data.jsonl")


def test_dataset_digest_depends_on_texts_and_references_only() -> None:
    renamed = [Case("other", case.text, case.references) for case in CASES]
    assert digest_cases(CASES) == digest_cases(renamed)
    assert digest_cases(CASES) != digest_cases(CASES[:-1])
    assert digest_cases([Case("", "a", ("b", "c"))]) != digest_cases([Case("", "a", ("b",)), Case("", "c", ())])


def test_replay_asks_each_system_for_each_case_and_scores_the_answers() -> None:
    asked: list[Mapping[str, object]] = []

    def ask(body: Mapping[str, object]) -> Attempt:
        asked.append(body)
        return answer("yes" if body["adapters"] else "no")

    replay = Replay(ask, length, ReplayConfig(concurrency=2, max_new_tokens=9))
    found = list(replay.run(tasks("base", "lora+soft")))
    assert {(each.system, each.case): each.figures["length"] for each in found} == {
        **{("base", place): 2.0 for place in range(4)},
        **{("lora+soft", place): 3.0 for place in range(4)},
    }
    assert {each.served for each in found} == {"lora:2"}
    assert len(asked) == 8
    assert {"text": "text 1", "adapters": ["lora", "soft"], "max_new_tokens": 9, "temperature": 0} in asked


def test_replay_keeps_so_many_requests_in_flight_and_no_more() -> None:
    lock, full = threading.Lock(), threading.Barrier(3, timeout=20)
    in_flight, most = 0, 0

    def ask(_body: Mapping[str, object]) -> Attempt:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        full.wait()  # passes only if three are here at once
        with lock:
            in_flight -= 1
        return answer()

    found = list(Replay(ask, length, ReplayConfig(concurrency=3)).run(tasks("base", "a", "b")))
    assert (len(found), most) == (12, 3)


def test_replay_tries_again_while_the_server_is_full_and_waits_longer_each_time() -> None:
    script = [Attempt("RESOURCE_EXHAUSTED", message="full")] * 3 + [
        Attempt("UNAVAILABLE", message="draining", retry_after_s=20.0),
        answer(),
    ]
    waits: list[float] = []
    replay = Replay(lambda _body: script.pop(0), length, ReplayConfig(concurrency=1), waits.append)
    [found] = replay.run(tasks("base")[:1])
    assert (found.code, found.num_tries) == ("OK", 5)
    assert waits[3] == 20.0
    for wait_s, longest_s in zip(waits, (0.25, 0.5, 1.0), strict=False):
        assert longest_s / 2 <= wait_s <= longest_s


def test_replay_records_what_one_request_is_refused_for_and_goes_on() -> None:
    script = [Attempt("INVALID_ARGUMENT", message="too long"), answer(), *[Attempt("RESOURCE_EXHAUSTED")] * 2, answer()]
    replay = Replay(
        lambda _body: script.pop(0), length, ReplayConfig(concurrency=1, max_num_tries=2), lambda _wait_s: None
    )
    found = list(replay.run(tasks("base")))
    assert [each.code for each in found] == ["INVALID_ARGUMENT", "OK", "RESOURCE_EXHAUSTED", "OK"]
    assert (found[0].message, found[0].answer, found[0].figures) == ("too long", "", {})


@pytest.mark.parametrize("code", ["NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE"])
def test_replay_stops_where_every_request_would_fail(code: str) -> None:
    num_asked = 0

    def ask(_body: Mapping[str, object]) -> Attempt:
        nonlocal num_asked
        num_asked += 1
        return answer() if num_asked == 1 else Attempt(code, message="no")

    replay = Replay(ask, length, ReplayConfig(concurrency=1, max_num_tries=1), lambda _wait_s: None)
    run = replay.run(tasks("base"))
    assert next(run).code == "OK"
    with pytest.raises(StoppedError, match="no"):
        next(run)
    assert num_asked == 2


def test_records_are_there_again_and_the_last_of_a_request_counts(tmp_path: Path) -> None:
    with RecordsFile(tmp_path / "r.jsonl", PLAYING) as kept:
        kept.add(record("base", 0, None, code="INTERNAL"))
        kept.add(record("base", 1, 5.0))
        assert not kept.is_done("base", 0)
    with RecordsFile(tmp_path / "r.jsonl", PLAYING) as kept:
        assert (kept.is_done("base", 0), kept.is_done("base", 1), kept.is_done("lora", 1)) == (False, True, False)
        kept.add(record("base", 0, 7.0))
    assert RecordsFile(tmp_path / "r.jsonl", PLAYING).records == [record("base", 0, 7.0), record("base", 1, 5.0)]


def test_records_cut_short_lose_the_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordsFile(path, PLAYING) as kept:
        kept.add(record("base", 0, 1.0))
        kept.add(record("base", 1, 2.0))
    path.write_bytes(path.read_bytes()[:-9])
    with RecordsFile(path, PLAYING) as kept:
        assert not kept.is_done("base", 1)
        kept.add(record("base", 2, 3.0))
    assert [each.case for each in RecordsFile(path, PLAYING).records] == [0, 2]


@pytest.mark.parametrize("text", ["a table\n", "no end", '{"text": "x"}\n', "[]\n[1]\n"])
def test_records_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(RecordsError, match="--records"):
        RecordsFile(path, PLAYING)
    assert path.read_text() == text


def test_records_of_other_data_or_options_are_refused(tmp_path: Path) -> None:
    with RecordsFile(tmp_path / "r.jsonl", PLAYING):
        pass
    for other in (Playing("cd" * 32, 16, ("rouge",)), Playing("ab" * 32, 17, ("rouge",)), Playing("ab" * 32, 16, ())):
        with pytest.raises(RecordsError, match="other data"):
            RecordsFile(tmp_path / "r.jsonl", other)


def test_summary_compares_systems_on_the_cases_both_answered() -> None:
    records = [record("base", case, 10.0 + 20.0 * (case % 2), latency_ms=10.0 * (case + 1)) for case in range(20)]
    records += [record("lora", case, 13.0 + 20.0 * (case % 2)) for case in range(19)]
    records += [record("lora", 19, None, code="INTERNAL"), record("other", 0, 99.0), record("base", 20, 99.0)]
    summary = summarize_replay(records, ["base", "lora"], 20, Bootstrap())
    base, lora = summary.systems
    assert (base.system, base.num_answered, base.served, base.errors) == ("base", 20, ("base:1",), {})
    assert (lora.num_answered, lora.errors) == (19, {"INTERNAL": 1})
    assert (base.latency_p50_ms, base.latency_p99_ms) == pytest.approx((105.0, 198.1))
    assert base.figures["rougeL"].value == 20.0
    assert base.figures["rougeL"].low < 18.0
    [pair] = summary.comparisons
    # The cases differ far more than the systems: only in pairs is the difference clear.
    assert (pair.first, pair.second, pair.num_cases) == ("lora", "base", 19)
    difference = pair.differences["rougeL"]
    assert (difference.value, difference.low) == pytest.approx((3.0, 3.0))
    assert difference.is_clear


def test_summary_of_a_figure_some_answers_lack_is_that_of_the_others() -> None:
    found = [record("base", 0, 10.0), record("base", 1, None), record("lora", 0, 30.0), record("lora", 1, 50.0)]
    summary = summarize_replay(found, ["base", "lora"], 2, Bootstrap())
    assert [each.figures["rougeL"].value for each in summary.systems] == [10.0, 40.0]
    assert summary.comparisons[0].differences["rougeL"].value == 20.0


def test_summary_of_a_system_without_answers_has_no_figures() -> None:
    summary = summarize_replay([record("lora", 0, None, code="INTERNAL")], ["base", "lora"], 1, Bootstrap())
    assert [(each.num_answered, each.figures, each.latency_p99_ms) for each in summary.systems] == [(0, {}, 0.0)] * 2
    assert summary.comparisons[0].num_cases == 0
    json.dumps(summary.as_json(), allow_nan=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [{"text": case.text, "references": list(case.references)} for case in CASES]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "data.jsonl"


def run(url: str, data: Path, *arguments: str) -> Result:
    records = ["--records", str(data.parent / "records.jsonl")]
    return CliRunner().invoke(app, ["eval", "replay", str(data), "--server", url, *records, *arguments])


async def test_replay_through_a_running_server_and_again_with_one_more_adapter(tmp_path: Path, data: Path) -> None:
    (tmp_path / "lora").mkdir()
    for name, content in lora_files().items():
        (tmp_path / "lora" / name).write_bytes(content)
    async with running_server(tmp_path / "server", fake_engine()) as server:
        push = ["adapters", "push", str(tmp_path / "lora"), "--name", "lora", "--server", server.http]
        assert (await asyncio.to_thread(CliRunner().invoke, app, push)).exit_code == 0
        picture = ["--plot", str(tmp_path / "replay.png")]
        first = await asyncio.to_thread(run, server.http, data, "--num", "2", *picture)
        assert first.exit_code == 0, first.output
        assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
        again = await asyncio.to_thread(run, server.http, data, "--adapter", "lora:1", "--json", "--send-references")
        evaluated = await asyncio.to_thread(CliRunner().invoke, app, ["eval", "report", "--server", server.http])
    kept = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 4 + 4  # a head, and no case asked twice
    summary = json.loads(again.stdout)
    assert [(each["system"], each["served"], each["num_answered"]) for each in summary["systems"]] == [
        ("base", ["base"], 4),
        ("lora:1", ["lora:1"], 4),
    ]
    # The fake engine answers "text 1", and the reference is "text 1 is it": 2 of 2 and 2 of 4 words.
    assert summary["systems"][0]["figures"]["rougeL"]["value"] == pytest.approx(200 / 3)
    assert summary["comparisons"][0]["num_cases"] == 4
    assert "2/2" in first.stdout
    assert "lora:1" in evaluated.stdout


def test_replay_of_an_unknown_adapter_says_so_and_keeps_nothing_wrong(data: Path) -> None:
    with scripted_server() as script:
        script.answers = [Answer(404, {"error": {"code": "NOT_FOUND", "message": "there is no adapter 'a'"}})]
        done = run(script.url, data, "--adapter", "a", "--no-base", "--concurrency", "1")
        assert script.sent[0].json()["adapters"] == ["a"]  # type: ignore[index]
    assert done.exit_code == 1
    assert "medley: NOT_FOUND: there is no adapter 'a'" in done.stderr
    assert len((data.parent / "records.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-base"], "--no-base needs an --adapter"),
        (["--adapter", "A B"], "a name is 1 to 63"),
        (["--metric", "rogue"], "metrics are bleu"),
    ],
)
def test_replay_of_nothing_sensible_is_refused_before_it_asks(data: Path, arguments: list[str], message: str) -> None:
    done = run("http://127.0.0.1:1", data, *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr
    assert not (data.parent / "records.jsonl").exists()


def test_replay_into_the_data_file_itself_leaves_it_alone(data: Path) -> None:
    before = data.read_text()
    done = CliRunner().invoke(app, ["eval", "replay", str(data), "--records", str(data)])
    assert (done.exit_code, data.read_text()) == (1, before)
