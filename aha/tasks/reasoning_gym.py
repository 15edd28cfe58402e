"""Every generator of the reasoning-gym library as a task: `reasoning_gym:dataset=NAME,parameter=value,…`.

The library is third-party code and several of its scorers hand model text to eval, so nothing of it runs in this
process: problems are made in one worker process, answers are scored in others, by the rules in
`aha.tasks.jobs.gym_rules` (docs/reasoning_gym.md).
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from aha.errors import ConfigError
from aha.tasks.base import Split
from aha.tasks.worker import ask
from aha.types import Completion, FinishReason, Outcome, Problem, Score

MAX_ANSWER_CHARS = 20_000
BATCH = 8
"""Problems asked for at a time."""
NUM_SAMPLED = 256
"""Problems that decide how a generator with few questions is split."""
NUM_IDLE = 256
"""A pass over a split ends when this many problems in a row brought no new question."""
MAX_BARREN = 2_048
"""A generator of which so many indices gave no problem is given up."""
MAX_REMEMBERED = 4_096
"""A generator with fewer questions in a split is walked through once, then repeats them from memory."""
PARTIAL_CEILING = 0.5
"""Part credit ends here: half right may never outweigh right."""


@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    """One generator of reasoning-gym with its parameters."""

    dataset: str
    """The generator's name in the library."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the generator: JSON values, or texts as on the command line."""
    partial: bool = False
    """Whether an answer that is not right may earn part of the reward, up to 0.5, where the scorer grades; what it
    gives an empty answer counts as nothing. Off: right or nothing."""
    seed: int = 0
    """Another stream of problems, on top of the run's seed."""
    size: int = 0
    """Most problems of a pass over a split; 0 sets no limit."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ConfigError("reasoning_gym: the library is not installed; pip install 'aha[tasks]'")
        if self.size < 0:
            raise ConfigError(f"reasoning_gym: size must be 0 (no limit) or more, got {self.size}")
        reply = ask("reasoning_gym_items", {"dataset": self.dataset, "parameters": dict(self.parameters)})
        if reply.outcome is not Outcome.SCORED:
            self._refuse(reply.note)
        if reply.value["refused"]:
            self._refuse(reply.value["refused"])
        object.__setattr__(self, "parameters", reply.value["parameters"])

    @classmethod
    def from_spec(cls, options: Mapping[str, str]) -> ReasoningGym:
        """The task from the texts of a spec: every option but our own is the generator's.

        Raises:
            ConfigError: for an unknown generator or parameter, or a wrong value.
        """
        parameters = {key: value for key, value in options.items() if key not in ("dataset", *_OWN_OPTIONS)}
        own: dict[str, Any] = {}
        for key in options.keys() & _OWN_OPTIONS.keys():
            pattern, read, expected = _OWN_OPTIONS[key]
            if not re.fullmatch(pattern, options[key]):
                raise ConfigError(f"reasoning_gym: {key} must be {expected}, got {options[key]!r}")
            own[key] = read(options[key])
        if not options.get("dataset"):
            raise ConfigError("reasoning_gym: name a generator, such as reasoning_gym:dataset=chain_sum")
        return cls(dataset=options["dataset"], parameters=parameters, **own)

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "reasoning_gym:dataset=chain_sum,max_terms=5"."""
        options = [f"dataset={self.dataset}"]
        options += [f"{key}={_as_text(value)}" for key, value in sorted(self.parameters.items())]
        for key, value in (("partial", self.partial), ("seed", self.seed), ("size", self.size)):
            options += [f"{key}={_as_text(value)}"] if value else []
        return "reasoning_gym:" + ",".join(options)

    @property
    def system_prompt(self) -> str:
        return (
            "Think step by step inside <think> and </think>, then write only the answer, in the form that the question "
            "asks for."
        )

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        """Problems of a split, endless; each question once in a pass over what the generator has."""
        rng = random.Random(f"reasoning_gym {split} {seed} {self.seed}")
        for number in itertools.count():
            known: list[Problem] = []
            for problem in self._one_pass(split, seed=f"{seed} pass {number}"):
                if len(known) < MAX_REMEMBERED:
                    known.append(problem)
                yield problem
            while len(known) < MAX_REMEMBERED:  # that was all there is; making it again would cost and bring the same
                rng.shuffle(known)
                yield from known

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        text, reason = _final_answer(completion.answer)
        if reason:
            return Score(0.0, False, reason, Outcome.PARSE_FAILURE)
        question = {
            "dataset": self.dataset,
            "parameters": self.parameters,
            "entry": problem.data["entry"],
            "question": problem.prompt,
            "text": text,
            "partial": self.partial,
        }
        reply = ask("reasoning_gym_scores", question)
        if reply.outcome is not Outcome.SCORED:
            return Score(0.0, False, reply.note, reply.outcome)
        return self._graded(reply.value["score"], floor=reply.value["floor"])

    def _graded(self, score: float, *, floor: float) -> Score:
        if abs(score - 1.0) <= 1e-9:
            return Score(1.0, True, "right")
        # A scorer's number above 1 or below 0, or no number at all, is a slip of the scorer, not a part of an answer.
        share = (score - floor) / (1.0 - floor) if 0.0 <= score < 1.0 else 0.0
        reward = PARTIAL_CEILING * max(0.0, share) if self.partial else 0.0
        return Score(reward, False, f"wrong; its scorer says {score:.3g}" if score > 0 else "wrong")

    def _one_pass(self, split: Split, *, seed: str) -> Iterator[Problem]:
        seen: set[bytes] = set()
        num_idle = 0
        for problem in self._stream(f"{split} {seed} {self.seed}"):
            digest = _digest(problem.prompt)
            if digest not in seen and self._is_test(digest) == (split == "test"):
                seen.add(digest)
                num_idle = 0
                yield problem
            else:
                num_idle += 1
            if (seen and len(seen) == self.size) or num_idle >= (NUM_IDLE if seen else MAX_BARREN):
                break
        if not seen:
            self._refuse(f"{MAX_BARREN} problems in a row were none of the {split} split; choose other parameters")

    def _stream(self, key: str) -> Iterator[Problem]:
        """Problems of both splits in the generator's order, endless."""
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1
        start = num_barren = 0
        while True:
            question = {"dataset": self.dataset, "parameters": self.parameters, "seed": seed}
            reply = ask("reasoning_gym_items", {**question, "start": start, "count": BATCH})
            if reply.outcome is not Outcome.SCORED:
                self._refuse(f"making problems failed: {reply.note}")
            if reply.value["refused"]:
                self._refuse(reply.value["refused"])
            yield from map(self._problem, reply.value["items"])
            num_barren = 0 if reply.value["items"] else num_barren + reply.value["next"] - start
            if num_barren >= MAX_BARREN:
                why = reply.value["fault"] or "no problem comes with a right answer that its scorer accepts"
                self._refuse(f"{num_barren} tries made no problem with these parameters: {why}")
            start = reply.value["next"]

    def _problem(self, item: Mapping[str, Any]) -> Problem:
        digest = hashlib.sha256(f"{self.dataset}\0{item['question']}".encode()).hexdigest()[:16]
        return Problem(f"{self.dataset}-{digest}", item["question"], item["answer"], {"entry": item["entry"]})

    def _is_test(self, digest: bytes) -> bool:
        return digest < self._test_below

    @cached_property
    def _test_below(self) -> bytes:
        """Questions with a smaller digest are the test split's, whatever the seeds: about half of them.

        For a generator with so few questions that one side might stay empty it is the median of those there are.
        """
        half = b"\x80"
        sample: set[bytes] = set()
        for problem in itertools.islice(self._stream("which questions there are"), NUM_SAMPLED):
            sample.add(_digest(problem.prompt))
            if min(sample) < half <= max(sample):
                return half
        if len(sample) < 2:
            self._refuse("makes a single question with these parameters; training needs one to hold out too")
        return sorted(sample)[len(sample) // 2]

    def _refuse(self, reason: str) -> NoReturn:
        prefix = "" if reason.startswith((self.dataset, "unknown generator")) else f"{self.dataset}: "
        raise ConfigError(f"reasoning_gym: {prefix}{reason}")


def _read_bool(text: str) -> bool:
    return text.lower() == "true"


_OWN_OPTIONS: dict[str, tuple[str, Any, str]] = {
    "partial": ("(?i)true|false", _read_bool, "true or false"),
    "seed": ("[0-9]{1,18}", int, "a whole number, 0 or more"),
    "size": ("[0-9]{1,18}", int, "a whole number, 0 or more (0 is no limit)"),
}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _digest(question: str) -> bytes:
    return hashlib.sha256(" ".join(question.split()).encode("utf-8", "surrogatepass")).digest()


def _final_answer(answer: str) -> tuple[str, str]:
    """The text to score, or why there is none: what stands between <answer> tags, or in one fence, or all of it."""
    text = answer.strip()
    if text.count("<answer>") > 1:
        return "", "several answers"
    if "<answer>" in text and text.endswith("</answer>"):
        text = text.partition("<answer>")[2].removesuffix("</answer>").strip()
    fenced = re.fullmatch(r"```[a-z]*\n(.*?)\n?```", text, re.DOTALL)
    if fenced and "```" not in fenced[1]:
        text = fenced[1].strip()
    if not text:
        return "", "no answer"
    if len(text) > MAX_ANSWER_CHARS:
        return "", f"answer of {len(text):,} characters; at most {MAX_ANSWER_CHARS:,} are read"
    return text, ""
