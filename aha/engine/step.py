"""What one forward pass gave every row: the tokens it wrote, and whether it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from aha.engine.request import Request
from aha.types import FinishReason

RUNNING, STOP, LENGTH = 0, 1, 2
_REASONS = {STOP: FinishReason.STOP, LENGTH: FinishReason.LENGTH}


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One token of one completion, for streaming."""

    request_id: int
    sample_index: int
    token_id: int | None
    """None only when the completion was withdrawn because the weights changed."""
    logprob: float
    finish_reason: FinishReason | None
    """None while the completion goes on."""
    was_drafted: bool = False
    """Whether the step that wrote the token had it as a draft."""
    num_rejected_drafts: int = 0
    """Drafts of the step that were not written; told with the last of a row's tokens."""


class Step(NamedTuple):
    """What one forward pass drew, for rows `first_row` and up."""

    first_row: int
    token_ids_BT: Tensor
    logprobs_BT: Tensor
    counts_B: Tensor
    """How many of the T tokens each row wrote, 1 at least; the others follow a draft that was wrong, or the end."""
    num_accepted_B: Tensor
    """How many of them had been drafted."""
    codes_B: Tensor
    """RUNNING, STOP or LENGTH: where the last of them leaves the row."""

    @property
    def num_drafts(self) -> int:
        """Drafts of each row."""
        return self.token_ids_BT.shape[1] - 1

    def finished_rows(self) -> list[int]:
        return [self.first_row + i for i in self.codes_B.nonzero().squeeze(1).tolist()]

    def finish_reason(self, row: int) -> FinishReason:
        return _REASONS[int(self.codes_B[row - self.first_row])]

    def events(self, owners: Sequence[tuple[Request, int]]) -> list[EngineEvent]:
        """Row by row, what each wrote in order.

        Args:
            owners: request and sample of every live row.
        """
        lists = (self.token_ids_BT, self.logprobs_BT, self.counts_B, self.num_accepted_B, self.codes_B)
        rows = zip(owners[self.first_row :], *(tensor.tolist() for tensor in lists), strict=True)
        events = []
        for (request, sample_index), token_ids, logprobs, count, num_accepted, code in rows:
            for place in range(count):
                is_last = place == count - 1
                events.append(
                    EngineEvent(
                        request.request_id,
                        sample_index,
                        token_ids[place],
                        logprobs[place],
                        _REASONS.get(code) if is_last else None,
                        was_drafted=place < num_accepted,
                        num_rejected_drafts=self.num_drafts - num_accepted if is_last else 0,
                    )
                )
        return events


class Verified(NamedTuple):
    """What became of the drafts of B rows."""

    counts_B: Tensor
    """Tokens written."""
    num_accepted_B: Tensor
    """Of these, drafts that were right."""


def verify(token_ids_BT: Tensor, *, drafts_BK: Tensor, codes_BT: Tensor) -> Verified:
    """Each row writes its T = K + 1 draws up to the first behind a wrong draft, or to the first that ends it.

    Source: Leviathan et al. (arXiv:2211.17192) §2.1 for drafts that are checked together in one pass. Where they accept
    at random, a draft must equal the draw here: a draw is made with the number that belongs to its place, and so is
    what it would have been without drafts.
    """
    is_right_BK = (drafts_BK == token_ids_BT[:, :-1]).long().cumprod(dim=1)
    goes_on_BK = (is_right_BK * (codes_BT[:, :-1] == RUNNING)).cumprod(dim=1)
    counts_B = 1 + goes_on_BK.sum(dim=1)
    return Verified(counts_B, is_right_BK.sum(dim=1).minimum(counts_B))
