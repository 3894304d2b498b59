"""vLLM itself: the parts that its ``AsyncLLM`` is made of, as a :class:`~server.engine.vllm.core.Core`.

The input processor turns a request into a message to the engine process, the client sends it and hands out the
process's answers, one message a step. These we read ourselves: ``AsyncLLM`` would make a text and an object of its own
of every output and wake a task for each request and step, while here texts are made elsewhere, by the service.

Source:
    vLLM 0.32.0: ``vllm/v1/engine/async_llm.py``, ``vllm/v1/engine/core_client.py``.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import zmq
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.renderers import renderer_from_config
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor import Executor

from adapters.base_spec import read_base_spec
from adapters.errors import AdapterError, InvalidAdapterError, StoreError, UnsupportedAdapterError
from adapters.manifest import AdapterKind, BaseModelSpec
from server.core.errors import FailedPreconditionError
from server.engine.base import EngineInfo, EngineOutput, ResolvedAdapter
from server.engine.model_folder import model_folder
from server.engine.supervisor import CoreDiedError
from server.engine.vllm import capabilities, mapping
from server.engine.vllm.config import VllmEngineConfig, engine_arguments, engine_config
from server.engine.vllm.core import Handover
from server.engine.vllm.logs import write_logging_config
from server.engine.vllm.lora_files import check_lora
from server.engine.vllm.soft_prompts import SoftPrompt, read_soft_prompt

_log = logging.getLogger(__name__)

# Never used twice in this process, so that a LoRA's number cannot mean another one's weights.
_lora_numbers = itertools.count(1)
_GONE = (EngineDeadError, zmq.ZMQError)
_SHUTDOWN_S = 5.0


class _Open:
    """A request the process works on."""

    __slots__ = ("deliver", "held_s", "request")

    def __init__(self, handover: Handover, deliver: Callable[[EngineOutput], None]) -> None:
        self.request, self.deliver = handover.request, deliver
        self.held_s: float | None = handover.held_s


class EngineProcess:
    """A launched vLLM. Implements :class:`server.engine.vllm.core.Core`.

    Args:
        config: Model, place and limits.

    Raises:
        MedleyError: If vLLM cannot be started.
    """

    def __init__(self, config: VllmEngineConfig) -> None:
        """Start the engine process, and wait until it has loaded the base."""
        folder = model_folder(config.model)
        try:
            base = read_base_spec(folder, None if folder == Path(config.model) else config.model)
        except AdapterError as error:
            raise FailedPreconditionError(error.message) from error
        with TemporaryDirectory(prefix="medley-vllm-") as scratch:
            logging_file = Path(scratch) / "logging.json"
            write_logging_config(logging_file)
            vllm_config = engine_config(engine_arguments(config, folder, base, logging_file))
            self._renderer = renderer_from_config(vllm_config)
            self._client = self._launch(vllm_config)
        self._inputs = InputProcessor(vllm_config, self._renderer)
        self._open: dict[str, _Open] = {}
        self._config, self._dtype = config, vllm_config.model_config.dtype
        self.num_steps = 0
        self.num_resident_loras = config.max_resident_loras
        self.info = _info(config, base, vllm_config)

    async def run(self) -> None:
        """Hand out outputs until the process is gone.

        Raises:
            CoreDiedError: Once it is.
        """
        requests, next_outputs, read = self._open, self._client.get_output_async, mapping.output
        while True:
            try:
                outputs = (await next_outputs()).outputs
            except EngineDeadError as error:
                raise CoreDiedError("the engine process is gone") from error
            self.num_steps += bool(outputs)
            for raw in outputs:
                opened = requests.get(raw.request_id)
                if opened is None:
                    continue  # aborted
                output = read(raw, opened.request, opened.held_s)
                opened.held_s = None
                if output.finish_reason is not None:
                    del requests[raw.request_id]
                    if raw.finish_reason is None:
                        await self._send_abort(raw.request_id)
                opened.deliver(output)

    async def add(self, handover: Handover, deliver: Callable[[EngineOutput], None]) -> None:
        """Begin a request, whose outputs then go to ``deliver``.

        Raises:
            MedleyError: If vLLM refuses it.
            CoreDiedError: If the process is gone.
        """
        message = await self._message(handover)
        self._open[handover.key] = _Open(handover, deliver)
        try:
            await self._client.add_request_async(message)
        except _GONE as error:
            raise CoreDiedError("the engine process is gone") from error

    async def abort(self, key: str) -> None:
        """Deliver nothing more for a request, and free its sequence."""
        if self._open.pop(key, None) is not None:
            await self._send_abort(key)

    def check(self, adapter: ResolvedAdapter) -> None:
        """Look whether vLLM can take an adapter, without loading it. A worker thread.

        Raises:
            AdapterError: If it cannot.
        """
        if adapter.kind is AdapterKind.PROMPT:
            self.read_soft_prompt(adapter)
        elif adapter.kind is AdapterKind.LORA:
            with _readable():
                check_lora(adapter.path, self.info.base, self._config.max_lora_rank)
        else:
            raise UnsupportedAdapterError(f"the vllm engine serves no {adapter.kind} adapters")

    def read_soft_prompt(self, adapter: ResolvedAdapter) -> SoftPrompt:
        """Return a soft prompt's rows. A worker thread.

        Raises:
            AdapterError: If its files are not sound.
        """
        with _readable():
            return read_soft_prompt(adapter.path, self.info.base, self._dtype, self._config.max_virtual_tokens)

    async def load_lora(self, adapter: ResolvedAdapter) -> LoRARequest:
        """Bring a LoRA into vLLM, which computes nothing meanwhile.

        Raises:
            AdapterError: If vLLM refuses it.
            CoreDiedError: If the process is gone.
        """
        # vLLM reads some files otherwise than Medley does, without a word; and it reads them again.
        await asyncio.to_thread(self.check, adapter)
        lora = mapping.lora_request(adapter.digest, next(_lora_numbers), adapter.path)
        try:
            await self._client.add_lora_async(lora)
        except _GONE as error:
            raise CoreDiedError("the engine process is gone") from error
        except Exception as error:
            _log.warning("vLLM refuses LoRA %s", adapter.digest, exc_info=error)
            raise InvalidAdapterError("vLLM cannot load the adapter; its log says why") from error
        return lora

    async def unload_lora(self, lora: object) -> None:
        """Take a LoRA out of vLLM.

        Raises:
            CoreDiedError: If the process is gone.
        """
        assert isinstance(lora, LoRARequest)
        try:
            await self._client.remove_lora_async(lora.lora_int_id)
        except _GONE as error:
            raise CoreDiedError("the engine process is gone") from error

    def shutdown(self) -> None:
        """End the process, and wait for that. A worker thread."""
        self._client.shutdown(timeout=_SHUTDOWN_S)
        self._renderer.shutdown()

    def _launch(self, vllm_config: VllmConfig) -> AsyncMPClient:
        if vllm_config.device_config.device_type != "cpu":
            # Beside the rest of a step on a GPU it costs nothing, on a CPU 1 to 2 per cent of it.
            os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
        try:
            return EngineCoreClient.make_async_mp_client(
                vllm_config,
                Executor.get_class(vllm_config),
                # Else the process does not say how long a request was queued.
                log_stats=True,
                renderer=self._renderer,
            )
        except (RuntimeError, TimeoutError, OSError) as error:
            self._renderer.shutdown()
            raise FailedPreconditionError(f"vLLM cannot load the base; the log says why: {error}") from error

    async def _message(self, handover: Handover) -> EngineCoreRequest:
        """Return what the process is sent; compiling a grammar takes long enough for a thread of its own."""
        request = handover.request
        try:
            make = partial(
                self._inputs.process_inputs,
                handover.key,
                mapping.prompt(request, cast("SoftPrompt | None", handover.soft_prompt)),
                mapping.sampling_params(request.sampling),
                supported_tasks=("generate",),
                lora_request=cast("LoRARequest | None", handover.lora),
            )
            return make() if request.sampling.grammar is None else await asyncio.to_thread(make)
        except Exception as error:
            raise mapping.error(error) from error

    async def _send_abort(self, key: str) -> None:
        with suppress(*_GONE):
            await self._client.abort_requests_async([key])


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError("the adapter's files cannot be read; try again later") from error


def _info(config: VllmEngineConfig, base: BaseModelSpec, vllm_config: VllmConfig) -> EngineInfo:
    model_config = vllm_config.model_config
    max_model_len = model_config.max_model_len
    return EngineInfo(
        name=capabilities.NAME,
        is_encoder_decoder=False,
        kinds=capabilities.KINDS,
        features=capabilities.FEATURES,
        base=base,
        device=vllm_config.device_config.device_type,
        dtype=str(model_config.dtype).removeprefix("torch."),
        max_num_seqs=vllm_config.scheduler_config.max_num_seqs,
        max_num_waiting=config.max_num_waiting,
        max_model_len=max_model_len,
        max_new_tokens=min(config.max_new_tokens or max_model_len, max_model_len - 1),
        max_loras=config.max_loras,
        max_lora_rank=config.max_lora_rank,
        max_soft_prompts=config.max_soft_prompts,
        max_virtual_tokens=config.max_virtual_tokens,
        quantization=model_config.quantization or "none",
    )
