"""Whether two models are the same function: their probabilities on some prompts, and what they go on to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aha.models.internvl import InternVL
from aha.models.transformer import Transformer

NUM_CONTINUED = 16
"""Tokens that each prompt is continued by."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was measured between two models, over every position of the prompts and of their continuations."""

    num_positions: int
    max_logit_difference: float
    """Largest absolute difference of any logit."""
    mean_probability_difference: float
    """Mean over positions of the absolute difference of the likeliest token's probability."""
    max_probability_difference: float
    same_argmax_fraction: float
    """Share of positions where both have the same likeliest token."""
    num_continued: int
    """Prompts that both continued greedily."""
    num_same_continuations: int
    """How many of those continuations are the same to the last token."""

    def describe(self) -> str:
        """The numbers in a sentence."""
        words = (
            f"over {self.num_positions} positions the largest difference of a logit is",
            f"{self.max_logit_difference:.2g}, the mean difference of the likeliest token's probability",
            f"{self.mean_probability_difference:.2g}, the likeliest token is the same at",
            f"{100 * self.same_argmax_fraction:.1f} %, and {self.num_same_continuations} of {self.num_continued}",
            f"greedy continuations of {NUM_CONTINUED} tokens are identical",
        )
        return " ".join(words)


@torch.inference_mode()
def compare_models(model: Transformer, other: Transformer, *, prompts: Sequence[Sequence[int]]) -> Parity:
    """Compare two models of one vocabulary on prompts of token ids, each continued greedily by the first model.

    Two that see are compared on a picture besides. Each model computes in its own dtype; its logits are compared in
    float32.
    """
    logit, num_same = 0.0, 0
    probabilities, argmaxes, probes = [], [], []
    for prompt in prompts:
        continued = _continue(model, prompt)
        num_same += continued == _continue(other, prompt)
        token_ids_1T = torch.tensor([continued])
        probes.append([_logits(m, token_ids_1T) for m in (model, other)])
    if isinstance(model, InternVL) and isinstance(other, InternVL):
        probes.append([_picture_logits(m) for m in (model, other)])
    for ours_TV, theirs_TV in probes:
        logit = max(logit, float((ours_TV - theirs_TV).abs().max()))
        ours, likeliest = ours_TV.softmax(dim=-1).max(dim=-1)
        theirs = theirs_TV.softmax(dim=-1).gather(1, likeliest[:, None]).squeeze(1)
        probabilities.append((ours - theirs).abs())
        argmaxes.append(likeliest == theirs_TV.argmax(dim=-1))
    differences = torch.cat(probabilities)
    return Parity(
        num_positions=len(differences),
        max_logit_difference=logit,
        mean_probability_difference=float(differences.mean()),
        max_probability_difference=float(differences.max()),
        same_argmax_fraction=float(torch.cat(argmaxes).float().mean()),
        num_continued=len(prompts),
        num_same_continuations=num_same,
    )


def _logits(model: Transformer, token_ids_1T: Tensor) -> Tensor:
    logits_1TV: Tensor = model(token_ids_1T.to(model.device))
    return logits_1TV[0].float().cpu()


def _picture_logits(model: InternVL) -> Tensor:
    """Logits behind one tile whose colours run from corner to corner."""
    vision = model.vision
    ramp_Y1, ramp_1X = (torch.linspace(-2, 2, vision.image_size).unsqueeze(dim) for dim in (1, 0))
    tile_YX = (ramp_Y1 * ramp_1X).to(model.device)
    token_ids_1T = torch.tensor([[vision.image_token_id] * vision.tokens_per_tile], device=model.device)
    logits_1TV: Tensor = model(token_ids_1T, tile_YX.expand(1, vision.num_channels, -1, -1))
    return logits_1TV[0].float().cpu()


def _continue(model: Transformer, prompt: Sequence[int]) -> list[int]:
    """The prompt and its likeliest next tokens."""
    token_ids = list(prompt)
    for _ in range(min(NUM_CONTINUED, model.config.max_position_embeddings - len(prompt))):
        token_ids.append(int(model(torch.tensor([token_ids], device=model.device))[0, -1].argmax()))
    return token_ids
