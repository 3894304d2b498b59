"""``medley.v1.InferenceService``: two ways in (text or prompt), each whole or streamed, through one path."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from medley.v1 import inference_pb2 as pb
from medley.v1 import inference_pb2_grpc
from server.api.grpc.access import principal_of
from server.api.grpc.errors import Context, answering
from server.api.grpc.translate import (
    AnswerFields,
    InferenceMessage,
    chunk_fields,
    generation_request,
    result_fields,
)
from server.core.errors import ResourceExhaustedError
from server.core.request import new_request_id
from server.service.chunks import good_chunks
from server.service.generation import Generation
from server.service.inference import InferenceService


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Translates calls; the client's deadline and cancellation free the row.

    Streams are written by coroutines and not by generators: the library leaves a generator open when the caller goes
    away during a write, and the row would run on until the garbage collector came by. The stubs know generators only.

    Args:
        inference: The service.
        stall_timeout_s: Longest time in which a caller takes nothing of a stream.
    """

    def __init__(self, inference: InferenceService, stall_timeout_s: float) -> None:
        """Keep the parts."""
        self._inference = inference
        self._stall_timeout_s = stall_timeout_s

    async def Summarize(self, request: pb.SummarizeRequest, context: Context) -> pb.SummarizeResponse:
        """See the ``.proto`` file."""
        async with self._opened(request, request.request_id, request.text, context, apply_template=True) as generation:
            result = await generation.result()
            return pb.SummarizeResponse(summary=result.text, **result_fields(result))

    async def StreamSummarize(  # type: ignore[override]
        self, request: pb.StreamSummarizeRequest, context: Context
    ) -> None:
        """See the ``.proto`` file."""
        async with self._opened(
            request, request.request_id, request.text, context, apply_template=True, stream=True
        ) as generation:
            async for delta, fields in _pieces(generation):
                await self._write(context, pb.StreamSummarizeResponse(delta=delta, **fields))

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """See the ``.proto`` file."""
        async with self._opened(
            request, request.request_id, request.prompt, context, apply_template=False
        ) as generation:
            result = await generation.result()
            return pb.GenerateResponse(text=result.text, **result_fields(result))

    async def StreamGenerate(  # type: ignore[override]
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        """See the ``.proto`` file."""
        async with self._opened(
            request, request.request_id, request.prompt, context, apply_template=False, stream=True
        ) as generation:
            async for delta, fields in _pieces(generation):
                await self._write(context, pb.StreamGenerateResponse(delta=delta, **fields))

    async def _write(self, context: Context, message: object) -> None:
        """Write a piece of a stream; waits until the caller has room for it."""
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await context.write(message)
        except TimeoutError:
            raise ResourceExhaustedError(
                f"the caller took nothing of the stream for {self._stall_timeout_s:g} s"
            ) from None

    @asynccontextmanager
    async def _opened(
        self,
        message: InferenceMessage,
        given_id: str,
        text: str,
        context: Context,
        *,
        apply_template: bool,
        stream: bool = False,
    ) -> AsyncIterator[Generation]:
        request_id = given_id or new_request_id()
        remaining_s = context.time_remaining()
        deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        async with answering(context, request_id):
            request = generation_request(
                message, request_id, text, deadline_s, apply_template=apply_template, stream=stream
            )
            async with aclosing(await self._inference.open(principal_of(context), request)) as generation:
                yield generation


async def _pieces(generation: Generation) -> AsyncIterator[tuple[str, AnswerFields]]:
    adapters = generation.adapters
    async for chunk in good_chunks(generation):
        yield chunk.text, chunk_fields(generation.request_id, adapters, chunk)
        adapters = ()
