"""Every verb as a user types it: exit codes, one-line errors, JSON for scripts, help with an example."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from aha import cli
from aha.errors import AhaError
from aha.models import ModelConfig, build_model
from aha.models.tokenizer import build_tokenizer, save_tokenizer
from aha.terminal.conversation import describe_speed

VERBS = ("train", "eval", "chat", "serve", "models", "tasks")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Aha:
    """Runs `aha ARGS…` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, *args: str | Path) -> Ran:
        self.monkeypatch.setattr(sys, "argv", ["aha", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, *self.capsys.readouterr())


@pytest.fixture
def aha(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Aha:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    return Aha(capsys, monkeypatch)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the built-in tokenizer: its answers are noise, its plumbing is real."""
    folder = tmp_path_factory.mktemp("models") / "noise"
    save_tokenizer(folder)
    end_id = build_tokenizer().token_to_id("<|end|>")
    config = ModelConfig(
        model_type="llama", vocab_size=build_tokenizer().get_vocab_size(), hidden_size=16, intermediate_size=32,
        num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, max_position_embeddings=256, eos_token_ids=(end_id,),
    )  # fmt: skip
    model = build_model(config, dtype="float32", device="cpu")
    model.initialise(seed=0)
    model.save(folder)
    return folder


def assert_refused(ran: Ran, *parts: str) -> None:
    """Exit code 2 and one line on stderr that begins with "aha: " and has all parts."""
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("aha: ")
    assert ran.err.count("\n") == 1
    for part in parts:
        assert part in ran.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(aha: Aha, verb: str) -> None:
    ran = aha(verb, "--help")
    assert ran.code == 0
    assert f"Example: aha {verb}" in ran.out


def test_bare_command_prints_help_and_version_prints_version(aha: Aha) -> None:
    assert all(verb in aha().out for verb in VERBS)
    assert aha("--version").out.startswith("aha ")


def test_help_is_quick_and_loads_no_torch() -> None:
    program = """
import sys
sys.argv = ["aha", "--help"]
from aha.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert time.perf_counter() - started < 5.0, "half a second on an idle machine"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tain"], ["tain", "train"]),
        (["tasks", "--nope"], ["--nope", "aha tasks --help"]),
        (["eval"], ["MODEL", "aha eval --help"]),
        (["eval", "noise"], ["--task"]),
        (["eval", "noise", "--task", "countdwn"], ["unknown task 'countdwn'", "countdown"]),
        (["eval", "noise", "--task", "countdown", "--problems", "many"], ["--problems", "integer"]),
        (["eval", "noise", "--task", "countdown", "--k", "0"], ["--k"]),
        (["eval", "noise", "--task", "countdown", "--temperature", "-1"], ["temperature must be between 0 and 10"]),
        (["eval", "noise", "--task", "countdown", "--protocol", "r9"], ["unknown protocol 'r9'", "default, r1"]),
        (["eval", "a", "b", "--task", "countdown"], ["one model at a time", "--compare"]),
        (["eval", "--compare", "a", "b"], ["no evaluation at 'a'", "eval.json"]),
        (["eval", "openai:m@ftp://x", "--task", "countdown"], ["openai:MODEL@URL"]),
        (["chat", "no-such-model", "hi"], ["no-such-model", "tiny"]),
        (["chat", "noise", "--json"], ["PROMPT"]),
        (["serve", "no-such-model", "--port", "0"], ["no-such-model"]),
        (["serve", "tiny", "--host", "0.0.0.0", "--port", "0"], ["api"]),
        (["serve", "tiny", "--port", "99999"], ["--port"]),
        (["models", "remove"], ["remove", "aha models fetch NAME"]),
        (["models", "fetch", "no-such"], ["no-such", "smollm2"]),
        (["chat", "tiny", "2 + 3?", "--thinking", "off"], ["no switch for thinking"]),
        (["eval", "tiny", "--task", "arithmetic", "--problems", "1", "--thinking", "on"], ["no switch for thinking"]),
        (["eval", "openai:m@http://localhost:1", "--task", "arithmetic", "--thinking", "on"], ["on its own side"]),
        (["tasks", "countdown:max_nmber=5"], ["max_nmber", "max_number"]),
        (["train", "countdown", "--verify", "number"], ["--verify number", "countdown"]),
    ],
)
def test_user_errors_are_one_line_and_exit_2(aha: Aha, arguments: list[str], parts: list[str]) -> None:
    assert_refused(aha(*arguments), *parts)


