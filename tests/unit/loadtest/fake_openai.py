"""A small OpenAI-compatible server that is not Medley: it knows what OpenAI's documents say, and nothing more."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ("The ", "cat ", "sat.")


@dataclass
class FakeOpenAI:
    """How it answers, and what it was asked."""

    address: str = ""
    delay_s: float = 0.0
    tells_usage: bool = True
    breaks_off: bool = False
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "their-base", "object": "model"}]})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append((request.path, body))
        if body["model"] == "missing":
            # As vLLM does: a number for a code.
            error = {"message": "no such model", "type": "NotFoundError", "param": None, "code": 404}
            return web.json_response({"error": error}, status=404)
        if body["model"] == "broken":
            return web.Response(status=502, text="<html>bad gateway</html>")
        await asyncio.sleep(self.delay_s)
        if not body.get("stream"):
            return web.json_response(self.whole(request.path))
        return await self.stream(request, body)

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chat = "chat" in request.path

        async def event(choices: list[dict[str, Any]], **more: object) -> None:
            data = json.dumps({"id": "x-1", "choices": choices, **more})
            await response.write(f": a comment\n\ndata: {data}\n\n".encode())

        if chat:
            await event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for word in WORDS:
            piece = {"delta": {"content": word}} if chat else {"text": word}
            await event([{"index": 0, **piece, "finish_reason": None}])
        if not self.breaks_off:
            await event([{"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": "length"}])
            if self.tells_usage and body["stream_options"]["include_usage"]:
                await event([], usage={"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14})
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def whole(self, path: str) -> dict[str, Any]:
        text = "".join(WORDS)
        said = {"message": {"role": "assistant", "content": text}} if "chat" in path else {"text": text}
        usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        return {"id": "x-1", "choices": [{"index": 0, **said, "finish_reason": "stop"}], "usage": usage}


@asynccontextmanager
async def fake_openai() -> AsyncIterator[FakeOpenAI]:
    fake = FakeOpenAI()
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/completions", fake.generate)
    app.router.add_post("/v1/chat/completions", fake.generate)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()
