"""Reads the records of a data file (JSONL, CSV, JSON, Parquet); every error names the file and the line or record."""

from __future__ import annotations

import csv
import difflib
import importlib.util
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aha.errors import DataError

SUFFIXES = (".jsonl", ".csv")
"""Of files that people write."""
PUBLISHED_SUFFIXES = (*SUFFIXES, ".json", ".parquet")
"""Of files that data sets are published in."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file."""

    place: str
    """Where, for messages: "tickets.jsonl line 3"."""
    values: Mapping[str, Any]

    def text(self, column: str, *, option: str) -> str:
        """A column that must be there, as text; numbers, lists and objects in JSON's spelling.

        Args:
            option: the option of the task that chooses another column.

        Raises:
            DataError: when the column is missing or empty.
        """
        if column not in self.values:
            near = difflib.get_close_matches(column, self.values, n=1, cutoff=0.5)
            fix = f"; did you mean {option}={near[0]}?" if near else f"; choose it with {option}=NAME"
            raise DataError(f"{self.place}: no column {column!r}{fix}{self._columns()}")
        found = self.optional_text(column)
        if not found:
            raise DataError(f"{self.place}: {column!r} is empty; every row needs one")
        return found

    def _columns(self) -> str:
        names = [str(name) for name in self.values]
        if len(names) == 1 and (found := [mark for mark in (";", "\t", "|") if mark in names[0]]):
            return f"; the first line holds {names[0][:60]!r}: separate the cells by commas, not {found[0]!r}"
        return f"; columns: {', '.join(names)}"

    def optional_text(self, column: str) -> str:
        """A column as text, "" when it is missing, null or blank.

        Raises:
            DataError: when the text holds half a character (a lone surrogate), which no tokenizer can read.
        """
        value = self.values.get(column)
        if value is None:
            return ""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self._refuse_halves(text, column)
        return text.strip()

    def _refuse_halves(self, text: str, column: str) -> None:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{self.place}: {column!r} holds half a character (a lone surrogate); write it whole")

    def texts(self, column: str) -> list[str]:
        """A column that holds a list: a JSON list, in a CSV also texts separated by "|"; [] when missing.

        Raises:
            DataError: when it is something else, or an entry is blank or stands twice.
        """
        value = self.values.get(column)
        if isinstance(value, str) and value.strip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise DataError(f"{self.place}: {column!r} is no valid JSON list: {value[:60]!r}") from None
        if isinstance(value, str):
            value = value.split("|") if value.strip() else []
        if not isinstance(value, list | None):
            raise DataError(f"{self.place}: {column!r} must be a list of texts, got {value!r:.60}")
        entries = [entry.strip() if isinstance(entry, str) else json.dumps(entry) for entry in value or []]
        self._refuse_halves("".join(entries), column)
        if len({entry.casefold() for entry in entries if entry}) < len(entries):
            raise DataError(f"{self.place}: an entry of {column!r} is blank or stands twice: {entries!r:.200}")
        return entries


def read_records(path: str, *, suffixes: tuple[str, ...] = SUFFIXES) -> list[Record]:
    """All rows of a file, blank lines skipped.

    Raises:
        DataError: when the file is missing, unreadable, not UTF-8, malformed or empty.
    """
    suffix = Path(path).suffix
    if suffix not in suffixes:
        raise DataError(f"{path}: a data file must end in {' or '.join(suffixes)}, with one problem a row")
    if suffix == ".parquet":
        records = list(_read_parquet(path))
    else:
        read = {".csv": _read_csv, ".json": _read_json}.get(suffix, _read_jsonl)
        records = list(read(path, _read_text(path)))
    if not records:
        raise DataError(f"{path}: holds no rows; each needs a prompt and an answer")
    return records


def _read_text(path: str) -> str:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise DataError(f"{path} line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from None


def _read_jsonl(path: str, text: str) -> Iterator[Record]:
    # Not splitlines(): it also breaks at U+2028 and the like, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON ({_reason(error)}); each line must be one JSON object") from None
        if not isinstance(values, dict):
            raise DataError(f"{place}: must be a JSON object with a prompt and an answer, got {line.strip()[:60]}")
        yield Record(place, values)


def _read_csv(path: str, text: str) -> Iterator[Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            place = f"{path} line {reader.line_num}"
            if None in values:
                raise DataError(f"{place}: has more cells than the header; quote cells that hold a comma")
            yield Record(place, values)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: not valid CSV ({_csv_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What is wrong and where in the line: JSON counts lines too, and would always say line 1."""
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)


def _csv_reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote is opened and never closed"
    if "field limit" in str(error):
        return f"a cell of more than {csv.field_size_limit():,} characters; write the file as JSONL"
    return str(error)


def _read_json(path: str, text: str) -> Iterator[Record]:
    """A list of objects, or one object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    for number, record in enumerate(values if isinstance(values, list) else [values], start=1):
        if not isinstance(record, dict):
            raise DataError(f"{path} record {number}: must be a JSON object, got {record!r:.60}")
        yield Record(f"{path} record {number}", record)


def _read_parquet(path: str) -> Iterator[Record]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or convert the file to JSONL")
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not valid Parquet ({error})"[:300]) from None
    for number, values in enumerate(rows, start=1):
        yield Record(f"{path} record {number}", values)
