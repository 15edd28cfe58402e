"""The system calls a confined process may make, as a seccomp-bpf program for the kernel.

An allowlist: what is not named is refused with EPERM (calls newer than the list with ENOSYS, so that the C library
falls back to an older one). Files, memory, threads, signals, pipes and clocks are allowed; absent are sockets, mounts,
namespaces, ptrace, other processes' memory, bpf, keyrings, io_uring, userfaultfd, perf, modules, shared memory and
changes of identity. The format is that of linux/filter.h and linux/seccomp.h.
"""

from __future__ import annotations

import functools
import platform
import struct

from aha.errors import SandboxError

_ALLOWED = """
access/21/- alarm/37/- arch_prctl/158/- brk/12/214 capget/125/90 chdir/80/49 chmod/90/- clock_getres/229/114
clock_gettime/228/113 clock_nanosleep/230/115 close/3/57 close_range/436/436 copy_file_range/326/285 dup/32/23
dup2/33/- dup3/292/24 epoll_create/213/- epoll_create1/291/20 epoll_ctl/233/21 epoll_pwait/281/22 epoll_pwait2/441/441
epoll_wait/232/- eventfd/284/- eventfd2/290/19 execve/59/221 execveat/322/281 exit/60/93 exit_group/231/94
faccessat/269/48 faccessat2/439/439 fadvise64/221/223 fallocate/285/47 fchdir/81/50 fchmod/91/52 fchmodat/268/53
fcntl/72/25 fdatasync/75/83 flock/73/32 fork/57/- fstat/5/80 fstatfs/138/44 fsync/74/82 ftruncate/77/46 futex/202/98
futex_waitv/449/449 futimesat/261/- get_robust_list/274/100 getcpu/309/168 getcwd/79/17 getdents/78/-
getdents64/217/61 getegid/108/177 geteuid/107/175 getgid/104/176 getgroups/115/158 getitimer/36/102 getpeername/52/205
getpgid/121/155 getpgrp/111/- getpid/39/172 getppid/110/173 getpriority/140/141 getrandom/318/278 getresgid/120/150
getresuid/118/148 getrlimit/97/163 getrusage/98/165 getsid/124/156 getsockname/51/204 getsockopt/55/209 gettid/186/178
gettimeofday/96/169 getuid/102/174 kill/62/129 link/86/- linkat/265/37 lseek/8/62 lstat/6/- madvise/28/233
membarrier/324/283 mincore/27/232 mkdir/83/- mkdirat/258/34 mlock/149/228 mmap/9/222 mprotect/10/226 mremap/25/216
msync/26/227 munlock/150/229 munmap/11/215 nanosleep/35/101 newfstatat/262/79 open/2/- openat/257/56 pause/34/-
pidfd_open/434/434 pidfd_send_signal/424/424 pipe/22/- pipe2/293/59 poll/7/- ppoll/271/73 pread64/17/67 preadv/295/69
preadv2/327/286 pselect6/270/72 pwrite64/18/68 pwritev/296/70 pwritev2/328/287 read/0/63 readahead/187/213
readlink/89/- readlinkat/267/78 readv/19/65 recvfrom/45/207 recvmsg/47/212 rename/82/- renameat/264/38
renameat2/316/276 restart_syscall/219/128 rmdir/84/- rseq/334/293 rt_sigaction/13/134 rt_sigpending/127/136
rt_sigprocmask/14/135 rt_sigqueueinfo/129/138 rt_sigreturn/15/139 rt_sigsuspend/130/133 rt_sigtimedwait/128/137
rt_tgsigqueueinfo/297/240 sched_get_priority_max/146/125 sched_get_priority_min/147/126 sched_getaffinity/204/123
sched_getparam/143/121 sched_getscheduler/145/120 sched_rr_get_interval/148/127 sched_setaffinity/203/122
sched_yield/24/124 select/23/- sendfile/40/71 sendmsg/46/211 sendto/44/206 set_robust_list/273/99
set_tid_address/218/96 setitimer/38/103 setpgid/109/154 setrlimit/160/164 setsid/112/157 setsockopt/54/208
shutdown/48/210 sigaltstack/131/132 signalfd/282/- signalfd4/289/74 splice/275/76 stat/4/- statfs/137/43 statx/332/291
symlink/88/- symlinkat/266/36 sync_file_range/277/84 sysinfo/99/179 tee/276/77 tgkill/234/131 time/201/-
timer_create/222/107 timer_delete/226/111 timer_getoverrun/225/109 timer_gettime/224/108 timer_settime/223/110
timerfd_create/283/85 timerfd_gettime/287/87 timerfd_settime/286/86 times/100/153 tkill/200/130 truncate/76/45
umask/95/166 uname/63/160 unlink/87/- unlinkat/263/35 utime/132/- utimensat/280/88 utimes/235/- vfork/58/-
wait4/61/260 waitid/247/95 write/1/64 writev/20/66
"""
"""NAME/number on x86-64/number on arm64 ("-" where the call does not exist), from asm/unistd.h of Linux 6.1."""

