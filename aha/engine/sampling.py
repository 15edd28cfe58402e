"""Drawing tokens: one counter-based uniform per row, searched in the cumulative distribution."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_BLOCK, MIN_BLOCK = 512, 64
"""Tokens of a block in the two-level search: the largest power of two between them that divides the vocabulary."""
LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken, as at 0: logits divided by less leave float32."""
CHUNK_ELEMENTS = 1 << 19
"""Logits that are drawn from at a time: 2 MB of float32, which stay in the processor's cache from step to step."""
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
    """Draw one token per row by searching the cumulative distribution.

    Order of operations, as in transformers and vLLM: temperature, top-k, top-p, min-p. Log-probabilities are those of
    the distribution with temperature and before truncation, which is the one drawn from when nothing truncates;
    rows of temperature 0 report the untempered log-probability of their argmax.
    """
    num_rows, num_tokens = logits_BV.shape
    size = max(1, CHUNK_ELEMENTS // num_tokens)
    chunks = [slice(start, start + size) for start in range(0, num_rows, size)]
    drawn = [
        _draw_chunk(logits_BV[rows], uniforms_B=uniforms_B[rows], sampling=RowSampling(*(f[rows] for f in sampling)))
        for rows in chunks
    ]
    return drawn[0] if len(drawn) == 1 else Drawn(*map(torch.cat, zip(*drawn, strict=True)))


def _draw_chunk(logits_BV: Tensor, *, uniforms_B: Tensor, sampling: RowSampling) -> Drawn:
    is_greedy_B = sampling.temperatures_B < LEAST_TEMPERATURE
    divisors_B1 = torch.where(is_greedy_B, 1.0, sampling.temperatures_B).unsqueeze(1)
    # float32 throughout: bf16 probabilities have 8 bits, and their sums would lose the tail.
    logits_BV = logits_BV.float()
    if bool((divisors_B1 != 1.0).any()):
        logits_BV = logits_BV / divisors_B1
    probs_BV = logits_BV.softmax(dim=-1)
    tokens_B1 = _search(probs_BV, uniforms_B=uniforms_B)
    if bool(is_greedy_B.any()):
        tokens_B1 = torch.where(is_greedy_B.unsqueeze(1), probs_BV.argmax(dim=-1, keepdim=True), tokens_B1)
    is_cut_B = (sampling.top_k_B > 0) | (sampling.top_p_B < 1) | (sampling.min_p_B > 0)
    rows = (is_cut_B & ~is_greedy_B).nonzero().squeeze(1)
    if len(rows):
        cut = RowSampling(*(field[rows] for field in sampling))
        tokens_B1[rows] = _draw_truncated(probs_BV[rows], uniforms_B=uniforms_B[rows], sampling=cut)
    return Drawn(tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).log().squeeze(1))


def _search(probs_BV: Tensor, *, uniforms_B: Tensor) -> Tensor:
    """Tokens (B, 1): the first whose cumulative probability exceeds the uniform, so never one of probability 0.

    In two levels where the vocabulary divides into blocks: the sums of the blocks are cumulated, then one block's
    probabilities. Cumulating all of them takes as long as everything else that is done to draw.
    """
    num_tokens = probs_BV.shape[1]
    width = math.gcd(num_tokens, MAX_BLOCK)
    if width < MIN_BLOCK:
        tokens_B1, _ = _first_above(probs_BV, uniforms_B.unsqueeze(1))
        return tokens_B1
    blocks_BNW = probs_BV.unflatten(1, (num_tokens // width, width))  # N blocks of W tokens
    block_B1, rest_B1 = _first_above(blocks_BNW.sum(dim=-1), uniforms_B.unsqueeze(1))
    within_BW = blocks_BNW.gather(1, block_B1.unsqueeze(2).expand(-1, 1, width)).squeeze(1)
    offset_B1, _ = _first_above(within_BW, rest_B1)
    return block_B1 * width + offset_B1


def _first_above(masses_BN: Tensor, uniforms_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's cumulative mass first exceeds that share of its total, and what share of that mass is used."""
    cumulative_BN = masses_BN.cumsum(dim=-1)
    targets_B1 = uniforms_B1 * cumulative_BN[:, -1:]
    found_B1 = torch.searchsorted(cumulative_BN, targets_B1, right=True)
    # NaN logits find no token: their log-probability is NaN, which the trainer skips.
    found_B1.clamp_(max=masses_BN.shape[1] - 1)
    mass_B1 = masses_BN.gather(1, found_B1)
    before_B1 = cumulative_BN.gather(1, found_B1) - mass_B1
    # Below 1 even when rounding says otherwise: the share is a uniform for the next search.
    return found_B1, ((targets_B1 - before_B1) / mass_B1).clamp(0.0, 1.0 - 2.0**-24)


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
    is_beyond[:, 0] = False  # the likeliest stays, even where float32 has rounded top_p to 0
    is_faint = sorted_BV < sampling.min_p_B.unsqueeze(1) * sorted_BV[:, :1]
    totals_BV = sorted_BV.masked_fill(is_beyond | is_faint, 0.0).cumsum(dim=-1)
    chosen_B1 = torch.searchsorted(totals_BV, uniforms_B.unsqueeze(1) * totals_BV[:, -1:], right=True)
    chosen_B1.clamp_(max=probs_BV.shape[1] - 1)
    return order_BV.gather(1, chosen_B1)
