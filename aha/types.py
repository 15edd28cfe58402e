"""The nouns that cross rooms, and the legend of shape suffixes.

Shape suffixes name the axes of a tensor or nested list, in order:

    P prompts · G completions per prompt · B sequences in a batch · T positions · S cached key positions ·
    D model width · F feed-forward width · H query heads · K key/value heads · C width per head · V vocabulary ·
    L layers · N rows after flattening (say what of, where it is made)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from aha.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FinishReason(StrEnum):
    """Why a completion ended, in the OpenAI API's words (plus "abort")."""

    STOP = "stop"
    """The model ended it: an end-of-sequence token or a stop string."""
    LENGTH = "length"
    """The token budget ended it: it is truncated."""
    ABORT = "abort"
    """The caller withdrew the request."""


class Outcome(StrEnum):
    """What became of a verification. Only SCORED and PARSE_FAILURE carry a reward that may train."""

    SCORED = "scored"
    PARSE_FAILURE = "parse_failure"
    """No answer could be read from the completion: reward 0."""
    TIMEOUT = "timeout"
    """The verifier did not end in time: masked out and counted, never scored 0."""
    ERROR = "error"
    """The verifier itself failed: masked out and counted, never scored 0."""

    @property
    def is_judged(self) -> bool:
        """Whether there is a reward that may train."""
        return self in (Outcome.SCORED, Outcome.PARSE_FAILURE)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture in a message, as a vision tower sees it: cut into tiles. Equal only to itself."""

    pixels_M3YX: NDArray[np.float32]
    """M tiles, their colours normalised: (M, 3, rows, columns)."""
    num_tokens: int
    """Tokens of the prompt that its features take; the two that enclose them are not counted."""
    position: int = 0
    """Characters of the message's content that stand before it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning_content: str | None = None
    """The thinking of an assistant turn, without its tags."""
    pictures: tuple[Picture, ...] = ()
    """In the order of their positions."""

    @property
    def pieces(self) -> list[str]:
        """The content cut at its pictures: one piece more than there are pictures, some of them empty."""
        cuts = [0, *(picture.position for picture in self.pictures), len(self.content)]
        return [self.content[start:end] for start, end in itertools.pairwise(cuts)]

    def with_pieces(self, pieces: Sequence[str]) -> Message:
        """The same message with other text between the same pictures."""
        ends = itertools.accumulate(len(piece) for piece in pieces)
        pictures = tuple(replace(picture, position=end) for picture, end in zip(self.pictures, ends, strict=False))
        return replace(self, content="".join(pieces), pictures=pictures)


