"""``/console`` and the files behind it. They need no key: what they show, the page fetches with the operator's."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.console.files import Asset, read_console
from server.core.errors import NotFoundError
from server.service.access import AccessService

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS: Mapping[str, str] = {
    "content-security-policy": "; ".join(f"{what} {where}" for what, where in _POLICY.items()),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # Asked for again at each visit, and answered with 304: an upgraded server is an upgraded page.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


def console_routes(access: AccessService) -> APIRouter:
    """Return the router; all files are read here.

    Raises:
        OSError: If a file cannot be read.
    """
    router = APIRouter(include_in_schema=False)
    files = read_console()

    def page_now() -> Asset:
        return files.page if access.is_open else files.page_with_keys

    @router.get("/console")
    async def page(request: Request) -> Response:
        return _answer(request, page_now())

    @router.get("/console/{path:path}")
    async def asset(request: Request, path: str) -> Response:
        found = files.assets.get(path) if path else page_now()
        if found is None:
            raise NotFoundError("the console has no such file")
        return _answer(request, found)

    return router


def _answer(request: Request, asset: Asset) -> Response:
    headers = {**_HEADERS, "etag": asset.etag}
    if asset.etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if not _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(asset.data, media_type=asset.content_type, headers=headers)
    headers["content-encoding"] = "gzip"
    return Response(asset.gzipped, media_type=asset.content_type, headers=headers)


def _takes_gzip(accepted: str) -> bool:
    offers = [offer.replace(" ", "").partition(";") for offer in accepted.lower().split(",")]
    return any(name == "gzip" and weight not in {"q=0", "q=0.0"} for name, _, weight in offers)
