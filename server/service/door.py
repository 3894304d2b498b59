"""What a front end is given: every service behind one name."""

from dataclasses import dataclass

from server.observability.metrics import Metrics
from server.observability.spans import NO_TRACER, Tracer
from server.service.access import AccessService
from server.service.adapters import AdapterCatalog
from server.service.feedback import FeedbackService
from server.service.health import HealthService
from server.service.inference import InferenceService
from server.service.models import ModelDirectory
from server.service.reference_import import ReferenceImport
from server.service.rollouts import RolloutService
from server.service.status import StatusService
from server.service.uploads import UploadService


@dataclass(frozen=True, slots=True)
class Services:
    """The services; a front end calls nothing else of the server.

    Attributes:
        inference: Generates text.
        adapters: Shows and changes adapters.
        uploads: Takes new versions.
        rollouts: Tries candidates against what aliases point at.
        feedback: Takes references and gives scores.
        references: Takes references in bulk.
        health: Liveness and readiness.
        status: What serves, and what it is doing.
        models: The model names of the OpenAI routes.
        access: Who calls, and how much it may.
        metrics: What ``/metrics`` renders.
        tracer: Keeps traces, where they are on.
    """

    inference: InferenceService
    adapters: AdapterCatalog
    uploads: UploadService
    rollouts: RolloutService
    feedback: FeedbackService
    references: ReferenceImport
    health: HealthService
    status: StatusService
    models: ModelDirectory
    access: AccessService
    metrics: Metrics
    tracer: Tracer = NO_TRACER
