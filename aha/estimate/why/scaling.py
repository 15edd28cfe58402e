"""Bigger model or better algorithm: what the same dollars buy, and what the same loss costs, under a published law."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aha.estimate.why.published import CHINCHILLA, DEEPSEEK_LAW


def loss(num_parameters: float, *, tokens: float) -> float:
    """Loss in nats a token of a dense model, by the law in `why_published`: a yardstick, not V3's own loss."""
    law = CHINCHILLA
    value: float = law["E"] + law["A"] / num_parameters ** law["alpha"] + law["B"] / tokens ** law["beta"]
    return value


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a budget is divided."""

    num_parameters: float
    tokens: float

    @property
    def product(self) -> float:
        """Parameters times tokens: a sixth of the operations, attention aside."""
        return self.num_parameters * self.tokens

    @property
    def loss(self) -> float:
        return loss(self.num_parameters, tokens=self.tokens)


def best_split(product: float) -> Split:
    """Parameters and tokens of the least loss, of those with this product.

    Source: setting the derivative along N D = constant to 0 (arXiv:2203.15556 formula 4): N = G product**a with
    G = (alpha A / beta B)**(1 / (alpha + beta)) and a = beta / (alpha + beta).
    """
    law = CHINCHILLA
    both = law["alpha"] + law["beta"]
    scale = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / both)
    num_parameters = scale * product ** (law["beta"] / both)
    return Split(num_parameters=num_parameters, tokens=product / num_parameters)


def least_product(target: float) -> float:
    """The least product of parameters and tokens with a loss, found by halving the range of its logarithm."""
    assert target > CHINCHILLA["E"], "no model is better than the text is predictable"
    low, high = 0.0, 60.0  # powers of ten
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if best_split(10**middle).loss > target else (low, middle)
    return float(10**high)


def dense_equivalent(*, total: int, active: int) -> float:
    """Parameters of the dense model that a sparse one is taken to be as good as: the geometric mean of its two counts.

    A rule of thumb, an assumption. DeepSeekMoE (arXiv:2401.06066 table 6) is one check: 144.6B with 22.2B active, by
    the rule 56.7B, was like a dense model of 67.4B.
    """
    return math.sqrt(total * active)


def deepseek_split(product: float) -> Split:
    """The split that DeepSeek's own law gives the same operations, 6 N D: for comparison; it gives no loss."""
    operations = 6 * product
    flops_per_token = DEEPSEEK_LAW["M"] * operations ** DEEPSEEK_LAW["M_exponent"]
    return Split(num_parameters=flops_per_token / 6, tokens=operations / flops_per_token)
