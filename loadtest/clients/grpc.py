"""The gRPC client: ``Summarize``, ``StreamSummarize``, ``SubmitReferences``, and the changes of adapters."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from loadtest.clients.base import (
    CONTROL_TIMEOUT_S,
    PROTOCOL,
    AdapterVersion,
    ClientError,
    Credentials,
    ServerTimings,
    SummaryAnswer,
    SummaryPiece,
    SummaryRequest,
    adapter_files,
)
from medley.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    common_pb2,
    evaluation_pb2,
    evaluation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)

# Well under gRPC's default limit of 4 MiB a message.
_CHUNK_BYTES = 1 << 18


class GrpcClient:
    """Speaks gRPC over one HTTP/2 connection. A time limit travels to the server as the deadline.

    Args:
        address: ``host:port``.
        credentials: For a server that wants a key or speaks TLS.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._address = address
        self._ca_pem = credentials.ca_pem
        # With every call rather than by the channel, which sends credentials of its own over TLS only.
        self._metadata = (("authorization", f"Bearer {credentials.key}"),) if credentials.key else ()

    async def __aenter__(self) -> Self:
        """Open the channel; the connection is made on use."""
        if self._ca_pem:
            trust = grpc.ssl_channel_credentials(self._ca_pem.encode())
            self._channel = grpc.aio.secure_channel(self._address, trust)
        else:
            self._channel = grpc.aio.insecure_channel(self._address)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(self._channel)
        self._evaluation = evaluation_pb2_grpc.EvaluationServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        await self._channel.close(None)

    async def summarize(self, request: SummaryRequest, timeout_s: float) -> SummaryAnswer:
        """Return the whole answer; see :class:`~loadtest.clients.base.MedleyClient`."""
        message = inference_pb2.SummarizeRequest(
            text=request.text, adapters=request.adapters, sampling=_sampling(request), references=request.references
        )
        with _errors_translated():
            response = await self._inference.Summarize(message, timeout=timeout_s, metadata=self._metadata)
        return _answer(response, response.summary, response.adapters)

    async def stream(self, request: SummaryRequest, timeout_s: float) -> AsyncGenerator[SummaryPiece]:
        """Yield the answer in pieces; see :class:`~loadtest.clients.base.MedleyClient`."""
        message = inference_pb2.StreamSummarizeRequest(
            text=request.text, adapters=request.adapters, sampling=_sampling(request), references=request.references
        )
        deltas: list[str] = []
        adapters: Sequence[common_pb2.AdapterUse] = ()
        answer: SummaryAnswer | None = None
        call = self._inference.StreamSummarize(message, timeout=timeout_s, metadata=self._metadata)
        try:
            with _errors_translated():
                async for response in call:
                    deltas.append(response.delta)
                    adapters = response.adapters or adapters
                    if response.finish_reason:
                        answer = _answer(response, "".join(deltas), adapters)
                    yield SummaryPiece(response.delta, answer)
        finally:
            call.cancel()
        if answer is None:
            raise ClientError(PROTOCOL, "the stream ended without a last piece")

    async def submit_references(self, request_id: str, references: Sequence[str]) -> Mapping[str, float]:
        """Score a finished request; see :class:`~loadtest.clients.base.MedleyClient`."""
        message = evaluation_pb2.SubmitReferencesRequest(request_id=request_id, references=references)
        with _errors_translated():
            response = await self._evaluation.SubmitReferences(
                message, timeout=CONTROL_TIMEOUT_S, metadata=self._metadata
            )
        return dict(response.scores)

    async def upload_adapter(self, name: str, folder: Path, alias: str | None = None) -> AdapterVersion:
        """Upload a PEFT folder; see :class:`~loadtest.clients.base.MedleyClient`."""
        parts = _upload_parts(name, adapter_files(folder), alias or "")
        with _errors_translated():
            response = await self._adapters.UploadAdapter(parts, timeout=CONTROL_TIMEOUT_S, metadata=self._metadata)
        return _version(response.version)

    async def list_adapters(self) -> tuple[AdapterVersion, ...]:
        """List all versions; see :class:`~loadtest.clients.base.MedleyClient`."""
        with _errors_translated():
            response = await self._adapters.ListAdapters(
                adapter_pb2.ListAdaptersRequest(), timeout=CONTROL_TIMEOUT_S, metadata=self._metadata
            )
        return tuple(_version(version) for adapter in response.adapters for version in adapter.versions)

    async def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version; see :class:`~loadtest.clients.base.MedleyClient`."""
        message = adapter_pb2.SetAliasRequest(name=name, alias=alias, version=version)
        with _errors_translated():
            await self._adapters.SetAlias(message, timeout=CONTROL_TIMEOUT_S, metadata=self._metadata)

    async def delete_version(self, name: str, version: int) -> None:
        """Delete a version; see :class:`~loadtest.clients.base.MedleyClient`."""
        message = adapter_pb2.DeleteVersionRequest(name=name, version=version, force=True)
        with _errors_translated():
            await self._adapters.DeleteVersion(message, timeout=CONTROL_TIMEOUT_S, metadata=self._metadata)


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise ClientError(error.code().name, error.details() or "no details") from error


def _sampling(request: SummaryRequest) -> inference_pb2.SamplingOptions:
    return inference_pb2.SamplingOptions(max_new_tokens=request.max_new_tokens)


async def _upload_parts(
    name: str, files: Sequence[Path], alias: str
) -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
    yield adapter_pb2.UploadAdapterRequest(header=adapter_pb2.UploadHeader(name=name, alias=alias))
    for file in files:
        data = file.read_bytes()
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = adapter_pb2.FileChunk(file_name=file.name, data=data[start : start + _CHUNK_BYTES])
            yield adapter_pb2.UploadAdapterRequest(chunk=chunk)


def _answer(
    end: inference_pb2.SummarizeResponse | inference_pb2.StreamSummarizeResponse,
    summary: str,
    adapters: Sequence[common_pb2.AdapterUse],
) -> SummaryAnswer:
    return SummaryAnswer(
        request_id=end.request_id,
        summary=summary,
        adapters=tuple(f"{use.name}:{use.version}" for use in adapters),
        finish_reason=_word(common_pb2.FinishReason.Name(end.finish_reason), "FINISH_REASON_"),
        num_prompt_tokens=end.usage.prompt_tokens,
        num_output_tokens=end.usage.completion_tokens,
        timings=ServerTimings(end.timings.queue_ms, end.timings.ttft_ms, end.timings.e2e_ms),
        scores=dict(end.scores),
    )


def _version(version: adapter_pb2.AdapterVersion) -> AdapterVersion:
    return AdapterVersion(
        name=version.name,
        version=version.version,
        digest=version.digest,
        kind=_word(common_pb2.AdapterKind.Name(version.kind), "ADAPTER_KIND_"),
        state=_word(adapter_pb2.AdapterState.Name(version.state), "ADAPTER_STATE_"),
    )


def _word(enum_name: str, prefix: str) -> str:
    """Return ``stop`` for ``FINISH_REASON_STOP``: the word the HTTP side uses."""
    return enum_name.removeprefix(prefix).lower()
