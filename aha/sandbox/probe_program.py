"""Runs inside a new sandbox and tries to leave it. What succeeds is written to the channel: nothing may.

The lines of the file "targets" in its working directory are a file of the host that anyone may read there, and the
number of a process of the host.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable

CHANNEL_FD = 3
NUM_FORKS = 24


def _read(path: str) -> None:
    with open(path, "rb") as stream:
        stream.read(1)


def _write(path: str) -> None:
    with open(path, "wb") as stream:
        stream.write(b"x")


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def _be_somebody() -> None:
    if os.getuid() != 65534 or os.geteuid() != 65534:
        return
    raise PermissionError


def _reach_network() -> None:
    # A datagram to a documentation address: it leaves the machine, if at all, for nowhere.
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))


def _keep_environment() -> None:
    if not os.environ:
        raise PermissionError


def _start_too_many() -> None:
    started = []
    try:
        for _ in range(NUM_FORKS):
            started.append(os.fork())
            if started[-1] == 0:
                signal.pause()
    finally:
        for process_id in started:
            os.kill(process_id, signal.SIGKILL)


def main() -> None:
    with open("targets") as stream:
        host_file, host_process = stream.read().splitlines()
    attempts: dict[str, Callable[[], object]] = {
        f"reads {host_file}": lambda: _read(host_file),
        "reads /etc/passwd": lambda: _read("/etc/passwd"),
        "reads /proc": lambda: os.listdir("/proc/1"),
        "writes to the root": lambda: _write("/x"),
        "writes to /dev": lambda: _write("/dev/x"),
        "writes beside the runtime": lambda: _write(f"{os.path.dirname(os.__file__)}/x"),
        "reaches the network": _reach_network,
        "sees the host's processes": lambda: os.kill(int(host_process), 0),
        "makes a namespace": lambda: _call("unshare", 0x10000000),
        "traces a process": lambda: _call("ptrace", 0, 0, 0, 0),
        "mounts": lambda: _call("mount", b"x", b"/box", b"tmpfs", 0, None),
        "is not nobody": _be_somebody,
        "becomes root": lambda: os.setuid(0),
        "keeps its environment": _keep_environment,
        "starts processes without limit": _start_too_many,
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        os.write(CHANNEL_FD, f"{name}\n".encode())
    os.write(CHANNEL_FD, b"done\n")


if __name__ == "__main__":
    main()
