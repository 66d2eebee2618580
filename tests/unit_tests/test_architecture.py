"""The borders of the house: who may import whom, no cycles, small files. Read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "langchain_ensemble"
MAX_LINES = 350
MAX_FUNCTION = 60  # lines without the docstring

EVERYTHING = None
ENGINE = (
    *("errors", "params", "store", "fusion", "vocab", "members", "constraints", "decoding"),
    *("chat", "contexts", "roles"),
)
ADAPTER = (
    *("adapter", "ensemble", "params", "shares", "errors", "_version", "decoding.records", "demo"),
    *("contexts", "roles"),
    *("chat.conversation", "constraints.grammar", "confidence", "trace"),  # plain data
    *("choose.calibration_file", "choose.calibrate"),  # the second at first use
)

INSIDE: dict[str, tuple[str, ...] | None] = {
    "_version": (),
    "errors": (),
    "member": ("errors",),
    "params": ("errors", "member", "roles"),
    "roles": ("errors",),
    "contexts": ("errors",),
    "shares": ("errors",),
    "store": ("errors",),
    "fusion": ("errors", "roles"),
    "vocab": ("errors", "store", "fusion.base"),
    "members": ("errors", "params", "store"),
    "constraints": ("errors",),
    "decoding": ("errors", "params", "constraints", "fusion.base", "members.base"),
    "chat": (
        *("errors", "params", "contexts", "constraints.grammar", "vocab", "members.base"),
        "decoding.records",  # plain data
    ),
    "building": ENGINE,
    "turn": ENGINE,
    "unloaded": ENGINE,
    "requests": (*ENGINE, "building", "shares"),
    "readers": (*ENGINE, "building", "requests"),
    "scoring": (*ENGINE, "building", "shares"),
    "ensemble": (
        *(*ENGINE, "building", "turn", "unloaded", "requests", "readers", "scoring", "confidence"),
        "shares",  # plain data
        "choose.belonging",
    ),
    "choose": (
        *(*ENGINE, "ensemble", "shares", "adapter", "llms", "chat_models", "evaluate"),
        *("confidence", "building", "scoring"),
    ),
    "evaluate": (
        *(*ENGINE, "ensemble", "shares", "adapter", "llms", "chat_models", "confidence"),
        "choose.stats",  # intervals
    ),
    "lm_eval": EVERYTHING,
    "confidence": ("errors", "decoding.records"),  # plain data
    "trace": ("errors", "decoding.records", "confidence"),  # plain data
    "adapter": ADAPTER,
    "views": ("errors", "member"),
    "llms": (*ADAPTER, "chat_models"),  # as_chat()
    "chat_models": ADAPTER,
    "demo": EVERYTHING,
    "cli": EVERYTHING,
    "testing": EVERYTHING,
    "__init__": EVERYTHING,
    "__main__": EVERYTHING,
}
OUTSIDE: dict[str, tuple[str, ...] | None] = {
    "_version": (),
    "errors": (),
    "member": ("pydantic",),
    "params": ("pydantic",),
    "roles": (),
    "contexts": (),
    "shares": (),
    "store": ("torch", "safetensors", "filelock", "platformdirs"),
    "fusion": ("torch",),
    "vocab": ("torch", "tokenizers"),
    "members": (
        *("torch", "transformers", "huggingface_hub", "safetensors", "accelerate", "peft"),
        *("jinja2", "psutil", "filelock"),
    ),
    "constraints": ("torch", "xgrammar", "llguidance"),
    "chat": ("jinja2", "tokenizers", "transformers"),
    "decoding": ("torch",),
    "building": (),
    "turn": (),
    "unloaded": (),
    "requests": (),
    "readers": (),
    "scoring": (),
    "ensemble": ("torch",),
    "choose": ("torch", "numpy", "matplotlib", "pydantic"),
    "evaluate": ("pydantic", "langchain_core"),
    "lm_eval": ("torch", "lm_eval", "tqdm"),
    "confidence": (),
    "trace": (),
    "adapter": ("langchain_core", "pydantic", "yaml", "huggingface_hub"),  # where its cache is
    "views": ("langchain_core",),
    "llms": ("langchain_core", "pydantic"),
    "chat_models": ("langchain_core", "pydantic"),
    "demo": ("rich", "langchain_core", "langchain", "pydantic"),
    "cli": EVERYTHING,
    "testing": EVERYTHING,
    "__init__": (),
    "__main__": (),
}
TYPES_ONLY = {  # names for annotations, never imported when the program runs
    "vocab": ("transformers",),
    "adapter": ("decoding", "choose.calibration_report"),
    "llms": ("decoding",),
    "chat_models": ("decoding",),
}
LAZY = {  # the only function-level imports of our own modules: torch is read at first use
    ("__init__", "ensemble"),
    ("__init__", "choose.members"),
    ("adapter.engines", "ensemble"),
    ("adapter.calibrating", "choose.calibrate"),
}
LAZY_PARTS = ("cli", "demo")  # so that --help is instant


@dataclass(frozen=True)
class Import:
    """One import statement's target, as ``a.b`` inside the package or as a top-level name."""

    module: str
    target: str
    inside: bool
    types_only: bool
    in_function: bool
    line: int

    @property
    def part(self) -> str:
        return self.module.split(".")[0]


