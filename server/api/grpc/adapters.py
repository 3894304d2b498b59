"""``medley.v1.AdapterService``: the whole life of an adapter, uploads in a stream."""

import asyncio
from collections.abc import AsyncIterator

from adapters.registry import DEFAULT_ALIAS
from medley.v1 import adapter_pb2 as pb
from medley.v1 import adapter_pb2_grpc
from server.api.grpc.access import principal_of
from server.api.grpc.errors import Context, answering
from server.api.grpc.translate import adapter_message, audit_message, version_message
from server.core.errors import DeadlineExceededError, InvalidArgumentError
from server.service.adapters import AdapterCatalog
from server.service.uploads import StagedUpload, UploadService

_DEFAULT_LIMIT = 100


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """Translates calls.

    Args:
        catalog: The service of adapters that are there.
        uploads: The service of those to come.
        stall_timeout_s: Longest time in which a caller sends nothing of an upload.
    """

    def __init__(self, catalog: AdapterCatalog, uploads: UploadService, stall_timeout_s: float) -> None:
        """Keep the services."""
        self._catalog = catalog
        self._uploads = uploads
        self._stall_timeout_s = stall_timeout_s

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[pb.UploadAdapterRequest], context: Context
    ) -> pb.UploadAdapterResponse:
        """See the ``.proto`` file."""
        async with answering(context, messages=request_iterator):
            messages = _while_they_come(request_iterator, self._stall_timeout_s)
            header = await _header(messages)
            async with self._uploads.stage(principal_of(context), header.name) as staged:
                await _receive(messages, staged)
                version = await self._uploads.commit(
                    staged,
                    alias=header.alias or None,
                    tags=tuple(header.tags),
                    idempotency_key=header.idempotency_key,
                )
                return pb.UploadAdapterResponse(version=version_message(version))

    async def ImportAdapter(self, request: pb.ImportAdapterRequest, context: Context) -> pb.ImportAdapterResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            version = await self._uploads.from_source(
                principal_of(context),
                request.name,
                request.source,
                alias=request.alias or None,
                tags=tuple(request.tags),
                idempotency_key=request.idempotency_key,
            )
            return pb.ImportAdapterResponse(version=version_message(version))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapter = await self._catalog.get(principal_of(context), request.name)
            return pb.GetAdapterResponse(adapter=adapter_message(adapter))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapters = await self._catalog.list(principal_of(context), tag=request.tag)
            return pb.ListAdaptersResponse(adapters=[adapter_message(adapter) for adapter in adapters])

    async def GetAdapterCard(self, request: pb.GetAdapterCardRequest, context: Context) -> pb.GetAdapterCardResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            card = await self._catalog.card(principal_of(context), request.name, request.version)
            return pb.GetAdapterCardResponse(card=card)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapter = await self._catalog.set_alias(
                principal_of(context),
                request.name,
                request.alias,
                request.version,
                idempotency_key=request.idempotency_key,
            )
            return pb.SetAliasResponse(adapter=adapter_message(adapter))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapter = await self._catalog.delete_alias(
                principal_of(context), request.name, request.alias, idempotency_key=request.idempotency_key
            )
            return pb.DeleteAliasResponse(adapter=adapter_message(adapter))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapter = await self._catalog.rollback(
                principal_of(context),
                request.name,
                request.alias or DEFAULT_ALIAS,
                idempotency_key=request.idempotency_key,
            )
            return pb.RollbackResponse(adapter=adapter_message(adapter))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapter = await self._catalog.delete(
                principal_of(context),
                request.name,
                request.version,
                force=request.force,
                idempotency_key=request.idempotency_key,
            )
            return pb.DeleteVersionResponse(adapter=adapter_message(adapter))

    async def UpdateVersion(self, request: pb.UpdateVersionRequest, context: Context) -> pb.UpdateVersionResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            version = await self._catalog.label(
                principal_of(context),
                request.name,
                request.version,
                tags=tuple(request.tags.tags) if request.HasField("tags") else None,
                description=request.description if request.HasField("description") else None,
                idempotency_key=request.idempotency_key,
            )
            return pb.UpdateVersionResponse(version=version_message(version))

    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> pb.ListAuditResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            limit = request.limit if request.HasField("limit") else _DEFAULT_LIMIT
            records = await self._catalog.audit(principal_of(context), request.name or None, limit)
            return pb.ListAuditResponse(records=[audit_message(record) for record in records])


async def _while_they_come(
    messages: AsyncIterator[pb.UploadAdapterRequest], stall_timeout_s: float
) -> AsyncIterator[pb.UploadAdapterRequest]:
    """Yield the messages of an upload; one whose sender falls silent would hold its place among them for good."""
    while True:
        try:
            async with asyncio.timeout(stall_timeout_s):
                message = await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceededError(f"nothing more of the upload came for {stall_timeout_s:g} s") from None
        if message is None:
            return
        yield message


async def _header(messages: AsyncIterator[pb.UploadAdapterRequest]) -> pb.UploadHeader:
    message = await anext(messages, None)
    if message is None:
        raise InvalidArgumentError("the upload has no messages")
    if not message.HasField("header"):
        raise InvalidArgumentError("the first message of an upload is its header")
    return message.header


async def _receive(messages: AsyncIterator[pb.UploadAdapterRequest], staged: StagedUpload) -> None:
    async for message in messages:
        match message.WhichOneof("part"):
            case "chunk":
                await staged.write(message.chunk.file_name, message.chunk.data)
            case "archive":
                await staged.write_archive(message.archive)
            case _:
                raise InvalidArgumentError("after its header an upload has chunks of files, or of one archive")
