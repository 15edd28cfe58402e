"""Datasets that a run makes and that a supervised stage reads: a folder with train.jsonl and a card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from aha.errors import DataError
from aha.types import Observation, Turn

FILE = "train.jsonl"
_THINKING = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Example:
    """One worked answer to imitate."""

    prompt: str
    """The user's turn."""
    reasoning: str
    """The thinking, without its tags."""
    answer: str
    system: str = ""
    """Instructions before the prompt; "" has none."""
    problem_id: str = ""
    task: str = ""
    source: str = ""
    """Who wrote it: a model's folder, "stage NAME", or an endpoint's model."""
    num_tokens: int = 0
    turns: tuple[Turn, ...] = ()
    """Of an episode with observations, the turns before the last, whose thinking and answer are those above."""

    @property
    def text(self) -> str:
        """What makes two examples the same, white space aside."""
        earlier = "\n".join(f"{turn.reasoning}\n{turn.answer}" for turn in self.turns)
        return " ".join(f"{self.prompt}\n{earlier}\n{self.reasoning}\n{self.answer}".split())

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def read_examples(path: Path) -> list[Example]:
    """Examples of a dataset folder, or of one JSONL file.

    A row has `prompt`, `answer` and, if it likes, `reasoning` and `system`; or `messages` in the OpenAI API's form,
    whose last assistant turn has its thinking in `reasoning_content` or between <think> tags.

    Raises:
        DataError: no such file, no rows, or a row that cannot be used, with its line.
    """
    file = path / FILE if path.is_dir() else path
    try:
        # Not splitlines(): it also breaks at U+2028 and the like, which JSON allows inside a string.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"cannot read the dataset {file}: {reason}; give a folder with {FILE}, or a JSONL file"
        ) from None
    examples = [_read_row(line, place=f"{file} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise DataError(f"the dataset {file} is empty; collect more, or leave it out of data")
    return examples


def _read_row(line: str, *, place: str) -> Example:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object; each line is one example")
    given = dict(_from_messages(row["messages"], place=place)) if "messages" in row else row
    keys = ("prompt", "reasoning", "answer", "system", "problem_id", "task")
    texts: dict[str, Any] = {key: given.get(key) or "" for key in keys}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{place}: {key} must be text, got {str(value)[:40]!r}")
    if not texts["prompt"] or not (texts["answer"] or texts["reasoning"]):
        raise DataError(f"{place} needs a prompt and an answer (or messages that end with the assistant's)")
    given_turns = row.get("turns") or []
    turns = tuple(_read_turn(t, place=place) for t in (given_turns if isinstance(given_turns, list) else [given_turns]))
    return Example(**texts, source=str(row.get("source") or ""), turns=turns)


def _read_turn(turn: Any, *, place: str) -> Turn:
    try:
        observation = Observation(**turn["observation"])
        texts = (turn["reasoning"], turn["answer"], observation.text)
        if all(isinstance(text, str) for text in texts) and observation.role in ("tool", "user"):
            return Turn(turn["reasoning"], turn["answer"], observation)
    except (TypeError, KeyError):
        pass
    raise DataError(f"{place}: each of turns needs reasoning, answer and observation (text, and role tool or user)")


def _from_messages(messages: Any, *, place: str) -> Iterator[tuple[str, Any]]:
    """Prompt, system, reasoning and answer of a conversation of one question and its answer."""
    turns = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise DataError(f"{place}: messages must be (system,) user, assistant; found {', '.join(map(str, roles))[:80]}")
    if roles[0] == "system":
        yield "system", turns[0].get("content")
    yield "prompt", turns[-2].get("content")
    content = turns[-1].get("content") or ""
    reasoning = turns[-1].get("reasoning_content")
    if not reasoning and isinstance(content, str) and _THINKING[1] in content:
        before, _, content = content.partition(_THINKING[1])
        reasoning, content = before.strip().removeprefix(_THINKING[0]).strip(), content.strip()
    yield "reasoning", reasoning
    yield "answer", content


def describe_dataset(name: str, *, facts: Mapping[str, object], dropped: Mapping[str, int], licence: str = "") -> str:
    """The card of a dataset folder, as Hugging Face reads it: what it holds, how it was made, what was left out."""
    lines = ["---", "configs:", "- config_name: default", f"  data_files: {FILE}", "---", "", f"# {name}", ""]
    lines += ["Answers that a verifier found right, collected by `aha train`.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "| left out | answers or prompts |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in sorted(dropped.items())] or ["| nothing | 0 |"]
    columns = ", ".join(f"`{column.name}`" for column in fields(Example))
    lines += ["", f"Each line of `{FILE}` has {columns}."]
    if licence:
        lines += ["", licence]
    return "\n".join([*lines, ""])
