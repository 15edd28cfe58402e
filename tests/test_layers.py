"""The rules that hold the house up. MAY_IMPORT documents them: change it only with a reason in docs/LOG.md."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "aha"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "rooms": set(),
    "types": {"errors"},
    "config": {"types", "errors"},
    "sandbox": {"types", "errors"},
    "images": {"types", "errors"},
    "hub": {"models", "types", "errors"},
    "cost": {"config", "types", "errors"},
    "client": {"cost", "types", "errors"},
    "models": {"errors"},
    "catalogue": {"hub", "models", "cost", "types", "errors"},
    "streaming": {"types", "errors"},
    "template": {"sandbox", "types", "errors"},
    "tasks": {"sandbox", "client", "cost", "types", "errors"},
    "outline": {"streaming", "template", "types", "errors"},
    "chat": {"outline", "streaming", "template", "models", "sandbox", "config", "types", "errors"},
    "engine": {"models", "types", "errors"},
    "evaluate": {"rooms", "tasks", "client", "cost", "types", "errors"},
    "report": {"evaluate", "cost", "types", "errors"},
    "export": {"evaluate", "models", "chat", "hub", "cost", "types", "errors"},
    "serve": {
        "engine",
        "models",
        "chat",
        "images",
        "streaming",
        "hub",
        "client",
        "cost",
        "estimate",
        "config",
        "types",
        "errors",
    },
    "estimate": {"catalogue", "hub", "models", "evaluate", "report", "cost", "config", "types", "errors"},
    "apps": {"tasks", "sandbox", "client", "cost", "config", "types", "errors"},
}
MAY_IMPORT["train"] = set(MAY_IMPORT) - {"serve", "apps"}
MAY_IMPORT["terminal"] = MAY_IMPORT["train"] | {"train"}
"""Room → the rooms it may import, wherever the import stands. `cli` and the package itself may import everything."""

WITHOUT_TORCH = {"types", "errors", "config", "catalogue", "sandbox", "client", "cost", "estimate", "tasks", "evaluate",
                 "report", "apps", "cli", "images"}  # fmt: skip
"""Rooms that no code path leads from to `import torch` of their own."""

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


class Import(NamedTuple):
    module: str
    """Dotted, absolute."""
    line: int


MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in the file, those inside functions and under TYPE_CHECKING too."""
    package = ("aha", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_downward_only(path: Path) -> None:
    room = room_of(path)
    if room in ("cli", "__main__", "__init__"):
        return
    assert room in MAY_IMPORT, f"{path.name}: a new room {room!r} needs a line in MAY_IMPORT"
    for imported in imports_of(path):
        top, _, rest = imported.module.partition(".")
        if top != "aha":
            continue
        target = rest.split(".")[0]
        assert target == room or target in MAY_IMPORT[room], (
            f"{path.relative_to(PACKAGE)}:{imported.line}: {room} may not import {target or 'aha itself'}; "
            f"it may import {', '.join(sorted(MAY_IMPORT[room])) or 'nothing of ours'}"
        )


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in WITHOUT_TORCH], ids=module_name)
def test_rooms_without_torch_do_not_import_it(path: Path) -> None:
    heavy = {"torch", "transformers", "tokenizers"}
    found = [f"line {i.line}" for i in imports_of(path) if i.module.split(".")[0] in heavy]
    assert not found, f"{path.relative_to(PACKAGE)} imports torch or its kin at {found}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_is_evaluated_or_unpickled(path: Path) -> None:
    for imported in imports_of(path):
        assert imported.module.split(".")[0] not in FORBIDDEN_MODULES, f"line {imported.line}: {imported.module}"
        assert imported.module != "torch.load", f"line {imported.line}: torch.load; use safetensors"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS), f"line {node.lineno}"
            assert ast.unparse(node.func) != "torch.load", f"line {node.lineno}: torch.load; use safetensors"
            assert all(keyword.arg != "trust_remote_code" for keyword in node.keywords), f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nobody_imports_the_command_line(path: Path) -> None:
    if room_of(path) not in ("cli", "__main__"):
        # By whole names: aha.client begins with aha.cli.
        assert not [i for i in imports_of(path) if i.module.split(".")[:2] in (["aha", "cli"], ["aha", "__main__"])]


def test_importing_the_light_rooms_loads_no_torch() -> None:
    light = ["aha"]
    for room in sorted(WITHOUT_TORCH):
        if (PACKAGE / f"{room}.py").exists() or (PACKAGE / room / "__init__.py").exists():
            light.append(f"aha.{room}")
    program = f"import sys, {', '.join(light)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]", f"import {', '.join(light)}: {done.stdout} {done.stderr}"
