"""``medley.v1.AdapterService``: uploads in a stream, and what there is."""

from collections.abc import AsyncIterator

from medley.v1 import adapter_pb2 as pb
from medley.v1 import adapter_pb2_grpc
from server.api.grpc.errors import Context, answering
from server.api.grpc.translate import adapter_message, version_message
from server.core.errors import InvalidArgumentError
from server.service.adapters import AdapterCatalog
from server.service.staging import StagedUpload


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """Translates calls.

    Args:
        catalog: The service.
    """

    def __init__(self, catalog: AdapterCatalog) -> None:
        """Keep the service."""
        self._catalog = catalog

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[pb.UploadAdapterRequest], context: Context
    ) -> pb.UploadAdapterResponse:
        """See the ``.proto`` file."""
        async with answering(context), self._catalog.stage() as staged:
            header = await _receive(request_iterator, staged)
            version = await self._catalog.commit(staged, header.name, header.alias or None)
            return pb.UploadAdapterResponse(version=version_message(version))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            return pb.GetAdapterResponse(adapter=adapter_message(await self._catalog.get(request.name)))

    async def ListAdapters(self, _request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            adapters = await self._catalog.list()
            return pb.ListAdaptersResponse(adapters=[adapter_message(adapter) for adapter in adapters])


async def _receive(messages: AsyncIterator[pb.UploadAdapterRequest], staged: StagedUpload) -> pb.UploadHeader:
    header: pb.UploadHeader | None = None
    async for message in messages:
        if message.HasField("header") != (header is None):
            raise InvalidArgumentError("the first message of an upload is its header, every later one a chunk")
        if header is None:
            header = message.header
        else:
            await staged.write(message.chunk.file_name, message.chunk.data)
    if header is None:
        raise InvalidArgumentError("the upload has no messages")
    return header
