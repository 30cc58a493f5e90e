"""The arrows of docs/architecture.md: who may import whom, read from the source and tried in fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import recfit

SOURCE = Path(recfit.__file__).parent

# A room imports rooms of its own line and of the lines above it.
ORDER: Sequence[set[str]] = (
    {"types"},
    {"registry", "options", "topk", "states", "texts"},
    {"config"},
    {"tables", "runtimes"},
    {"bundle"},
    {"engine"},
    {"data"},
    {"measure", "serve", "targets", "monitor"},
    {"models"},
    {"training", "graphs"},
    {"pipeline"},
    {"techniques", "export"},
    {"search", "selecting"},
    {"report"},
    {"flow"},
    {"starter", "loadtest"},
    {"cli"},
)
SERVING = (
    "types",
    "registry",
    "options",
    "config",
    "topk",
    "states",
    "texts",
    "tables",
    "runtimes",
    "bundle",
    "engine",
    "measure",
    "serve",
    "targets",
    "monitor",
    "loadtest",
    "cli",
)
# Libraries of `recfit[train]`. A server loads FAISS too, for bundles that ask for it and only then.
TRAINING = ("torch", "scipy", "implicit", "onnx", "onnxscript", "pyarrow", "safetensors", "tqdm", "sklearn", "faiss")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is loaded."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from statements([part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)])


def imports(path: Path) -> set[str]:
    """The modules that loading `path` imports; `from a import b` is `a.b` where that is a module of ours."""
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.module is not None
            assert not node.level, f"{path} has a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = full & MODULES.keys()
            found |= ours if ours == full else {*ours, node.module}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def test_the_reading_of_imports_sees_what_it_must() -> None:
    text = "import a\nfrom recfit import bundle\nif x:\n    import b\nif TYPE_CHECKING:\n    import c\ndef f():\n    import d\n"
    seen = {ast.unparse(node) for node in statements(ast.parse(text).body)}
    assert seen == {"import a", "from recfit import bundle", "import b"}
    assert "recfit.bundle" in GRAPH["recfit.engine"]
    assert "recfit.models" not in GRAPH["recfit.runtimes.torch"]


def test_no_module_imports_itself_in_a_circle() -> None:
    ours = {module: {name for name in found if name in MODULES and name != module} for module, found in GRAPH.items()}
    TopologicalSorter(ours).prepare()  # raises CycleError and names the circle


@pytest.mark.parametrize("module", [module for module in MODULES if module != "recfit"])
def test_arrows_point_one_way(module: str) -> None:
    level = {room: at for at, rooms in enumerate(ORDER) for room in rooms}
    assert room_of(module) in level, f"{room_of(module)} has no place in ORDER; give it one"
    for name in GRAPH[module]:
        if name.startswith("recfit."):
            assert level[room_of(name)] <= level[room_of(module)], f"{module} imports {name}"


def test_serving_code_names_no_training_library() -> None:
    for module, found in GRAPH.items():
        if room_of(module) in SERVING:
            assert not {name.split(".")[0] for name in found} & {*TRAINING}, module


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules that a fresh process has after importing `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.mark.parametrize("room", ["recfit", *(f"recfit.{room}" for room in SERVING)])
def test_serving_rooms_never_load_a_training_library(room: str) -> None:
    inside = [name for name in MODULES if f"{name}.".startswith(f"{room}.") and not name.endswith("__main__")]
    assert not loaded_by(*(inside if room != "recfit" else [room])) & {*TRAINING}


def test_public_names_are_few_and_there() -> None:
    assert len(recfit.__all__) <= 15
    assert list(recfit.__all__) == sorted(recfit.__all__)
    for name in recfit.__all__:
        assert getattr(recfit, name) is not None
    with pytest.raises(AttributeError, match="module 'recfit' has no attribute 'Budgets'"):
        recfit.Budgets  # noqa: B018
