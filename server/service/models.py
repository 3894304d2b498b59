"""Model names as OpenAI's routes know them: the base's id, an adapter reference, or two joined by ``+``."""

from dataclasses import dataclass

from adapters.registry import VersionState
from server.core.errors import InvalidArgumentError
from server.core.principal import Principal
from server.service.adapters import AdapterCatalog

MAX_MODEL_CHARS = 400


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One name that may be given as ``model``.

    Attributes:
        model_id: The base's id or an adapter's name.
        created_s: Seconds since the epoch; 0 for the base.
        parent: The base's id for an adapter, None for the base.
    """

    model_id: str
    created_s: float = 0.0
    parent: str | None = None


class ModelDirectory:
    """Turns model names into adapter references.

    Args:
        base_id: The base's id.
        catalog: Where adapters are listed.
        max_model_len: The engine's.
    """

    def __init__(self, base_id: str, catalog: AdapterCatalog, max_model_len: int) -> None:
        """Keep the parts."""
        self.base_id = base_id
        self.max_model_len = max_model_len
        self._catalog = catalog

    async def list_models(self, principal: Principal) -> tuple[ModelEntry, ...]:
        """Return the base, then one entry per adapter that the caller sees and that can serve."""
        entries = [ModelEntry(self.base_id)]
        for adapter in await self._catalog.list(principal):
            ready = [version.created_s for version in adapter.versions if version.state is VersionState.READY]
            if ready:
                entries.append(ModelEntry(adapter.name, min(ready), self.base_id))
        return tuple(entries)

    def parse_model(self, model: str | None) -> tuple[str, ...]:
        """Return the adapter references a model name stands for; none for the base, and where none is given.

        Raises:
            InvalidArgumentError: If the name is empty, far too long, or has an empty part. Whether the adapters exist
                shows when the request is opened.
        """
        if model is None or model == self.base_id:
            return ()
        if len(model) > MAX_MODEL_CHARS:
            raise InvalidArgumentError(f"model has more than {MAX_MODEL_CHARS} characters", param="model")
        references = tuple(model.split("+"))
        if not all(references):
            raise InvalidArgumentError(
                f"model must be {self.base_id!r}, an adapter reference, or two joined by '+'", param="model"
            )
        return references
