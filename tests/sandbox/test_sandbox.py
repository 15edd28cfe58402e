"""The sandbox as its callers see it: what is given and returned, what is refused, and that it refuses to pretend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aha.errors import ConfigError, SandboxError
from aha.sandbox import BACKENDS, Limits, Sandbox, StoppedBy, confine, require
from aha.sandbox.backends import COMMANDS, unconfined_command
from aha.sandbox.filter import seccomp_filter
from aha.sandbox.runtime import python_executable, python_view


@pytest.fixture
def forgetful() -> Iterator[None]:
    """`require` remembers what it has proved; not across this test."""
    confine._proven.cache_clear()
    yield
    confine._proven.cache_clear()


def test_python_program_gets_its_input_and_files_and_gives_output_and_exit_code(sandbox: Sandbox) -> None:
    program = "import sys, os, names\nprint(input(), names.NAME, os.getcwd())\nos.write(3, b'data')\nsys.exit(4)"
    result = sandbox.run_python(program, stdin=b"hello\n", files={"names.py": b"NAME = 'ana'"})
    assert (result.stdout, result.stderr, result.channel) == (b"hello ana /box\n", b"", b"data")
    assert (result.exit_code, result.signal, result.stopped_by, result.is_ok) == (4, None, StoppedBy.NOTHING, False)
    assert result.setup_ms > 0
    assert result.cpu_ms > 0


def test_any_program_that_is_visible_can_be_run(sandbox: Sandbox) -> None:
    argv = [python_executable(), "-S", "-c", "import sys, os; print(sys.argv[1:], dict(os.environ))", "a b", "ü"]
    assert sandbox.run(argv).stdout.decode() == "['a b', 'ü'] {'LC_CTYPE': 'C.UTF-8'}\n"
    assert sandbox.run(["/bin/missing"]).exit_code == 1


def test_program_is_main_and_its_traceback_names_its_lines(sandbox: Sandbox) -> None:
    result = sandbox.run_python("def f():\n    return 1 / 0\nif __name__ == '__main__':\n    f()\n")
    assert b'program.py", line 2, in f\n    return 1 / 0' in result.stderr


def test_same_program_gives_the_same_output(sandbox: Sandbox) -> None:
    program = "print({str(n) for n in range(50)})"
    assert sandbox.run_python(program).stdout == sandbox.run_python(program).stdout


def test_ordinary_programs_work(sandbox: Sandbox) -> None:
    program = """
import asyncio, collections, ctypes, dataclasses, datetime, decimal, fractions, functools, heapq, itertools, json, math
import random, re, statistics, string, subprocess, sys, tempfile, threading, typing, uuid, hashlib, zlib
async def wait(): await asyncio.sleep(0.001); return 1
assert asyncio.run(wait()) == 1
done = []
thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
assert done
with tempfile.TemporaryDirectory() as folder: open(folder + "/x", "w").write("x")
assert subprocess.run([sys.executable, "-S", "-c", "print(1)"], capture_output=True).stdout == b"1\\n"
@dataclasses.dataclass
class Point: x: int
assert Point(1) == Point(1)
print(hashlib.sha256(b"").hexdigest()[:4], datetime.date(2025, 1, 20), random.random() < 1)
"""
    result = sandbox.run_python(program)
    assert result.stdout == b"e3b0 2025-01-20 True\n", result.stderr


def test_more_paths_can_be_shown_read_only(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir(mode=0o755)
    (tmp_path / "shown" / "x.txt").write_text("shown")
    (tmp_path / "hidden.txt").write_text("hidden")
    wider = require(backends=(sandbox.backend,), readable=(str(tmp_path / "shown"),))
    program = f"""
