"""What a front end is given: every service behind one name."""

from dataclasses import dataclass

from server.observability.metrics import Metrics
from server.service.access import AccessService
from server.service.adapters import AdapterCatalog
from server.service.feedback import FeedbackService
from server.service.health import HealthService
from server.service.inference import InferenceService
from server.service.models import ModelDirectory
from server.service.status import StatusService
from server.service.uploads import UploadService


@dataclass(frozen=True, slots=True)
class Services:
    """The services; a front end calls nothing else of the server.

    Attributes:
        inference: Generates text.
        adapters: Shows and changes adapters.
        uploads: Takes new versions.
        feedback: Takes references and gives scores.
        health: Liveness and readiness.
        status: What serves, and what it is doing.
        models: The model names of the OpenAI routes.
        access: Who calls, and how much it may.
        metrics: What ``/metrics`` renders.
    """

    inference: InferenceService
    adapters: AdapterCatalog
    uploads: UploadService
    feedback: FeedbackService
    health: HealthService
    status: StatusService
    models: ModelDirectory
    access: AccessService
    metrics: Metrics
