"""Datasets of worked answers: both forms of a row, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aha.errors import DataError
from aha.train.dataset import FILE, Example, describe_dataset, read_examples

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
]


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_example_survives_being_written_and_read(tmp_path: Path) -> None:
    example = Example("2 + 2?", "line\u2028separator", "4", system="Be brief.", problem_id="p1", task="sums")
    write(tmp_path / "data" / FILE, example.to_row())
    assert read_examples(tmp_path / "data") == [example]


@pytest.mark.parametrize(
    "last",
    [
        MESSAGES[2],
        {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
        {"role": "assistant", "content": "Two and two.</think>4"},
    ],
)
def test_conversations_are_read_with_their_thinking(tmp_path: Path, last: dict[str, str]) -> None:
    path = write(tmp_path / "chat.jsonl", {"messages": [*MESSAGES[:2], last]})
    assert read_examples(path) == [Example("2 + 2?", "Two and two.", "4", system="Be brief.")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"prompt": "x"}', "line 2 needs a prompt and an answer"),
        ('{"prompt": 3, "answer": "x"}', "line 2: prompt must be text, got '3'"),
        ('{"messages": "x"}', "line 2: messages must be (system,) user, assistant"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "found user"),
        ('{"messages": [{"role": "user", "content": [1]}, {"role": "assistant", "content": "x"}]}', "prompt must be"),
    ],
)
def test_bad_row_is_named_with_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": "a", "answer": "b"})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError) as error:
        read_examples(path)
    assert complaint in str(error.value)


def test_missing_and_empty_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_examples(tmp_path / "none")
    with pytest.raises(DataError, match="is empty"):
        read_examples(write(tmp_path / "empty.jsonl"))


def test_card_says_what_was_left_out() -> None:
    card = describe_dataset("rejected", facts={"examples": 7}, dropped={"wrong": 5, "duplicate": 1})
    assert card.startswith("---\n")
    assert "| examples | 7 |" in card
    assert "| duplicate | 1 |\n| wrong | 5 |" in card
    assert "`reasoning`" in card


def test_turns_that_are_no_list_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "turns": 5}\n')
    with pytest.raises(DataError, match="line 1: each of turns needs"):
        read_examples(path)


def test_file_that_begins_with_a_byte_order_mark_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8-sig")
    assert read_examples(path)[0].prompt == "a"
