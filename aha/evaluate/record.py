"""The answers of an evaluation as they come: in memory, or in a file that a killed evaluation goes on from.

NAME.jsonl.partial begins with a line that says which evaluation it is of, and holds one line for each scored answer. It
becomes NAME.jsonl, one line for each problem, when every answer is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from aha.errors import DataError
from aha.evaluate.result import Sample
from aha.types import Outcome, Problem, Rollout, Usage

FORMAT = 1
SYNC_SAMPLES = 64
SYNC_SECONDS = 5.0
"""A killed process loses nothing that was written; a machine without power what came after the last sync."""
NOT_IDENTITY = frozenset({"weight_version", "price"})
"""Parts of a manifest that do not decide which texts are drawn and how they are judged."""
MAX_KEPT_CHARS = 64

Key = tuple[str, int]
"""problem_id, index of the sample."""


class Record:
    """The answers there are, by problem and sample. Made with `open_record`."""

    def __init__(self, file: BinaryIO | None, *, path: Path) -> None:
        self._file = file
        self._path = path
        self._places: dict[Key, int] = {}
        self._num_unsynced = 0
        self._synced_at = time.monotonic()
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._seconds_in_all: float | None = None
        self.uid = secrets.token_hex(16)
        """What tells this evaluation from every other, also when it goes on in another process."""
        self.spent_before_nano_usd = 0
        """What the endpoint's client had spent when the evaluation began."""
        self.samples: dict[Key, Sample] = {}

    @property
    def wall_seconds(self) -> float:
        """Time spent asking so far, by earlier sessions too."""
        if self._seconds_in_all is not None:
            return self._seconds_in_all
        return self._seconds_before + time.monotonic() - self._started

    @property
    def has_earlier_session(self) -> bool:
        """Whether some of the time was spent by another process."""
        return self._seconds_before > 0

    def stop_clock(self) -> None:
        """The asking has ended: what comes now is not its time."""
        self._seconds_in_all = self.wall_seconds

    def add(self, key: Key, rollout: Rollout, *, vote: str, num_thinking_tokens: int | None) -> Sample:
        """Keep one scored answer; written at once, forced to the disk in batches."""
        row = _describe(rollout)
        extra = {"problem_id": key[0], "sample": key[1], "vote": _shorten(vote)}
        extra |= {"num_thinking_tokens": num_thinking_tokens, "wall_seconds": round(self.wall_seconds, 3)}
        extra |= {"weight_version": rollout.completion.weight_version}
        extra |= {"cost_nano_usd": rollout.completion.cost_nano_usd}
        if (usage := rollout.completion.usage) is not None:
            # What an earlier evaluation paid for is not used again.
            extra["usage"] = asdict(Usage(0, 0) if rollout.completion.is_paid_before else usage)
        self.samples[key] = _remember(extra, row)
        if self._file is not None:
            self._places[key] = self._file.seek(0, os.SEEK_END)
            with _writing(self._path):
                # ASCII: model text may hold lone surrogates, which UTF-8 cannot.
                self._file.write(json.dumps({**extra, "row": row}, ensure_ascii=True).encode("ascii") + b"\n")
                self._file.flush()
            self._num_unsynced += 1
            if self._num_unsynced >= SYNC_SAMPLES or time.monotonic() - self._synced_at > SYNC_SECONDS:
                self.sync()
        return self.samples[key]

    def sync(self) -> None:
        """Force what was added to the disk."""
        if self._file is not None and self._num_unsynced:
            with _writing(self._path):
                os.fsync(self._file.fileno())
        self._num_unsynced, self._synced_at = 0, time.monotonic()

    def remove(self) -> None:
        """The file is not needed any more."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)

    def write_outputs(self, out: TextIO, *, problems: Sequence[Problem], num_samples: int) -> None:
        """Every answer as NAME.jsonl has it: a line for each problem, its samples in order."""
        assert self._file is not None, "outputs are read back from the file"
        for problem in problems:
            rows = []
            for index in range(num_samples):
                self._file.seek(self._places[problem.problem_id, index])
                rows.append(json.loads(self._file.readline())["row"])
            row = {"problem_id": problem.problem_id, "prompt": problem.prompt, "gold": problem.answer, "samples": rows}
            out.write(json.dumps(row, ensure_ascii=True) + "\n")

    def take_up(self, manifest: Mapping[str, Any]) -> None:
        """Read what an earlier session left, or begin the file.

        Raises:
            DataError: the file is of another evaluation.
        """
        assert self._file is not None
        header = self._file.readline()
        found = _parse(header)
        # A record of an older aha has neither; nothing of it was booked.
        self.uid = str(found.get("uid") or (hashlib.sha256(header).hexdigest()[:32] if found else self.uid))
        if found:
            self.spent_before_nano_usd = int(found.get("spent_before_nano_usd", 0))
        if not header.endswith(b"\n"):  # new, or killed within its first line
            self._begin(manifest)
            return
        _check_same(_parse(header), manifest, path=self._path)
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._read(line, place=end)
            end += len(line)
        self._file.truncate(end)  # a line that a kill has torn

    def _begin(self, manifest: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        header = {"format": FORMAT, "identity": identity(manifest), "manifest": dict(manifest), "uid": self.uid}
        header["spent_before_nano_usd"] = self.spent_before_nano_usd
        self._file.write(json.dumps(header, ensure_ascii=True).encode("ascii") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, line: bytes, *, place: int) -> None:
        """One answer of an earlier session; a line that cannot be read is asked again."""
        found = _parse(line)
        try:
            key = (str(found["problem_id"]), int(found["sample"]))
            if key not in self.samples:
                self.samples[key] = _remember(found, found["row"])
                self._places[key] = place
            self._seconds_before = max(self._seconds_before, float(found["wall_seconds"]))
        except (KeyError, TypeError, ValueError):
            return


@contextmanager
def open_record(path: Path | None, *, manifest: Mapping[str, Any], spent_before_nano_usd: int = 0) -> Iterator[Record]:
    """The record of an evaluation; what an earlier session left is in it.

    Args:
        path: NAME.jsonl.partial; None keeps the answers' numbers in memory and their texts nowhere. When the block
            fails it stays where it is if the manifest names a model. The caller removes it when all is done.

    Raises:
        DataError: it is of another evaluation, in use by another process, or cannot be written.
    """
    if path is None:
        record = Record(None, path=Path())
        record.spent_before_nano_usd = spent_before_nano_usd
        yield record
        return
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        _lock(file, path)
        record = Record(file, path=path)
        record.spent_before_nano_usd = spent_before_nano_usd
        with _writing(path):
            file.seek(0)
            if not manifest["model"]:
                file.truncate()  # nothing says that the same model made what is there
            record.take_up(manifest)
        try:
            yield record
        finally:
            record.sync()
            if not manifest["model"]:
                path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}; free some space or choose another folder") from error


def identity(manifest: Mapping[str, Any]) -> str:
    """A digest of everything that decides which texts are drawn and how they are judged."""
    kept = {key: value for key, value in manifest.items() if key not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def describe_differences(before: Mapping[str, Any], after: Mapping[str, Any], *, keys: Sequence[str]) -> str:
    """What differs between two manifests, for a message; "" when nothing does. A key that one lacks is passed over."""
    parts = [
        f"{key} {before[key]!r} and {after[key]!r}"
        for key in keys
        if key in before and key in after and before[key] != after[key]
    ]
    return ", ".join(parts)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(f"{path} is being written by another process; wait for it, or choose another --out") from None


def _check_same(header: Mapping[str, Any], manifest: Mapping[str, Any], *, path: Path) -> None:
    known = header.get("manifest")
    if header.get("format") != FORMAT or not isinstance(known, dict):
        raise DataError(f"{path} is not the record of an evaluation; remove it or choose another --out")
    if header.get("identity") != identity(manifest):
        keys = [key for key in manifest if key not in NOT_IDENTITY]
        changed = describe_differences(known, json.loads(json.dumps(manifest)), keys=keys) or "other settings"
        raise DataError(
            f"{path} holds the answers of another evaluation ({changed}); go on with that one by its own options, "
            "choose another --out, or remove the file"
        )


def _parse(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _describe(rollout: Rollout) -> dict[str, Any]:
    """A sample as NAME.jsonl has it."""
    completion, score = rollout.completion, rollout.score
    row: dict[str, Any] = {
        "text": completion.text,
        "reasoning": completion.reasoning,
        "answer": completion.answer,
        "reward": score.reward,
        "is_correct": score.is_correct,
        "outcome": score.outcome,
        "note": score.note,
        "finish_reason": completion.finish_reason,
        "num_tokens": completion.num_tokens,
    }
    if completion.turns:
        row["turns"] = [asdict(turn) for turn in completion.turns]
    return row | ({"parts": dict(score.parts)} if score.parts else {})


def _remember(extra: Mapping[str, Any], row: Mapping[str, Any]) -> Sample:
    outcome = Outcome(row["outcome"])
    thinking = extra["num_thinking_tokens"]
    return Sample(
        answer=str(extra["vote"]),
        is_correct=bool(row["is_correct"]),
        outcome=outcome,
        num_tokens=int(row["num_tokens"]),
        num_thinking_tokens=None if thinking is None else int(thinking),
        is_truncated=row["finish_reason"] == "length",
        weight_version=int(extra["weight_version"]),
        cost_nano_usd=int(extra["cost_nano_usd"]),
        usage=Usage(**extra["usage"]) if extra.get("usage") else None,
        note="" if outcome.is_judged else str(row["note"]),
    )


def _shorten(vote: str) -> str:
    """A vote, or the digest of a long one: it stays in memory for every sample."""
    if len(vote) <= MAX_KEPT_CHARS:
        return vote
    return hashlib.sha256(vote.encode("utf-8", "surrogatepass")).hexdigest()
