"""Reads a streamed answer to its end. Knows no protocol and no clock."""

from collections.abc import Callable
from contextlib import aclosing

from loadtest.clients.base import GenerationClient, SummaryAnswer, SummaryRequest


async def read_stream(
    client: GenerationClient, request: SummaryRequest, timeout_s: float, on_text: Callable[[], None]
) -> SummaryAnswer:
    """Stream a summary and return the whole answer.

    Args:
        client: An open client.
        request: What to ask for.
        timeout_s: Time limit of the whole answer.
        on_text: Called as each piece that carries text arrives; others are no tokens a caller could see.

    Raises:
        ClientError: If the server refused or failed, or could not be reached, also half way.
    """
    answer: SummaryAnswer | None = None
    async with aclosing(client.stream(request, timeout_s)) as pieces:
        async for piece in pieces:
            if piece.delta:
                on_text()
            answer = piece.answer
    assert answer is not None, "a stream ends with its answer or raises"
    return answer
