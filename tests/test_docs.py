"""docs/tasks.md does what it says: its files are written, its commands run, its programs and recipes too."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from aha import cli
from aha.tasks import TASKS, get_task
from aha.tasks.cheats import completion_of
from aha.tasks.rewards import REWARDS
from aha.tasks.verifiers import VERIFIERS
from aha.train.source import read_source

GUIDE = Path(__file__).parents[1] / "docs" / "tasks.md"
SMALL = ["steps=1", "prompts_per_step=2", "group_size=2", "max_tokens=8", "eval_problems=1", "preflight_prompts=0"]
"""What every command that trains is given on top."""
LANGUAGES = {"jsonl", "csv", "python", "sh", "toml", "text"}


class Block(NamedTuple):
    """A block of the guide."""

    language: str
    name: str
    """The file it is, where the text before it says so: "This is `capitals.jsonl`:"."""
    text: str


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def blocks() -> list[Block]:
    text = GUIDE.read_text(encoding="utf-8")
    fence = r"(?:is\s+`(?P<name>[\w.]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```"
    found = re.finditer(fence, text, re.DOTALL | re.MULTILINE)
    return [Block(match["language"], match["name"] or "", match["text"]) for match in found]


ORDINARY = "aha train reverse.py model=tiny"
COMMANDS = [line for block in blocks() if block.language == "sh" for line in block.text.splitlines()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file of the guide in it, as the current one."""
    for block in blocks():
        if block.name:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def aha(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ran]:
    def call(command: str) -> Ran:
        arguments = shlex.split(command)
        if arguments[1] == "train":
            arguments += [*SMALL, "--quiet"]
        if arguments[1] == "eval":
            arguments += ["--problems", "1", "--max-tokens", "8"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, captured.out, captured.err)

    return call


def test_every_block_is_of_a_kind_that_is_tested_here() -> None:
    assert {block.language for block in blocks()} == LANGUAGES
    assert all(block.name for block in blocks() if block.language in ("jsonl", "csv", "toml"))
    assert len(COMMANDS) >= 10


# Every command runs in CI; on an ordinary day one training run stands for the others.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if "train" in command and command != ORDINARY else ())
        for command in COMMANDS
    ],
)
def test_command_of_the_guide_works(command: str, workplace: Path, aha: Callable[[str], Ran]) -> None:
    ran = aha(command)
    assert ran.code == 0, ran.err
    if command.startswith("aha tasks"):
        assert "self-check on" in ran.out
        assert " fails" not in ran.out


def test_sloppy_verifier_is_refused_in_the_words_of_the_guide(workplace: Path, aha: Callable[[str], Ran]) -> None:
    (shown,) = (block.text for block in blocks() if block.language == "text")
    command, message = shown.splitlines()
    ran = aha(command)
    # How many more there are may grow with the cheats.
    assert (ran.code, re.sub("[0-9]+ more", "", ran.err.strip())) == (2, re.sub("[0-9]+ more", "", message))


def test_programs_of_the_guide_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aha.tasks.TASKS", TASKS.copy())
    programs = [block for block in blocks() if block.language == "python"]
    assert len(programs) >= 4
    for block in programs:
        path = workplace / (block.name or "program.py")
        path.write_text(block.text, encoding="utf-8")
        runpy.run_path(str(path))


def test_data_files_of_the_guide_are_judged_as_it_says(workplace: Path) -> None:
    task = get_task("capitals.jsonl:verify=choice")
    (problem,) = task.problems("test", seed=0)
    assert problem.prompt.startswith("Capital of Norway?\nA. Paris")
    for answer, reward in (("C", 1.0), ("Oslo", 1.0), ("A", 0.0), ("A or C", 0.0)):
        assert task.score(problem, completion_of(answer)).reward == reward
    (problem,) = get_task("sums.csv").problems("test", seed=0)
    assert get_task("sums.csv").score(problem, completion_of("It is 1000.")).is_correct


def test_recipe_of_the_guide_pays_what_it_says(workplace: Path) -> None:
    (config,) = read_source("shaped.toml", overrides=[]).configs
    assert len(config.rewards) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*REWARDS, *VERIFIERS])
def test_every_reward_and_verifier_has_its_row(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
