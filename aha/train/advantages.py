"""How much better each completion is than the others of its prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AdvantageScale = Literal["std", "none", "leave_one_out"]


def group_advantages(rewards_PG: Tensor, *, scale: AdvantageScale = "std", eps: float = 1e-6) -> Tensor:
    """Advantage of each completion relative to the other completions of its prompt.

    Source: DeepSeekMath (arXiv:2402.03300) §4.1.2, A = (r - mean) / std over the group; "none" leaves the division
    out (Dr.GRPO, arXiv:2503.20783); "leave_one_out" is r less the mean of the others (RLOO, arXiv:2402.14740), which
    is n / (n - 1) (r - mean). The standard deviation is the population's (correction 0): with Bessel's correction, as
    in TRL and verl, advantages of a group of 8 are 6.9 % smaller.

    Args:
        rewards_PG: float32, P prompts x G completions each, in reward units. NaN marks a completion that could not
            be judged: it has no part in its group's statistics and gets advantage 0.

    Returns:
        Advantages (P, G), unitless, mean 0 over the judged completions of each row. A row whose judged rewards are
        equal, or that has a single one, is all zeros: such a group teaches nothing and the caller may drop it.

    Raises:
        ValueError: if G < 2, since a lone completion has nothing to compare with.
    """
    if rewards_PG.shape[1] < 2:
        raise ValueError(f"group_size must be at least 2, got {rewards_PG.shape[1]}")
    is_judged_PG = ~rewards_PG.isnan()
    count_P1 = is_judged_PG.sum(dim=1, keepdim=True).clamp(min=1)
    known_PG = rewards_PG.nan_to_num(0.0)
    mean_P1 = known_PG.sum(dim=1, keepdim=True) / count_P1
    centred_PG = (known_PG - mean_P1).masked_fill(~is_judged_PG, 0.0)
    advantages_PG = centred_PG
    if scale == "std":
        std_P1 = (centred_PG.square().sum(dim=1, keepdim=True) / count_P1).sqrt()
        advantages_PG = centred_PG / (std_P1 + eps)
    elif scale == "leave_one_out":
        advantages_PG = centred_PG * (count_P1 / (count_P1 - 1).clamp(min=1))
    # Compared for equality, not left to eps: twelve rewards of 1.1 have a float std that turns into advantages of 0.1.
    highest_P1 = rewards_PG.nan_to_num(-torch.inf).amax(dim=1, keepdim=True)
    lowest_P1 = rewards_PG.nan_to_num(torch.inf).amin(dim=1, keepdim=True)
    return advantages_PG.masked_fill(highest_P1 <= lowest_P1, 0.0)
