"""``medley serve`` and ``vllm serve`` as processes of their own: same base, same LoRAs, same engine arguments."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import httpx

from adapters.base_spec import read_base_spec
from server.engine.vllm.config import VllmEngineConfig, engine_arguments

_START_S, _STOP_S = 240.0, 30.0
_ROOT = Path(__file__).parents[1]
# What Medley says to vLLM of itself and not of the engine; and what `vllm serve` takes by another way.
_NOT_PASSED_ON = frozenset(
    {"disable_log_stats", "enable_log_requests", "logging_config", "model", "served_model_name", "use_tqdm_on_load"}
)


@dataclass(frozen=True, slots=True)
class Served:
    """What both servers serve.

    Attributes:
        base: Folder of the base; its name is the model's.
        loras: Folders of LoRAs by name.
        soft_prompts: Folders of soft prompts by name; Medley alone serves them.
        scratch: Where servers keep what they write.
        dtype: Serving dtype.
        max_num_seqs: Most requests in a batch.
        max_model_len: Most positions of a request.
        max_lora_rank: Largest rank.
        max_virtual_tokens: Longest soft prompt.
    """

    base: Path
    loras: Mapping[str, Path]
    soft_prompts: Mapping[str, Path]
    scratch: Path
    dtype: str
    max_num_seqs: int
    max_model_len: int
    max_lora_rank: int
    max_virtual_tokens: int

    @property
    def engine_config(self) -> VllmEngineConfig:
        """What Medley's settings become; both servers' engine arguments come from it."""
        return VllmEngineConfig(
            str(self.base),
            dtype=self.dtype,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            max_loras=len(self.loras),
            max_lora_rank=self.max_lora_rank,
            max_virtual_tokens=self.max_virtual_tokens,
        )


@contextmanager
def medley_server(served: Served) -> Iterator[str]:
    """Run ``medley serve``, its adapters uploaded, and yield its URL.

    Raises:
        RuntimeError: If it does not start; the message ends with its log's end.
    """
    folder = served.scratch / "medley"
    folder.mkdir()
    port = _free_port()
    config = served.engine_config
    settings = {
        "max_num_seqs": config.max_num_seqs,
        "max_model_len": config.max_model_len,
        "max_loras": config.max_loras,
        "max_lora_rank": config.max_lora_rank,
        "max_virtual_tokens": config.max_virtual_tokens,
        "max_num_waiting": 1024,
    }
    # Nobody asks for scores.
    own = {"engine": settings, "evaluation": {"warm_at_start": False}}
    (folder / "medley.yaml").write_text(json.dumps(own))
    command = [
        *(sys.executable, "-m", "server", "serve", "--engine", "vllm", "--model", str(served.base)),
        *("--dtype", served.dtype, "--config", str(folder / "medley.yaml"), "--data-dir", str(folder / "data")),
        *("--port", str(port), "--grpc-port", "0"),
    ]
    with _running(command, folder / "log.txt", f"http://127.0.0.1:{port}/readyz"):
        url = f"http://127.0.0.1:{port}"
        for name, adapter in {**served.loras, **served.soft_prompts}.items():
            _upload(url, name, adapter)
        yield url


@contextmanager
def vllm_server(served: Served) -> Iterator[str]:
    """Run ``vllm serve`` and yield its URL.

    Raises:
        RuntimeError: If it does not start; the message ends with its log's end.
    """
    port = _free_port()
    command = [
        *(sys.executable, "-m", "benchmarks.vllm_command", "serve", str(served.base)),
        *("--served-model-name", served.base.name, "--host", "127.0.0.1", "--port", str(port)),
        # Medley has no log of accesses either.
        "--disable-uvicorn-access-log",
        *engine_flags(served),
        "--lora-modules",
        *(f"{name}={folder}" for name, folder in served.loras.items()),
    ]
    with _running(command, served.scratch / "vllm.txt", f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


def engine_flags(served: Served) -> list[str]:
    """Return the engine arguments that Medley gives vLLM, as its command line has them."""
    base = read_base_spec(served.base)
    arguments = engine_arguments(served.engine_config, served.base, base, served.scratch / "unused.json")
    flags: list[str] = []
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in _NOT_PASSED_ON and value != default:
            flags.extend(_flag(field.name.replace("_", "-"), value))
    return flags


def _flag(name: str, value: object) -> Sequence[str]:
    match value:
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case list():
            return [f"--{name}", *map(str, value)]
        case _:
            return [f"--{name}", str(value)]


@contextmanager
def _running(command: Sequence[str], log: Path, ready_url: str) -> Iterator[None]:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=out, stderr=subprocess.STDOUT, cwd=_ROOT, env=environment, start_new_session=True
        )
        try:
            _wait_until_ready(process, log, ready_url)
            yield
        finally:
            _end(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path, url: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.get(url, timeout=5.0).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{' '.join(process.args)} did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and what it started."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _upload(url: str, name: str, folder: Path) -> None:
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir()) if file.suffix != ".md"]
    answer = httpx.post(f"{url}/v1/adapters/{name}/versions?alias=stable", files=files, timeout=120.0)
    if answer.is_error:
        raise RuntimeError(f"{name} was refused: {answer.text}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
