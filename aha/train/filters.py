"""What rejection sampling leaves out of its dataset: R1's filters, repeated examples, and held-out problems.

Source: R1 (arXiv:2501.12948v1) §2.3.3 keeps right answers only, and of those none with mixed languages, long paragraphs
or code blocks in the chain of thought. It gives no thresholds: those here are knobs.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aha.tasks.language import Language, language_share
from aha.types import Completion

REPEATED_WORDS = 10
"""Length of the word runs that `repetition` counts: shorter ones recur in honest text."""
MAX_REPEATED_SHARE = 0.3
MIN_RUNS = 20
"""Fewer runs of words say nothing."""
MAX_PROMPTS_WITH_RUN = 10
"""A run of words in more held-out prompts than this is the wording of the task: GPT-3's number (appendix C)."""
MIN_WORDING_SHARE = 0.05
"""Of the held-out prompts, where that is fewer."""


@dataclass(frozen=True, kw_only=True)
class FilterLimits:
    """Thresholds of the filters."""

    language: Language = "en"
    """Code of the language that the thinking should be in."""
    min_language_share: float = 0.9
    """Share of the thinking's words in that language below which it counts as mixed."""
    max_paragraph_chars: int = 2000
    """Longest paragraph of the thinking: one that runs on is hard to read."""


def has_mixed_languages(completion: Completion, limits: FilterLimits) -> bool:
    """Whether too many words of the thinking are in another language; a thinking without words is in none."""
    share = language_share(completion.reasoning, limits.language)
    return share is not None and share < limits.min_language_share


def has_long_paragraph(completion: Completion, limits: FilterLimits) -> bool:
    """Whether a paragraph of the thinking runs on; lines do not end one, blank lines do."""
    paragraphs = re.split(r"\n\s*\n", completion.reasoning)
    return any(len(paragraph.strip()) > limits.max_paragraph_chars for paragraph in paragraphs)


def has_code_block(completion: Completion, limits: FilterLimits) -> bool:
    """Whether the thinking has a fenced block of code."""
    return "```" in completion.reasoning


def repeats_itself(completion: Completion, limits: FilterLimits) -> bool:
    """Whether more than 30 % of the thinking's runs of ten words stood there before."""
    words = completion.reasoning.split()
    runs = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return len(runs) >= MIN_RUNS and 1 - len(set(runs)) / len(runs) > MAX_REPEATED_SHARE


FILTERS: dict[str, Callable[[Completion, FilterLimits], bool]] = {
    "code": has_code_block,
    "language": has_mixed_languages,
    "paragraph": has_long_paragraph,
    "repetition": repeats_itself,
}
"""Name → whether a completion is to be left out."""


def first_objection(completion: Completion, *, names: Sequence[str], limits: FilterLimits) -> str:
    """The name of the first filter that a completion fails; "" when it passes all of them."""
    return next((name for name in names if FILTERS[name](completion, limits)), "")


class Contamination:
    """Finds training prompts that share a run of words with a held-out one.

    Source: GPT-3 (arXiv:2005.14165) appendix C, overlaps of 13 words; a prompt shorter than that must be equal. Runs
    that many held-out prompts have in common are the task's wording and say nothing.

    Args:
        held_out: prompts of the evaluation sets.
        num_words: length of the runs; 0 finds equal prompts only.
    """

    def __init__(self, held_out: Iterable[str], *, num_words: int = 13) -> None:
        self._num_words = num_words
        self._prompts: set[bytes] = set()
        counts: Counter[bytes] = Counter()
        for prompt in held_out:
            words = _words(prompt)
            if (digest := _digest(words)) not in self._prompts:
                self._prompts.add(digest)
                counts.update(set(self._runs_of(words)))
        most = max(1, min(MAX_PROMPTS_WITH_RUN, int(MIN_WORDING_SHARE * len(self._prompts))))
        self._runs = {run for run, count in counts.items() if count <= most}

    def reaches(self, prompt: str) -> bool:
        words = _words(prompt)
        return _digest(words) in self._prompts or any(run in self._runs for run in self._runs_of(words))

    def _runs_of(self, words: Sequence[str]) -> Iterable[bytes]:
        if self._num_words and len(words) >= self._num_words:
            for start in range(len(words) - self._num_words + 1):
                yield _digest(words[start : start + self._num_words])


def _words(text: str) -> list[str]:
    """Words and numbers in lower case; signs between them do not count, but stand for themselves in a bare formula."""
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _digest(words: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=12).digest()
