"""The journal: every request that may cost money, on disk before it is sent, and every paid reply before it is used.

JSON lines, only ever added to. "sent" is written before a request goes out, with the most it can cost; "reply",
"spent" or "free" ends it, with what it did cost. A request that was sent and never ended (the process was killed)
counts with its worst case, so that the total is never below what the vendor may charge. Prompts are not written:
a request is known by a hash.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

from aha.client.endpoint import Reply
from aha.errors import DataError
from aha.types import FinishReason, Usage

FORMAT = 1
_KINDS = ("sent", "reply", "spent", "free")
_HEADER_ROW = {"kind": "journal", "format": FORMAT}


class Place(NamedTuple):
    """Where a line lies in the file."""

    offset: int
    num_bytes: int


class Journal:
    """An open journal, locked against other processes and other clients. Made with `Journal.open`.

    Not for several threads at a time: the client writes from its one event loop.
    """

    def __init__(self, path: Path, *, descriptor: int) -> None:
        self.path = path
        self.num_replies = 0
        self._descriptor = descriptor
        self._replies: dict[str, Place] = {}
        self._ended_nano_usd = 0
        self._under_way: dict[int, int] = {}
        """Id of a request → the most it can cost."""
        self._next_id = 0
        self._num_bytes = 0

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make a journal (readable by its owner only), and cut a line that a kill left torn.

        Raises:
            DataError: it cannot be read or written, is not a journal, or another process has it open.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataError(f"cannot open the journal {path}: {error.strerror}; choose another path") from None
        journal = cls(path, descriptor=descriptor)
        try:
            journal._lock()
            journal._read()
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def total_nano_usd(self) -> int:
        """All that was spent, requests under way at their worst case."""
        return self._ended_nano_usd + self.unsettled_nano_usd

    @property
    def unsettled_nano_usd(self) -> int:
        """The worst case of the requests that were sent and have not ended."""
        return sum(self._under_way.values())

    @property
    def num_unsettled(self) -> int:
        return len(self._under_way)

    def find(self, key: str) -> Reply | None:
        """The paid reply to a request, if there is one.

        Raises:
            DataError: the file was changed by somebody else.
        """
        place = self._replies.get(key)
        if place is None:
            return None
        try:
            row = json.loads(os.pread(self._descriptor, place.num_bytes, place.offset))
        except (OSError, ValueError):
            row = None
        if not isinstance(row, dict) or row.get("key") != key:
            raise DataError(f"the journal {self.path} was changed while in use; start again")
        try:
            return _to_reply(row["reply"], cost_nano_usd=row["cost_nano_usd"])
        except (TypeError, ValueError, KeyError):
            raise DataError(f"the journal {self.path} holds a reply that cannot be read; give another path") from None

    def write_sent(self, key: str, *, worst_nano_usd: int) -> int:
        """A request is about to go out. Returns its id.

        Not synced: it survives a killed process, and a machine that loses power loses the connection too.
        """
        request_id = self._next_id
        self._next_id += 1
        self._write({"kind": "sent", "id": request_id, "key": key, "cost_nano_usd": worst_nano_usd})
        self._under_way[request_id] = worst_nano_usd
        return request_id

    def write_reply(self, request_id: int, *, key: str, reply: Reply) -> None:
        """A request was answered. On disk when the call returns."""
        head = {"kind": "reply", "id": request_id, "key": key, "cost_nano_usd": reply.cost_nano_usd}
        place = self._write({**head, "reply": _to_row(reply)})
        self._sync()
        self._end(request_id, reply.cost_nano_usd)
        self._replies[key] = place
        self.num_replies += 1

    def write_lost(self, request_id: int, *, cost_nano_usd: int, why: str) -> None:
        """A request ended without a usable answer and is counted with this cost, 0 where nothing can be charged."""
        kind = "spent" if cost_nano_usd else "free"
        self._write({"kind": kind, "id": request_id, "cost_nano_usd": cost_nano_usd, "why": why})
        self._end(request_id, cost_nano_usd)

    def close(self) -> None:
        """Sync and unlock the file; calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _end(self, request_id: int, cost_nano_usd: int) -> None:
        self._under_way.pop(request_id, None)
        self._ended_nano_usd += cost_nano_usd

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"the journal {self.path} is in use by another process; give each its own") from None

    def _write(self, row: dict[str, Any]) -> Place:
        data = _to_line(row)
        place = Place(self._num_bytes, len(data))
        try:
            is_whole = os.write(self._descriptor, data) == len(data)
            reason = "the disk is full"
        except OSError as error:
            is_whole, reason = False, str(error.strerror)
        if not is_whole:
            self._cut(place.offset)
            raise DataError(f"cannot write the journal {self.path}: {reason}; free some space and run again")
        self._num_bytes += len(data)
        return place

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise DataError(f"cannot write the journal {self.path}: {error.strerror}") from None

    def _cut(self, num_bytes: int) -> None:
        try:
            os.ftruncate(self._descriptor, num_bytes)
        except OSError as error:
            raise DataError(f"cannot write the journal {self.path}: {error.strerror}") from None

    def _read(self) -> None:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                is_last = not file.peek(1)
                row = _parse(line)
                is_ours = number > 1 or _to_line(_HEADER_ROW).startswith(line)  # never cut a file that is not a journal
                if row is None and is_last and is_ours:
                    self._cut(self._num_bytes)
                    break
                if row is None or (row["kind"] == "journal") != (number == 1):
                    raise DataError(f"{self.path}, line {number} is not of a journal; give another path or move it")
                self._take(row, Place(self._num_bytes, len(line)))
                self._num_bytes += len(line)
        if not self._num_bytes:
            self._write(_HEADER_ROW)

    def _take(self, row: dict[str, Any], place: Place) -> None:
        if row["kind"] == "journal":
            if row.get("format") != FORMAT:
                raise DataError(f"the journal {self.path} has format {row.get('format')!r}, this aha knows {FORMAT}")
            return
        request_id, cost = int(row["id"]), int(row["cost_nano_usd"])
        if row["kind"] == "sent":
            self._under_way[request_id] = cost
            self._next_id = max(self._next_id, request_id + 1)
            return
        self._end(request_id, cost)
        if row["kind"] == "reply":
            self._replies[row["key"]] = place
            self.num_replies += 1


def _to_row(reply: Reply) -> dict[str, Any]:
    return {name: value for name, value in asdict(reply).items() if name not in ("is_from_journal", "cost_nano_usd")}


def _to_reply(row: dict[str, Any], *, cost_nano_usd: int) -> Reply:
    read = {"usage": Usage(**row["usage"]), "finish_reason": FinishReason(row["finish_reason"])}
    return Reply(**{**row, **read}, cost_nano_usd=cost_nano_usd, is_from_journal=True)


def _to_line(row: dict[str, Any]) -> bytes:
    # ASCII: answers may hold lone surrogates, which UTF-8 cannot.
    return json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line of a journal; None for anything else, torn ones included."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    if row.get("kind") == "journal":
        return row
    numbers = (row.get("id"), row.get("cost_nano_usd"))
    is_whole = all(isinstance(number, int) and number >= 0 for number in numbers)
    is_reply_whole = row.get("kind") != "reply" or (
        isinstance(row.get("key"), str) and isinstance(row.get("reply"), dict)
    )
    return row if row.get("kind") in _KINDS and is_whole and is_reply_whole else None
