"""An evaluation that is killed goes on where it stopped, asks only what is missing, and comes to the same files."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import pytest

from aha.cost import custom_machine_price
from aha.errors import AhaError, DataError
from aha.evaluate import EvalResult, Progress, evaluate, load_result
from aha.tasks.base import Split
from aha.types import Completion, FinishReason, Message, Outcome, Problem, SamplingParams, Score


@dataclass(frozen=True)
class Counting:
    """Twelve problems: write the number."""

    name: str = "counting"
    system_prompt: str = "Count."

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        for number in range(12):
            yield Problem(problem_id=f"{split}-{number}", prompt=f"{number}?", answer=str(number))

    def score(self, problem: Problem, completion: Completion) -> Score:
        return Score(float(completion.answer == problem.answer), completion.answer == problem.answer)


class PowerCutError(AhaError):
    """What stops the tests' evaluations."""


@dataclass
class Drawn:
    """Answers that depend on the prompt, the seed and the index of the sample alone, as a real model's do."""

    dies_after: int = 10**9
    """Samples after which it raises."""
    weight_version: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)

    def one(self, prompt: str, sampling: SamplingParams, index: int) -> Completion:
        index += sampling.first_sample
        if len(self.asked) == self.dies_after:
            raise PowerCutError("the lights went out")
        self.asked.append((prompt, index))
        number = int(prompt.removesuffix("?"))
        is_right = (7 * number + 3 * index + (sampling.seed or 0)) % 3 > 0
        text = f"{number if is_right else 'perhaps ' + 'x' * index}"
        return Completion(
            (1, 2, 3), (-0.1,) * 3, FinishReason.STOP, text, f"\ud800 thought {index}\u2028", text, self.weight_version
        )


