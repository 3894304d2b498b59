"""The OpenAPI document: the routes as the framework sees them, with what it cannot see.

That is: which key a route needs, and that a request which does not fit is a 400 here and not the framework's 422.
"""

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.api.http.access import HTTP_RULES
from server.service.access import PUBLIC

_BEARER = {"type": "http", "scheme": "bearer", "description": "An API key. A server without keys asks for none."}
_FRAMEWORK_STATUS = "422"
_FRAMEWORK_SCHEMAS = ("HTTPValidationError", "ValidationError")


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


def _complete(schema: dict[str, dict[str, dict[str, dict[str, object]]]]) -> None:
    components = schema["components"]
    components["securitySchemes"] = {"bearer": dict(_BEARER)}
    for name in _FRAMEWORK_SCHEMAS:
        components["schemas"].pop(name, None)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            rule = HTTP_RULES[method.upper(), path]
            operation["security"] = [] if rule is PUBLIC else [{"bearer": [str(scope)]} for scope in rule.scopes]
            responses = operation["responses"]
            assert isinstance(responses, dict)
            responses.pop(_FRAMEWORK_STATUS, None)
