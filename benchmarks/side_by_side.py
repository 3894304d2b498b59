"""``python -m benchmarks side-by-side``: one scenario file against ``medley serve`` and ``vllm serve``, one report.

Both serve one decoder-only base of random weights, the same LoRAs ``lora-0`` to ``lora-3`` and the same engine
arguments, Medley by its vLLM engine: vLLM does not serve T5, so what is compared is two servers around one engine. The
load is ``medley loadtest``'s, over OpenAI's protocol, on the servers in turn, round after round; a server that is not
asked waits. ``medley loadtest compare`` makes the report.

Needs the environment of ``make install-vllm`` for the servers, and the one of ``make install`` for the load.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine

VLLM, MEDLEY = "vllm", "medley"
_RANKS = (8, 8, 8, 8)
_MAX_NUM_SEQS, _MAX_MODEL_LEN, _MAX_VIRTUAL_TOKENS = 16, 1024, 16
_SHAPES = ("tiny", "smollm2-135m")
_CLIENT = Path(__file__).parents[1] / ".venv" / "bin" / "medley"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        scenario: A YAML file, or the name of a shipped scenario.
        settings: What is written over it, as ``key=value``.
        shape: Shape of the base.
        dtype: Serving dtype.
        num_rounds: Runs against each server.
        client: The command that sends the load.
        out: Folder of the runs and the report.
    """

    scenario: str = "side-by-side"
    settings: tuple[str, ...] = ()
    shape: str = "tiny"
    dtype: str = "bfloat16"
    num_rounds: int = 2
    client: Path = _CLIENT
    out: Path = Path("side-by-side")

    def load_command(self, address: str, folder: Path, more: Sequence[str] = ()) -> list[str]:
        """Return the command of one run."""
        asked = [part for setting in (*self.settings, *more) for part in ("--set", setting)]
        where = ("--address", address, "--out", str(folder))
        return [str(self.client), "loadtest", "--scenario", self.scenario, *where, *asked]

    def compare_command(self, titles: Sequence[str]) -> list[str]:
        """Return the command that puts runs side by side, the first of vLLM's before all others."""
        inside = [str(self.out / title) for title in titles]
        return [str(self.client), "loadtest", "compare", *inside, "--titles", ",".join(titles), "--out", str(self.out)]


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``side-by-side`` to the benchmarks' command line."""
    parser = commands.add_parser("side-by-side", help="one scenario file against medley serve and vllm serve")
    parser.add_argument("--scenario", default=Plan().scenario, help="a YAML file, or the name of a shipped scenario")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="key.of.it=value of the scenario")
    parser.add_argument("--shape", choices=_SHAPES, default=Plan().shape, help="shape of the base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=Plan().dtype)
    parser.add_argument("--rounds", type=int, default=Plan().num_rounds, help="runs against each server (default 2)")
    parser.add_argument("--client", type=Path, default=_CLIENT, help="the medley command of `make install`")
    parser.add_argument("--out", type=Path, default=Plan().out, help="folder of the runs and the report")
    parser.set_defaults(run=_run)


def run_side_by_side(plan: Plan, addresses: Mapping[str, str]) -> None:
    """Send the load to each in turn and write the report.

    Args:
        plan: What to run.
        addresses: ``host:port`` of each server, by title.

    Raises:
        subprocess.CalledProcessError: If a run ended badly; it has said why.
    """
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        for side, address in addresses.items():
            # What is compiled at first use is in no figure.
            _call(plan.load_command(address, Path(name) / side, ("duration_s=3",)))
    titles = []
    for turn in range(plan.num_rounds):
        # Who goes first changes from round to round.
        for side in list(addresses)[:: -1 if turn % 2 else 1]:
            titles.append(f"{side}-{turn + 1}")
            _call(plan.load_command(address=addresses[side], folder=plan.out / titles[-1]))
    _call(plan.compare_command(sorted(titles, key=lambda title: (title.startswith(MEDLEY), title))))


@contextmanager
def _servers(scratch: Path, plan: Plan) -> Iterator[Mapping[str, str]]:
    from benchmarks.vllm_models import write_base, write_loras
    from benchmarks.vllm_servers import Served, medley_server, vllm_server

    base = write_base(scratch / plan.shape, plan.shape)
    served = Served(
        base=base,
        loras=write_loras(scratch / "loras", base, _RANKS),
        soft_prompts={},
        scratch=scratch,
        dtype=plan.dtype,
        max_num_seqs=_MAX_NUM_SEQS,
        max_model_len=_MAX_MODEL_LEN,
        max_lora_rank=max(_RANKS),
        max_virtual_tokens=_MAX_VIRTUAL_TOKENS,
    )
    with medley_server(served) as medley, vllm_server(served) as vllm:
        yield {VLLM: vllm.removeprefix("http://"), MEDLEY: medley.removeprefix("http://")}


def _call(command: Sequence[str]) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)  # noqa: S603


def _run(arguments: argparse.Namespace) -> None:
    # So that the servers are ended, too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    plan = Plan(
        scenario=arguments.scenario,
        settings=tuple(arguments.settings),
        shape=arguments.shape,
        dtype=arguments.dtype,
        num_rounds=arguments.rounds,
        client=arguments.client,
        out=arguments.out,
    )
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name, _servers(Path(name), plan) as addresses:
        run_side_by_side(plan, addresses)
    about = {"shape": plan.shape, "dtype": plan.dtype, **describe_machine(0)}
    (plan.out / "machine.json").write_text(json.dumps(about, indent=2) + "\n")