_NEWEST_CALL = 449  # futex_waitv: what has a higher number is newer than the list, or of the x32 interface
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS = {  # calls that depend on their arguments
    "x86_64": {"clone": 56, "clone3": 435, "ioctl": 16, "prctl": 157, "prlimit64": 302, "socketpair": 53},
    "aarch64": {"clone": 220, "clone3": 435, "ioctl": 29, "prctl": 167, "prlimit64": 261, "socketpair": 199},
}
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone() knows
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: never TIOCSTI or TIOCLINUX, which type into a terminal.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_SET_VMA
_PRCTLS = (15, 16, 21, 23, 39, 0x53564D41)
_AF_UNIX = 1  # socketpair() is a pipe in both directions, which asyncio needs; socket() is not on the list

_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # in struct seccomp_data


@functools.cache
def seccomp_filter(machine: str = "") -> bytes:
    """The filter, ready for prctl(PR_SET_SECCOMP).

    Args:
        machine: as uname says, "x86_64" or "aarch64"; "" is this one.

    Raises:
        SandboxError: on a processor whose system calls are not in the table.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        raise SandboxError(f"no system call filter for {machine!r} processors; choose from: {', '.join(_AUDIT_ARCH)}")
    column = 1 if machine == "x86_64" else 2
    allowed = [row.split("/")[column] for row in _ALLOWED.split()]
    special = _NUMBERS[machine]
    program = [
        _step(_LOAD, _ARCH_OFFSET),
        _step(_JUMP_EQUAL, _AUDIT_ARCH[machine], if_true=1),
        _step(_RETURN, _KILL),  # a 32-bit call: its numbers mean something else
        _step(_LOAD, _NUMBER_OFFSET),
    ]
    for number in allowed:
        if number != "-":
            program += [_step(_JUMP_EQUAL, int(number), if_false=1), _step(_RETURN, _ALLOW)]
    program += _when(special["clone3"], [_step(_RETURN, _ENOSYS)])  # its flags lie in memory, out of our sight
    program += _when(special["clone"], _unless_any_bit(0, _NEW_NAMESPACES))
    program += _when(special["ioctl"], _only(1, _IOCTLS))
    program += _when(special["prctl"], _only(0, _PRCTLS))
    program += _when(special["prlimit64"], _only(0, (0,)))  # its own limits only, not those of another process
    program += _when(special["socketpair"], _only(0, (_AF_UNIX,)))
    program += [_step(_JUMP_GREATER_EQUAL, _NEWEST_CALL + 1, if_false=1), _step(_RETURN, _ENOSYS)]
    return b"".join([*program, _step(_RETURN, _EPERM)])


def _step(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the jumps say how many instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _when(number: int, block: list[bytes]) -> list[bytes]:
    """The block, which must return on every path, for one system call."""
    return [_step(_JUMP_EQUAL, number, if_false=len(block)), *block]


def _load_argument(index: int) -> bytes:
    return _step(_LOAD, _ARGUMENTS_OFFSET + 8 * index)  # its lower half: both processors are little-endian


def _only(index: int, values: tuple[int, ...]) -> list[bytes]:
    checks = [step for v in values for step in (_step(_JUMP_EQUAL, v, if_false=1), _step(_RETURN, _ALLOW))]
    return [_load_argument(index), *checks, _step(_RETURN, _EPERM)]


def _unless_any_bit(index: int, mask: int) -> list[bytes]:
    return [
        _load_argument(index),
        _step(_JUMP_ANY_BIT, mask, if_true=1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _EPERM),
    ]
