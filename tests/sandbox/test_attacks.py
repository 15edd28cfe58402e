# ruff: noqa: E501 - the programs are text
"""Attacks that a confined program really makes. What it gains it writes to the channel: nothing may stand there but
"tried", which shows that the attack ran to its end."""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aha.sandbox import Limits, Sandbox, StoppedBy

QUICK = Limits(cpu_seconds=2, wall_seconds=20, memory_bytes=256 * 2**20)

PRELUDE = '''
import ctypes, errno, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def won(*what): os.write(3, (" ".join(map(str, what)) + "\\n").encode())
def tries(name, attempt, *arguments):
    """Whoever gets through without an error has won."""
    try:
        found = attempt(*arguments)
    except (OSError, ValueError, MemoryError):
        return
    won(name, found)
def syscall(number, *arguments):
    found = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)))
    if found == -1:
        raise OSError(ctypes.get_errno(), "")
    return found
def calls(name, *arguments):
    found = getattr(libc, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if found == -1:
        raise OSError(ctypes.get_errno(), "")
    return found
'''

HARMLESS = {
    "fork bomb": """
        for count in range(500):
            try:
                if os.fork() == 0:
                    signal.pause()
            except OSError:
                break
        if count > 8: won("processes", count)
    """,
    "thread bomb": """
        import threading
        threading.stack_size(65536)
        gate = threading.Event()
        for count in range(500):
            try: threading.Thread(target=gate.wait, daemon=True).start()
            except RuntimeError: break
        if count > 8: won("threads", count)
    """,
    "memory bomb": """
        tries("4 GiB", bytearray, 4 << 30)
        tries("map", calls, "mmap", 0, 4 << 30, 3, 0x22, -1, 0)
        held = []
        try:
            while len(held) < 64: held.append(b"x" * (16 << 20))
        except MemoryError: pass
        size = len(held); del held
        if size * 16 > 256: won("MiB", size * 16)
    """,
    "disk fill": """
        written = 0
        for index in range(20):
            try:
                with open(f"f{index}", "wb", buffering=0) as stream:
                    while True: written += stream.write(b"x" * (1 << 20))
            except OSError: pass
        if written > 20 << 20: won("MiB", written >> 20)
    """,
    "empty files without end": """
        count = 0
        try:
            while count < 100_000:
                os.close(os.open(f"e{count}", os.O_CREAT)); count += 1
        except OSError: pass
        if count > 2000: won("files", count)
    """,
    "files of the host": """
        for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/machine-id", "/home", "/var",
                     "/proc/self/environ", "/proc/1/cmdline", "/sys/kernel", "/run", "/usr/bin/env", "/bin/sh", "/boot",
                     os.path.expanduser("~"), PROJECT, CANARY):
            if not sys.base_prefix.startswith(path):
                tries(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read(10))
        for folder in (HOME, "/etc", "/"):  # an interpreter may lie in the home: then its own folders exist inside
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                path = os.path.join(folder, name)
                if not sys.base_prefix.startswith(path) and path not in ALLOWED: won(path)
    """,
    "walk through /proc": """
        for who in ("self", "thread-self", "1", os.getpid(), os.getppid(), HOST_PID):
            for what in ("environ", "mem", "maps", "fd", "root/etc/passwd", "cwd", "cmdline", "task"):
                tries(f"{who}/{what}", os.open, f"/proc/{who}/{what}", os.O_RDONLY)
        tries("mount", calls, "mount", b"proc", b"/box", b"proc", 0, None)
    """,
    "ptrace": """
        for who in (1, os.getppid(), HOST_PID):
            tries("attach", calls, "ptrace", 16, who, 0, 0)
            tries("seize", calls, "ptrace", 0x4206, who, 0, 0)
        tries("traceme", calls, "ptrace", 0, 0, 0, 0)
    """,
    "memory of another process": """
        class Part(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        buffer = ctypes.create_string_buffer(8)
        mine, theirs = Part(ctypes.addressof(buffer), 8), Part(ctypes.addressof(buffer), 8)
        for who in (1, os.getppid(), HOST_PID):
            for name in ("process_vm_readv", "process_vm_writev"):
                tries(name, calls, name, who, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    """,
    "symbolic links out": """
        for index, target in enumerate(("/etc/passwd", "../../etc/passwd", "/proc/self/root/etc/passwd", CANARY)):
            os.symlink(target, f"link{index}")
            tries(target, lambda: open(f"link{index}").read())
    """,
    "hard links out": """
        for index, target in enumerate(("/etc/passwd", os.__file__, sys.executable, CANARY)):
            tries(target, os.link, target, f"hard{index}")
    """,
    "up and out of the root": """
        os.makedirs("deep")
        fd = os.open("/", os.O_RDONLY)
        tries("chroot", os.chroot, "deep")
        os.fchdir(fd)
        for _ in range(50): os.chdir("..")
        tries("passwd", lambda: open("etc/passwd").read())
        tries("handle", syscall, 304, fd, ctypes.create_string_buffer(32), 0)
    """,
    "network": """
        for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM),
                             (socket.AF_INET6, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_STREAM),
                             (socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_NETLINK, socket.SOCK_RAW),
                             (socket.AF_INET, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW), (40, 1), (38, 5)):
            tries((family, kind), socket.socket, family, kind)
        tries("tcp", socket.create_connection, ("127.0.0.1", TCP_PORT), 2)
        tries("name", socket.getaddrinfo, "localhost", 80)
        def unix(address):
            left, right = socket.socketpair()
            left.connect(address)
        tries("abstract", unix, "\\0" + ABSTRACT)
        tries("datagram", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", "\\0" + ABSTRACT))
        tries("pair", lambda: socket.socketpair(socket.AF_INET))
    """,
    "signals to the outside": """
        for who in (HOST_PID, -HOST_PID):
            for number in (0, signal.SIGTERM, signal.SIGKILL): tries((who, number), os.kill, who, number)
        tries("pidfd", os.pidfd_open, HOST_PID)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try: os.kill(-1, signal.SIGTERM)
        except OSError: pass
    """,
    "signals to process 1": """
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):
            try: os.kill(1, number)
            except OSError: pass
        time.sleep(0.05)
    """,
    "limits of process 1": """
        class Limit(ctypes.Structure): _fields_ = [("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong)]
        for kind in (0, 7, 9): tries(kind, calls, "prlimit", 1, kind, ctypes.byref(Limit(0, 0)), None)
    """,
    "another identity": """
        for name in ("setuid", "seteuid", "setgid", "setegid"): tries(name, getattr(os, name), 0)
        tries("setresuid", os.setresuid, 0, 0, 0)
        tries("setreuid", os.setreuid, 1000, 1000)
        tries("setgroups", os.setgroups, [0])
        if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) != (65534,) * 4: won("identity", os.getuid())
        if set(os.getgroups()) - {65534}: won("groups", os.getgroups())
    """,
    "set-user-id file": """
        import shutil
        shutil.copy(sys.executable, "suid")
        try: os.chmod("suid", 0o6755)
        except OSError: pass
        tries("xattr", os.setxattr, "suid", "security.capability", b"x" * 20)
        child = os.fork()
        if child == 0: os.execv("suid", ["suid", "-S", "-c", "import os; os._exit(os.geteuid() == 0)"])
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1: won("root")
    """,
    "mounts": """
        tries("tmpfs", calls, "mount", b"tmpfs", b"/box", b"tmpfs", 0, None)
        tries("bind", calls, "mount", b"/", b"/box", None, 4096, None)
        tries("remount", calls, "mount", None, b"/", None, 32, None)
        tries("umount", calls, "umount2", b"/box", 2)
        tries("pivot_root", syscall, 155, b".", b".")
        for number in (428, 429, 430, 431, 432, 433, 442): tries(number, syscall, number, -100, b"/", 0, 0, 0)
    """,
    "namespaces": """
        for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x04000000, 0x08000000, 0x02000000, 0x80):
            tries(hex(flag), calls, "unshare", flag)
            child = -1
            try: child = syscall(56, flag | 17, 0, 0, 0, 0)
            except OSError: pass
            if child == 0: os._exit(0)
            if child > 0 and flag != 0x80: won("clone", hex(flag))
        tries("clone3", syscall, 435, ctypes.create_string_buffer(88), 88)
        tries("setns", calls, "setns", 0, 0)
    """,
    "dangerous system calls": """
        for name, number in dict(
            bpf=321, keyctl=250, add_key=248, request_key=249, io_uring_setup=425, io_uring_enter=426, userfaultfd=323,
            perf_event_open=298, init_module=175, finit_module=313, delete_module=176, kexec_load=246, reboot=169,
            swapon=167, sethostname=170, settimeofday=164, clock_settime=227, adjtimex=159, iopl=172, ioperm=173,
            personality=135, modify_ldt=154, memfd_create=319, memfd_secret=447, shmget=29, msgget=68, semget=64,
            mq_open=240, open_by_handle_at=304, name_to_handle_at=303, fanotify_init=300, inotify_init=253, acct=163,
            quotactl=179, syslog=103, vhangup=153, lookup_dcookie=212, kcmp=312, process_madvise=440, pidfd_getfd=438,
            landlock_create_ruleset=444, seccomp=317, move_pages=279, migrate_pages=256, mbind=237, vmsplice=278,
            io_setup=206, setpriority=141, sched_setscheduler=144, ioprio_set=251, nfsservctl=180, uselib=134,
        ).items():
            tries(name, syscall, number, 0, 0, 0, 0, 0)
        tries("x32", syscall, 0x40000000 + 39)
    """,
    "undoing the confinement": """
        for option in (22, 38, 4, 8, 24, 26, 28, 1, 36, 47, 35, 59):
            tries(("prctl", option), calls, "prctl", option, 0, 0, 0, 0)
        tries("capset", calls, "capset", ctypes.create_string_buffer(b"\\x22\\x05\\x08\\x20" + bytes(4)), b"\\xff" * 24)
        if calls("prctl", 39, 0, 0, 0, 0) != 1: won("new privileges")
        for capability in range(41):
            if libc.prctl(23, capability, 0, 0, 0) == 1: won("capability", capability)
    """,
    "higher limits": """
        import resource
        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE,
                     resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
            tries(kind, resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    """,
    "core dump": """
        child = os.fork()
        if child == 0: os.abort()
        if os.WCOREDUMP(os.waitpid(child, 0)[1]): won("core")
        if any(name.startswith("core") for name in os.listdir(".")): won("core file")
    """,
    "writing outside": """
        for folder in ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/usr/lib", "/lib", os.path.dirname(os.__file__),
                       os.path.dirname(sys.executable), "/stage", "/proc", "/etc"):
            tries(folder, lambda: open(os.path.join(folder, "x"), "w").write("x"))
            tries(("remove", folder), os.rename, folder, folder + "2")
        tries("runtime", lambda: open(os.__file__, "r+b").write(b"x"))
        tries("interpreter", lambda: open(sys.executable, "r+b").write(b"x"))
        tries("times", os.utime, os.__file__)
        tries("mode", os.chmod, os.__file__, 0o777)
    """,
    "devices": """
        for name in ("mem", "kmsg", "sda", "vda", "tty", "ptmx", "pts/0", "fuse", "kvm", "net/tun", "shm", "fd", "core"):
            tries(name, os.open, f"/dev/{name}", os.O_RDWR)
        tries("mknod", os.mknod, "disk", 0o60666, os.makedev(8, 0))
        tries("character", os.mknod, "mem", 0o20666, os.makedev(1, 1))
        tries("socket", os.mknod, "sock", 0o140666)
        tries("pty", os.openpty)
    """,
    "typing into a terminal": """
        import fcntl
        for fd in (0, 1, 2, os.open("/dev/null", os.O_RDWR)):
            for request in (0x5412, 0x541C, 0x540E, 0x5607): tries((fd, request), fcntl.ioctl, fd, request, b"x" * 8)
        tries("tty", os.ttyname, 0)
        tries("tcsetpgrp", os.tcsetpgrp, 0, os.getpid())
    """,
    "descriptors left open": """
        for fd in range(4, 4096):
            try: os.fstat(fd)
            except OSError: continue
            won("descriptor", fd)
    """,
    "environment": """
        if os.environ: won(dict(os.environ))
        pointer = ctypes.c_void_p.in_dll(libc, "environ").value
        if pointer and ctypes.c_void_p.from_address(pointer).value: won("environ")
        if sys.argv != ["/box/program.py"]: won(sys.argv)
    """,
    "a new program is confined too": """
        child = os.fork()
        if child == 0:
            os.execv(sys.executable, [sys.executable, "-S", "-c", '''
import os, socket
for attempt in (lambda: open("/etc/passwd"), socket.socket, lambda: os.setuid(0), lambda: open("/x", "w")):
    try: attempt()
    except OSError: continue
    os._exit(9)
'''])
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0: won("unconfined child")
    """,
    "signals through descriptors": """
        import fcntl
        for fd in (0, 1, 2, 3):
            for who in (HOST_PID, -HOST_PID): tries(("owner", fd, who), fcntl.fcntl, fd, fcntl.F_SETOWN, who)
            fcntl.fcntl(fd, fcntl.F_SETOWN, 1)
            fcntl.fcntl(fd, 10, signal.SIGKILL)  # F_SETSIG
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        time.sleep(0.05)
    """,
    "the wrong end of a pipe": """
        for fd in (1, 2, 3): tries(("read", fd), os.read, fd, 1)
        tries("write", os.write, 0, b"x")
    """,
    "programs started by descriptor or loader": """
        import glob
        code = b"import socket, os\\ntry: socket.socket()\\nexcept OSError: os._exit(0)\\nos._exit(9)"
        words = [b"python", b"-S", b"-c", code]
        fd = os.open(sys.executable, os.O_RDONLY)
        loaders = glob.glob("/lib64/ld-linux*") or glob.glob("/lib/ld-linux*")
        for start in (lambda: libc.execveat(fd, b"", (ctypes.c_char_p * 5)(*words, None), None, 0x1000),
                      lambda: os.execv(loaders[0], [loaders[0], sys.executable, *words[1:]])):
            child = os.fork()
            if child == 0:
                start(); os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9: won("unconfined")
    """,
    "frames and objects of the first program": """
        import gc
        texts = [repr(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple)) and len(o) < 50]
        frame = sys._getframe()
        while frame:
            texts.append(repr(frame.f_locals)); frame = frame.f_back
        if any(TERCES in text[::-1] for text in texts): won("secret of the parent")
    """,
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Iterator[dict[str, object]]:
    """Targets outside: a file that anyone may read, a process, listening sockets. All must be unharmed at the end."""
    canary = tmp_path / "canary"
    canary.write_text("canary")
    canary.chmod(0o644)
    tmp_path.chmod(0o755)
    abstract = f"aha-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind("\0" + abstract)
        for listener in (tcp, unix):
            listener.setblocking(False)
        yield {
            "CANARY": str(canary),
            "HOST_PID": os.getpid(),
            "PROJECT": str(Path(__file__).parents[2]),
            "HOME": str(Path.home()),
            "ALLOWED": ["/etc/ld.so.cache", "/usr", "/lib", "/lib64", "/dev", "/box", "/etc", "/stage", "/nix"],
            "TCP_PORT": tcp.getsockname()[1],
            "ABSTRACT": abstract,
            "SECRET": "only the parent knows",
        }
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            unix.recv(10)
    assert canary.read_text() == "canary"


def dedent(attack: str) -> str:
    return "\n".join(line.removeprefix("        ") for line in attack.splitlines())


@pytest.mark.parametrize("name", HARMLESS)
def test_attack_gains_nothing(name: str, sandbox: Sandbox, host: dict[str, object]) -> None:
    if platform.machine() != "x86_64" and any(word in name for word in ("calls", "namespaces", "mounts", "root")):
        pytest.skip("the attack's system call numbers are those of x86-64")
    targets = "\n".join(f"{key} = {value!r}" for key, value in host.items() if key != "SECRET")
    terces = str(host["SECRET"])[::-1]
    program = f"{PRELUDE}\n{targets}\nTERCES = {terces!r}\n{dedent(HARMLESS[name])}\nos.write(3, b'tried')\n"
    result = sandbox.run_python(program, limits=QUICK)
    assert result.channel == b"tried", (result.channel, result.stderr[-500:])
    assert result.wall_ms < 15_000


def test_sleeping_program_is_stopped_at_its_deadline(sandbox: Sandbox) -> None:
    result = sandbox.run_python("import time; time.sleep(1000)", limits=Limits(wall_seconds=0.3))
    assert result.stopped_by is StoppedBy.WALL_TIME
    assert result.exit_code is None
    assert 300 <= result.wall_ms < 3_000


@pytest.mark.parametrize(
    "prelude",
    [
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n", marks=pytest.mark.slow),
    ],
    ids=["plain", "that does not listen"],
)
def test_busy_loop_is_stopped_by_processor_time(prelude: str, sandbox: Sandbox) -> None:
    result = sandbox.run_python(f"{prelude}while True: pass", limits=Limits(cpu_seconds=1, wall_seconds=60))
    assert result.stopped_by is StoppedBy.CPU_TIME
    assert not result.is_ok


@pytest.mark.parametrize(
    "program",
    [
        "while True: print('spam' * 1000)",
        "import os\nwhile True: os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)",
        "import os\nwhile True: os.write(3, b'x' * 65536)",
        "print('x' * 200_000_000)",
    ],
    ids=["lines", "both pipes without a line break", "channel", "at once"],
)
def test_output_is_read_up_to_its_limit_and_the_program_ended(program: str, sandbox: Sandbox) -> None:
    result = sandbox.run_python(program, limits=Limits(wall_seconds=20))
    assert result.stopped_by is StoppedBy.OUTPUT
    assert max(len(result.stdout), len(result.stderr), len(result.channel)) == 64 * 1024
    assert result.wall_ms < 10_000


DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", "MARKER"])
    os._exit(0)
"""


def processes_with(marker: str) -> list[str]:
    """Numbers of the host's processes that have the marker among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def wait_until_gone(marker: str) -> None:
    until = time.monotonic() + 5
    while processes_with(marker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not processes_with(marker)


def test_daemon_that_holds_the_pipes_dies_with_the_program(sandbox: Sandbox) -> None:
    result = sandbox.run_python(DAEMON.replace("MARKER", "aha-daemon-1"), limits=Limits(wall_seconds=60))
    assert result.is_ok
    assert result.wall_ms < 20_000
    wait_until_gone("aha-daemon-1")


def test_daemon_dies_at_the_deadline_too(sandbox: Sandbox) -> None:
    program = DAEMON.replace("MARKER", "aha-daemon-2") + "\nimport time; time.sleep(600)"
    result = sandbox.run_python(program, limits=Limits(wall_seconds=0.5))
    assert result.stopped_by is StoppedBy.WALL_TIME
    wait_until_gone("aha-daemon-2")


def test_report_of_process_1_cannot_be_forged(sandbox: Sandbox) -> None:
    program = """
import os
for fd in range(4096):
    try: os.write(fd, b"\\nconfined\\nexit 0 0 0\\n")
    except OSError: pass
os._exit(7)
"""
    result = sandbox.run_python(program)
    assert result.exit_code == 7
    assert not result.is_ok


@pytest.mark.parametrize(
    ("program", "exit_code"),
    [
        ("import os; os._exit(0)", 0),
        ("import sys; sys.exit(3)", 3),
        ("import atexit, os; atexit.register(os._exit, 5)", 5),
        ("import os; os.closerange(0, 4096)", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None),
        ("raise SystemExit(2)", 2),
        ("class E(Exception):\n  def __str__(self): 1/0\n  __repr__ = __str__\nraise E", 1),
        ("import ctypes; ctypes.string_at(0)", None),
        ("def broken(:", 1),
        ("\0", 1),
    ],
)
def test_program_ends_as_it_ends(program: str, exit_code: int | None, sandbox: Sandbox) -> None:
    result = sandbox.run_python(program, limits=QUICK)
    assert result.exit_code == exit_code
    assert result.stopped_by is StoppedBy.NOTHING


def test_recursion_without_end_hurts_nobody_else(sandbox: Sandbox) -> None:
    program = "import sys; sys.setrecursionlimit(10**9)\nf = lambda x: repr(f(x))\nf(1)"
    assert not sandbox.run_python(program, limits=Limits(cpu_seconds=2, memory_bytes=64 * 2**20)).is_ok


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit calls of x86-64")
def test_system_call_of_another_architecture_kills(sandbox: Sandbox) -> None:
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 20; int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    assert sandbox.run_python(program).signal == signal.SIGSYS


def test_big_input_that_nobody_reads_stops_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run_python("pass", stdin=b"x" * 5_000_000).is_ok
    result = sandbox.run_python("import sys; print(len(sys.stdin.read()))", stdin=b"x" * 5_000_000)
    assert result.stdout == b"5000000\n"


def test_runs_at_the_same_time_do_not_see_each_other(sandbox: Sandbox) -> None:
    program = """
import os, time
own = input()
open(own, "w").write(own)
time.sleep(0.2)
others = []
for pid in range(2, 200):
    try: os.kill(pid, 0)
    except ProcessLookupError: continue
    others.append(pid)
print(os.listdir("."), [pid for pid in others if pid != os.getpid()])
"""
    found: dict[str, bytes] = {}

    def run(name: str) -> None:
        found[name] = sandbox.run_python(program, stdin=name.encode()).stdout

    threads = [threading.Thread(target=run, args=(f"file{index}",)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, stdout in found.items():
        assert set(stdout.decode().split("] [")[0].strip("[]'\n").split("', '")) == {name, "program.py"}
        assert stdout.endswith(b"[]\n")
    assert len(found) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_nothing_is_left_behind(sandbox: Sandbox) -> None:
    def state() -> tuple[int, int, str]:
        children = [p for p in Path("/proc").glob("[0-9]*/stat") if stat_parent(p) == os.getpid()]
        return len(os.listdir("/proc/self/fd")), len(children), Path("/proc/self/mounts").read_text()

    sandbox.run_python("pass")
    before = state()
    programs = ["pass", "1/0", "import time; time.sleep(9)", "while True: print('x' * 9999)", DAEMON]
    threads = [
        threading.Thread(target=sandbox.run_python, args=(program,), kwargs={"limits": Limits(wall_seconds=0.4)})
        for program in programs * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state() == before


def stat_parent(path: Path) -> int:
    try:
        return int(path.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
