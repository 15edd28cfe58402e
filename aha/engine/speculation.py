"""Whether drafting pays: the tokens a second of both ways are measured, and the faster is taken."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Speculation = Literal["off", "auto", "always"]
"""Whether a model's multi-token prediction drafts tokens; "auto": while that is measured to be faster."""

WARM_UP_STEPS = 2
"""Steps after a change that are not timed: the first one packs weights, and drafts what the other way left undone."""
TRIAL_STEPS = 24
"""Steps of each way that are compared. At one row and half of the drafts accepted, the count of tokens in so many is
uncertain by 7 % (one standard deviation); a wrong choice costs no more than that, until the next trial."""
SETTLED_STEPS = 600
"""Steps that the faster way is kept for before the other is tried again: trials of the slower take 4 % of all steps."""


@dataclass
class _Trials:
    """The two ways at one size of the batch."""

    drafts: bool = True
    """Which way is being taken."""
    num_steps: int = -WARM_UP_STEPS
    """Steps since it was chosen that are timed."""
    is_settled: bool = False
    """Whether it is kept for long, or timed only."""
    tokens_and_seconds: dict[bool, deque[tuple[float, float]]] = field(
        default_factory=lambda: {way: deque(maxlen=TRIAL_STEPS) for way in (True, False)}
    )
    """Of the latest steps of each way: tokens that a row wrote in the mean, and how long the step took."""

    def choose(self, drafts: bool, *, is_settled: bool) -> None:
        if drafts != self.drafts:
            self.tokens_and_seconds[drafts].clear()
            self.num_steps = -WARM_UP_STEPS
        else:
            self.num_steps = 0
        self.drafts, self.is_settled = drafts, is_settled


class SpeculationTrials:
    """Chooses between steps with and without drafts by their measured speed, for each size of the batch on its own.

    Verifying costs little where a pass is bound by reading the weights, and most of a second pass where it is bound by
    arithmetic; how much is won depends on how many drafts are right. Both are found out by timing: some steps of each
    way, then the faster for long, then a trial of the other.
    """

    def __init__(self) -> None:
        self._trials: dict[int, _Trials] = {}
        """By the number of binary digits of the number of rows."""

    def drafts_now(self, num_rows: int) -> bool:
        """Whether a step of so many rows should draft."""
        return self._at(num_rows).drafts

    def record(self, num_rows: int, *, drafted: bool, num_tokens: int, seconds: float) -> None:
        """Take note of a step.

        Args:
            num_tokens: what all rows wrote.
        """
        trials = self._at(num_rows)
        if drafted != trials.drafts:
            return  # nothing could be drafted, since every row had one token left
        trials.num_steps += 1
        if trials.num_steps > 0:
            trials.tokens_and_seconds[drafted].append((num_tokens / num_rows, seconds))
        if trials.is_settled and trials.num_steps >= SETTLED_STEPS:
            trials.choose(not drafted, is_settled=False)
        elif not trials.is_settled and trials.num_steps >= TRIAL_STEPS:
            if self._speed(trials, not drafted) == 0:
                trials.choose(not drafted, is_settled=False)
            else:
                trials.choose(self._speed(trials, True) > self._speed(trials, False), is_settled=True)

    def _at(self, num_rows: int) -> _Trials:
        return self._trials.setdefault(num_rows.bit_length(), _Trials())

    @staticmethod
    def _speed(trials: _Trials, way: bool) -> float:
        """Tokens a second of one row; 0: not measured. By the median step, since others use the machine too."""
        steps = trials.tokens_and_seconds[way]
        if len(steps) < TRIAL_STEPS:
            return 0.0
        return statistics.fmean(tokens for tokens, _ in steps) / statistics.median(seconds for _, seconds in steps)