@dataclass(frozen=True, slots=True)
class Problem:
    """One verifiable question."""

    problem_id: str
    """Stable across runs and machines; equal problems have equal ids."""
    prompt: str
    """The text of the user's turn."""
    answer: str
    """A correct answer as text, for people to read; the verifier decides with `data`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the task's verifier needs: plain JSON values."""
    system: str = ""
    """Instructions for this problem; "" takes those of its task."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn.

    `temperature` 0 takes the most probable token. `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    """

    num_samples: int = 1
    """Completions per prompt (G)."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 256
    """Most tokens of one completion, its end-of-sequence token included."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the string itself is cut from the text."""
    seed: int | None = None
    """With a seed, a completion depends on (seed, index of the sample, prompt) alone. None draws a fresh one."""
    first_sample: int = 0
    """Index of the first of the samples: with 3, samples 3, 4, … of a seed are drawn, as if 0 to 2 had been before."""

    def __post_init__(self) -> None:
        checks = (
            (self.num_samples >= 1, "num_samples", "at least 1", self.num_samples),
            (0.0 <= self.temperature <= 10.0, "temperature", "between 0 and 10", self.temperature),
            (self.top_k >= 0, "top_k", "0 (off) or more", self.top_k),
            (0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1", self.top_p),
            (0.0 <= self.min_p < 1.0, "min_p", "at least 0 and below 1", self.min_p),
            (self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens),
            (self.first_sample >= 0, "first_sample", "0 or more", self.first_sample),
        )
        for is_ok, name, rule, value in checks:
            if not is_ok:
                raise RequestError(f"{name} must be {rule}, got {value!r}", param=name)


@dataclass(frozen=True, slots=True)
class Observation:
    """What a task answers to a turn of the model: a tool's result, or the next thing a user says."""

    text: str
    role: Literal["tool", "user"] = "tool"
    """Who says it; chat templates without a tool role show it as the user's."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of an episode: what the model wrote, and what it was shown then."""

    reasoning: str
    answer: str
    """What stands after the thinking: a call, a question, or the final answer."""
    observation: Observation | None = None
    """None in the last turn. Written by the task alone: whatever the model writes, it cannot make one."""
    text: str = ""
    """Everything the model wrote in this turn, as in Completion; a stop string that ended it is kept."""


Transcript = tuple[Turn, ...]
"""The turns of an episode so far, oldest first. Only ever appended to."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer: the tokens as drawn, and the text that the chat format read from them.

    An episode of several turns is one completion too: `token_ids` is all that follows the prompt, in one list.
    """

    token_ids: tuple[int, ...]
    """Sampled tokens, the end-of-sequence token included when the model emitted it; between the turns of an episode
    also the tokens it was shown. The last one is always sampled."""
    logprobs: tuple[float, ...]
    """Natural log-probability of each token under the distribution it was drawn from (temperature applied). NaN where
    a token was shown and not drawn, so that whoever forgets the mask finds out."""
    finish_reason: FinishReason
    """Of the last turn. STOP also where the task allowed no further turn; LENGTH also where the budget or the model's
    window had no room for one."""
    text: str = ""
    """Everything the model wrote, special tokens left out except the thinking tags; turns on lines of their own."""
    reasoning: str = ""
    """What stands before the end of thinking, without tags; of all turns."""
    answer: str = ""
    """What stands after the thinking, of the last turn; empty when the thinking never ended."""
    weight_version: int = 0
    """`weight_version` of the model that drew it."""
    reported_tokens: int = 0
    """Completion tokens as an endpoint counted them, where `token_ids` are not known."""
    cost_nano_usd: int = 0
    """What an endpoint charged for it; 0 for a model in this process."""
    usage: Usage | None = field(default=None, compare=False)
    """Tokens by class as an endpoint counted them; None for a model in this process."""
    is_paid_before: bool = field(default=False, compare=False)
    """Whether an earlier request paid for it, and this one had it from a journal."""
    is_sampled: tuple[bool, ...] = ()
    """Which of `token_ids` the model drew; empty where it drew them all."""
    turns: Transcript = ()
    """The turns of an episode, the last one included; empty for a task that has no turns."""

    @property
    def num_tokens(self) -> int:
        """Tokens the model wrote; what it was shown between turns does not count."""
        return (sum(self.is_sampled) if self.is_sampled else len(self.token_ids)) or self.reported_tokens

    @property
    def num_observed_tokens(self) -> int:
        """Tokens it was shown between turns, those of the chat template included."""
        return len(self.is_sampled) - sum(self.is_sampled)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer."""

    kind: Literal["reasoning", "content"]
    text: str


@dataclass(frozen=True, slots=True)
class Score:
    """What a verifier says about a completion."""

    reward: float
    """What trains, in reward units; 1 is right, 0 is nothing."""
    is_correct: bool
    """What pass@1 counts."""
    note: str = ""
    """Why, in a few words, for samples.jsonl and the report."""
    outcome: Outcome = Outcome.SCORED
    parts: Mapping[str, float] = field(default_factory=dict)
    """Each reward that `reward` was made of, by name; empty where it has one part."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt, scored."""

    completion: Completion
    score: Score


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All G completions of one occurrence of a prompt: the unit an advantage is computed in."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    @property
    def is_flat(self) -> bool:
        """Whether every rollout that may train has the same reward, so that no advantage differs from 0."""
        rewards = {r.score.reward for r in self.rollouts if r.score.outcome.is_judged}
        return len(rewards) < 2


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, by class."""

    prompt_tokens: int
    completion_tokens: int
    """Reasoning included."""
    cached_tokens: int = 0
    """Prompt tokens that were served from a cache; part of `prompt_tokens`."""
    reasoning_tokens: int = 0
    """Part of `completion_tokens`."""
    accepted_prediction_tokens: int = 0
    """Part of `completion_tokens`: those that the model's own drafts had right."""
    rejected_prediction_tokens: int = 0
    """Drafts that were wrong; part of nothing, and charged to nobody."""
