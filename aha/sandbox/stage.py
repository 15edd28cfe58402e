"""The first program of every confined process: it gives up what the process must not have, then runs what is asked.

It is started by the backend as a script of its own, imports nothing of ours, and goes through these steps:

    native backend:      new namespaces → a new root of the allowed files → process 1 of the new process namespace
    bubblewrap backend:  bubblewrap has done that already; this is process 1
    both:                a child: nobody's identity → no new privileges → Landlock → no capabilities → system call
                         filter → resource limits → "confined" is reported → the program

Process 1 waits for the program and reports how it ended. When process 1 ends, the kernel kills all that is left.
What it is given lies in pipes, so that no argument list, environment or file holds it.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # without enum, whose import takes as long as the rest
import ctypes
import os
import resource
import stat
import struct
import sys
import types
from _frozen_importlib_external import SourceFileLoader

TYPE_CHECKING = False  # nor is typing imported
if TYPE_CHECKING:
    from typing import NoReturn

CHANNEL_FD = 3
"""File descriptor of the channel in the program."""
WORK_FOLDER = "/box"
PROGRAM_FILE = "program.py"
NOBODY = 65534
MAX_FILES = 1024
"""Files and folders that the working directory can hold."""

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_CLONE_OTHERS = 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # cgroup, uts, ipc, pid, net
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SYS_PIVOT_ROOT = 41 if os.uname().machine == "aarch64" else 155
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)

Job = dict[str, bytes]
"""Field → content: limits, filter, view, argv, and one "file NAME" for each file of the working directory."""


class StageError(Exception):
    """A step of the confinement failed: the program is not started."""


def call(name: str, *arguments: object) -> int:
    """A function of the C library, or StageError with its reason."""
    found = getattr(_libc, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if found == -1:
        number = ctypes.get_errno()
        what = f"{name}({arguments[0]})" if name == "syscall" else name
        raise StageError(f"{what}: {os.strerror(number)}")
    return int(found)


def read_job(fd: int) -> Job:
    """Fields written as a line "LENGTH NAME" followed by so many bytes, to the end of the pipe."""
    with os.fdopen(fd, "rb") as pipe:
        content = pipe.read()
    job: Job = {}
    start = 0
    while start < len(content):
        end = content.index(b"\n", start)
        length, _, name = content[start:end].decode().partition(" ")
        start = end + 1 + int(length)
        job[name] = content[end + 1 : start]
    return job


def can_become_nobody() -> bool:
    """Whether this is root, of the machine or of a user namespace that has more users than root."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= NOBODY < first + count for first, _, count in ranges)


def enter_namespaces() -> None:
    """New namespaces of every kind but time: by root's rights where they suffice, else by a user namespace."""
    if can_become_nobody():
        if _libc.unshare(_CLONE_NEWNS | _CLONE_OTHERS) == 0:
            return
        # Root of a container without CAP_SYS_ADMIN: process limits never bind root, so its identity goes first.
        become_nobody()
        call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_OTHERS)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as stream:
            stream.write(text)


