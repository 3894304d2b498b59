"""The HTTP application: routes, the gate before them, and the errors behind them."""

from fastapi import FastAPI

from server.api.http.access import AccessLayer
from server.api.http.call import Caller
from server.api.http.config import HttpConfig
from server.api.http.console.routes import console_routes
from server.api.http.direct import ShortWay
from server.api.http.errors import EVERY_REFUSAL, install_error_handlers
from server.api.http.middleware import Gate
from server.api.http.openapi import install_openapi
from server.api.http.routes.adapters import adapter_change_routes, adapter_read_routes
from server.api.http.routes.evaluations import evaluation_routes, reference_routes
from server.api.http.routes.openai import openai_inference_routes, openai_model_routes
from server.api.http.routes.operations import health_routes, install_docs, metrics_routes
from server.api.http.routes.rollouts import rollout_routes
from server.api.http.routes.status import status_routes
from server.api.http.routes.summarize import summarize_routes
from server.api.http.routes.uploads import upload_routes
from server.api.http.routes.vllm import vllm_routes
from server.api.http.tracing import TraceLayer
from server.service.door import Services

_DESCRIPTION = "One frozen base model; a medley of LoRA adapters and soft prompts over it, chosen per request."


def create_app(services: Services, config: HttpConfig) -> FastAPI:
    """Return the application; it starts nothing and owns nothing it must close."""
    app = FastAPI(title="Medley", description=_DESCRIPTION, docs_url=None, redoc_url=None)
    caller = Caller(services.inference, config.max_deadline_ms)
    most_called = (
        summarize_routes(caller),
        openai_inference_routes(caller, services.models),
        reference_routes(services.feedback),
    )
    # From the innermost layer to the outermost.
    app.add_middleware(ShortWay, routes=[route for router in most_called for route in router.routes])
    app.add_middleware(AccessLayer, access=services.access)
    app.add_middleware(Gate, config=config)
    if services.tracer.is_on:
        app.add_middleware(TraceLayer, tracer=services.tracer)
    install_error_handlers(app, config.retry_after_s)
    for router in (
        *most_called,
        openai_model_routes(services.models),
        adapter_read_routes(services.adapters),
        adapter_change_routes(services.adapters),
        rollout_routes(services.rollouts),
        upload_routes(services.uploads),
        vllm_routes(services.adapters, services.uploads),
        evaluation_routes(services.feedback, services.references),
        metrics_routes(services.metrics.registry),
        status_routes(services.status, services.access),
    ):
        app.include_router(router, responses=EVERY_REFUSAL)
    app.include_router(health_routes(services.health))
    app.include_router(console_routes(services.access))
    install_docs(app)
    install_openapi(app)
    return app