def modules() -> dict[str, Path]:
    folder = ROOT / PACKAGE
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = modules()


def _inner_targets(node: ast.ImportFrom | ast.Import) -> Iterator[str]:
    """Modules of the package that a statement names: ``from x import y`` is x.y where it is one."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name.removeprefix(PACKAGE).removeprefix(".") or "__init__"
        return
    base = (node.module or "").removeprefix(PACKAGE).removeprefix(".")
    for alias in node.names:
        whole = f"{base}.{alias.name}".removeprefix(".")
        yield whole if whole in MODULES else base or "__init__"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(module: str) -> list[Import]:
    found: list[Import] = []

    def walk(node: ast.AST, types_only: bool, in_function: bool) -> None:
        types_only = types_only or _is_type_checking(node)
        in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}:{node.lineno}: relative import"
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = names or [alias.name for alias in node.names]
            if names[0].split(".")[0] == PACKAGE:
                targets = [(name, True) for name in _inner_targets(node)]
            else:
                targets = [(name.split(".")[0], False) for name in names]
            for target, inside in targets:
                found.append(Import(module, target, inside, types_only, in_function, node.lineno))
        for child in ast.iter_child_nodes(node):
            walk(child, types_only, in_function)

    walk(ast.parse(MODULES[module].read_text(encoding="utf-8")), False, False)
    return found


def _within(target: str, allowed: tuple[str, ...]) -> bool:
    return any(target == name or target.startswith(name + ".") for name in allowed)


def violations(module: str, found: list[Import]) -> list[str]:
    part = module.split(".")[0]
    wrong = []
    for item in found:
        table = INSIDE if item.inside else OUTSIDE
        allowed = table[part]
        if allowed is EVERYTHING:
            continue
        if item.types_only:
            allowed = (*allowed, *TYPES_ONLY.get(part, ()))
        own = item.inside and item.target.split(".")[0] == part
        stdlib = not item.inside and item.target in sys.stdlib_module_names
        if not (own or stdlib or _within(item.target, allowed)):
            wrong.append(f"{module}:{item.line} imports {item.target}")
    return wrong


def test_every_part_is_in_the_table():
    parts = {module.split(".")[0] for module in MODULES}
    assert sorted(parts - set(INSIDE)) == []
    assert INSIDE.keys() == OUTSIDE.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_keep_the_borders(module):
    assert violations(module, imports(module)) == []


def test_the_border_test_can_fail():
    bad = [
        Import("fusion.x", "transformers", False, False, False, 1),
        Import("fusion.x", "vocab.overlap", True, False, False, 2),
        Import("decoding.x", "fusion.average", True, False, False, 3),
        Import("decoding.x", "fusion.base", True, False, False, 4),
    ]
    assert violations("fusion.x", bad[:2]) == [
        "fusion.x:1 imports transformers",
        "fusion.x:2 imports vocab.overlap",
    ]
    assert violations("decoding.x", bad[2:]) == ["decoding.x:3 imports fusion.average"]


def test_no_cycles():
    graph = {
        module: {
            item.target
            for item in imports(module)
            if item.inside and not item.types_only and not item.in_function
        }
        - {module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_function_level_imports_are_the_documented_ones():
    inner = [
        f"{item.module}:{item.line} imports {item.target}"
        for module in MODULES
        for item in imports(module)
        if item.inside
        and item.in_function
        and (item.module, item.target) not in LAZY
        and item.part not in LAZY_PARTS
    ]
    assert inner == []


def test_files_are_short():
    lines = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in MODULES.items()}
    assert {m: n for m, n in lines.items() if n > MAX_LINES} == {}


def test_functions_fit_a_screen():
    long = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if length > MAX_FUNCTION:
                    long[f"{module}.{node.name}"] = length
    assert long == {}


def test_every_module_says_what_it_knows():
    silent = [
        module
        for module, path in MODULES.items()
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []
