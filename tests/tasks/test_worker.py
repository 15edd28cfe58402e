"""The pool of worker processes: limits that hold, outcomes that tell what happened, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aha.tasks import worker
from aha.tasks.worker import JOBS, Job, Pool, ask
from aha.types import Outcome

MISBEHAVIOUR = """
import os, sys, time
from aha.tasks.verifiers import UnreadableError

def answer(question):
    do = question["do"]
    if do == "echo": return question["text"]
    if do == "length": return len(question["text"])
    if do == "environment": return dict(os.environ)
    if do == "spin":
        while True: pass
    if do == "swallow":
        try:
            while True: pass
        except BaseException: return "a verdict"
    if do == "power": return len(str(9 ** 9 ** 9))
    if do == "sleep": time.sleep(60)
    if do == "memory": return len("x" * (1 << 33))
    if do == "flood": return "x" * 10_000_000
    if do == "print": print("[\\"scored\\", 1, \\"\\", false]"); return 7
    if do == "write": open(question["path"], "w").write("x")
    if do == "raise": raise KeyError("a fault of the job")
    if do == "unreadable": raise UnreadableError("no number")
    if do == "exit": os._exit(3)
    if do == "read": return sys.stdin.read()
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    (tmp_path / "misbehaviour.py").write_text(MISBEHAVIOUR)
    environment = worker._environment()
    environment["PYTHONPATH"] += f":{tmp_path}"
    monkeypatch.setattr(worker, "_environment", lambda: environment)
    job = Job(module="misbehaviour", cpu_seconds=0.3, wall_seconds=1.0, memory_bytes=1 << 30)
    pool = Pool(job, num_workers=2)
    yield pool
    pool.close()


def outcome(pool: Pool, do: str, **more: Any) -> Outcome:
    return pool.ask({"do": do, **more}).outcome


@pytest.mark.parametrize("text", ["", "ünïcödé 答え", "\0\r\n", "\ud800 half", '"}\n{', "x" * 1_000_000])
def test_text_of_any_kind_survives_the_way_there_and_back(pool: Pool, text: str) -> None:
    if len(text) < 1000:
        assert pool.ask({"do": "echo", "text": text}).value == text
    assert pool.ask({"do": "length", "text": text}).value == len(text)


@pytest.mark.parametrize("do", ["spin", "swallow", "power", "sleep", "flood"])
def test_job_that_exceeds_a_limit_times_out_and_the_next_question_is_answered(pool: Pool, do: str) -> None:
    assert outcome(pool, "echo", text="warm") is Outcome.SCORED
    started = time.monotonic()
    reply = pool.ask({"do": do})
    assert reply.outcome is Outcome.TIMEOUT
    assert "took more than" in reply.note or "answered with more than" in reply.note
    assert time.monotonic() - started < 15
    assert pool.ask({"do": "echo", "text": "next"}).value == "next"


def test_fault_of_the_job_is_an_error_and_a_text_without_an_answer_a_parse_failure(pool: Pool) -> None:
    assert pool.ask({"do": "raise"})[::2] == (Outcome.ERROR, "KeyError: 'a fault of the job'")
    assert pool.ask({"do": "unreadable"})[::2] == (Outcome.PARSE_FAILURE, "no number")
    assert pool.ask({"do": "exit"})[::2] == (Outcome.ERROR, "the checking process died (exit status 3)")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space of a process")
def test_job_that_takes_too_much_memory_is_an_error(pool: Pool) -> None:
    assert pool.ask({"do": "memory"})[::2] == (Outcome.ERROR, "ran out of memory")
    assert pool.ask({"do": "echo", "text": "next"}).value == "next"


def test_job_can_neither_speak_for_the_protocol_nor_read_it_nor_write_files(pool: Pool, tmp_path: Path) -> None:
    assert pool.ask({"do": "print"}).value == 7
    assert pool.ask({"do": "read"}).value == ""
    path = tmp_path / "written"
    pool.ask({"do": "write", "path": str(path)})
    assert not path.exists() or path.stat().st_size == 0