def build_root(view: list[str], *, disk_bytes: int) -> None:
    """Make a file system of the allowed paths alone, and make it the root."""
    root = "/tmp"
    call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    # Opened before the new root covers /tmp, where a source may lie.
    rows = [(kind, path, target) for kind, path, target in (line.split("\t") for line in view)]
    sources = {}
    for kind, path, _ in rows:
        if kind in ("bind", "device"):
            sources[path] = os.open(path, os.O_PATH)
    _mount_tmpfs(root, "mode=755,size=1m")
    for kind, path, target in rows:
        is_folder = kind == "hide" or (path in sources and stat.S_ISDIR(os.fstat(sources[path]).st_mode))
        _make_place(root + path, is_folder=is_folder, link=target)
        if kind == "bind":
            call("mount", f"/proc/self/fd/{sources[path]}".encode(), (root + path).encode(), None, 20480, None)
        elif kind == "hide":
            _mount_tmpfs(root + path, "mode=755,size=64k")
    os.makedirs(root + WORK_FOLDER)
    read_only = struct.pack("=QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, root.encode(), _AT_RECURSIVE, read_only, len(read_only))
    for kind, path, _ in rows:
        if kind == "device":
            call("mount", f"/proc/self/fd/{sources[path]}".encode(), (root + path).encode(), None, _MS_BIND, None)
    mount_work_folder(root, disk_bytes=disk_bytes)
    for fd in sources.values():
        os.close(fd)
    os.chdir(root)
    call("syscall", _SYS_PIVOT_ROOT, b".", b".")
    call("umount2", b".", _MNT_DETACH)


def mount_work_folder(root: str, *, disk_bytes: int) -> None:
    """An empty folder in memory; the number of files has a limit too, since empty ones take the kernel's memory."""
    _mount_tmpfs(root + WORK_FOLDER, f"mode=1777,size={disk_bytes},nr_inodes={MAX_FILES}")


def _mount_tmpfs(path: str, options: str) -> None:
    call("mount", b"tmpfs", path.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, options.encode())


def _make_place(path: str, *, is_folder: bool, link: str) -> None:
    """What a mount is put on, or a symbolic link."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if link:
        os.symlink(link, path)
    elif is_folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def become_nobody() -> None:
    """Give up root's identity for good: the limit on processes never binds root."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def lock(job: Job) -> int:
    """Everything that cannot be undone, in the order in which each step still is allowed.

    Returns:
        How many processes of ours count against the program's limit: process 1, the native backend's parent of it.
    """
    num_ours = 2 if job["backend"] == b"native" else 1
    if os.getuid() == 0:  # only then: a user namespace of ours has made us nobody already
        become_nobody()
        # A user namespace of its own counts its processes apart from those of other runs. Without one (they may be
        # forbidden) all runs share nobody's count, which still holds.
        _libc.unshare(_CLONE_NEWUSER)
        num_ours = 0
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    restrict_files(is_required=job["backend"] == b"native")
    drop_capabilities()
    code = ctypes.create_string_buffer(job["filter"], len(job["filter"]))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(job["filter"]) // 8, ctypes.addressof(code)))
    call("prctl", _PR_SET_SECCOMP, 2, program, 0, 0)
    return num_ours


def restrict_files(*, is_required: bool) -> None:
    """Landlock: read and run what is visible, write only below the working directory, no TCP, no signals out.

    Source: the kernel's Documentation/userspace-api/landlock.rst; rights are numbered as in linux/landlock.h.
    """
    version = _libc.syscall(_SYS_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        if is_required:
            raise StageError(f"Landlock: {os.strerror(ctypes.get_errno())} (Linux 5.13 or newer with lsm=landlock)")
        return
    num_rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    every_right = (1 << num_rights) - 1
    on_files = 0b110 | (every_right & 1 << 14)  # write, read, truncate
    rules = struct.pack("=QQQ", every_right, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call("syscall", _SYS_LANDLOCK_CREATE, rules, size, 0)
    devices = 1 << 6 | 1 << 9 | 1 << 11  # making character devices, sockets, block devices
    rights = {"/": 0b1101, WORK_FOLDER: every_right & ~devices}  # "/": run, read files, read folders
    rights |= {f"/dev/{name}": on_files for name in os.listdir("/dev")}
    for path, right in rights.items():
        fd = os.open(path, os.O_PATH)
        call("syscall", _SYS_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", right, fd), 0)
        os.close(fd)
    call("syscall", _SYS_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """No capability now, and none to be had by running a program."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused where it is not held: nothing to drop
    call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def limit_resources(job: Job, *, num_ours: int) -> None:
    """The limits of setrlimit, soft and hard; the processor time's soft limit is a second earlier, so that it shows."""
    cpu, memory, processes, disk, files = map(int, job["limits"].split())
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_NPROC: (processes + num_ours, processes + num_ours),
        resource.RLIMIT_FSIZE: (disk, disk),
        resource.RLIMIT_NOFILE: (files, files),
        resource.RLIMIT_CORE: (0, 0),
    }
    if job["backend"] == b"unconfined":  # there the user's other processes would count too
        del limits[resource.RLIMIT_NPROC]
    for kind, pair in limits.items():
        resource.setrlimit(kind, pair)


def start_program(job: Job, *, status_fd: int, channel_fd: int) -> None:
    """Confine this process, say so, and become the program.

    A Python text runs in this interpreter, which holds nothing else by then.
    """
    is_confined = job["backend"] != b"unconfined"
    try:
        os.chdir(WORK_FOLDER if is_confined else job["folder"].decode())
        if is_confined:
            os.setsid()
        num_ours = lock(job) if is_confined else 0
        os.umask(0o022)
        write_files(job)
        limit_resources(job, num_ours=num_ours)
    except (StageError, OSError, ValueError) as error:
        fail(error, status_fd=status_fd)
    os.write(status_fd, b"confined\n")
    if channel_fd != CHANNEL_FD:
        os.dup2(channel_fd, CHANNEL_FD)
    os.closerange(CHANNEL_FD + 1, 65_536)
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    argv = os.fsdecode(job["argv"]).split("\0")
    if argv != [""]:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and a program would inherit that
            signal.signal(number, signal.SIG_DFL)
        os.execve(argv[0], argv, {})
    path = os.path.join(os.getcwd(), PROGRAM_FILE)
    sys.argv = [path]
    sys.path.insert(0, os.getcwd())
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = path
    SourceFileLoader("__main__", path).exec_module(module)


def fail(error: Exception, *, status_fd: int) -> NoReturn:
    """Report which step failed, and why; nothing has been run."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    step = trace.tb_frame.f_code.co_name if trace and isinstance(error, OSError) else "confinement"
    os.write(status_fd, f"error {step}: {' '.join(str(error).split())}\n".encode())
    os._exit(1)


def write_files(job: Job) -> None:
    for name, content in job.items():
        if name.startswith("file "):
            with open(name.removeprefix("file "), "wb") as stream:
                stream.write(content)


def wait_for(program_id: int) -> str:
    """Reap everything that ends, until the program does: "exit CODE SIGNAL CPU_MICROSECONDS"."""
    while True:
        ended_id, status, usage = os.wait4(-1, 0)
        if ended_id == program_id:
            code = os.waitstatus_to_exitcode(status)
            cpu = int((usage.ru_utime + usage.ru_stime) * 1e6)
            return f"exit {max(code, 0)} {max(-code, 0)} {cpu}\n"


def main() -> None:
    job_fd, status_fd, channel_fd = map(int, sys.argv[1:4])
    job = read_job(job_fd)
    disk_bytes = int(job["limits"].split()[3])
    try:
        if job["backend"] == b"native":
            enter_namespaces()
            call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            build_root(job["view"].decode().splitlines(), disk_bytes=disk_bytes)
            init_id = os.fork()
            if init_id:  # outside: stay until all inside is gone, so that there is one process to wait for
                os.write(status_fd, f"init {init_id}\n".encode())
                os.waitpid(init_id, 0)
                os._exit(0)
        elif job["backend"] == b"bubblewrap":
            mount_work_folder("", disk_bytes=disk_bytes)
        # Process 1 keeps the identity of its parent, whose end must be able to signal it; the program's is another.
        call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (StageError, OSError) as error:
        fail(error, status_fd=status_fd)
    # The kernel shields process 1 from every signal that it does not handle, and Python would handle this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program_id = os.fork()
    if program_id == 0:
        start_program(job, status_fd=status_fd, channel_fd=channel_fd)
        return  # as a script ends: buffers flushed, atexit run, threads joined
    for fd in (0, 1, 2, channel_fd):
        os.close(fd)
    if job["backend"] != b"unconfined":
        drop_capabilities()
    os.write(status_fd, wait_for(program_id).encode())
    os._exit(0)
