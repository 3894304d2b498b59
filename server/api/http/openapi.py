"""The OpenAPI document: the routes as the framework sees them, with what it cannot see.

That is: which key a route needs, the request id that each takes, and that a request which does not fit is a 400 here
and not the framework's 422.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from typing_extensions import TypedDict

from server.api.http.access import HTTP_RULES
from server.api.http.middleware import REQUEST_ID_HEADER
from server.core.request import REQUEST_ID_PATTERN
from server.service.access import PUBLIC

_BEARER = {"type": "http", "scheme": "bearer", "description": "An API key. A server without keys asks for none."}
_REQUEST_ID = {
    "name": REQUEST_ID_HEADER,
    "in": "header",
    "description": "Names the call in its answer and in the logs; drawn when left out.",
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID_PATTERN}$"},
}
_REQUEST_ID_USE: dict[str, object] = {"$ref": "#/components/parameters/RequestId"}
_FRAMEWORK_STATUS = "422"
_FRAMEWORK_SCHEMAS = ("HTTPValidationError", "ValidationError")


class _Operation(TypedDict, total=False):
    parameters: list[dict[str, object]]
    responses: dict[str, object]
    security: list[dict[str, list[str]]]


def install_openapi(app: FastAPI) -> None:
    """Make ``app`` tell the whole truth about itself at ``/openapi.json``; call when it has all its routes."""

    def document() -> dict[str, object]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            _complete(app.openapi_schema)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> None:
    components: dict[str, dict[str, object]] = schema["components"]
    components["securitySchemes"] = {"bearer": dict(_BEARER)}
    components["parameters"] = {"RequestId": dict(_REQUEST_ID)}
    for name in _FRAMEWORK_SCHEMAS:
        components["schemas"].pop(name, None)
    paths: dict[str, dict[str, _Operation]] = schema["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            rule = HTTP_RULES[method.upper(), path]
            operation["security"] = [] if rule is PUBLIC else [{"bearer": [str(scope)]} for scope in rule.scopes]
            operation["parameters"] = [*operation.get("parameters", ()), _REQUEST_ID_USE]
            operation["responses"].pop(_FRAMEWORK_STATUS, None)
