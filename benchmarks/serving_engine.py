"""The engine alone, asked for summaries as the server would ask it, without the server's way there and back."""

import itertools
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters import prompting
from adapters.digest import digest_files
from adapters.manifest import MANIFEST_FILE, AdapterManifest, AdapterRole
from loadtest.clients.base import SummaryRequest
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.factory import EngineConfig, create_engine
from server.runtime.base_model import read_base_text
from server.settings import LIBRARY


class EngineAlone:
    """A base and the shipped adapters; starts on entry and stops on exit.

    Prompts are made tokens when a text first comes, and kept: what it takes is the server's part.

    Args:
        model: Folder of the base.
    """

    def __init__(self, model: Path) -> None:
        self._engine = create_engine(EngineConfig(), str(model))
        self._base_text = read_base_text(str(model))
        self._prompts: dict[tuple[str, tuple[str, ...]], EngineRequest] = {}
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        """Load the base and begin stepping."""
        await self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop stepping."""
        await self._engine.stop()

    async def ask(self, request: SummaryRequest) -> int:
        """Return the number of tokens of the answer.

        Raises:
            MedleyError: If the engine refuses the request or fails it.
        """
        num_tokens = 0
        async for output in self._engine.submit(self._request(request)):
            if output.error is not None:
                raise output.error
            num_tokens += len(output.token_ids)
        return num_tokens

    def _request(self, request: SummaryRequest) -> EngineRequest:
        prepared = self._prompts.get((request.text, request.adapters))
        if prepared is None:
            prepared = self._prompts[request.text, request.adapters] = self._prepare(request)
        return EngineRequest(
            f"r{next(self._numbers)}",
            prepared.prompt_token_ids,
            prepared.sampling,
            prepared.weight_adapter,
            prepared.soft_prompt,
        )

    def _prepare(self, request: SummaryRequest) -> EngineRequest:
        found = [_read(LIBRARY / name) for name in request.adapters]
        template = next((own for _, own in found if own), self._base_text.prompt_template)
        prompt = self._base_text.tokenizer.encode(prompting.render(template, request.text))
        by_role = {adapter.kind.role: adapter for adapter, _ in found}
        assert request.max_new_tokens is not None
        sampling = SamplingParams(max_new_tokens=request.max_new_tokens)
        return EngineRequest(
            "", tuple(prompt), sampling, by_role.get(AdapterRole.WEIGHTS), by_role.get(AdapterRole.PROMPT)
        )


def _read(folder: Path) -> tuple[ResolvedAdapter, str]:
    """Return an adapter of the library and its template."""
    manifest = AdapterManifest.from_json((folder / MANIFEST_FILE).read_text())
    digest = digest_files({path.name: path for path in folder.iterdir() if path.is_file()})
    adapter = ResolvedAdapter(digest, manifest.kind, folder, manifest.num_virtual_tokens, manifest.rank)
    return adapter, manifest.prompt_template
