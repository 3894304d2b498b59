"""The rules of the house that no linter knows: sizes, names, places, and who may read the environment."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("adapters", "benchmarks", "loadtest", "server", "training")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NAMES_THAT_EXPLAIN_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
UNSAFE_FORMATS = {".bin", ".pt", ".pth", ".pkl", ".pickle"}
MAY_READ_ENVIRONMENT = {
    *("server/settings.py", "training/cli.py"),
    # vLLM is told some things by the environment only, and its processes inherit it: written here, not read.
    *("server/engine/vllm/launch.py", "server/engine/vllm/engine_process.py", "benchmarks/vllm_servers.py"),
    # So is Ray.
    "server/runtime/ray_local.py",
    # Runs in those processes, and looks whether they are ours.
    "server/engine/vllm/plugin.py",
}


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - len((ast.get_docstring(function) or "").splitlines())


def test_sources_found_in_every_room() -> None:
    found = {relative(path).split("/")[0] for path in sources()}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_file_size_within_limits(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    too_long = [f"{f.name}: {length(f)}" for f in functions(ast.parse(text)) if length(f) > MAX_FUNCTION_LINES]
    assert too_long == []


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert path.stem not in NAMES_THAT_EXPLAIN_NOTHING


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_environment_is_read_only_at_the_edge(path: Path) -> None:
    if relative(path) in MAY_READ_ENVIRONMENT:
        return
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"environ", "getenv"}


def test_adapters_package_is_ours() -> None:
    # AdapterHub's library has the same import name; whoever installs it beside Medley must hear of it here.
    spec = importlib.util.find_spec("adapters")
    assert spec is not None
    assert spec.origin == str(ROOT / "adapters" / "__init__.py")


def test_no_unsafe_weight_formats_in_the_tree() -> None:
    rooms = [*ROOMS, "tests", "docs"]
    assert [relative(p) for room in rooms for p in (ROOT / room).rglob("*") if p.suffix in UNSAFE_FORMATS] == []


def test_shipped_weights_stay_small() -> None:
    library = ROOT / "adapters" / "library"
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in library.iterdir()
        if folder.is_dir()
    }
    limits = {name: 40e6 if name == "medley-mini" else 4e6 for name in sizes}
    assert {name: size for name, size in sizes.items() if size > limits[name]} == {}


def test_shipped_folders_have_cards() -> None:
    library = ROOT / "adapters" / "library"
    folders = [folder for folder in library.iterdir() if folder.is_dir()]
    assert len(folders) >= 6
    for folder in folders:
        card = (folder / "card.md").read_text()
        scores = () if folder.name == "medley-mini" else ("ROUGE-1", "LEAD-3", "the base")
        for word in ("licence", "seed", "medley train", *scores):
            assert word.lower() in card.lower(), f"{folder.name}/card.md does not mention {word!r}"
