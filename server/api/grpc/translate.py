"""Messages to nouns and back; decides nothing. What several messages name alike goes through one typed dictionary."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict

from adapters.audit import AuditRecord
from adapters.registry import AdapterRecord, VersionRecord
from medley.v1 import adapter_pb2, common_pb2, inference_pb2
from server.core.outputs import AdapterUse, FinishReason, GenerationChunk, GenerationResult, Timings, Usage
from server.core.request import GenerationRequest
from server.core.sampling import SamplingParams

_DEFAULTS = SamplingParams()


class InferenceMessage(Protocol):
    """What the four inference requests have in common: all but the text's name."""

    @property
    def adapters(self) -> Sequence[str]:
        """Adapter references."""
        ...

    @property
    def references(self) -> Sequence[str]:
        """Texts to score against."""
        ...

    @property
    def routing_key(self) -> str:
        """What the request is dealt by in a rollout."""
        ...

    @property
    def priority(self) -> int:
        """The class in the queue."""
        ...

    @property
    def sampling(self) -> inference_pb2.SamplingOptions:
        """How to choose tokens."""
        ...


class AnswerFields(TypedDict):
    """What the four inference answers have in common: all but the text's name."""

    request_id: str
    adapters: list[common_pb2.AdapterUse]
    finish_reason: "common_pb2.FinishReason.ValueType"
    usage: common_pb2.Usage | None
    timings: common_pb2.Timings | None
    scores: Mapping[str, float]


def generation_request(
    message: InferenceMessage,
    request_id: str,
    text: str,
    deadline_s: float | None,
    *,
    apply_template: bool,
    stream: bool = False,
) -> GenerationRequest:
    """Translate an inference request.

    Raises:
        InvalidArgumentError: If a field is out of range.
    """
    return GenerationRequest(
        request_id=request_id,
        text=text,
        adapters=tuple(message.adapters),
        sampling=_sampling(message.sampling),
        apply_template=apply_template,
        stream=stream,
        references=tuple(message.references),
        deadline_s=deadline_s,
        routing_key=message.routing_key,
        priority=message.priority,
    )


def result_fields(result: GenerationResult) -> AnswerFields:
    """Translate a whole answer."""
    return {
        "request_id": result.request_id,
        "adapters": _uses(result.adapters),
        "finish_reason": _finish_reason(result.finish_reason),
        "usage": _usage(result.usage),
        "timings": _timings(result.timings),
        "scores": result.scores or {},
    }


def chunk_fields(request_id: str, adapters: tuple[AdapterUse, ...], chunk: GenerationChunk) -> AnswerFields:
    """Translate a piece of an answer; ``adapters`` is empty on all but the first."""
    return {
        "request_id": request_id,
        "adapters": _uses(adapters),
        "finish_reason": _finish_reason(chunk.finish_reason),
        "usage": None if chunk.usage is None else _usage(chunk.usage),
        "timings": None if chunk.timings is None else _timings(chunk.timings),
        "scores": chunk.scores or {},
    }


def adapter_message(adapter: AdapterRecord) -> adapter_pb2.Adapter:
    """Translate an adapter."""
    versions = [version_message(version) for version in adapter.versions]
    return adapter_pb2.Adapter(name=adapter.name, versions=versions, aliases=adapter.aliases)


def version_message(version: VersionRecord) -> adapter_pb2.AdapterVersion:
    """Translate a version."""
    return adapter_pb2.AdapterVersion(
        name=version.name,
        version=version.version,
        digest=version.digest,
        kind=_kind(version.kind),
        state=adapter_pb2.AdapterState.Value(f"ADAPTER_STATE_{version.state.upper()}"),
        reason=version.reason,
        rank=version.rank,
        num_virtual_tokens=version.num_virtual_tokens,
        size_bytes=version.size_bytes,
        task=version.task,
        licence=version.licence,
        description=version.description,
        scores=version.scores,
        metrics=version.metrics,
        created_s=version.created_s,
        tags=version.tags,
    )


def audit_message(record: AuditRecord) -> adapter_pb2.AuditRecord:
    """Translate one change."""
    return adapter_pb2.AuditRecord(
        time_s=record.time_s,
        who=record.who,
        origin=record.origin,
        action=record.action,
        name=record.name,
        version=record.version or 0,
        alias=record.alias,
        digest=record.digest,
        detail=record.detail,
    )


def _sampling(options: inference_pb2.SamplingOptions) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=options.max_new_tokens if options.HasField("max_new_tokens") else _DEFAULTS.max_new_tokens,
        temperature=options.temperature if options.HasField("temperature") else _DEFAULTS.temperature,
        top_p=options.top_p if options.HasField("top_p") else _DEFAULTS.top_p,
        top_k=options.top_k if options.HasField("top_k") else _DEFAULTS.top_k,
        seed=options.seed if options.HasField("seed") else None,
        stop=tuple(options.stop),
        repetition_penalty=options.repetition_penalty
        if options.HasField("repetition_penalty")
        else _DEFAULTS.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size
        if options.HasField("no_repeat_ngram_size")
        else _DEFAULTS.no_repeat_ngram_size,
    )


def _uses(adapters: tuple[AdapterUse, ...]) -> list[common_pb2.AdapterUse]:
    return [
        common_pb2.AdapterUse(name=use.name, version=use.version, digest=use.digest, kind=_kind(use.kind))
        for use in adapters
    ]


def _kind(kind: str | None) -> "common_pb2.AdapterKind.ValueType":
    return common_pb2.AdapterKind.Value(f"ADAPTER_KIND_{(kind or 'unspecified').upper()}")


def _finish_reason(reason: FinishReason | None) -> "common_pb2.FinishReason.ValueType":
    return common_pb2.FinishReason.Value(f"FINISH_REASON_{'UNSPECIFIED' if reason is None else reason.name}")


def _usage(usage: Usage) -> common_pb2.Usage:
    return common_pb2.Usage(prompt_tokens=usage.num_prompt_tokens, completion_tokens=usage.num_completion_tokens)


def _timings(timings: Timings) -> common_pb2.Timings:
    return common_pb2.Timings(queue_ms=timings.queue_ms, ttft_ms=timings.ttft_ms, e2e_ms=timings.e2e_ms)