import os
print(open({str(tmp_path)!r} + "/shown/x.txt").read(), os.listdir({str(tmp_path)!r}))
open({str(tmp_path)!r} + "/shown/y.txt", "w")
"""
    result = wider.run_python(program)
    assert result.stdout == b"shown ['shown']\n"
    assert b"Read-only file system" in result.stderr or b"Permission denied" in result.stderr
    assert [path.name for path in (tmp_path / "shown").iterdir()] == ["x.txt"]


def test_packages_beside_the_runtime_are_not_shown() -> None:
    view = python_view()
    assert not [path for path in view.folders if "/etc" in path and path != "/etc/ld.so.cache"]
    assert all(path.endswith("-packages") for path in view.hidden)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x\n", ".hidden", "x" * 101])
def test_file_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(SandboxError, match="a file's name must be"):
        Sandbox(backend="native").run_python("pass", files={name: b""})


@pytest.mark.parametrize("argv", [[], ["python3"], ["/bin/a\0b"]])
def test_argv_without_an_absolute_path_is_refused(argv: list[str]) -> None:
    with pytest.raises(SandboxError, match="argv must start with an absolute path"):
        Sandbox(backend="native").run(argv)


@pytest.mark.parametrize(
    "limits", [{"cpu_seconds": 0}, {"wall_seconds": 0}, {"memory_bytes": 1}, {"num_processes": 0}, {"output_bytes": 0}]
)
def test_limits_that_limit_nothing_or_everything_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"sandbox: {next(iter(limits))} must be"):
        Limits(**limits)  # type: ignore[arg-type]


def test_no_bubblewrap_is_said_with_the_fix(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError) as caught:
        require(backends=("bubblewrap",))
    assert "code cannot be confined here: bubblewrap: no bwrap on the PATH" in str(caught.value)
    assert "Fix: install bubblewrap" in str(caught.value)


def test_the_next_backend_is_tried(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert require().backend == "native"


def test_backend_that_does_not_hold_is_refused(
    forgetful: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(COMMANDS, "native", unconfined_command)
    monkeypatch.setattr("aha.sandbox.confine.view_rows", lambda view: [])
    real = confine.encode_job
    changed = {"backend": b"unconfined", "folder": os.fsencode(tmp_path)}
    monkeypatch.setattr("aha.sandbox.confine.encode_job", lambda job: real({**job, **changed}))
    with pytest.raises(SandboxError, match="native: a confined program reads .*reads /etc/passwd.*makes"):
        require(backends=("native",))


def test_failing_step_of_the_confinement_is_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aha.sandbox.confine.seccomp_filter", lambda: b"\xff" * 8)  # no program for the kernel
    with pytest.raises(SandboxError, match=f"{sandbox.backend}: confinement: prctl: Invalid argument"):
        sandbox.run_python("pass")


def test_unknown_backend_and_none_are_refused() -> None:
    with pytest.raises(SandboxError, match="unknown sandbox backend 'docker'; choose from: bubblewrap, native"):
        require(backends=("docker",))
    with pytest.raises(SandboxError, match="no backend was named"):
        require(backends=())


def test_other_systems_are_refused(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="cannot be confined on darwin; use Linux"):
        require()


def test_processor_without_a_table_of_calls_is_refused() -> None:
    with pytest.raises(SandboxError, match="no system call filter for 'riscv64' processors"):
        seccomp_filter("riscv64")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_fits_the_kernel_and_ends_in_a_refusal(machine: str) -> None:
    program = seccomp_filter(machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096
    assert program[-8:] == b"\x06\0\0\0\x01\0\x05\0"  # return EPERM


def test_no_confinement_must_be_asked_for_by_name_and_keeps_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe = require(confinement="unsafe_none")
    assert unsafe.run_python("print(input())", stdin=b"x\n").stdout == b"x\n"
    stopped = unsafe.run_python("import time; time.sleep(60)", limits=Limits(wall_seconds=0.2))
    assert stopped.stopped_by is StoppedBy.WALL_TIME
    for name in ("AHA_SANDBOX", "AHA_UNSAFE", "AHA_CONFINEMENT"):
        monkeypatch.setenv(name, "unsafe_none")
    assert require().backend in BACKENDS


def test_program_dies_with_the_process_that_judges_it(sandbox: Sandbox) -> None:
    judge = f"""
from aha.sandbox import Limits, Sandbox
argv = [{python_executable()!r}, "-S", "-c", "import time; time.sleep(600)", "aha-orphan"]
Sandbox(backend={sandbox.backend!r}).run(argv, limits=Limits(wall_seconds=600))
"""
    process = subprocess.Popen([sys.executable, "-c", judge], cwd=Path(__file__).parents[2])
    try:
        wait_for(lambda: len(processes_with("aha-orphan")) > 0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not processes_with("aha-orphan"))


def processes_with(word: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in words:
            found.append(int(folder.name))
    return found


def wait_for(condition: object) -> None:
    assert callable(condition)
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_check_of_the_machine_names_the_backend_in_use() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "aha.sandbox"], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in use: " in done.stdout
    assert "holds; an empty program takes" in done.stdout


def test_no_file_descriptor_left_is_an_error_of_the_sandbox(sandbox: Sandbox) -> None:
    program = f"""
import os, resource
from aha.errors import SandboxError
from aha.sandbox import Sandbox
resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
try:
    Sandbox(backend={sandbox.backend!r}).run_python("pass")
except SandboxError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert "Too many open files" in done.stdout, done.stderr
    assert os.path.isdir(root)
