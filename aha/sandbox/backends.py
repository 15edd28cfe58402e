"""How a confined process is started: the command line of each backend. What happens inside is `stage`'s."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aha.errors import SandboxError
from aha.sandbox import stage
from aha.sandbox.runtime import DEVICES, FileView, python_executable

_STAGE_FILE = Path(stage.__file__)
_STAGE_FOLDER = "/stage"
# No site-packages (-S), nothing of the user (-s), no folder of the caller on the path (-P), no bytecode written (-B).
_PYTHON_OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")
_FIRST_WORDS = "import sys; sys.path.append(sys.argv[4]); import stage; sys.path.remove(sys.argv[4]); stage.main()"
# The kernel frees memory by ending such a process before any other; raising the value needs no rights.
_VOLUNTEER_FOR_OOM = 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"'
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""Of the first program, which clears it: with a fixed hash seed, sets have one order and a verdict can be repeated."""


@dataclass(frozen=True)
class Descriptors:
    """The ends of the pipes that the first program is given, by their numbers in this process."""

    job: int
    status: int
    channel: int
    info: int
    """For bubblewrap's report of its process 1."""


CommandLine = Callable[[FileView, Descriptors], list[str]]


def native_command(view: FileView, fds: Descriptors) -> list[str]:
    """Everything is done by the first program itself, with the system calls of the kernel."""
    return ["/bin/sh", "-c", _VOLUNTEER_FOR_OOM, "sh", *_python(fds, folder=str(_STAGE_FILE.parent))]


def bubblewrap_command(view: FileView, fds: Descriptors) -> list[str]:
    """Namespaces and the file system by bubblewrap; as root without a user namespace, see `stage.lock`.

    Raises:
        SandboxError: when there is no bwrap on the PATH.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bubblewrap: no bwrap on the PATH; install the package bubblewrap")
    words = [program, "--die-with-parent", "--as-pid-1", "--info-fd", str(fds.info), "--cap-drop", "ALL"]
    # For the working directory, whose number of files bwrap cannot limit; and to give up every other capability.
    words += ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]
    words += [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup-try")]
    if stage.can_become_nobody():
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", str(stage.NOBODY), "--gid", str(stage.NOBODY)]
    words += _bubblewrap_files(view)
    words += ["--dir", stage.WORK_FOLDER, "--remount-ro", "/"]
    return ["/bin/sh", "-c", _VOLUNTEER_FOR_OOM, "sh", *words, "--", *_python(fds, folder=_STAGE_FOLDER)]


def unconfined_command(view: FileView, fds: Descriptors) -> list[str]:
    """No confinement at all, only the limits of setrlimit: for `confinement="unsafe_none"`."""
    return _python(fds, folder=str(_STAGE_FILE.parent))


COMMANDS: dict[str, CommandLine] = {
    "bubblewrap": bubblewrap_command,
    "native": native_command,
    "unconfined": unconfined_command,
}
BACKENDS = ("bubblewrap", "native")
"""Those that confine, in the order in which they are tried."""


def view_rows(view: FileView) -> Iterator[str]:
    """The view as `stage.build_root` reads it: kind, path and target, tabs between them."""
    rows = [("bind", path, "") for path in view.folders]
    rows += [("link", path, target) for path, target in view.links]
    rows += [("hide", path, "") for path in view.hidden]
    rows += [("bind", path, "") for path in view.readable]
    rows += [("device", path, "") for path in DEVICES if os.path.exists(path)]
    for row in rows:
        if any("\t" in text or "\n" in text for text in row):
            raise SandboxError(f"sandbox: {row[1]!r} holds a tab or a line break and cannot be shown inside")
        yield "\t".join(row)


def _python(fds: Descriptors, *, folder: str) -> list[str]:
    numbers = [str(fds.job), str(fds.status), str(fds.channel)]
    return [python_executable(), *_PYTHON_OPTIONS, "-c", _FIRST_WORDS, *numbers, folder]


def _bubblewrap_files(view: FileView) -> list[str]:
    compiled = importlib.util.cache_from_source(str(_STAGE_FILE))
    binds = [("--ro-bind", path, path) for path in view.folders]
    for path in (str(_STAGE_FILE), compiled):
        if os.path.exists(path):
            binds.append(("--ro-bind", path, f"{_STAGE_FOLDER}/{os.path.relpath(path, _STAGE_FILE.parent)}"))
    binds += [("--dev-bind", path, path) for path in DEVICES if os.path.exists(path)]
    words = _bind(binds)
    words += [word for path, target in view.links for word in ("--symlink", target, path)]
    words += [word for path in view.hidden for word in ("--tmpfs", path)]
    words += _bind([("--ro-bind", path, path) for path in view.readable])
    return words + [word for path in view.hidden for word in ("--remount-ro", path)]


def _bind(binds: list[tuple[str, str, str]]) -> list[str]:
    """The binds, after the folders that lead to them: bubblewrap makes those for its own user alone."""
    folders = {str(folder) for _, _, place in binds for folder in Path(place).parents} - {"/"}
    words = [word for folder in sorted(folders) for word in ("--perms", "0755", "--dir", folder)]
    return words + [word for bind in binds for word in bind]
