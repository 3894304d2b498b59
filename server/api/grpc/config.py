"""What an operator can set about the gRPC front end. Reads no environment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    """Limits of the gRPC front end.

    Attributes:
        max_message_bytes: Largest message, in either direction; a chunk of an upload is one message.
        max_concurrent_rpcs: Most calls at once, streams and health checks included; more are refused at the door.
        health_poll_s: How often a health watcher's state is looked at.
        grace_s: Longest wait for open calls at shutdown.
        stall_timeout_s: Longest time in which a caller takes nothing of a stream, or sends nothing of an upload; then
            the call ends.
    """

    max_message_bytes: int = 4 * 1024 * 1024
    max_concurrent_rpcs: int = 2048
    health_poll_s: float = 0.5
    grace_s: float = 5.0
    stall_timeout_s: float = 60.0
