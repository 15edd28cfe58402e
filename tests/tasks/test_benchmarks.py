"""gsm8k, math, math500, aime and gpqa from small files of our own in the published formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from aha.errors import ConfigError, DataError
from aha.tasks import benchmarks, get_task
from aha.tasks.base import Split, Task
from aha.types import Completion, FinishReason, Outcome, Problem


def completion(answer: str) -> Completion:
    return Completion((1,), (0.0,), FinishReason.STOP, answer=answer)


def problems(task: Task, split: Split = "test") -> list[Problem]:
    return sorted(task.problems(split, seed=0), key=lambda problem: problem.prompt)


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(benchmarks, "is_hub_there", lambda: False)
    monkeypatch.setenv("AHA_HOME", str(tmp_path / "home"))


def test_gsm8k_reads_the_number_after_the_marks(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "test.jsonl",
        {"question": "Two bags of 3 plums?", "answer": "2*3 = <<2*3=6>>6 plums.\n#### 6"},
        {"question": "Zoos with 1,200 apes?", "answer": "Many.\n#### 1,200"},
    )
    task = get_task(f"gsm8k:path={path}")
    first, second = problems(task)
    assert (first.prompt, first.answer, second.answer) == ("Two bags of 3 plums?", "6", "1,200")
    assert task.score(second, completion("It is 1200.")).is_correct
    assert not task.score(first, completion("7")).is_correct
    assert task.score(first, completion("")).outcome is Outcome.PARSE_FAILURE
    assert get_task(task.name) == task


def test_gsm8k_trains_on_no_problem_that_it_tests(tmp_path: Path) -> None:
    shared = {"question": "Both?", "answer": "#### 1"}
    write_jsonl(tmp_path / "test.jsonl", shared)
    write_jsonl(tmp_path / "train.jsonl", {**shared, "question": " Both? "}, {"question": "Mine?", "answer": "#### 2"})
    assert [p.prompt for p in problems(get_task(f"gsm8k:path={tmp_path}"), "train")] == ["Mine?"]


def test_math500_compares_mathematics(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    row = {"problem": "Half?", "solution": "So $\\boxed{\\frac12}$.", "answer": "\\frac{1}{2}", "subject": "Algebra"}
    task = get_task(f"math500:path={write_jsonl(tmp_path / 'test.jsonl', row)}")
    (problem,) = problems(task)
    assert task.score(problem, completion("\\boxed{0.5}")).is_correct
    with pytest.raises(DataError, match="math500 is an evaluation set: it has no training problems"):
        problems(task, "train")


def test_math_reads_its_folders_of_json_and_the_box_of_a_solution(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    for split, level in (("test", 1), ("test", 5), ("train", 5)):
        file = tmp_path / split / "algebra" / f"{level}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        solution = f"First \\boxed{{0}}, then $\\boxed{{\\frac{{{level}}}{{7}}}}$."
        row = {"problem": f"{split} {level}", "level": f"Level {level}", "type": "Algebra", "solution": solution}
        file.write_text(json.dumps(row))
    assert [p.answer for p in problems(get_task(f"math:path={tmp_path}"))] == ["\\frac{1}{7}", "\\frac{5}{7}"]
    assert [p.prompt for p in problems(get_task(f"math:path={tmp_path},level=5"))] == ["test 5"]
    assert [p.prompt for p in problems(get_task(f"math:path={tmp_path}"), "train")] == ["train 5"]


def test_aime_takes_the_year_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "aime.jsonl",
        {"id": 60, "problem": "Old?", "answer": "025", "url": "", "year": "2024"},
        {"id": 1, "problem": "New?", "answer": 70, "year": 2025},
    )
    (old,), (new,) = (problems(get_task(f"aime:year={year},path={path}")) for year in (2024, 2025))
    assert (old.prompt, new.answer) == ("Old?", "70")
    assert get_task(f"aime:path={path}").score(old, completion("\\boxed{25}")).is_correct
    with pytest.raises(ConfigError, match="unknown value '2023'"):
        get_task("aime:year=2023")


def test_gpqa_shuffles_the_choices_of_each_question_once_and_for_all(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = ["Record ID", "Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
        rows = [[f"r{n}", f"Which gas, {n}?", " argon\n", "neon", "radon", "xenon"] for n in range(12)]
        csv.writer(file).writerows([columns, *rows])
    task = get_task(f"gpqa:path={path}")
    asked = problems(task)
    assert len({problem.answer for problem in asked}) > 1
    assert [p.prompt for p in asked] == [p.prompt for p in problems(get_task(f"gpqa:path={tmp_path}"))]
    assert asked != problems(get_task(f"gpqa:path={path},shuffle=1"))
    for problem in asked:
        assert f"{problem.answer}. argon" in problem.prompt
        assert task.score(problem, completion(f"The answer is {problem.answer}")).is_correct
        assert not task.score(problem, completion("neon")).is_correct


def test_missing_files_are_named_with_where_to_get_them_and_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        problems(get_task("gsm8k"))
    place = tmp_path / "home" / "datasets" / "gsm8k" / "main" / "test-00000-of-00001.parquet"
    assert str(caught.value) == (
        "gsm8k: Hugging Face cannot be reached; download main/test-00000-of-00001.parquet of the data set "
        f"openai/gsm8k and put it at {place}, or name your file: gsm8k:path=FILE"
    )
    write_jsonl(place.parent.parent / "test.jsonl", {"question": "Here?", "answer": "#### 1"})
    assert [p.prompt for p in problems(get_task("gsm8k"))] == ["Here?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "x", "answer": "#### 1"}', "line 1: has no column 'question'; columns: problem, answer"),
        ('{"question": "x", "answer": "#### many"}', "line 1: the answer: 'many' holds no number"),
        ('{"question": "x", "answer": ""}', "line 1: 'answer' is empty"),
        ("", "holds no rows"),
    ],
)
def test_file_in_another_format_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        problems(get_task(f"gsm8k:path={tmp_path / 'test.jsonl'}"))


def test_path_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="gsm8k: no file or folder nowhere.jsonl"):
        get_task("gsm8k:path=nowhere.jsonl")


def test_unreachable_hub_is_asked_once_and_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(url: str, *, timeout: float) -> None:
        asked.append((url, timeout))
        raise httpx.ConnectError("no such host")

    monkeypatch.undo()
    monkeypatch.setattr(httpx, "head", refuse)
    benchmarks.is_hub_there.cache_clear()
    assert not benchmarks.is_hub_there()
    assert not benchmarks.is_hub_there()
    benchmarks.is_hub_there.cache_clear()
    assert len(asked) == 1
    assert asked[0][1] <= 5
