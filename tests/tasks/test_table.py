"""Bring your own data file: what is read, what is refused with its line, how rows are split and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aha.errors import ConfigError, DataError
from aha.tasks import Split, Table, get_task
from aha.types import Completion, FinishReason, Outcome, Problem

SPLITS: tuple[Split, ...] = ("train", "test")
SUMS = [{"prompt": f"{n} + {n}?", "answer": str(2 * n)} for n in range(100)]


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def completion(answer: str, *, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion((), (), reason, answer=answer)


def all_problems(task: Table) -> dict[str, list[Problem]]:
    return {split: list(task.problems(split, seed=0)) for split in SPLITS}


def two_rows(**columns: Any) -> list[dict[str, Any]]:
    """A train and a test row that differ in their prompt."""
    return [{"prompt": f"{split}?", "answer": "1", "split": split, **columns} for split in ("train", "test")]


def test_every_row_is_in_one_split_and_its_gold_answer_scores_one(tmp_path: Path) -> None:
    task = Table(path=write_jsonl(tmp_path / "sums.jsonl", SUMS))
    splits = all_problems(task)
    prompts = [problem.prompt for problems in splits.values() for problem in problems]
    assert sorted(prompts) == sorted(row["prompt"] for row in SUMS)
    assert 3 <= len(splits["test"]) <= 25
    for problem in splits["train"] + splits["test"]:
        assert task.score(problem, completion(f"It is {problem.answer}.")).is_correct
        assert task.score(problem, completion("")).outcome is Outcome.PARSE_FAILURE
        assert task.score(problem, completion("7" * 1_000_000)).reward == 0.0
        assert task.score(problem, completion(problem.prompt)).is_correct == (problem.answer == "0")


def test_split_of_a_prompt_does_not_depend_on_the_other_rows_or_their_order(tmp_path: Path) -> None:
    whole = Table(path=write_jsonl(tmp_path / "a.jsonl", SUMS))
    half = Table(path=write_jsonl(tmp_path / "b.jsonl", SUMS[::-2]))
    held_out = {problem.prompt for problem in whole.problems("test", seed=0)}
    assert {problem.prompt for problem in half.problems("test", seed=5)} == held_out & {r["prompt"] for r in SUMS[::-2]}


def test_order_is_fixed_by_the_seed(tmp_path: Path) -> None:
    task = Table(path=write_jsonl(tmp_path / "sums.jsonl", SUMS))
    orders = [[problem.prompt for problem in task.problems("train", seed=seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_split_column_is_respected(tmp_path: Path) -> None:
    rows = [{**row, "split": "test" if index < 30 else "train"} for index, row in enumerate(SUMS)]
    splits = all_problems(Table(path=write_jsonl(tmp_path / "sums.jsonl", rows)))
    assert {problem.prompt for problem in splits["test"]} == {row["prompt"] for row in SUMS[:30]}


def test_csv_reads_as_jsonl_does(tmp_path: Path) -> None:
    path = tmp_path / "capitals.csv"
    path.write_text(
        "\ufeffquestion,label,choices,split\r\n"
        '"Capital of Italy, please?",B,Paris|Rome,train\r\n'
        '"Capital of\nFrance?",Paris,"[""Paris"", ""Rome""]",test\r\n',
        encoding="utf-8",
    )
    task = Table(path=str(path), prompt_field="question", answer_field="label")
    assert task.verifier == "choice"
    train, test = all_problems(task).values()
    assert train[0].prompt == "Capital of Italy, please?\nA. Paris\nB. Rome"
    assert test[0].prompt == "Capital of\nFrance?\nA. Paris\nB. Rome"
    assert task.score(test[0], completion("A")).is_correct
    assert not task.score(test[0], completion("A or B")).is_correct


def test_choices_are_not_added_to_a_prompt_that_holds_them(tmp_path: Path) -> None:
    rows = two_rows(answer="A", choices=["yes", "no"])
    rows[0]["prompt"] = "Is it yes or no?"
    train = all_problems(Table(path=write_jsonl(tmp_path / "a.jsonl", rows)))["train"]
    assert train[0].prompt == "Is it yes or no?"


@pytest.mark.parametrize(
    ("answers", "guess"),
    [
        (["1", "-2.5", "$3,000", "50%", "1/2"], "number"),
        ([1, 2.5], "number"),
        (["so 3*4=12\n#### 12", "#### 1,000"], "number"),
        (["A", "C"], "choice"),
        (['{"a": 1}', "[1]"], "json"),
        ([{"a": 1}, [1, 2]], "json"),
        (["Room 12", "12"], "exact"),
        (["AB", "C"], "exact"),
        ([True, False], "exact"),
    ],
)
def test_verifier_is_guessed_from_the_answers_and_said(tmp_path: Path, answers: list[Any], guess: str) -> None:
    rows = [{"prompt": f"{n}?", "answer": a, "split": "test" if n else "train"} for n, a in enumerate(answers)]
    task = Table(path=write_jsonl(tmp_path / "a.jsonl", rows))
    assert task.verifier == guess
    assert f"verify={guess} (guessed from the answers)" in task.notices[0]
    for problem in all_problems(task)["train"]:
        assert task.score(problem, completion(problem.answer)).is_correct


def test_named_verifier_and_its_options_are_used(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", two_rows())
    near = Table(path=path, verify="number", tolerance=0.1)
    assert near.score(next(near.problems("test", seed=0)), completion("1.05")).is_correct
    path = write_jsonl(tmp_path / "b.jsonl", two_rows(answer="Paris"))
    loose = Table(path=path, verify="exact", case="ignore")
    assert loose.score(next(loose.problems("test", seed=0)), completion("PARIS")).is_correct
    path = write_jsonl(tmp_path / "c.jsonl", two_rows(answer=r"\d+ (cats|dogs)"))
    pattern = Table(path=path, verify="regex")
    assert pattern.score(next(pattern.problems("test", seed=0)), completion("12 dogs")).is_correct
    path = write_jsonl(tmp_path / "d.jsonl", two_rows(answer={"a": [1]}))
    values = Table(path=path, verify="json")
    assert values.score(next(values.problems("test", seed=0)), completion('{ "a": [1] }')).is_correct


def test_duplicate_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*SUMS, SUMS[3], {"prompt": " 4  + 4? ", "answer": "9"}]
    task = Table(path=write_jsonl(tmp_path / "a.jsonl", rows), verify="number")
    assert sum(map(len, all_problems(task).values())) == len(SUMS)
    assert task.notices[0].endswith("duplicate prompts left out: 2; the first answer of each is kept")
    assert "scores on so few are coarse" in task.notices[1]


def test_one_system_text_becomes_the_system_prompt_and_several_stand_before_their_prompts(tmp_path: Path) -> None:
    one = Table(path=write_jsonl(tmp_path / "a.jsonl", two_rows(system="Be brief.")))
    assert one.system_prompt == "Be brief."
    assert next(one.problems("train", seed=0)).prompt == "train?"
    rows = two_rows()
    rows[0]["system"] = "Be brief."
    several = Table(path=write_jsonl(tmp_path / "b.jsonl", rows))
    assert "<think>" in several.system_prompt
    assert next(several.problems("train", seed=0)).prompt == "Be brief.\n\ntrain?"
    assert next(several.problems("test", seed=0)).prompt == "test?"


def test_truncated_completion_without_answer_says_so(tmp_path: Path) -> None:
    task = Table(path=write_jsonl(tmp_path / "a.jsonl", two_rows()))
    found = task.score(next(task.problems("test", seed=0)), completion("", reason=FinishReason.LENGTH))
    assert (found.outcome, found.note) == (Outcome.PARSE_FAILURE, "ran out of tokens")


def test_name_makes_the_task_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", SUMS)
    task = get_task(f"{path}:test_fraction=0.3,tolerance=0.5")
    assert task.name == f"{path}:test_fraction=0.3,tolerance=0.5,verify=number"
    again = get_task(task.name)
    assert list(again.problems("test", seed=1)) == list(task.problems("test", seed=1))
    assert again.name == task.name


def test_line_separators_inside_a_json_string_do_not_end_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = two_rows(note="one\u2028two")
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert sum(map(len, all_problems(Table(path=str(path))).values())) == 2


GOOD = b'{"prompt": "1?", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.jsonl: holds no rows; each needs a prompt and an answer"),
        (b"\n \n", "a.jsonl: holds no rows"),
        (GOOD + b'{"prompt": "2?"}\n', "a.jsonl line 2: no column 'answer'; choose it with answer_field=NAME"),
        (
            GOOD + b'{"prompt": "2?", "answers": "2"}\n',
            "line 2: no column 'answer'; did you mean answer_field=answers?",
        ),
        (b'{"question": "2?", "answer": "2"}\n', "line 1: no column 'prompt'; choose it with prompt_field=NAME"),
        (GOOD + b'\n{"prompt": "2?", "answer": null}\n', "line 3: 'answer' is empty; every row needs one"),
        (GOOD + b'{"prompt": "2?", "answer": " "}\n', "line 2: 'answer' is empty"),
        (GOOD + b'{"prompt": "2?", answer: 2}\n', "line 2: not valid JSON (Expecting property name"),
        (GOOD + b'{"prompt": "2?", answer: 2}\n', "double quotes at character 18); each line must be one JSON object"),
        (GOOD + b"[1, 2]\n", "line 2: must be a JSON object with a prompt and an answer, got [1, 2]"),
        (GOOD + b"[" * 100_000 + b"\n", "line 2: not valid JSON"),
        (GOOD + b'{"prompt": "\xff", "answer": "1"}\n', "line 2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (GOOD + b'{"prompt": "\\ud800", "answer": "1"}\n', "line 2: 'prompt' holds half a character"),
        (GOOD + b'{"prompt": "2?", "answer": "1", "split": "dev"}\n', "line 2: unknown split 'dev'; choose from: test"),
        (
            GOOD,
            "test_fraction=0.1 of 1 row(s) leaves none to hold out; add rows, change test_fraction, or add a column",
        ),
        (GOOD + b'{"prompt": "2?", "answer": "1", "split": "test"}\n', "line 1: has no split, other rows do"),
        (b'{"prompt": "2?", "answer": "1", "split": "test"}\n', "no row has split 'train'"),
        (
            b'{"prompt": "2?", "answer": "1", "split": "test"}\n{"prompt": "2?", "answer": "1", "split": "train"}\n',
            "line 2: this prompt is in split 'train' here and in 'test' at",
        ),
        (b'{"prompt": "2?", "answer": "A", "choices": "yes"}\n', "line 1: choices must be 2 to 10 texts, got 1"),
        (b'{"prompt": "2?", "answer": "A", "choices": 3}\n', "line 1: 'choices' must be a list of texts, got 3"),
        (b'{"prompt": "2?", "answer": "A", "choices": ["x", "X"]}\n', "an entry of 'choices' is blank or stands twice"),
        (b'{"prompt": "2?", "answer": "A", "choices": ["B", "C", "A"]}\n', "choice A reads 'B', which is the letter"),
        (
            b'{"prompt": "2?", "answer": "C", "choices": ["x", "y"]}\n',
            "line 1: the answer 'C' does not pass verify=choice (gold answer: no choice)",
        ),
    ],
)
def test_unusable_file_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        get_task(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,answer\n", "a.csv: holds no rows"),
        (b"prompt,answer\n1?,1\n2?,1,000\n", "a.csv line 3: has more cells than the header; quote cells that hold"),
        (b"prompt,answer\n1?,1\n2?\n", "a.csv line 3: 'answer' is empty"),
        (b'prompt,answer\n"1?,1\n', "not valid CSV (a quote is opened and never closed)"),
        (b"prompt;answer\n1?;1\n", "a.csv line 2: no column 'prompt'"),
        (b"prompt;answer\n1?;1\n", "holds 'prompt;answer': separate the cells by commas, not ';'"),
        (b"prompt,answer\n1?," + b"1" * 200_000 + b"\n", "a cell of more than 131,072 characters; write the file as"),
        (b"question,label\n1?,1\n", "choose it with prompt_field=NAME; columns: question, label"),
        (b"prompt,answer\n\xe9,1\n", "a.csv line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_unusable_csv_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        get_task(str(path))
    assert message in str(caught.value)


def test_gold_answer_that_its_verifier_refuses_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*SUMS, {"prompt": "pi?", "answer": "3,14"}])
    with pytest.raises(DataError, match=r"a\.jsonl line 101: the answer '3,14' does not pass verify=number .*holds 2"):
        get_task(f"{path}:verify=number")
    path = write_jsonl(tmp_path / "b.jsonl", two_rows(answer="(unclosed"))
    with pytest.raises(DataError, match=r"b\.jsonl line 1: the pattern '\(unclosed' is wrong: missing \)"):
        get_task(f"{path}:verify=regex")


def test_unreadable_paths_get_one_line(tmp_path: Path) -> None:
    for spec, message in [
        (str(tmp_path / "none.jsonl"), "none.jsonl: no such file"),
        (str(tmp_path / "notes.txt"), "notes.txt: a data file must end in .jsonl or .csv"),
        (str(tmp_path), "a data file must end in .jsonl or .csv"),
    ]:
        with pytest.raises(DataError, match=message):
            get_task(spec)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl: cannot be read: Is a directory"):
        get_task(str(tmp_path / "folder.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "verify=nunber",
            "unknown value 'nunber'; did you mean 'number'? Choose from: auto, choice, code, exact, json",
        ),
        ("test_fraction=1", "test_fraction must be between 0 and 1, got 1.0"),
        ("tolerance=-1", "tolerance must be 0 or more, got -1.0"),
        ("verify=exact,tolerance=1", "tolerance works with verify=number and json, not exact"),
        ("case=ignore", "case works with verify=exact, not number"),
        ("path=b.jsonl", "the path stands before the colon"),
        ("verfy=exact", "did you mean 'verify'?"),
    ],
)
def test_wrong_option_is_refused_with_its_choices(tmp_path: Path, options: str, message: str) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", SUMS)
    with pytest.raises(ConfigError) as caught:
        get_task(f"{path}:{options}")
    assert message in str(caught.value)
