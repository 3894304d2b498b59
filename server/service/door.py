"""What a front end is given: every service behind one name."""

from dataclasses import dataclass

from server.observability.metrics import Metrics
from server.service.adapters import AdapterCatalog
from server.service.feedback import FeedbackService
from server.service.health import HealthService
from server.service.inference import InferenceService
from server.service.models import ModelDirectory


@dataclass(frozen=True, slots=True)
class Services:
    """The services; a front end calls nothing else of the server.

    Attributes:
        inference: Generates text.
        adapters: Uploads and lists adapters.
        feedback: Takes references and gives scores.
        health: Liveness and readiness.
        models: The model names of the OpenAI routes.
        metrics: What ``/metrics`` renders.
    """

    inference: InferenceService
    adapters: AdapterCatalog
    feedback: FeedbackService
    health: HealthService
    models: ModelDirectory
    metrics: Metrics
