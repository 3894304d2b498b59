"""What an operator can set about the HTTP front end. Reads no environment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Limits of the HTTP front end.

    Attributes:
        max_body_bytes: Largest body of any request but an upload.
        max_upload_bytes: Largest body of an adapter upload, multipart framing included.
        max_deadline_ms: Longest deadline a caller may ask for.
        retry_after_s: What ``Retry-After`` says when the server is full or not ready.
        grace_s: Longest wait for open connections at shutdown.
        stall_timeout_s: Longest time in which a caller takes nothing of what waits for it, or sends nothing of what it
            is asking; then its connection is broken off.
    """

    max_body_bytes: int = 2 * 1024 * 1024
    max_upload_bytes: int = 2 * 1024 * 1024 * 1024
    max_deadline_ms: int = 3_600_000
    retry_after_s: int = 1
    grace_s: int = 5
    stall_timeout_s: float = 60.0
