"""Every command in the READMEs is run, long ones at fewer steps; a command that is not listed here fails the test."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["steps=1", "prompts_per_step=4", "group_size=4", "eval_problems=8", "preflight_prompts=2"]
SMALLER = ["prompts_per_step=1", "group_size=2", "max_tokens=8", "eval_problems=1", "preflight_prompts=0"]

QUICK: dict[str, list[str]] = {
    "aha train countdown": ["train", "countdown", *SMALL],
    'aha chat runs/countdown "3 7 8 > 24"': ["chat", "runs/countdown", "3 7 8 > 24"],
    "aha tasks": ["tasks"],
    "aha tasks countdown": ["tasks", "countdown"],
    "aha models": ["models"],
    "aha models deepseek-ai/DeepSeek-R1": ["models", "deepseek-ai/DeepSeek-R1"],
    "aha cost breakeven runs/countdown --requests-per-day 10000": [
        *("cost", "breakeven", "runs/countdown", "--requests-per-day", "10000"),
    ],
    "aha cost prices --compare o1 deepseek-r1": ["cost", "prices", "--compare", "o1", "deepseek-r1"],
    "aha cost train DeepSeek-V3 --tokens 14.8T --gpu h800 --nodes 256": [
        *("cost", "train", "DeepSeek-V3", "--tokens", "14.8T", "--gpu", "h800", "--nodes", "256"),
    ],
    "aha cost ledger --verify": ["cost", "ledger", "--verify"],
}
"""README command → what is run instead, in the order of the README."""

SLOW: dict[str, list[str]] = {
    "aha eval runs/countdown --task countdown --problems 200 --k 4": [
        *("eval", "runs/countdown", "--task", "countdown", "--problems", "8", "--k", "4"),
    ],
    "aha tasks rg:chain_sum,max_terms=5": ["tasks", "rg:chain_sum,max_terms=5"],
    "aha train r1_gpu --dry-run": ["train", "r1_gpu", "--dry-run"],
    "aha train qwen2.5_1.5b --dry-run": ["train", "qwen2.5_1.5b", "--dry-run"],
    "aha cost serve DeepSeek-R1 --gpu h200": ["cost", "serve", "DeepSeek-R1", "--gpu", "h200"],
    "aha cost why": ["cost", "why"],
    "aha cost page --out cost.html": ["cost", "page", "--out", "cost.html"],
    "aha models fetch smollm2": ["models", "fetch", "smollm2"],
    "aha train data.jsonl --verify number steps=50": [
        *("train", "data.jsonl", "--verify", "number", "steps=1", *SMALLER),
    ],
    "aha train arithmetic_smollm2": [
        *("train", "arithmetic_smollm2", "steps=1", "stage.cold_start.examples_per_step=2", *SMALLER),
    ],
}
R1 = ["steps=1", "stage.rejected.prompts_per_step=16", "stage.sft.steps=4", *SMALL[1:]]
SLOW |= {
    "aha train r1": ["train", "r1", *R1],
    "aha train r1_zero": ["train", "r1_zero", *SMALL],
    "aha train distill": ["train", "distill", "stage.student.collect_steps=2", "stage.student.steps=2", *SMALL],
    "aha eval runs/r1 --task countdown --out scores/r1": [
        *("eval", "runs/r1", "--task", "countdown", "--problems", "8", "--out", "scores/r1"),
    ],
    "aha eval tiny --task countdown --out scores/base": [
        *("eval", "tiny", "--task", "countdown", "--problems", "8", "--out", "scores/base"),
    ],
    "aha eval --compare scores/r1 scores/base": ["eval", "--compare", "scores/r1", "scores/base"],
    "aha cost solved scores/r1 scores/base": ["cost", "solved", "scores/r1", "scores/base"],
    "aha export runs/r1 --to hf exported": ["export", "runs/r1", "--to", "hf", "exported"],
    "aha train v3_tiny": ["train", "v3_tiny", "stage.pretraining.steps=2", "stage.rl.steps=1", *SMALL[1:]],
    'aha chat runs/v3_tiny "3 7 8 > 24" --stats': ["chat", "runs/v3_tiny", "3 7 8 > 24", "--stats"],
    "aha export runs/v3_tiny --to hf v3-fp8 --type fp8": [
        *("export", "runs/v3_tiny", "--to", "hf", "v3-fp8", "--type", "fp8"),
    ],
}
MAKE = {"make demo": "aha train countdown", "make test": "pytest"}
SERVE = "aha serve runs/countdown --port 8000"
CALCULATOR = "aha cost calculator --port 8001"


def commands(readme: str) -> list[str]:
    """The command lines of the sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run_aha(arguments: Sequence[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AHA_HOME": os.environ.get("AHA_HOME", str(Path.home() / ".cache/aha"))}
    command = [sys.executable, "-m", "aha", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=900)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/countdown in it, as the first command of the README leaves it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data.jsonl").write_text(
        "".join(f'{{"prompt": "What is {n} + {n}?", "answer": "{2 * n}"}}\n' for n in range(40)), encoding="utf-8"
    )
    done = run_aha(QUICK["aha train countdown"], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_every_command_is_known_here(readme: str) -> None:
    assert set(commands(readme)) == {*QUICK, *SLOW, *MAKE, SERVE, CALCULATOR}


@pytest.mark.parametrize("target", MAKE)
def test_make_runs_what_the_readme_says(target: str) -> None:
    shown = subprocess.run(
        ["make", "-n", *shlex.split(target)[1:]], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert MAKE[target] in shown.stdout


@pytest.mark.parametrize("command", [c for c in QUICK if c != "aha train countdown"])
def test_quick_command_works(command: str, workplace: Path) -> None:
    done = run_aha(QUICK[command], cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_training_leaves_what_the_readme_lists(workplace: Path) -> None:
    run = workplace / "runs" / "countdown"
    names = ("model/model.safetensors", "report.html", "bill.json", "metrics.jsonl", "samples.jsonl", "checkpoints")
    assert all((run / name).exists() for name in names)


def test_serve_answers_until_it_is_told_to_stop(workplace: Path) -> None:
    with _served("serve", "runs/countdown", path="/v1/models", cwd=workplace) as url:
        body = {"model": "countdown", "messages": [{"role": "user", "content": "3 7 8 > 24"}], "max_tokens": 64}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert "reasoning_content" in answer.json()["choices"][0]["message"]


def test_calculator_answers_until_it_is_told_to_stop(workplace: Path) -> None:
    with _served("cost", "calculator", path="/cost", cwd=workplace) as url:
        asked = {"model": "DeepSeek-V3", "tokens": "14.8T", "gpu": "h800", "num_gpus": 2048, "on": "2024-12-27"}
        answer = httpx.post(f"{url}/cost/api/training", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["gpu_hours"] == pytest.approx(2.664e6, rel=0.1)


@contextmanager
def _served(*arguments: str, path: str, cwd: Path) -> Iterator[str]:
    """A server of ours on a free port until the block ends; then SIGTERM has to stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "aha", *arguments, "--port", str(port)]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}{path}", server)
            yield f"http://127.0.0.1:{port}"
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if server.poll() is not None:
            assert server.stderr is not None
            pytest.fail(server.stderr.read().decode())
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail("the server did not answer within a minute")


@pytest.mark.slow
def test_python_example_works(workplace: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    overrides = ", ".join(f'"{key}": {value}' for key, value in (entry.split("=") for entry in SMALL))
    small = code.replace('"steps": 20', overrides).replace("num_problems=100", "num_problems=8")
    assert small != code
    done = subprocess.run([sys.executable, "-c", small], cwd=workplace, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_slow_command_works(command: str, workplace: Path) -> None:
    done = run_aha(SLOW[command], cwd=workplace)
    if "fetch" in command and done.returncode == 2 and "CI" not in os.environ:
        pytest.skip(f"cannot fetch: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