def test_line_breaks_in_an_error_are_folded(aha: Aha, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AhaError("first\nsecond")

    monkeypatch.setattr(cli, "app", refuse)
    assert_refused(aha("tasks"), "first second")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_interrupts_and_full_disks_have_their_codes(
    aha: Aha, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert aha("tasks").code == code


def test_a_bug_keeps_its_traceback(aha: Aha, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["aha", "tasks"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_closed_pipe_ends_quietly() -> None:
    program = f"{sys.executable} -m aha tasks countdown --samples 3000 | head -1"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "countdown\n"
    assert done.stderr == ""


def test_tasks_lists_and_shows_problems_with_their_answers(aha: Aha) -> None:
    assert {"countdown", "arithmetic"} <= json.loads(aha("tasks", "--json").out).keys()
    assert "countdown" in aha("tasks").out
    shown = json.loads(aha("tasks", "countdown", "--samples", "2", "--json").out)
    assert len(shown["problems"]) == len(shown["demonstrations"]) == 2
    assert shown["problems"][0]["answer"] in aha("tasks", "countdown").out


def test_models_lists_the_built_in_ones(aha: Aha) -> None:
    listed = {model["name"]: model for model in json.loads(aha("models", "--json").out)}
    assert {"tiny", "smollm2"} <= listed.keys()
    assert "smollm2" in aha("models").out


def test_chat_answers_a_prompt(aha: Aha, model_folder: Path) -> None:
    arguments = ("chat", model_folder, "3 7 8 > 24", "--max-tokens", "12", "--seed", "3")
    first, second = aha(*arguments), aha(*arguments)
    assert first.code == 0
    assert first.out
    assert first.out == second.out, "a seed repeats the answer"
    answer = json.loads(aha(*arguments, "--json").out)
    assert answer.keys() == {"reasoning_content", "content"}


def test_chat_says_how_fast_it_was_when_asked(aha: Aha, model_folder: Path) -> None:
    arguments = ("chat", model_folder, "3 7 8 > 24", "--max-tokens", "12", "--seed", "3")
    plain, ran = aha(*arguments), aha(*arguments, "--stats", "--speculate", "always")
    assert ran.out == plain.out
    assert re.search(r"\d+ tokens in \d+\.\d s, \d+\.\d tokens/s$", ran.err.strip())
    assert "tokens/s" not in plain.err
    assert (
        describe_speed(37, 20, 12, seconds=1.2) == "37 tokens in 1.2 s, 30.8 tokens/s; 12 of 20 drafts accepted (60%)"
    )


def test_chat_converses_until_the_input_ends(aha: Aha, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nand you?\n"))
    ran = aha("chat", model_folder, "--max-tokens", "4", "--seed", "1")
    assert ran.code == 0
    assert ran.out.count("\n") >= 2


def test_chat_refuses_a_prompt_longer_than_the_window(aha: Aha, model_folder: Path) -> None:
    assert_refused(aha("chat", model_folder, "x" * 1000), "window is 256")


def test_eval_prints_rates_and_writes_everything(aha: Aha, model_folder: Path, tmp_path: Path) -> None:
    arguments = ["eval", str(model_folder), "--task", "countdown", "--problems", "3", "--k", "2", "--max-tokens", "8"]
    ran = aha(*arguments)
    assert ran.code == 0
    for label in ("countdown: 3 held-out problems x 2", "pass@1", "pass@2", "cons@2", "cut off", "tokens/s"):
        assert label in ran.out
    result = json.loads(aha(*arguments, "--json", "--out", str(tmp_path / "scores")).out)
    assert result["num_completions"] == 6
    assert result == json.loads((tmp_path / "scores" / "eval.json").read_text(encoding="utf-8"))
    assert len((tmp_path / "scores" / "eval.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_eval_compares_finished_evaluations(aha: Aha, model_folder: Path) -> None:
    for folder in ("a", "b"):
        arguments = ["--problems", "3", "--max-tokens", "8", "--out", folder]
        assert aha("eval", model_folder, "--task", "countdown", *arguments).code == 0
    table = aha("eval", "--compare", "a", "b")
    assert table.code == 0
    assert "countdown: the same 3 problems x 1" in table.out
    assert "p = 1.0000 (exact McNemar)" in table.out
    pairs = json.loads(aha("eval", "a", "b", "--compare", "--json").out)["pairs"]
    assert [(pair["before"], pair["after"]) for pair in pairs] == [("a", "b")]


def test_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aha", "tasks", "nope"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("aha: unknown task 'nope'")


def test_train_prints_a_recipe_with_its_knobs_explained(aha: Aha, model_folder: Path, tmp_path: Path) -> None:
    ran = aha("train", "countdown:max_number=9", f"model={model_folder}", "steps=3", "--knobs")
    assert ran.code == 0
    assert "steps = 3" in ran.out
    assert "# Steps of the stage" in ran.out
    (tmp_path / "mine.toml").write_text(ran.out, encoding="utf-8")
    assert aha("train", tmp_path / "mine.toml", "--knobs").out == ran.out


def test_train_dry_run_says_what_it_would_take_and_makes_no_run(aha: Aha, model_folder: Path, tmp_path: Path) -> None:
    ran = aha("train", "countdown:max_number=9", f"model={model_folder}", "max_tokens=64", "--dry-run")
    assert ran.code == 0
    assert ran.out
    assert not (tmp_path / "runs").exists()


def test_train_makes_a_run_and_chat_finds_it(aha: Aha, model_folder: Path, tmp_path: Path) -> None:
    knobs = ["steps=1", "eval_problems=4", "preflight_prompts=0", "max_tokens=8", f"model={model_folder}"]
    ran = aha("train", "countdown:max_number=9", *knobs, "prompts_per_step=2", "group_size=2", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "held-out pass@1" in ran.out
    assert "aha chat runs/countdown" in ran.out
    assert (tmp_path / "runs" / "countdown" / "report.html").exists()
    assert aha("chat", "runs/countdown", "3 7 8 > 24", "--max-tokens", "4").code == 0
    assert_refused(aha("train", "countdown", "--resume"), "no unfinished run")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["countdwn"], ["countdwn", "did you mean 'countdown'"]),
        (["countdown", "stesp=3"], ["stesp", "did you mean 'steps'"]),
        (["countdown", "steps=many"], ["steps must be a whole number, got 'many'"]),
        (["countdown", "steps=0"], ["steps must be at least 1"]),
        (["countdown", "model=no-such"], ["no-such"]),
        (["absent.toml"], ["absent.toml"]),
        (["absent.jsonl", "--verify", "number"], ["absent.jsonl"]),
        (["nowhere", "--resume"], ["no unfinished run"]),
    ],
)
def test_train_refuses_in_one_line(aha: Aha, arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    assert_refused(aha("train", *arguments), *parts)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir()), "an empty run is left behind"