@dataclass
class OneByOne(Drawn):
    """Hands over each answer as it ends, in another order than they were asked in."""

    def __call__(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        raise AssertionError("evaluate should take the answers one by one")

    def respond_each(
        self, conversations: list[list[Message]], samplings: list[SamplingParams], *, on_completion: object
    ) -> None:
        assert callable(on_completion)
        places = [(row, index) for row, s in enumerate(samplings) for index in range(s.num_samples)]
        for row, index in sorted(places, key=lambda place: (place[0] * 5 + place[1] * 3) % 7):
            on_completion(row, index, self.one(conversations[row][-1].content, samplings[row], index))


@dataclass
class AllAtOnce(Drawn):
    """A plain respond."""

    def __call__(self, conversations: list[list[Message]], sampling: SamplingParams) -> list[list[Completion]]:
        return [
            [self.one(conversation[-1].content, sampling, index) for index in range(sampling.num_samples)]
            for conversation in conversations
        ]


def measure(respond: Drawn, out: Path, **changes: object) -> EvalResult:
    arguments = {"num_samples": 4, "model": "m@1", "out": out, **changes}
    return evaluate(Counting(), respond, **arguments)  # type: ignore[arg-type]


def without_time(result: EvalResult) -> EvalResult:
    return replace(result, wall_seconds=0.0)


def test_killed_evaluation_asks_only_what_is_missing_and_ends_the_same(tmp_path: Path) -> None:
    whole = measure(OneByOne(), tmp_path / "whole")
    first, second = OneByOne(dies_after=17), OneByOne()
    with pytest.raises(PowerCutError):
        measure(first, tmp_path / "cut")
    notices: list[str] = []
    resumed = measure(second, tmp_path / "cut", on_notice=notices.append)
    assert without_time(resumed) == without_time(whole)
    assert (tmp_path / "cut/eval.jsonl").read_bytes() == (tmp_path / "whole/eval.jsonl").read_bytes()
    assert without_time(load_result(tmp_path / "cut/eval.json")) == without_time(whole)
    assert sorted(first.asked + second.asked) == sorted((f"{n}?", i) for n in range(12) for i in range(4))
    assert len(second.asked) == 48 - 17
    assert "17 of 48 answers" in notices[0]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["eval.json", "eval.jsonl"]


def test_plain_respond_goes_on_too(tmp_path: Path) -> None:
    whole = measure(AllAtOnce(), tmp_path / "whole")
    with pytest.raises(PowerCutError):
        measure(OneByOne(dies_after=17), tmp_path / "cut")
    respond = AllAtOnce()
    assert without_time(measure(respond, tmp_path / "cut")) == without_time(whole)
    assert len(respond.asked) == 48 - 17
    assert (tmp_path / "cut/eval.jsonl").read_bytes() == (tmp_path / "whole/eval.jsonl").read_bytes()


def test_evaluation_may_be_killed_again_and_again(tmp_path: Path) -> None:
    whole = measure(OneByOne(), tmp_path / "whole")
    num_asked = 0
    for _ in range(15):
        respond = OneByOne(dies_after=3)
        with pytest.raises(PowerCutError):
            measure(respond, tmp_path / "cut")
        num_asked += len(respond.asked)
    assert num_asked == 45
    assert without_time(measure(OneByOne(dies_after=3), tmp_path / "cut")) == without_time(whole)


def interrupted(out: Path, *, num_samples_done: int = 17, **changes: object) -> Path:
    with pytest.raises(PowerCutError):
        measure(OneByOne(dies_after=num_samples_done), out, **changes)
    return out / "eval.jsonl.partial"


def test_torn_last_line_is_asked_again(tmp_path: Path) -> None:
    whole = measure(OneByOne(), tmp_path / "whole")
    partial = interrupted(tmp_path / "cut")
    size = partial.stat().st_size
    os.truncate(partial, size - 20)
    respond = OneByOne()
    assert without_time(measure(respond, tmp_path / "cut")) == without_time(whole)
    assert len(respond.asked) == 48 - 16


@pytest.mark.parametrize("num_bytes", [0, 1, 40])
def test_file_killed_within_its_first_line_is_begun_again(tmp_path: Path, num_bytes: int) -> None:
    partial = interrupted(tmp_path)
    os.truncate(partial, num_bytes)
    respond = OneByOne()
    measure(respond, tmp_path)
    assert len(respond.asked) == 48


def test_line_that_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    whole = measure(OneByOne(), tmp_path / "whole")
    partial = interrupted(tmp_path / "cut")
    lines = partial.read_bytes().split(b"\n")
    lines[3] = b"\x00\xff" + lines[3][2:]
    lines[5] = b'{"problem_id": "test-0", "sample": "x"}'
    partial.write_bytes(b"\n".join(lines))
    respond = OneByOne()
    assert without_time(measure(respond, tmp_path / "cut")) == without_time(whole)
    assert len(respond.asked) == 48 - 15


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": SamplingParams(temperature=1.0)}, "temperature 0.6 and 1.0"),
        ({"model": "m@2"}, "model 'm@1' and 'm@2'"),
        ({"num_samples": 2}, "num_samples 4 and 2"),
        ({"seed": 5}, "seed 0 and 5"),
        ({"num_problems": 3}, "num_problems 12 and 3"),
    ],
)
def test_answers_of_another_evaluation_are_not_mixed_in(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    partial = interrupted(tmp_path)
    before = partial.read_bytes()
    with pytest.raises(DataError) as refused:
        measure(OneByOne(), tmp_path, **changes)
    message = str(refused.value)
    assert said in message
    assert "choose another --out, or remove the file" in message
    assert "\n" not in message
    assert partial.read_bytes() == before, "the other one can still go on"


def test_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl.partial").write_text("dear diary\n")
    with pytest.raises(DataError, match="is not the record of an evaluation"):
        measure(OneByOne(), tmp_path)
    assert (tmp_path / "eval.jsonl.partial").read_text() == "dear diary\n"


def test_price_may_change_between_sessions(tmp_path: Path) -> None:
    interrupted(tmp_path)
    respond = OneByOne()
    result = measure(respond, tmp_path, price=custom_machine_price("1", on=date(2026, 1, 1)))
    assert len(respond.asked) == 48 - 17
    assert result.cost_usd is not None


def test_evaluation_without_a_model_is_never_taken_up(tmp_path: Path) -> None:
    """A training run evaluates many times into one folder, each time other weights."""
    with pytest.raises(PowerCutError):
        measure(OneByOne(dies_after=9), tmp_path, model="")
    assert not list(tmp_path.iterdir())
    partial = interrupted(tmp_path)
    respond = OneByOne(weight_version=3)
    assert measure(respond, tmp_path, model="").manifest["weight_version"] == 3
    assert len(respond.asked) == 48
    assert not partial.exists()


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    partial = interrupted(tmp_path)
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="being written by another process"):
            measure(OneByOne(), tmp_path)


