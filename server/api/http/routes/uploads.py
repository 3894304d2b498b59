"""``POST /v1/adapters/{name}/versions``: one new version, in files, in an archive, or from a source.

Bytes go to disk as they come; this module holds no more than one piece of them.
"""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from server.api.http.call import Calling, until_disconnect
from server.api.http.errors import body_too_large, content_type_not_taken, invalid_body, refusals
from server.api.http.multipart import MultipartReader, PartData
from server.api.http.wire.adapter_bodies import (
    MAX_TAGS_BYTES,
    AliasQuery,
    IdempotencyKey,
    NamePath,
    SourceBody,
    TagsQuery,
)
from server.api.http.wire.adapters import VersionWire, version_wire
from server.core.errors import CancelledError, ErrorCode, InvalidArgumentError
from server.service.uploads import StagedUpload, UploadService

_ARCHIVES = ("application/zip", "application/x-tar", "application/gzip", "application/x-gzip")
_FORM = "multipart/form-data"
_JSON = "application/json"
_MAX_FIELD_BYTES = {"alias": 64, "tags": MAX_TAGS_BYTES}
_MAX_SOURCE_BYTES = 16 * 1024
_FILE: dict[str, object] = {"type": "string", "format": "binary"}
_FORM_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": _FILE, "description": "The files of a PEFT folder."},
        "archive": {**_FILE, "description": "Instead of files: a tar, a gzipped tar or a zip of the folder."},
        "alias": {"type": "string", "description": "As in the query; this one wins."},
        "tags": {"type": "string", "description": "As in the query; these win."},
    },
}
# The framework does not see the body, as it is read in a stream; the page in /docs still shows it.
_BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {"schema": _FORM_SCHEMA},
            _JSON: {"schema": SourceBody.model_json_schema()},
            **{archive: {"schema": _FILE} for archive in _ARCHIVES},
        },
    }
}
_REFUSALS = refusals(
    ErrorCode.ALREADY_EXISTS,
    ErrorCode.FAILED_PRECONDITION,
    ErrorCode.DEADLINE_EXCEEDED,
    with_body=True,
    with_content_types=True,
)


def upload_routes(uploads: UploadService) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["adapters"])

    @router.post("/v1/adapters/{name}/versions", status_code=201, openapi_extra=_BODY, responses=_REFUSALS)
    async def upload_version(
        request: Request,
        principal: Calling,
        name: NamePath,
        alias: AliasQuery = None,
        tags: TagsQuery = "",
        *,
        key: IdempotencyKey = "",
    ) -> VersionWire:
        """Upload one new version; the bytes of a live version again give that version."""
        kind = _content_type(request)
        if kind == _JSON:
            body = await _source(request)
            fetching = uploads.from_source(
                principal,
                name,
                body.source,
                alias=body.alias or alias,
                tags=tuple(body.tags) or _listed(tags),
                idempotency_key=key,
            )
            return version_wire(await until_disconnect(request.receive, fetching))
        reader = MultipartReader(request.headers["content-type"]) if kind == _FORM else None
        labels = {"alias": alias or "", "tags": tags}
        async with uploads.stage(principal, name) as staged:
            if reader is None:
                async for data in _bytes(request):
                    await staged.write_archive(data)
            else:
                labels |= await _receive(reader.read(_bytes(request)), staged)
            checking = uploads.commit(
                staged, alias=labels["alias"] or None, tags=_listed(labels["tags"]), idempotency_key=key
            )
            return version_wire(await until_disconnect(request.receive, checking))

    return router


def _content_type(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_FORM, _JSON, *_ARCHIVES):
        raise content_type_not_taken((_FORM, _JSON, *_ARCHIVES))
    return kind


def _listed(tags: str) -> tuple[str, ...]:
    return tuple(tag.strip() for tag in tags.split(",")) if tags.strip() else ()


async def _bytes(request: Request) -> AsyncIterator[bytes]:
    try:
        async for data in request.stream():
            yield data
    except ClientDisconnect as error:
        raise CancelledError("the caller went away") from error


async def _source(request: Request) -> SourceBody:
    text = b""
    async for data in _bytes(request):
        text += data
        if len(text) > _MAX_SOURCE_BYTES:
            raise body_too_large(_MAX_SOURCE_BYTES)
    try:
        return SourceBody.model_validate_json(text)
    except ValidationError as error:
        raise invalid_body(error) from error


async def _receive(parts: AsyncIterator[PartData], staged: StagedUpload) -> dict[str, str]:
    """Hand a form's files on and return its plain fields."""
    begun: set[tuple[str, str]] = set()
    fields: dict[str, bytes] = {}
    async for part in parts:
        if not part.data:
            _begin(part, begun)
        if part.field == "archive":
            await staged.write_archive(part.data)
        elif part.file_name:
            await staged.write(part.file_name, part.data)
        else:
            fields[part.field] = _grown(part, fields.get(part.field, b""))
    return {field: value.decode("utf-8", "replace") for field, value in fields.items()}


def _begin(part: PartData, begun: set[tuple[str, str]]) -> None:
    file = part.field == "archive" or (part.field == "files" and part.file_name)
    if not file and (part.field not in _MAX_FIELD_BYTES or part.file_name):
        raise InvalidArgumentError(
            f"unknown field {part.field[:64]!r}; send files (with their names), archive, alias and tags", param="body"
        )
    place = (part.field, part.file_name if part.field == "files" else "")
    if place in begun:
        raise InvalidArgumentError(f"the form has {' '.join(filter(None, place))[:99]!r} twice", param="body")
    begun.add(place)


def _grown(part: PartData, before: bytes) -> bytes:
    max_bytes = _MAX_FIELD_BYTES[part.field]
    if len(before) + len(part.data) > max_bytes:
        raise InvalidArgumentError(f"{part.field} has more than {max_bytes} bytes", param=part.field)
    return before + part.data
