"""Whether a server may run in several replicas. Knows no Ray, so that it is said before that is started."""

from server.core.errors import FailedPreconditionError
from server.runtime.affinity import Spill
from server.settings import Settings


def check_may_replicate(settings: Settings) -> None:
    """Do nothing if several replicas may run with these settings, or there is to be one.

    Raises:
        FailedPreconditionError: If they would not share their registry or their store, or TLS is asked for.
        InvalidArgumentError: If ``ray.spill_least`` or ``ray.spill_factor`` is out of range: a door that finds out only
            later would leave every call unanswered.
    """
    if settings.tls.is_on:
        raise FailedPreconditionError(
            "Ray Serve's gRPC proxy has no TLS: end it in front of the cluster, and leave tls out"
        )
    Spill(settings.ray.spill_least, settings.ray.spill_factor)
    if settings.ray.most_replicas == 1:
        return
    if settings.registry_url.startswith("sqlite"):
        raise FailedPreconditionError(
            "several replicas need a registry that they share: PostgreSQL, by registry.url; SQLite serves one"
        )
    if not settings.store.url:
        raise FailedPreconditionError(
            "several replicas need a store that they share: s3://bucket/folder, or a shared folder by file://, "
            "by store.url"
        )
