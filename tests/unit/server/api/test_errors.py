"""What errors say beside their status: when to try again, and how to show who one is."""

from unittest.mock import AsyncMock

import pytest

from server.api.grpc.errors import answering
from server.api.http.errors import error_response
from server.core.errors import InvalidArgumentError, ResourceExhaustedError, UnauthenticatedError, UnavailableError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ResourceExhaustedError("full"), "7"),
        (ResourceExhaustedError("quota", retry_after_s=0.2), "1"),
        (ResourceExhaustedError("quota", retry_after_s=12.01), "13"),
        (UnavailableError("draining"), "7"),
        (InvalidArgumentError("bad"), None),
    ],
)
def test_http_answer_says_when_to_try_again(error: Exception, expected: str | None) -> None:
    assert error_response(error, "r", retry_after_s=7).headers.get("retry-after") == expected


def test_http_answer_without_a_key_says_how_to_show_one() -> None:
    response = error_response(UnauthenticatedError("no key"), "r", 1)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ResourceExhaustedError("full"), {"medley-code": "RESOURCE_EXHAUSTED"}),
        (
            ResourceExhaustedError("quota", retry_after_s=0.0121),
            {"medley-code": "RESOURCE_EXHAUSTED", "retry-after-ms": "13"},
        ),
        (InvalidArgumentError("bad", param="x"), {"medley-code": "INVALID_ARGUMENT", "medley-param": "x"}),
    ],
)
async def test_grpc_trailers_say_what_the_status_cannot(error: Exception, expected: dict[str, str]) -> None:
    context = AsyncMock()
    async with answering(context):
        raise error
    assert dict(context.abort.await_args.args[2]) == expected
