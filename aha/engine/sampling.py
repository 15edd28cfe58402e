"""Drawing tokens: one counter-based uniform per row, searched in the cumulative distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1
# Constants of splitmix64 (Steele, Lea, Flood 2014; the public-domain C version by Vigna), as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


class Drawn(NamedTuple):
    """Tokens drawn for B rows."""

    token_ids_B: Tensor
    logprobs_B: Tensor
    """float32."""


class RowSampling(NamedTuple):
    """How each of B rows draws: one tensor per field of SamplingParams that matters here."""

    temperatures_B: Tensor
    """float32; 0 takes the most probable token."""
    top_k_B: Tensor
    """int64; 0 is off."""
    top_p_B: Tensor
    """float32; 1 is off."""
    min_p_B: Tensor
    """float32; 0 is off."""


def stream_key(seed: int, *, sample_index: int) -> int:
    """The random stream of one completion: a signed 64-bit integer."""
    mixed = _mix_int((_mix_int(seed & _MASK_64) + sample_index * 0x9E3779B97F4A7C15) & _MASK_64)
    return mixed - (1 << 64) if mixed >= 1 << 63 else mixed


def _mix_int(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(keys_B: Tensor, *, positions_B: Tensor) -> Tensor:
    """float32 in [0, 1): number `position` of each row's stream.

    A function of key and position alone, so a completion does not depend on batch mates, order or resume.

    Args:
        keys_B: int64 from `stream_key`.
        positions_B: int64, index of the token in its completion.
    """
    bits_B = _splitmix(keys_B + (positions_B + 1) * _GAMMA)
    # 24 bits: all that float32 holds below 1, so u x total stays below total.
    return _shift_right(bits_B, 40).to(torch.float32) * 2.0**-24


def draw(logits_BV: Tensor, *, uniforms_B: Tensor, sampling: RowSampling) -> Drawn:
    """Draw one token per row by searching the cumulative distribution. Overwrites float32 logits.

    Order of operations, as in transformers and vLLM: temperature, top-k, top-p, min-p. Log-probabilities are those of
    the distribution with temperature and before truncation, which is the one drawn from when nothing truncates;
    rows of temperature 0 report the untempered log-probability of their argmax.
    """
    is_greedy_B = sampling.temperatures_B == 0
    divisors_B1 = torch.where(is_greedy_B, 1.0, sampling.temperatures_B).unsqueeze(1)
    # float32 throughout: bf16 probabilities have 8 bits, and their sums would lose the tail.
    probs_BV = logits_BV.float().div_(divisors_B1).softmax(dim=-1)
    cumulative_BV = probs_BV.cumsum(dim=-1)
    # First index whose cumulative probability exceeds the target: never a token of probability 0.
    targets_B1 = uniforms_B.unsqueeze(1) * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True)
    # NaN logits find no token: their log-probability is NaN, which the trainer skips.
    tokens_B1.clamp_(max=probs_BV.shape[1] - 1)
    if bool(is_greedy_B.any()):
        tokens_B1 = torch.where(is_greedy_B.unsqueeze(1), probs_BV.argmax(dim=-1, keepdim=True), tokens_B1)
    is_cut_B = (sampling.top_k_B > 0) | (sampling.top_p_B < 1) | (sampling.min_p_B > 0)
    rows = (is_cut_B & ~is_greedy_B).nonzero().squeeze(1)
    if len(rows):
        cut = RowSampling(*(field[rows] for field in sampling))
        tokens_B1[rows] = _draw_truncated(probs_BV[rows], uniforms_B=uniforms_B[rows], sampling=cut)
    return Drawn(tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).log().squeeze(1))


def _draw_truncated(probs_BV: Tensor, *, uniforms_B: Tensor, sampling: RowSampling) -> Tensor:
    """Tokens (B, 1) drawn from what top-k, then top-p, then min-p leave of the probabilities."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    ranks_1V = torch.arange(probs_BV.shape[1], device=probs_BV.device).unsqueeze(0)
    top_k_B1 = sampling.top_k_B.unsqueeze(1)
    sorted_BV = sorted_BV.masked_fill((top_k_B1 > 0) & (ranks_1V >= top_k_B1), 0.0)
    totals_BV = sorted_BV.cumsum(dim=-1)
    # A token stays while the mass before it is below top_p: the one that crosses the line is kept.
    mass_before_BV = totals_BV - sorted_BV
    is_beyond = mass_before_BV >= sampling.top_p_B.unsqueeze(1) * totals_BV[:, -1:]
    is_beyond &= sampling.top_p_B.unsqueeze(1) < 1
    is_faint = sorted_BV < sampling.min_p_B.unsqueeze(1) * sorted_BV[:, :1]
    totals_BV = sorted_BV.masked_fill(is_beyond | is_faint, 0.0).cumsum(dim=-1)
    chosen_B1 = torch.searchsorted(totals_BV, uniforms_B.unsqueeze(1) * totals_BV[:, -1:], right=True)
    chosen_B1.clamp_(max=probs_BV.shape[1] - 1)
    return order_BV.gather(1, chosen_B1)
