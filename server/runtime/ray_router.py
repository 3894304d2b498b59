"""Ray Serve's router with our choice in it. Runs in each door, which alone sends requests to the replicas."""

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from server.runtime.affinity import Spill, choose


class AdapterRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica of its adapter, which is told as Serve's multiplexed model id.

    A replica whose queue is full is passed over for the next in the adapter's order, and where all are, the request
    waits in the door.
    """

    def initialize_state(self, *, spill_least: int, spill_factor: float, is_affine: bool) -> None:
        """Take what was configured; called once by Ray Serve."""
        self._spill = Spill(spill_least, spill_factor)
        self._is_affine = is_affine
        self._draw = random.Random()  # noqa: S311 - which of two replicas is no secret

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are to be asked, one a rank."""
        if pending_request:
            # All are ranked at once: where every one is full, there is nobody else to ask without a pause.
            pending_request.routing_context.should_backoff = True
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {
            unique_id: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for unique_id, replica in replicas.items()
        }
        key = pending_request.metadata.multiplexed_model_id if pending_request and self._is_affine else ""
        return [[replicas[unique_id]] for unique_id in choose(key, loads, self._spill, self._draw)]
