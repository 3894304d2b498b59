"""Generates the Python stubs of ``protos/medley`` into ``protos/gen`` (or another folder).

``make protos`` runs it; ``tests/architecture/test_protos.py`` runs it again and compares, so that the committed stubs
never drift from the ``.proto`` files. Knows no server.
"""

import os
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
STUBS = PROTOS / "gen"
_STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write fresh stubs of every ``.proto`` file below ``out``, in the folders of their packages.

    Raises:
        subprocess.CalledProcessError: If the protocol compiler refuses a file; it says why on standard error.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "medley").rglob("*.proto"))
    kinds = ("python", "grpc_python", "mypy", "mypy_grpc")
    outputs = [f"--{kind}_out={out}" for kind in kinds]
    # The compiler finds the mypy plug-ins on the path, and they live beside the interpreter.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources]
    subprocess.run(command, check=True, cwd=PROTOS, env=environment)  # noqa: S603


def stub_files(root: Path) -> dict[str, str]:
    """Return the text of every stub below ``root`` by its relative path."""
    found = (path for pattern in _STUB_PATTERNS for path in root.rglob(pattern))
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(found)}


if __name__ == "__main__":
    generate(STUBS)
