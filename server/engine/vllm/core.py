"""What the engine needs of a running vLLM, in our own nouns: so that all else of the engine can be tested without vLLM.

Knows no vLLM type and no state of a request but its key. Event loop's thread, where nothing else is said.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.core.errors import FailedPreconditionError
from server.engine.base import EngineInfo, EngineOutput, EngineRequest, ResolvedAdapter
from server.engine.supervisor import Launched


class NotFiniteError(FailedPreconditionError):
    """A request's adapters took it where numbers end; only this request is concerned."""


@dataclass(frozen=True, slots=True)
class Handover:
    """A request on its way to vLLM, its adapters resident.

    Attributes:
        key: Names it in :meth:`Core.abort`; never used twice, unlike request ids.
        request: What was asked for.
        lora: What :meth:`Core.load_lora` returned, or None.
        soft_prompt: What :meth:`Core.read_soft_prompt` returned, or None.
        held_s: Seconds from submission until now.
    """

    key: str
    request: EngineRequest
    lora: object | None
    soft_prompt: object | None
    held_s: float


class Core(Launched, Protocol):
    """One launched vLLM.

    Attributes:
        info: What was launched.
        num_resident_loras: Most LoRAs it may be given at once; it must never have a reason to evict one by itself.
        num_steps: Steps since the launch.
    """

    info: EngineInfo
    num_resident_loras: int
    num_steps: int

    async def add(self, handover: Handover, deliver: Callable[[EngineOutput], None]) -> None:
        """Begin a request, whose outputs then go to ``deliver``, the last one with a finish reason.

        One whose logits are NaN ends with :class:`NotFiniteError` where seeing that costs nothing, on a GPU.

        Raises:
            MedleyError: If vLLM refuses it.
            CoreDiedError: If the core is gone.
        """
        ...

    async def abort(self, key: str) -> None:
        """Deliver nothing more for a request, and free its sequence. Unknown keys and dead cores are ignored."""
        ...

    def check(self, adapter: ResolvedAdapter) -> None:
        """Look whether vLLM can take an adapter, without loading it. A worker thread.

        Raises:
            AdapterError: If it cannot.
        """
        ...

    def read_soft_prompt(self, adapter: ResolvedAdapter) -> object:
        """Return what requests with a soft prompt need of it. A worker thread.

        Raises:
            AdapterError: If its files are not sound.
        """
        ...

    async def load_lora(self, adapter: ResolvedAdapter) -> object:
        """Bring a LoRA into vLLM, which computes nothing meanwhile.

        Raises:
            AdapterError: If vLLM refuses it.
            CoreDiedError: If the core is gone.
        """
        ...

    async def unload_lora(self, lora: object) -> None:
        """Take out what :meth:`load_lora` returned.

        Raises:
            CoreDiedError: If the core is gone.
        """
        ...
