"""Liveness, readiness, metrics, and a documentation page that needs no network."""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import Response
from typing_extensions import TypedDict

from server.api.http.errors import ErrorBody
from server.service.health import HealthService

_PROMETHEUS = CONTENT_TYPE_LATEST.partition(";")[0]
_TEXT = {"type": "string"}
_DOCS_ASSETS = "/docs/assets"
_ASSETS_FOLDER = Path(fastapi_offline.__file__).parent / "static"


class HealthWire(TypedDict):
    """One word, and the reason when it is not "ok"."""

    status: str
    reason: str


def health_routes(health: HealthService) -> APIRouter:
    """Return the router of liveness and readiness, which ask for no key."""
    router = APIRouter(tags=["operations"], responses={400: {"model": ErrorBody}, 503: {"model": HealthWire}})

    @router.get("/healthz", response_model=HealthWire)
    async def healthz() -> JSONResponse:
        """Answer 200 while the server lives, 503 when only a restart helps."""
        return _health("" if health.live() else "the engine died")

    @router.get("/readyz", response_model=HealthWire)
    async def readyz() -> JSONResponse:
        """Answer 200 while requests are welcome, 503 and the reason while they are not."""
        return _health(health.ready().reason)

    return router


def metrics_routes(registry: CollectorRegistry) -> APIRouter:
    """Return the router of the metrics."""
    router = APIRouter(tags=["operations"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {_PROMETHEUS: {"schema": _TEXT}}}})
    async def metrics() -> Response:
        """Render the metrics for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


def install_docs(app: FastAPI) -> None:
    """Serve ``/docs`` with the assets of an installed package instead of a content delivery network's."""
    app.mount(_DOCS_ASSETS, StaticFiles(directory=_ASSETS_FOLDER))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{_DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_DOCS_ASSETS}/favicon.png",
        )


def _health(reason: str) -> JSONResponse:
    content: HealthWire = {"status": "unavailable" if reason else "ok", "reason": reason}
    return JSONResponse(content, 503 if reason else 200)
