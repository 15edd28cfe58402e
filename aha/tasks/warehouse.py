"""Warehouse: add up what some shelves hold, which only a tool tells: a task of several turns.

The question "7 + 31" names shelves; what they hold stands in no prompt. The model asks for one shelf a turn with
`<tool>7</tool>`, is shown its number, and answers with the sum. Without the tool the answer cannot be known, so that
pass@1 measures whether the tool is used, and used well. Terse, so that a model of a million parameters can read it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from aha.errors import ConfigError
from aha.tasks.base import Cheat, Demonstration, Split
from aha.tasks.turns import with_turns
from aha.tasks.verifiers import number
from aha.types import Completion, FinishReason, Observation, Outcome, Problem, Score, Transcript, Turn

OPEN, CLOSE = "<tool>", "</tool>"
USAGE = "error: write <tool>SHELF</tool> and nothing else"
UNKNOWN = "error: no such shelf"
TEST_SHARE_PERCENT = 10
NUM_SHELVES = 30
NUM_KNOWN = 8
"""Shelves of a problem that hold anything: those it asks for, and some that would mislead."""
_CALL = re.compile(r"\s*<tool>([0-9]{1,2})</tool>\s*")


@dataclass(frozen=True, kw_only=True)
class Warehouse:
    """Add up what shelves hold, asking a tool for one shelf at a time."""

    num_asked: int = 2
    """Shelves to add up: 1 to 4."""
    max_count: int = 30
    """A shelf holds 1 to max_count boxes."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_asked <= 4:
            raise ConfigError(f"warehouse: num_asked must be 1 to 4, got {self.num_asked}")
        if not 9 <= self.max_count <= 9999:
            raise ConfigError(f"warehouse: max_count must be 9 to 9999, got {self.max_count}")

    @property
    def name(self) -> str:
        """The spec that makes this task again, e.g. "warehouse:num_asked=3"."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return "warehouse" + (":" + ",".join(changed) if changed else "")

    @property
    def system_prompt(self) -> str:
        return (
            "A warehouse has numbered shelves. You get the numbers of some, written like 7 + 31, and must say how many "
            "boxes they hold together. To learn what shelf 7 holds, write only <tool>7</tool>; the next "
            "message tells. Ask for one shelf at a time. When you know them all, write only the sum of what they hold."
        )

    @property
    def max_turns(self) -> int:
        """One turn for each shelf, one to answer, and two for mistakes."""
        return self.num_asked + 3

    def problems(self, split: Split, *, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"warehouse {split} {seed}")
        while True:
            yield self._draw(rng, split)

    def _draw(self, rng: random.Random, split: Split) -> Problem:
        while True:
            shelves = [str(shelf) for shelf in rng.sample(range(1, NUM_SHELVES + 1), k=NUM_KNOWN)]
            counts = {shelf: rng.randint(1, self.max_count) for shelf in shelves}
            asked = shelves[: self.num_asked]
            key = " ".join(f"{shelf}:{counts[shelf]}" for shelf in sorted(asked))
            if _is_held_out(key) == (split == "test"):
                return make_problem(asked, counts=counts)

    def respond(self, problem: Problem, transcript: Transcript) -> Observation | None:
        """What a shelf holds, or what is wrong with the call; a turn without a call is the answer."""
        answer = transcript[-1].answer
        if OPEN not in answer and CLOSE not in answer:
            return None
        call = _CALL.fullmatch(answer)
        if call is None:
            return Observation(USAGE)
        count = problem.data["counts"].get(call[1])
        return Observation(UNKNOWN if count is None else str(count))

    def score(self, problem: Problem, completion: Completion) -> Score:
        if completion.finish_reason is FinishReason.LENGTH and not completion.answer:
            return Score(0.0, False, "ran out of tokens", Outcome.PARSE_FAILURE)
        if OPEN in completion.answer or CLOSE in completion.answer:
            return Score(0.0, False, "no answer: still asking", Outcome.PARSE_FAILURE)
        found = number(problem.answer, completion.answer)
        missing = [shelf for shelf in problem.data["asked"] if shelf not in _shown(problem, completion.turns)]
        # A completion without turns is from outside an episode, such as a gold answer: nobody knows what it was shown.
        if found.is_correct and completion.turns and missing:
            return Score(0.0, False, f"guessed: never asked for {', '.join(missing)}")
        return found

    def demonstrations(self, *, seed: int) -> Iterator[Demonstration]:
        """Ask for each shelf in turn, keep the running total in the thinking, answer."""
        rng = random.Random(f"warehouse demonstrations {seed}")
        while True:
            yield demonstrate(self._draw(rng, "train"))

    def gold(self, problem: Problem) -> Completion:
        """The episode of the demonstration."""
        shown = demonstrate(problem)
        return _episode(*shown.turns, Turn(shown.reasoning, shown.answer))

    def cheats(self, problem: Problem) -> Iterator[Cheat]:
        """The right sum without having been told it by the tool."""
        calls = demonstrate(problem).turns
        claim = Turn("I have asked for all of them.", problem.answer)
        dialogue = " ".join(f"{turn.answer} {turn.observation.text}" for turn in calls if turn.observation)
        yield Cheat("right by luck", _episode(claim))
        yield Cheat("writes the tool's answers itself", _episode(Turn(dialogue, f"{dialogue} {problem.answer}")))
        yield Cheat("asks for one shelf only", _episode(calls[-1], claim) if len(calls) > 1 else _episode(claim))
        yield Cheat("ends with a call", _episode(*calls, Turn("", f"{calls[0].answer} {problem.answer}")))
        yield Cheat("a call nobody answered", _episode(*(replace(turn, observation=None) for turn in calls), claim))
        wrong = Observation(USAGE)
        yield Cheat("calls that went wrong", _episode(*(replace(turn, observation=wrong) for turn in calls), claim))


def _episode(*turns: Turn) -> Completion:
    told = tuple(replace(turn, text=f"<think>{turn.reasoning}</think>{turn.answer}") for turn in turns)
    num_tokens = sum(len(turn.text) for turn in told)
    return with_turns(Completion((), (), FinishReason.STOP, reported_tokens=num_tokens), told)


def make_problem(asked: list[str], *, counts: dict[str, int]) -> Problem:
    """A problem on these shelves; its id depends on their numbers, order and counts."""
    total = sum(counts[shelf] for shelf in asked)
    names = "-".join(f"{shelf}x{counts[shelf]}" for shelf in asked)
    return Problem(
        problem_id=f"warehouse-{names}",
        prompt=" + ".join(asked),
        answer=str(total),
        data={"asked": asked, "counts": counts},
    )


def demonstrate(problem: Problem) -> Demonstration:
    """The shortest way: one call for each shelf."""
    turns = []
    thought, total = "", 0
    for shelf in problem.data["asked"]:
        count = int(problem.data["counts"][shelf])
        turns.append(Turn(thought, f"{OPEN}{shelf}{CLOSE}", Observation(str(count))))
        thought = f"{total}+{count}={total + count}" if total else str(count)
        total += count
    return Demonstration(problem, reasoning=thought, answer=str(total), turns=tuple(turns))


def _shown(problem: Problem, turns: Transcript) -> set[str]:
    """The shelves whose numbers the task has told: by its own observations, not by what a turn claims."""
    calls = [(turn.observation, _CALL.fullmatch(turn.answer)) for turn in turns]
    known = {call[1]: shown.text for shown, call in calls if shown is not None and call is not None}
    return {shelf for shelf, text in known.items() if text == str(problem.data["counts"].get(shelf))}


def _is_held_out(key: str) -> bool:
    """Whether the test split owns these shelves with these counts, whatever their order."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < TEST_SHARE_PERCENT