def test_progress_counts_answers_of_the_earlier_session(tmp_path: Path) -> None:
    interrupted(tmp_path)
    seen: list[Progress] = []
    result = measure(OneByOne(), tmp_path, on_progress=seen.append)
    assert (seen[0].num_samples_done, seen[0].num_samples, seen[0].num_samples_before) == (18, 48, 17)
    assert [progress.num_samples_done for progress in seen] == list(range(18, 49))
    assert seen[-1].num_done == 12
    assert seen[-1].pass_at_1 == pytest.approx(result.pass_at_1)


def test_time_of_all_sessions_is_counted(tmp_path: Path) -> None:
    partial = interrupted(tmp_path)
    lines = partial.read_text().splitlines()
    last = json.loads(lines[-1])
    partial.write_text("\n".join([*lines[:-1], json.dumps({**last, "wall_seconds": 1000.0})]) + "\n")
    assert 1000.0 <= measure(OneByOne(), tmp_path).wall_seconds < 1060.0


def test_failed_verifier_leaves_its_answers_and_no_trap(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Broken(Counting):
        def score(self, problem: Problem, completion: Completion) -> Score:
            return Score(0.0, False, "no judge today", Outcome.ERROR)

    with pytest.raises(DataError, match="no judge today"):
        evaluate(Broken(), OneByOne(), model="m@1", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["eval.jsonl"]


def measure_tiny(out: Path) -> EvalResult:
    """The built-in model on 8 sums, 4 answers each."""
    from aha import hub
    from aha.chat import ChatFormat
    from aha.engine import Engine
    from aha.models import load_model
    from aha.train.rollouts import respond_with

    folder = hub.resolve("tiny")
    chat = ChatFormat.load(folder)
    model = load_model(folder, dtype="float32", device="cpu")
    engine = Engine(model, decode=chat.decode, stop_token_ids=chat.stop_token_ids)
    sampling = SamplingParams(temperature=0.8, max_tokens=32)
    respond = respond_with(engine, chat)
    return evaluate("arithmetic", respond, num_problems=8, num_samples=4, model="tiny", out=out, sampling=sampling)


@pytest.mark.slow
def test_sigkill_of_a_real_engine_changes_no_text(tmp_path: Path) -> None:
    program = f"{inspect.getsource(measure_tiny)}\nmeasure_tiny(Path({str(tmp_path / 'cut')!r}))"
    imports = ("pathlib import Path", "aha.evaluate import EvalResult, evaluate", "aha.types import SamplingParams")
    head = "".join(f"from {names}\n" for names in imports)
    killed = subprocess.Popen([sys.executable, "-c", head + program])
    partial = tmp_path / "cut/eval.jsonl.partial"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 5) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert 0 < partial.read_bytes().count(b"\n") - 1 < 32
    whole = measure_tiny(tmp_path / "whole")
    assert without_time(measure_tiny(tmp_path / "cut")) == without_time(whole)
    assert (tmp_path / "cut/eval.jsonl").read_bytes() == (tmp_path / "whole/eval.jsonl").read_bytes()
