"""The only files a confined process can see: the Python runtime and the C libraries it is linked with."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class FileView:
    """An allowlist of paths; everything else does not exist inside."""

    folders: tuple[str, ...]
    """Bound read-only at the same path; files too."""
    links: tuple[tuple[str, str], ...]
    """Symbolic links of the host to repeat: (path, target)."""
    hidden: tuple[str, ...]
    """Folders inside `folders` that are shown empty."""
    readable: tuple[str, ...]
    """Bound read-only like `folders`, after the hiding: one package of many can be shown."""


@functools.cache
def python_executable() -> str:
    """The interpreter behind a virtual environment: that one needs nothing but its own standard library."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def python_view(*, readable: tuple[str, ...] = ()) -> FileView:
    """The allowlist for running Python, without the packages installed beside it.

    Args:
        readable: more folders or files to show, e.g. of a package that the program imports.
    """
    prefix = os.path.realpath(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Not /etc as a whole, only the index of shared libraries: distributions that put Python in /usr/local need it.
    wanted = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache"]
    wanted = list(dict.fromkeys([*wanted, f"{prefix}/lib", f"{prefix}/lib64", python_executable()]))
    folders = [path for path in wanted if os.path.exists(path) and not os.path.islink(path)]
    packages = {
        f"{root}/{python}/{kind}"
        for root in (f"{prefix}/lib", f"{prefix}/lib64", "/usr/lib")
        for python in (version, "python3")
        for kind in ("site-packages", "dist-packages")
    }
    return FileView(
        folders=tuple(path for path in folders if not _is_inside_another(path, folders)),
        links=tuple((path, os.readlink(path)) for path in wanted if os.path.islink(path)),
        hidden=tuple(sorted(path for path in packages if os.path.isdir(path) and path == os.path.realpath(path))),
        readable=tuple(map(os.path.realpath, readable)),
    )


def _is_inside_another(path: str, folders: list[str]) -> bool:
    return any(path != other and Path(path).is_relative_to(other) for other in folders)
