"""The house itself: sizes, packaging, pins, and what must never be written into the project."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from aha.config import recipe_paths

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "aha").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_LOOP_LINES = 100
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring: a typer command's options are a table, not code."""
    body = function.body if ast.get_docstring(function) is None else function.body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normalised(name): version for name, version in pairs}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES, f"{path.name} is too long: a noun is missing"
    is_loop_file = path.parent.name == "train"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = MAX_LOOP_LINES if is_loop_file and node.name == "train" else MAX_FUNCTION_LINES
            assert body_lines(node) <= limit, f"{path.name}:{node.lineno} {node.name} has {body_lines(node)} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in {path.parent for path in MODULES}:
        assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} would be missing from an installed aha"


def test_recipes_are_found_from_inside_the_package() -> None:
    assert recipe_paths().keys() == {path.stem for path in (ROOT / "recipes").glob("*.toml")}


def test_every_dependency_is_pinned_and_justified() -> None:
    pinned = pins()
    log = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    extras = PYPROJECT["project"]["optional-dependencies"]
    for requirement in [*PYPROJECT["project"]["dependencies"], *(r for extra in extras.values() for r in extra)]:
        name = re.split(r"[<>=!~\[ ;]", requirement)[0]
        assert normalised(name) in pinned, f"{name} has no pin in constraints.txt"
        assert re.search(rf"^\|[^|]*\b{re.escape(name)}\b", log, re.MULTILINE), f"docs/LOG.md does not say why {name}"
    assert pinned["torch"] == "2.13.0"
    cuda = [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))]
    assert not cuda, f"constraints.txt may not name CUDA packages: {cuda}"


def test_every_core_dependency_is_imported() -> None:
    imported = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    for requirement in PYPROJECT["project"]["dependencies"]:
        name = re.split(r"[<>=!~\[ ;]", requirement)[0]
        assert name in imported, f"nothing in aha imports {name}; drop the dependency"


def test_no_path_of_this_machine_is_written_down() -> None:
    texts = [
        path for folder in ("aha", "bench", "docs", "recipes", "tests", ".ci") for path in (ROOT / folder).rglob("*")
    ]
    for path in [*texts, *ROOT.glob("*.*"), ROOT / "Makefile"]:
        if path.is_file() and path.suffix not in (".safetensors", ".png", ".pyc"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(rf"{re.escape(str(ROOT))}\b", text), f"{path.name} contains {ROOT}"


def test_ci_script_is_executable_bash() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_a_skip_fails_in_ci_unless_it_waits_for_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "def test_lazy(): pytest.skip('not today')\n"
        "@pytest.mark.gpu\n"
        "def test_gpu(): pytest.skip('no GPU')\n"
        "@pytest.mark.xfail\n"
        "def test_known(): assert False\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_skips.py"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert "1 failed, 1 skipped, 1 xfailed" in done.stdout, done.stdout


@pytest.mark.slow
def test_wheel_holds_the_recipes_and_the_built_in_model(tmp_path: Path) -> None:
    source = tmp_path / "source"
    leave_out = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=leave_out)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [
        "recipes/*.toml",
        "models/tiny/*",
        "cost/*.toml",
        "models/*.toml",
        "report/*.css",
        "report/*.html",
        "**/*.py",
        "py.typed",
    ]
    wanted = {str(path.relative_to(ROOT)) for pattern in data for path in (ROOT / "aha").glob(pattern)}
    assert wanted <= names, f"missing from the wheel: {sorted(wanted - names)}"
    assert not [name for name in names if name.startswith("tests")]
