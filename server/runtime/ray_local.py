"""``medley serve --ray``: a deployment on a cluster of this machine or another, for as long as the command runs."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from server.core.errors import FailedPreconditionError, UnavailableError
from server.runtime.local import Addresses, ready_file_while, setting_on_signals, write_ready_file
from server.runtime.ray_checks import check_may_replicate
from server.settings import Settings

_log = logging.getLogger(__name__)
# As server.api.http.server: longer than clients and load balancers keep idle connections.
_KEEP_ALIVE_S = 75
_OBJECT_STORE_BYTES = 256 << 20
# Ray reports its use to its makers unless told not to, and gives its own processes little time on a busy machine.
_UNLESS_SET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_worker_register_timeout_seconds": "180",
}
_MAX_NUM_STARTS = 3
_AGENT_START_MS = 120_000


async def serve_on_ray(settings: Settings, announce: Callable[[Addresses], None]) -> None:
    """Deploy, and take the deployment down at SIGTERM or SIGINT.

    Args:
        settings: What the operator set.
        announce: Called once, when the deployment is ready.

    Raises:
        MedleyError: If it cannot start; the message says what to do.
    """
    stop = asyncio.Event()
    check_may_replicate(settings)
    # Ray takes over the signals, so that they are ours only after it.
    join(settings)
    with setting_on_signals(stop), ready_file_while(settings.ready_file):
        addresses = Addresses(
            f"{settings.host}:{settings.port or _free_port()}", f"{settings.host}:{settings.grpc_port or _free_port()}"
        )
        try:
            starting = asyncio.ensure_future(asyncio.to_thread(deploy, settings, addresses))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                await starting
                if settings.ready_file is not None:
                    write_ready_file(settings.ready_file, addresses)
                announce(addresses)
                await stop.wait()
        finally:
            await asyncio.to_thread(take_down, settings)


def join(settings: Settings) -> None:
    """Join the cluster, or start one on this machine; call on the main thread.

    Raises:
        FailedPreconditionError: If Ray is not installed.
        UnavailableError: If the cluster does not answer, or does not start.
    """
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise FailedPreconditionError("Ray is not installed: pip install 'medley[ray]'") from error
    if settings.ray.address:
        try:
            ray.init(settings.ray.address, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(f"cannot join the cluster {settings.ray.address}: {error}") from error
        return
    for num_tries_left in reversed(range(_MAX_NUM_STARTS)):
        try:
            ray.init(
                "local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                configure_logging=False,
                log_to_driver=False,
                _system_config={"agent_register_timeout_ms": _AGENT_START_MS},
            )
        # Ray waits half a minute for its own processes and then raises what has no class of its own.
        except Exception as error:
            ray.shutdown()
            if not num_tries_left:
                raise UnavailableError(f"cannot start a cluster on this machine: {error}") from error
            _log.warning("the cluster did not start in time; trying again")
        else:
            return


def deploy(settings: Settings, addresses: Addresses) -> None:
    """Deploy on the cluster that was joined; returns when every replica is ready.

    Args:
        settings: What the operator set.
        addresses: Where the proxies listen; gRPC's on every address of the machine.

    Raises:
        FailedPreconditionError: If the replicas would not share what they must.
        UnavailableError: If the replicas do not start.
    """
    import ray
    from ray import serve

    from server.runtime.ray_app import APPLICATION, GRPC_SERVICERS, application

    app = application(settings)
    http_host, _, http_port = addresses.http.rpartition(":")
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": http_host, "port": int(http_port), "keep_alive_timeout_s": _KEEP_ALIVE_S},
            grpc_options={
                "port": int(addresses.grpc.rpartition(":")[2]),
                "grpc_servicer_functions": GRPC_SERVICERS,
                # Ours is for those who may read; Serve's would be for everybody.
                "enable_reflection": False,
            },
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(app, name=APPLICATION, route_prefix="/")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UnavailableError(f"the deployment does not start: {error}") from error
    cluster = ray.get_runtime_context().gcs_address
    _log.info("deployed", extra={"cluster": cluster, "http": addresses.http, "grpc": addresses.grpc})


def take_down(settings: Settings) -> None:
    """End the deployment once its running requests have ended, and leave the cluster; one of our own ends with it."""
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from server.runtime.ray_app import APPLICATION

    if ray.is_initialized():
        # Its replicas finish what they have. To shut Serve down kills the proxies with their callers' connections, and
        # takes away what others have deployed.
        try:
            with suppress(RayServeException):  # where Serve has not started there is nothing to delete
                serve.delete(APPLICATION)
        finally:
            if not settings.ray.address:
                serve.shutdown()
            ray.shutdown()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