def test_worker_sees_none_of_our_secrets(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "secret" not in str(worker._environment())
    assert "HF_TOKEN" not in pool.ask({"do": "environment"}).value


def test_pool_goes_on_when_its_process_was_killed_from_outside(pool: Pool) -> None:
    assert outcome(pool, "echo", text="warm") is Outcome.SCORED
    (process_id,) = pool.process_ids
    os.kill(process_id, signal.SIGKILL)
    assert pool.ask({"do": "echo", "text": "next"}).value == "next"
    assert pool.process_ids != [process_id]


@pytest.mark.slow
def test_stopped_process_is_killed_in_the_end(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.2)
    assert outcome(pool, "echo", text="warm") is Outcome.SCORED
    os.kill(pool.process_ids[0], signal.SIGSTOP)
    reply = pool.ask({"do": "length", "text": "x" * 1_000_000})  # more than a pipe holds
    assert reply[::2] == (Outcome.TIMEOUT, "gave no answer for 1.2 s")
    assert pool.process_ids == []


def test_threads_get_their_own_answers_while_processes_are_being_killed(pool: Pool) -> None:
    stop = threading.Event()

    def kill_now_and_then() -> None:
        while not stop.wait(0.15):
            for process_id in pool.process_ids[:1]:
                os.kill(process_id, signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            texts = [f"text {number}" for number in range(300)]
            replies = list(threads.map(lambda text: pool.ask({"do": "echo", "text": text}), texts))
    finally:
        stop.set()
        killer.join()
    assert all(
        reply.value == text if reply.outcome is Outcome.SCORED else reply.outcome is Outcome.ERROR
        for text, reply in zip(texts, replies, strict=True)
    )
    assert sum(reply.outcome is Outcome.SCORED for reply in replies) > 200


def test_closing_leaves_no_process(pool: Pool) -> None:
    assert outcome(pool, "echo", text="warm") is Outcome.SCORED
    (process_id,) = pool.process_ids
    pool.close()
    assert not Path(f"/proc/{process_id}").exists()


def test_job_that_cannot_be_imported_says_why() -> None:
    pool = Pool(Job(module="aha.tasks.jobs.nothing", cpu_seconds=1, wall_seconds=2, memory_bytes=1 << 30))
    assert pool.ask({}).outcome is Outcome.ERROR
    assert "No module named" in pool.ask({}).note
    pool.close()


def test_fork_gets_processes_of_its_own_and_leaves_ours_alone() -> None:
    program = (
        "import os, sys\n"
        "from aha.tasks.worker import ask, _pool_of\n"
        "question = {'pattern': 'a', 'text': 'a'}\n"
        "ask('regex', question)\n"
        "mine = _pool_of(os.getpid(), 'regex').process_ids\n"
        "if os.fork() == 0:\n"
        "    good = ask('regex', question).value['is_match'] and _pool_of(os.getpid(), 'regex').process_ids != mine\n"
        "    sys.exit(0 if good else 1)\n"
        "status = os.wait()[1]\n"
        "again = _pool_of(os.getpid(), 'regex').process_ids\n"
        "ask('regex', question)\n"
        "print(status, again == mine == _pool_of(os.getpid(), 'regex').process_ids)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0 True", done.stderr


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed() -> None:
    program = (
        "import os, time\n"
        "from aha.tasks.worker import ask, _pool_of\n"
        "ask('regex', {'pattern': 'a', 'text': 'a'})\n"
        "print(*_pool_of(os.getpid(), 'regex').process_ids, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{process_id}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_only_named_jobs_can_be_asked() -> None:
    assert set(JOBS) == {"math", "reasoning_gym_items", "reasoning_gym_scores", "regex"}
    with pytest.raises(KeyError):
        ask("os", {})
