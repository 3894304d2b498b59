"""The native engine's asynchronous face: one step thread behind it, one thread that loads adapters.

All methods are called from the event loop's thread. The step thread hands back once a step; nothing here touches a
tensor.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits
from adapters.errors import AdapterError, InvalidAdapterError
from adapters.manifest import AdapterKind, AdapterRole
from server.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    MedleyError,
    UnavailableError,
)
from server.core.outputs import FinishReason
from server.core.sampling import MAX_SEED
from server.engine.base import Engine, EngineInfo, EngineOutput, EngineRequest, EngineStats, Feature, ResolvedAdapter
from server.engine.limits import check_request
from server.engine.model_folder import model_folder
from server.engine.native.adapter_loading import AdapterLoader
from server.engine.native.adapter_payload import AdapterPayload
from server.engine.native.adapter_tiers import AdapterTiers
from server.engine.native.batch import Row
from server.engine.native.config import NativeEngineConfig
from server.engine.native.families.seq2seq import Seq2SeqModel
from server.engine.native.families.seq2seq_weights import read_linear
from server.engine.native.kernels import cpu
from server.engine.native.layers.quantized_linear import linear_maker
from server.engine.native.layers.weight_adapter import AdaptableBase
from server.engine.native.runner import Runner
from server.engine.native.scheduler import Scheduler
from server.engine.native.step_loop import Outputs, StepLoop, new_future
from server.engine.streams import OutputStream

__all__ = ["NativeEngine", "NativeEngineConfig"]

_log = logging.getLogger(__name__)

Result = TypeVar("Result")
# What part of the seats floods may take while another tenant is about. On a CPU every row makes a step longer, and its
# prompt takes the others' time; on a GPU hardly.
_FLOOD_SHARE = {"cpu": 1 / 32, "cuda": 1 / 2}
# Encoder work between two decode steps, by device: about three times what the decode step of a full batch takes.
_PREFILL_TOKENS_PER_STEP = {"cpu": 256, "cuda": 4096}
FEATURES = frozenset(Feature) - {Feature.GRAMMAR, Feature.PROMPT_LOGPROBS}
# Limits that the engine's info repeats under the same name.
_SHARED_LIMITS = (
    "max_num_seqs",
    "max_num_waiting",
    "max_wait_s",
    "max_model_len",
    "max_new_tokens",
    "max_loras",
    "max_lora_rank",
    "max_soft_prompts",
    "max_virtual_tokens",
)


class NativeEngine(Engine):
    """An engine for encoder-decoder models of the T5 family.

    Args:
        config: Model, place and limits.
    """

    def __init__(self, config: NativeEngineConfig) -> None:
        self._config = config
        self._open: dict[str, OutputStream] = {}
        self._futures: set[Future] = set()
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._thread: threading.Thread | None = None
        self._end: UnavailableError | None = UnavailableError("the engine has not started")

    @property
    def info(self) -> EngineInfo:
        """What the engine is; valid after :meth:`start`."""
        return self._info

    async def start(self) -> None:
        """Load the base and begin stepping.

        Raises:
            MedleyError: If the model cannot be loaded; the message says what to do.
        """
        self._event_loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="medley-adapters")
        try:
            runner = await asyncio.to_thread(self._build)
        except MedleyError:
            self._executor.shutdown()
            raise
        num_threads = self._config.num_threads or torch.get_num_threads()
        await self._event_loop.run_in_executor(self._executor, _compute_on_this_thread_only)
        self._thread = threading.Thread(target=self._run, args=(runner, num_threads), name="medley-steps", daemon=True)
        self._end = None
        self._thread.start()

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request and return its outputs, which end with exactly one terminal output.

        Raises:
            InvalidArgumentError: If it is beyond the engine's limits.
            ResourceExhaustedError: If the queue is full.
            DeadlineExceededError: If others wait, and the answer would come after its deadline.
            UnavailableError: If the engine is draining or dead.
            AlreadyExistsError: If the request id is in flight.
        """
        self._require_alive()
        if self._is_draining:
            raise UnavailableError("the engine is draining")
        if request.request_id in self._open:
            raise AlreadyExistsError(f"request {request.request_id} is in flight", param="request_id")
        check_request(self._info, request)
        seed = request.sampling.seed
        row = Row(request, arrival_s=time.monotonic(), seed=secrets.randbelow(MAX_SEED) if seed is None else seed)
        self._steps.add(row)
        stream = OutputStream(on_close=partial(self.abort, request.request_id))
        self._open[request.request_id] = stream
        self._is_idle.clear()
        return stream

    def abort(self, request_id: str) -> None:
        """End a request with ``abort`` at the next step; unknown ids are ignored."""
        if request_id in self._open:
            self._steps.abort(request_id)

    async def check_adapter(self, adapter: ResolvedAdapter) -> None:
        """Run an adapter once on a short input, beside running requests.

        Raises:
            InvalidAdapterError: If its files do not fit or its logits are not finite.
            AdapterTooLargeError: If it is over a limit.
            UnavailableError: If the engine is not running.
        """
        self._require_alive()
        loaded: Future[AdapterPayload] = new_future()
        self._executor.submit(_answer, loaded, partial(self._tiers.load, adapter))
        payload = await self._await(loaded)
        self._require_alive()
        is_finite: Future[bool] = new_future()
        self._steps.post(partial(_answer, is_finite, partial(self._runner.probe, payload)))
        if not await self._await(is_finite):
            raise InvalidAdapterError("the adapter's logits are not finite on a short input")

    async def pin_adapter(self, adapter: ResolvedAdapter) -> None:
        """Load an adapter now and keep it resident until :meth:`unpin_adapter`.

        Raises:
            ResourceExhaustedError: If every slot is pinned or in use.
            MedleyError: If it cannot be loaded.
        """
        self._require_alive()
        await self._await(self._steps.pin(adapter))

    def unpin_adapter(self, digest: str) -> None:
        """Let a pinned adapter be evicted again."""
        self._steps.unpin(digest)

    def stats(self) -> EngineStats:
        """Return a snapshot; cheap, safe to call often."""
        if self._thread is None:
            return EngineStats(alive=False, num_waiting=0, num_running=0)
        return self._steps.stats

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, finish the running ones, abort what is left after ``grace_s`` seconds."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._is_idle.wait(), grace_s)
        except TimeoutError:
            for request_id in list(self._open):
                self.abort(request_id)
            await self._is_idle.wait()

    async def stop(self) -> None:
        """Stop stepping and free the device; every open request gets its terminal output."""
        if self._thread is None:
            return
        self._steps.stop()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        # The thread's last hand-back is already queued on this loop.
        await asyncio.sleep(0)

    def _build(self) -> Runner:
        """Load the model and make the parts. A worker thread."""
        config = self._config
        device = torch.device(_device(config.device))
        dtype = getattr(torch, config.dtype)
        folder = model_folder(config.model)
        try:
            base = read_base_spec(folder, None if Path(config.model).is_dir() else config.model)
        except AdapterError as error:
            raise FailedPreconditionError(error.message) from error
        sizes = {
            "max_encoder_len": config.max_model_len,
            "max_decoder_len": config.max_virtual_tokens + config.max_new_tokens,
        }
        make_linear = linear_maker(config.quantization)
        model = Seq2SeqModel.load(folder, device=device, dtype=dtype, **sizes, make_linear=make_linear)
        kept = {"quantization": config.quantization, "num_weight_bytes": model.num_weight_bytes}
        _log.info("the base is loaded", extra=kept)
        limits = CodecLimits(max_rank=config.max_lora_rank, max_virtual_tokens=config.max_virtual_tokens)
        adaptable = AdaptableBase(model.targets, model.norms, partial(read_linear, folder))
        loader = AdapterLoader(base, adaptable, limits, device=device, dtype=dtype)
        self._tiers = AdapterTiers(loader.load, device, config.max_host_adapter_bytes)
        self._steps = StepLoop(
            Scheduler(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_prefill_tokens_per_step=config.max_prefill_tokens_per_step or _PREFILL_TOKENS_PER_STEP[device.type],
                num_stages=model.num_encoder_stages,
                eos_token_ids=model.config.eos_token_ids,
                max_flood_rows=config.max_flood_rows or max(1, int(_FLOOD_SHARE[device.type] * config.max_num_seqs)),
            ),
            num_slots={AdapterRole.WEIGHTS: config.max_loras, AdapterRole.PROMPT: config.max_soft_prompts},
            tiers=self._tiers,
            executor=self._executor,
            deliver=lambda outputs: self._event_loop.call_soon_threadsafe(self._deliver, outputs),
            max_num_waiting=config.max_num_waiting,
            max_wait_s=config.max_wait_s,
        )
        self._runner = Runner(
            model,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            max_new_tokens=config.max_new_tokens,
            max_virtual_tokens=config.max_virtual_tokens,
            payloads=self._steps.adapters.payload,
        )
        shared = {name: getattr(config, name) for name in _SHARED_LIMITS}
        self._info = EngineInfo(
            name="native",
            is_encoder_decoder=True,
            kinds=frozenset(AdapterKind),
            features=FEATURES,
            base=base,
            device=device.type,
            dtype=config.dtype,
            **kept,
            **shared,
        )
        return self._runner

    def _run(self, runner: Runner, num_threads: int) -> None:
        """Be the step thread."""
        torch.set_num_threads(num_threads)
        cpu.set_num_threads(num_threads)
        error = None
        try:
            self._steps.run(runner)
        except Exception as failure:
            _log.exception("the engine died")
            error = UnavailableError("the engine died; restart the server")
            error.__cause__ = failure
        self._event_loop.call_soon_threadsafe(self._close, error)

    def _deliver(self, outputs: Outputs) -> None:
        for request_id, output in outputs:
            stream = self._open[request_id]
            stream.put(output)
            if output.finish_reason is not None:
                del self._open[request_id]
        if not self._open:
            self._is_idle.set()

    def _close(self, error: UnavailableError | None) -> None:
        """Give every open request its end, after the step thread has gone."""
        self._end = error or UnavailableError("the engine has stopped")
        reason = FinishReason.ABORT if error is None else FinishReason.ERROR
        output = EngineOutput(finish_reason=reason, error=error)
        self._deliver([(request_id, output) for request_id in self._open])
        for future in self._futures:
            if not future.done():
                future.set_exception(self._end)

    async def _await(self, future: "Future[Result]") -> Result:
        """Wait for an answer of another thread, or for the engine's end."""
        self._futures.add(future)
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._futures.discard(future)

    def _require_alive(self) -> None:
        if self._end is not None:
            raise self._end


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise FailedPreconditionError("device is cuda, but torch finds no CUDA device here")
    return name


def _compute_on_this_thread_only() -> None:
    """Keep the calling thread's tensor operations off the other processors, which the steps need.

    Call it before the step thread chooses its own number: part of the setting is the process's.
    """
    torch.get_num_threads()  # else the thread's first operation would take over the process's number
    torch.set_num_threads(1)


def _answer(future: "Future[Result]", question: Callable[[], Result]) -> None:
    """Make a call and put its result into a future."""
    try:
        answer = partial(future.set_result, question())
    except Exception as error:
        answer = partial(future.set_exception, error)
    with suppress(InvalidStateError):  # the engine ended meanwhile, and the future says so
        answer()
