"""Batched generation by the native engine: token ids in, token ids out, as they would be served.

The one place where training reaches the server's code; docs/decisions/0005-training-evaluates-through-the-engine.md
says why. It knows no text, no metrics and no training.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from adapters.adapter_folder import adapter_files
from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, inspect_adapter
from adapters.digest import digest_files
from adapters.errors import AdapterTooLargeError, UnsupportedAdapterError
from adapters.manifest import AdapterRole
from server.core.errors import MedleyError
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.native.engine import NativeEngine, NativeEngineConfig
from server.engine.streams import OutputStream
from training.errors import EvaluationError

_ARCHITECTURES = frozenset({"T5ForConditionalGeneration"})
_LIMITS = CodecLimits()
_MAX_NUM_WAITING = 1 << 20
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; by default the likeliest.

    Row i draws from a generator of its own, seeded with `seed` + i, so answers do not depend on what runs beside them.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 13


GREEDY = Sampling()


def engine_serves(base: Path, adapters: Sequence[Path] = ()) -> bool:
    """Return whether the engine can answer for these adapters on this base, by what the codec accepts.

    If not, they are of a family or a size that is not served per request; `transformers` may still run them.

    Raises:
        AdapterError: files that are broken, of another base, or no PEFT folder at all.
    """
    spec = read_base_spec(base)
    try:
        for folder in adapters:
            inspect_adapter(folder, spec, _LIMITS, folder.name)
    except (UnsupportedAdapterError, AdapterTooLargeError):
        return False
    return spec.architecture in _ARCHITECTURES


class EngineGenerator:
    """A native engine for callers that wait; a context manager that loads the base and frees it.

    Its event loop turns on a thread of its own, so that the caller may have one running, as a notebook does.

    Args:
        base: the base's folder.
        max_new_tokens: most tokens of an answer.

    Raises:
        InvalidBaseError: a file of the base is missing or malformed.
    """

    def __init__(self, base: Path, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        self._spec = read_base_spec(base)
        config = NativeEngineConfig(
            str(base),
            max_num_waiting=_MAX_NUM_WAITING,
            max_new_tokens=max_new_tokens,
            # Adapters take turns, and an earlier checkpoint's never come back.
            max_loras=1,
            max_soft_prompts=1,
            max_host_adapter_bytes=0,
            max_lora_rank=_LIMITS.max_rank,
            max_virtual_tokens=_LIMITS.max_virtual_tokens,
        )
        self._engine, self._loop = NativeEngine(config), asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="medley-evaluation")
        self._request_ids = map(str, itertools.count())

    def __enter__(self) -> Self:
        """Load the base.

        Raises:
            EvaluationError: the engine cannot serve it.
        """
        try:
            with _reported():
                self._run(self._engine.start())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engine."""
        self._run(self._engine.stop())
        self._close()

    def generate(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[Path] = (), sampling: Sampling = GREEDY
    ) -> list[tuple[int, ...]]:
        """Return the tokens of the answer to each prompt, in the order of the prompts; the end token is left out.

        Args:
            prompts: token ids, the end token included.
            adapters: folders of one weight adapter, one soft prompt, or one of each, in any order.
            sampling: how tokens are chosen.

        Raises:
            EvaluationError: two adapters of one role, or the engine refuses a prompt or fails.
            AdapterError: an adapter's files do not fit the base, or are over a limit.
        """
        by_role = self._resolve(adapters)
        weights, prompt = by_role.get(AdapterRole.WEIGHTS), by_role.get(AdapterRole.PROMPT)
        with _reported():
            requests = [
                EngineRequest(next(self._request_ids), tuple(token_ids), self._params(sampling, row), weights, prompt)
                for row, token_ids in enumerate(prompts)
            ]
            return self._run(self._serve(requests))

    def _run(self, coroutine: Coroutine[None, None, Result]) -> Result:
        return self._thread.submit(self._loop.run, coroutine).result()

    def _close(self) -> None:
        self._thread.submit(self._loop.close).result()
        self._thread.shutdown()

    def _resolve(self, adapters: Sequence[Path]) -> dict[AdapterRole, ResolvedAdapter]:
        by_role: dict[AdapterRole, ResolvedAdapter] = {}
        for folder in adapters:
            found = inspect_adapter(folder, self._spec, _LIMITS, folder.name)
            if found.kind.role in by_role:
                raise EvaluationError("an answer takes at most one weight adapter and one soft prompt")
            digest = digest_files(adapter_files(folder))
            by_role[found.kind.role] = ResolvedAdapter(digest, found.kind, folder, found.num_virtual_tokens, found.rank)
        return by_role

    def _params(self, sampling: Sampling, row: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self._max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed + row,
        )

    async def _serve(self, requests: Sequence[EngineRequest]) -> list[tuple[int, ...]]:
        streams: list[OutputStream] = []
        try:
            streams += (self._engine.submit(request) for request in requests)
            return [await _tokens(stream) for stream in streams]
        finally:
            for stream in streams:
                await stream.aclose()


async def _tokens(stream: OutputStream) -> tuple[int, ...]:
    token_ids: list[int] = []
    async for output in stream:
        if output.error is not None:
            raise output.error
        token_ids += output.token_ids
    return tuple(token_ids)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn the engine's errors into training's."""
    try:
        yield
    except MedleyError as error:
        raise EvaluationError(error.message) from error
