"""What the demo does to a running server: every dialogue five ways at once over both protocols, and uploads meanwhile.

Knows neither how the server was started nor how the result is shown. Times are the client's own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import AdapterVersion, ClientError, MedleyClient, SummaryAnswer, SummaryRequest
from loadtest.clients.reading import read_stream
from loadtest.examples import Example

_REQUEST_TIMEOUT_S = 120.0
_GOOD_ENDS = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to ask.

    Attributes:
        adapters: Adapter names; empty means the base.
        wants_topic: Score against the dialogue's topics rather than its summaries.
    """

    adapters: tuple[str, ...]
    wants_topic: bool = False

    @property
    def label(self) -> str:
        """How tables call it."""
        return " + ".join(self.adapters) or "base"

    def references(self, example: Example) -> tuple[str, ...]:
        """Return what answers are scored against, possibly nothing."""
        return example.topics if self.wants_topic else example.summaries


WAYS = (
    Way(()),
    Way(("dialogsum",)),
    Way(("dialogsum-prompt",)),
    Way(("dialogsum", "dialogsum-prompt")),
    Way(("dialogsum-topic",), wants_topic=True),
)


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request.

    Attributes:
        way: How it was asked.
        protocol: Over which protocol.
        example: The dialogue's name.
        answer: The answer, or None if it failed.
        scores: ROUGE in percent by metric name; empty without references.
        ttft_ms: From sending until the first text.
        e2e_ms: From sending until the last text; scoring comes after it.
        error: Why it failed; empty if it did not.
    """

    way: Way
    protocol: WireProtocol
    example: str
    answer: SummaryAnswer | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    ttft_ms: float = 0.0
    e2e_ms: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """An adapter uploaded while requests ran, and the request that used it at once.

    Attributes:
        version: What the server made of it.
        took_ms: From sending until it was ready.
        num_in_flight: Requests of others that were running when it was sent.
        served: What it answered.
    """

    version: AdapterVersion
    took_ms: float
    num_in_flight: int
    served: Served


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything the demo saw."""

    served: tuple[Served, ...]
    uploads: tuple[Upload, ...]
    took_s: float

    @property
    def failures(self) -> tuple[Served, ...]:
        """The requests that failed."""
        return tuple(served for served in self.all_served if served.error)

    @property
    def all_served(self) -> tuple[Served, ...]:
        """All requests, those to uploaded adapters last."""
        return (*self.served, *(upload.served for upload in self.uploads))


class Scenario:
    """Runs the demo against one server; used once.

    Args:
        addresses: ``host:port`` by protocol.
        upload_folder: A PEFT folder to upload under new names.
        max_dialogues_at_once: Dialogues in flight; each is one request per way and protocol.
    """

    def __init__(self, addresses: Mapping[WireProtocol, str], upload_folder: Path, max_dialogues_at_once: int) -> None:
        self._addresses = addresses
        self._upload_folder = upload_folder
        self._dialogue_slots = asyncio.Semaphore(max_dialogues_at_once)
        self._num_in_flight = 0
        self._first_text = asyncio.Event()

    async def run(self, examples: Sequence[Example]) -> DemoResult:
        """Send everything and wait for it.

        Args:
            examples: Dialogues, at least one.

        Raises:
            ClientError: If an upload is refused; requests that fail are part of the result.
        """
        started_s = _now_s()
        async with AsyncExitStack() as stack:
            clients = {
                protocol: await stack.enter_async_context(create_client(protocol, address))
                for protocol, address in self._addresses.items()
            }
            try:
                async with asyncio.TaskGroup() as group:
                    dialogues = [group.create_task(self._dialogue(clients, example)) for example in examples]
                    uploads = [
                        group.create_task(self._upload(protocol, client, examples[0]))
                        for protocol, client in clients.items()
                    ]
            except* ClientError as errors:
                raise errors.exceptions[0] from None
        return DemoResult(
            served=tuple(served for dialogue in dialogues for served in dialogue.result()),
            uploads=tuple(upload.result() for upload in uploads),
            took_s=_now_s() - started_s,
        )

    async def _dialogue(self, clients: Mapping[WireProtocol, MedleyClient], example: Example) -> list[Served]:
        """Send one dialogue every way over every protocol at the same time."""
        async with self._dialogue_slots:
            return await asyncio.gather(
                *(self._serve(way, protocol, client, example) for way in WAYS for protocol, client in clients.items())
            )

    async def _upload(self, protocol: WireProtocol, client: MedleyClient, example: Example) -> Upload:
        """Upload an adapter once others are being answered, and use it at once."""
        await self._first_text.wait()
        num_in_flight, started_s = self._num_in_flight, _now_s()
        version = await client.upload_adapter(f"uploaded-over-{protocol.value}", self._upload_folder)
        took_ms = (_now_s() - started_s) * 1e3
        served = await self._serve(Way((version.name,)), protocol, client, example)
        return Upload(version, took_ms, num_in_flight, served)

    async def _serve(self, way: Way, protocol: WireProtocol, client: MedleyClient, example: Example) -> Served:
        request = SummaryRequest(example.text, way.adapters, references=way.references(example))
        text_times_s: list[float] = []

        def on_text() -> None:
            text_times_s.append(_now_s())
            self._first_text.set()

        self._num_in_flight += 1
        sent_s = _now_s()
        try:
            answer = await read_stream(client, request, _REQUEST_TIMEOUT_S, on_text)
            _check(answer, way)
            scores = await _scores(client, request, answer)
        except ClientError as error:
            return Served(way, protocol, example.name, error=str(error))
        finally:
            self._num_in_flight -= 1
            # Also after a failure: uploads must not wait for a text that never comes.
            self._first_text.set()
        first_s, last_s = (text_times_s[0], text_times_s[-1]) if text_times_s else (_now_s(), _now_s())
        return Served(
            way,
            protocol,
            example.name,
            answer=answer,
            scores=scores,
            ttft_ms=(first_s - sent_s) * 1e3,
            e2e_ms=(last_s - sent_s) * 1e3,
        )


def _check(answer: SummaryAnswer, way: Way) -> None:
    """Refuse an answer by other adapters than those asked for, or one that was cut off.

    Raises:
        ClientError: If so.
    """
    names = {use.partition(":")[0] for use in answer.adapters}
    if names != set(way.adapters):
        raise ClientError("WRONG_ADAPTERS", f"asked for {way.label}, served by {', '.join(answer.adapters) or 'base'}")
    if answer.finish_reason not in _GOOD_ENDS:
        raise ClientError("CUT_OFF", f"ended with {answer.finish_reason}")


async def _scores(client: MedleyClient, request: SummaryRequest, answer: SummaryAnswer) -> Mapping[str, float]:
    """Return the answer's scores; an answer never waits long for them, so they may have to be asked for."""
    if not request.references or answer.scores:
        return answer.scores
    return await client.submit_references(answer.request_id, request.references)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
