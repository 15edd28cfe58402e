"""Published data sets of mathematics and science as tasks: gsm8k, math, math500, aime, gpqa.

Each reads its files in their original format: from `path`, from the folder where we look for them, or from Hugging
Face. They measure; only gsm8k and math come with problems to train on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from aha.errors import ConfigError, DataError
from aha.tasks.base import Split
from aha.tasks.table_file import PUBLISHED_SUFFIXES, Record, read_records
from aha.tasks.verifiers import LETTERS, VERIFIERS, UnreadableError, last_boxed, only_number, require_math, vote
from aha.types import Completion, FinishReason, Outcome, Problem, Score


class Remote(NamedTuple):
    """Files of a data set on Hugging Face."""

    repository: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """What the data sets share: where their rows come from, how they are split and judged."""

    path: str = ""
    """File or folder of the test problems (for a folder with files for both splits, of all); "" looks for them."""

    title: ClassVar[str] = ""
    verifier: ClassVar[str] = "math"
    question_columns: ClassVar[tuple[str, ...]] = ("problem", "question")
    answer_columns: ClassVar[tuple[str, ...]] = ("answer",)
    instructions: ClassVar[str] = (
        "Think step by step inside <think> and </think>, then put the final answer in \\boxed{}."
    )

    def __post_init__(self) -> None:
        if self.verifier == "math":
            require_math()
        if self.path and not os.path.exists(self.path):
            raise ConfigError(f"{self.title}: no file or folder {self.path}")

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "aime:year=2025"."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return self.title + (":" + ",".join(changed) if changed else "")

    @property
    def system_prompt(self) -> str:
        return self.instructions

    @abstractmethod
    def remotes(self, split: Split) -> tuple[Remote, ...]:
        """Where the files of a split lie on Hugging Face; none for a split that the data set does not have."""

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        """Each problem of the split once, in an order fixed by `seed`.

        Raises:
            DataError: when the data set has no such split, or its files are not here and cannot be fetched.
        """
        problems = list(self._train if split == "train" else self._test)
        random.Random(f"{self.title} {split} {seed}").shuffle(problems)
        yield from problems

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        options = {"choices": problem.data["choices"]} if self.verifier == "choice" else {}
        return VERIFIERS[self.verifier](problem.answer, completion.answer, **options)

    def vote(self, problem: Problem, completion: Completion) -> str:
        return vote(self.verifier, completion.answer, choices=problem.data.get("choices", ()))

    @cached_property
    def _test(self) -> tuple[Problem, ...]:
        return self._read("test", self.path)

    @cached_property
    def _train(self) -> tuple[Problem, ...]:
        """Training problems, without those that are test problems too."""
        if not self.remotes("train"):
            raise DataError(f"{self.title} is an evaluation set: it has no training problems; train on another task")
        held_out = {problem.problem_id for problem in self._test}
        train = self._read("train", getattr(self, "train_path", "") or self.path)
        return tuple(problem for problem in train if problem.problem_id not in held_out)

    def _read(self, split: Split, path: str) -> tuple[Problem, ...]:
        files = find_files(self.title, split, path=path, remotes=self.remotes(split))
        found: dict[str, Problem] = {}
        for file in files:
            for record in read_records(str(file), suffixes=PUBLISHED_SUFFIXES):
                if self.has(record):
                    problem = self.read_problem(record)
                    found.setdefault(problem.problem_id, problem)
        if not found:
            raise DataError(f"{self.title}: {path or files[0].parent} holds no problems of {self.name}")
        return tuple(found.values())

    def has(self, record: Record) -> bool:
        """Whether a row of the files belongs to this task."""
        return True

    def read_problem(self, record: Record) -> Problem:
        """A row as a problem.

        Raises:
            DataError: when a column is missing, or the answer is not of the kind that is judged.
        """
        question = _first_text(record, self.question_columns)
        answer = self.read_answer(record)
        if self.verifier == "number":
            try:
                only_number(answer)
            except UnreadableError as error:
                raise DataError(f"{record.place}: the answer: {error}") from None
        return Problem(_problem_id(self.title, question), question, answer)

    def read_answer(self, record: Record) -> str:
        """The right answer of a row."""
        return _first_text(record, self.answer_columns)


@dataclass(frozen=True, kw_only=True)
class GSM8K(Benchmark):
    """Word problems of grade-school arithmetic (arXiv:2110.14168): 1,319 to test, 7,473 to train on."""

    train_path: str = ""
    """File of the training problems, where `path` is a file of test problems."""

    title = "gsm8k"
    verifier = "number"
    question_columns = ("question",)
    instructions = "Think step by step inside <think> and </think>, then write only the number."

    def remotes(self, split: Split) -> tuple[Remote, ...]:
        return (Remote("openai/gsm8k", (f"main/{split}-00000-of-00001.parquet",)),)

    def read_answer(self, record: Record) -> str:
        # The solution ends with these marks and the number.
        return super().read_answer(record).rpartition("####")[2].strip()


_MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Math(Benchmark):
    """Competition mathematics (MATH, arXiv:2103.03874): 5,000 to test, 7,500 to train on."""

    train_path: str = ""
    """File or folder of the training problems, where `path` is one of test problems."""
    level: int = 0
    """Only problems of this level, 1 to 5; 0 takes all."""

    title = "math"
    answer_columns = ("answer", "solution")

    def remotes(self, split: Split) -> tuple[Remote, ...]:
        files = tuple(f"{subject}/{split}-00000-of-00001.parquet" for subject in _MATH_SUBJECTS)
        return (Remote("EleutherAI/hendrycks_math", files),)

    def has(self, record: Record) -> bool:
        return not self.level or record.optional_text("level").removeprefix("Level ") == str(self.level)

    def read_answer(self, record: Record) -> str:
        return last_boxed(super().read_answer(record)).strip()


@dataclass(frozen=True, kw_only=True)
class Math500(Benchmark):
    """The 500 problems of MATH that most reports quote (arXiv:2305.20050)."""

    title = "math500"

    def remotes(self, split: Split) -> tuple[Remote, ...]:
        return (Remote("HuggingFaceH4/MATH-500", ("test.jsonl",)),) if split == "test" else ()


@dataclass(frozen=True, kw_only=True)
class AIME(Benchmark):
    """The American Invitational Mathematics Examination: 30 problems a year, each answer a number from 0 to 999."""

    year: Literal["2024", "2025"] = "2024"
    """Whose problems; a local file without a column `year` is taken as it is."""

    title = "aime"
    verifier = "number"

    def remotes(self, split: Split) -> tuple[Remote, ...]:
        if split == "train":
            return ()
        if self.year == "2024":
            return (Remote("HuggingFaceH4/aime_2024", ("data/train-00000-of-00001.parquet",)),)
        return (Remote("opencompass/AIME2025", ("aime2025-I.jsonl", "aime2025-II.jsonl")),)

    def has(self, record: Record) -> bool:
        return record.optional_text("year") in ("", self.year)


@dataclass(frozen=True, kw_only=True)
class GPQA(Benchmark):
    """Multiple-choice questions of graduate physics, chemistry and biology (arXiv:2311.12022)."""

    subset: Literal["diamond", "main", "extended"] = "diamond"
    """Which file is fetched: 198, 448 or 546 questions."""
    shuffle: int = 0
    """Seed of the order of the choices, which is fixed for each question."""

    title = "gpqa"
    verifier = "choice"
    question_columns = ("Question",)
    answer_columns = ("Correct Answer",)
    instructions = "Think step by step inside <think> and </think>, then write only the letter of the right choice."

    def remotes(self, split: Split) -> tuple[Remote, ...]:
        return (Remote("Idavidrein/gpqa", (f"gpqa_{self.subset}.csv",)),) if split == "test" else ()

    def read_problem(self, record: Record) -> Problem:
        question = _first_text(record, self.question_columns)
        right = self.read_answer(record)
        wrong = [_first_text(record, (f"Incorrect Answer {number}",)) for number in (1, 2, 3)]
        choices = [right, *wrong]
        # By the question, not by its place in the file or the run's seed: the same letters in every run.
        random.Random(f"gpqa {self.shuffle} {question}").shuffle(choices)
        shown = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        letter = LETTERS[choices.index(right)]
        return Problem(_problem_id(self.title, question), f"{question}\n{shown}", letter, {"choices": choices})


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "aime": AIME,
    "gpqa": GPQA,
    "gsm8k": GSM8K,
    "math": Math,
    "math500": Math500,
}


def data_folder() -> Path:
    """Where we look for data sets: $AHA_HOME/datasets, or ~/.cache/aha/datasets."""
    home = os.environ.get("AHA_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "aha") / "datasets"


def find_files(title: str, split: Split, *, path: str, remotes: Sequence[Remote]) -> list[Path]:
    """The files of a split: at `path`, in our folder for data sets, or fetched from Hugging Face.

    Raises:
        DataError: when there are none, with what to download and where to put it.
    """
    folder = Path(path) if path else data_folder() / title
    if folder.is_file():
        return [folder]
    wanted = [file for remote in remotes for file in remote.files]
    if all((folder / file).is_file() for file in wanted):
        return [folder / file for file in wanted]
    if folder.is_dir():
        # test.jsonl, or a folder test/ with files below it, as MATH was published.
        beside = [folder / f"{split}{suffix}" for suffix in PUBLISHED_SUFFIXES]
        below = sorted(file for file in folder.glob(f"{split}/**/*") if file.suffix in PUBLISHED_SUFFIXES)
        if found := [file for file in beside if file.is_file()][:1] or below:
            return found
    if path:
        raise DataError(f"{title}: {path} has neither {split}.jsonl (.csv, .json, .parquet) nor {', '.join(wanted)}")
    return [_fetch(title, remote, file, folder=folder) for remote in remotes for file in remote.files]


def _fetch(title: str, remote: Remote, file: str, *, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    # What its HTTP library raises when a connection breaks: requests or httpx, by version.
    broken_connection: type[Exception] = HfHubHTTPError.__bases__[0]

    try:
        is_offline = not is_hub_there()
        return Path(hf_hub_download(remote.repository, file, repo_type="dataset", local_files_only=is_offline))
    except GatedRepoError:
        page = f"https://huggingface.co/datasets/{remote.repository}"
        raise DataError(f"{title}: {remote.repository} is gated: accept its terms at {page} and set HF_TOKEN") from None
    except (OSError, broken_connection):
        raise DataError(
            f"{title}: Hugging Face cannot be reached; download {file} of the data set {remote.repository} and put it "
            f"at {folder / file}, or name your file: {title}:path=FILE"
        ) from None


@functools.lru_cache(maxsize=1)
def is_hub_there() -> bool:
    """Whether Hugging Face answers, asked once and shortly: its client would retry for 23 seconds, and say so."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=5.0)
    except httpx.HTTPError:
        return False
    return not constants.HF_HUB_OFFLINE


def _first_text(record: Record, columns: Sequence[str]) -> str:
    """The first of these columns that the row has, whatever its capitals.

    Raises:
        DataError: when it has none of them, or the first is empty.
    """
    spelled = {str(column).casefold(): str(column) for column in record.values}
    for column in columns:
        if column.casefold() in spelled:
            return record.text(spelled[column.casefold()], option="column")
    there = ", ".join(map(str, record.values))
    raise DataError(f"{record.place}: has no column {' or '.join(map(repr, columns))}; columns: {there}")


def _problem_id(title: str, question: str) -> str:
    digest = hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]
    return f"{title}-{digest}"
