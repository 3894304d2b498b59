"""The demo's result as tables for a person. Knows nothing of how it came about."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from loadtest.demo.scenario import DemoResult, Served
from loadtest.examples import Example
from loadtest.histogram import distribution

_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def render_dialogue(example: Example) -> RenderableType:
    """Return the dialogue and its references."""
    table = Table("dialogue", "references", title=f"Sample {example.name}", show_lines=True)
    references = [*example.summaries, *(f"topic: {topic}" for topic in example.topics)]
    table.add_row(Text(example.text), Text("\n\n".join(references) or "none"))
    return table


def render_one(result: DemoResult) -> RenderableType:
    """Return the summaries of one dialogue side by side, then scores and times of each request."""
    summaries = Table(
        "adapters", Column("summary", overflow="fold"), title="The same dialogue, all at once", show_lines=True
    )
    for label, group in groupby(result.all_served, key=lambda served: served.way.label):
        # Both protocols share one engine, so they mostly say the same; each text is shown once.
        texts = dict.fromkeys(served.answer.summary for served in group if served.answer)
        for text in texts:
            summaries.add_row(label, Text(text))
    requests = Table("adapters", "protocol", *_ROUGE.values(), "tokens", "TTFT ms", "e2e ms", title="Each request")
    _align_numbers(requests, first=2)
    for served in result.all_served:
        tokens = str(served.answer.num_output_tokens) if served.answer else "failed"
        row = (tokens, f"{served.ttft_ms:.0f}", f"{served.e2e_ms:.0f}")
        requests.add_row(served.way.label, served.protocol.value, *_rouge_cells([served]), *row)
    return Group(summaries, requests, _uploads(result))


def render_many(result: DemoResult) -> RenderableType:
    """Return mean scores and latency percentiles by way and protocol."""
    latencies = ("TTFT p50", "TTFT p99", "e2e p50", "e2e p99")
    columns = ("adapters", "protocol", "answers", *_ROUGE.values(), "tokens", *latencies)
    table = Table(*columns, title="Mean scores, and latency in ms")
    _align_numbers(table, first=2)
    by_kind = sorted(result.served, key=lambda served: (_order(result, served), served.protocol))
    for (label, protocol), group in groupby(by_kind, key=lambda served: (served.way.label, served.protocol)):
        answered = [served for served in group if served.answer]
        table.add_row(label, protocol.value, str(len(answered)), *_rouge_cells(answered), *_time_cells(answered))
    return Group(table, _uploads(result))


def render_failures(failures: Iterable[Served]) -> RenderableType:
    """Return what failed and why."""
    table = Table("adapters", "protocol", "dialogue", "error", title="Failed requests")
    for served in failures:
        table.add_row(served.way.label, served.protocol.value, served.example, Text(served.error))
    return table


def _uploads(result: DemoResult) -> Table:
    columns = ("adapter", "kind", "protocol", "ready after ms", "others running")
    table = Table(*columns, title="Uploaded while others ran, used at once")
    _align_numbers(table, first=3)
    for upload in result.uploads:
        name = f"{upload.version.name}:{upload.version.version}"
        figures = (f"{upload.took_ms:.0f}", str(upload.num_in_flight))
        table.add_row(name, upload.version.kind, upload.served.protocol.value, *figures)
    return table


def _order(result: DemoResult, served: Served) -> int:
    """Return the place of a request's way among the ways, as they first came."""
    return [other.way for other in result.served].index(served.way)


def _rouge_cells(answered: Sequence[Served]) -> list[str]:
    scored = [served.scores for served in answered if served.scores]
    return [f"{fmean(scores[name] for scores in scored):.1f}" if scored else "-" for name in _ROUGE]


def _time_cells(answered: Sequence[Served]) -> list[str]:
    ttft = distribution(served.ttft_ms for served in answered)
    e2e = distribution(served.e2e_ms for served in answered)
    if ttft is None or e2e is None:
        return ["-"] * 5
    tokens = fmean(served.answer.num_output_tokens for served in answered if served.answer)
    return [f"{value:.0f}" for value in (tokens, ttft.p50, ttft.p99, e2e.p50, e2e.p99)]


def _align_numbers(table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"
