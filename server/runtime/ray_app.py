"""Medley on Ray Serve: doors behind Serve's proxies, replicas behind the doors.

``build`` is what a Serve config file names; ``medley serve --ray`` uses :func:`application` itself. Nothing here is
imported unless a server is to run on Ray.
"""

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from server.api.grpc.in_process import ADD_SERVICERS
from server.runtime.ray_calls import GrpcDoor, add_methods
from server.runtime.ray_checks import check_may_replicate
from server.runtime.ray_door import HttpDoor, Replicas
from server.runtime.ray_replica import Replica
from server.settings import Settings, load_settings

APPLICATION = "medley"
REPLICA = "replica"
GRPC_SERVICERS = list(ADD_SERVICERS)
"""For the Serve config file's ``grpc_options``; the file in ``docs/deploy`` has the same."""
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
# A door only passes on: what bounds it are the replicas' queues and its own.
_MAX_NUM_REQUESTS_IN_A_DOOR = 4096


class Door:
    """What Serve's proxies call: HTTP as an ASGI application, gRPC by a method of each name.

    Args:
        replicas: Ray Serve's handle.
        settings: The settings as plain values.
    """

    def __init__(self, replicas: DeploymentHandle, settings: dict[str, Any]) -> None:
        """Keep the parts."""
        way = Replicas(replicas)
        self._http = HttpDoor(way, Settings(**settings).http)
        self.grpc = GrpcDoor(way)

    def __serve_build_asgi_app__(self) -> HttpDoor:
        """Return the application; called once by Ray Serve."""
        return self._http


add_methods(Door)


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application for a Serve config file.

    Args:
        args: Settings, nested as the tree; they go before the environment of the cluster's head.

    Raises:
        InvalidArgumentError: If a setting is unknown or out of range.
        FailedPreconditionError: If the replicas would not share what they must.
    """
    return application(load_settings(overrides=args))


def application(settings: Settings) -> serve.Application:
    """Return the application.

    Raises:
        FailedPreconditionError: If the replicas would not share what they must.
    """
    check_may_replicate(settings)
    plain = settings.model_dump(mode="json") | {"data_dir": str(settings.data_dir.absolute())}
    replicas = serve.deployment(Replica).options(name=REPLICA, **_replica_options(settings)).bind(plain)
    door = serve.deployment(serve.ingress()(Door)).options(
        name="door",
        num_replicas=settings.ray.num_doors,
        max_ongoing_requests=_MAX_NUM_REQUESTS_IN_A_DOOR,
        # A door needs no room of its own, so that the next can open before the last is shut.
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.drain_grace_s,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 0},
        logging_config=_QUIET,
    )
    return door.bind(replicas, plain)


def _replica_options(settings: Settings) -> dict[str, Any]:
    ray = settings.ray
    options: dict[str, Any] = {
        "max_ongoing_requests": ray.max_num_requests,
        "max_queued_requests": ray.max_num_waiting,
        "graceful_shutdown_timeout_s": settings.drain_grace_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5,
        "ray_actor_options": {"num_cpus": ray.num_cpus, "num_gpus": ray.num_gpus},
        "logging_config": _QUIET,
        "request_router_config": RequestRouterConfig(
            request_router_class="server.runtime.ray_router.AdapterRouter",
            request_router_kwargs={
                "spill_least": ray.spill_least,
                "spill_factor": ray.spill_factor,
                "is_affine": ray.is_affine,
            },
        ),
    }
    if ray.max_num_replicas <= ray.num_replicas:
        return options | {"num_replicas": ray.num_replicas}
    return options | {
        "autoscaling_config": {
            "min_replicas": ray.num_replicas,
            "max_replicas": ray.max_num_replicas,
            "target_ongoing_requests": ray.target_num_requests,
            "upscale_delay_s": ray.upscale_delay_s,
            "downscale_delay_s": ray.downscale_delay_s,
        }
    }
