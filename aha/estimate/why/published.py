"""Published figures that `aha cost why` leans on or is held to: each with its source and how far to trust it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Published(NamedTuple):
    """One figure."""

    value: float
    source: str
    confidence: Literal["primary", "third-party", "assumption"]
    """"primary" is its author's own page or paper, "assumption" is chosen here."""


V3 = "DeepSeek-V3 report (arXiv:2412.19437)"
V2 = "DeepSeek-V2 report (arXiv:2405.04434)"
MOE = "DeepSeekMoE (arXiv:2401.06066)"
R1 = "DeepSeek-R1 report (arXiv:2501.12948)"
NATURE = "DeepSeek-R1 in Nature (doi:10.1038/s41586-025-09422-z), supplement"
# Read in third-party records of it that agree with one another (serving/inference_day.toml).
DAY = "DeepSeek-V3/R1 Inference System Overview (open-infra-index, February 2025)"

V3_MODEL = "deepseek-ai/DeepSeek-V3"
V3_TOKENS = Published(14.8e12, f"{V3} §4.1", "primary")
V3_PRETRAINING_HOURS = Published(2_664_000, f"{V3} table 1: 180K H800 hours a trillion tokens", "primary")
V3_CONTEXT = 4096
"""Tokens of a sequence in pre-training (§4.2)."""

ACCEPTANCE = Published(
    0.85, f"{V3} §5.4.3: 85 to 90 % of second tokens accepted, 1.8 times the tokens a second", "primary"
)
MTP_SPEEDUP = Published(1.8, f"{V3} §5.4.3", "primary")

R1_ZERO_HOURS = Published(101_000, f"{NATURE}, table of training costs, H800", "third-party")
R1_DATA_HOURS = Published(5_000, f"{NATURE}, table of training costs, H800", "third-party")
R1_RL_HOURS = Published(41_000, f"{NATURE}, table of training costs, H800", "third-party")
R1_GROUP = Published(16, "DeepSeek-R1 in Nature, Methods: 32 questions x 16 outputs a step, 10,400 steps", "primary")
TRAINER_SHARE = Published(
    0.2, "OpenRLHF's README: sampling is 80 % of RLHF's time; R1's own split is not published", "assumption"
)
FLAT_SHARE = Published(
    0.4,
    "arXiv:2605.05802, abstract: typically around 40 % of all groups; 59 % and more in this project's second R1 stage "
    "(docs/LOG.md 2026-11-24); R1's own share is not published",
    "third-party",
)

DISTILLED_SAMPLES = Published(804_745, f"{NATURE}, table of the supervised data", "third-party")
DISTILLED_TOKENS = Published(5_355.3, f"{NATURE}, table of the supervised data: mean tokens of a sample", "third-party")
DISTILLED_EPOCHS = Published(
    2, f"{R1} §2.3.3: two epochs of these samples; the Nature supplement says 2 to 3", "primary"
)
STUDENT_MODEL = "Qwen/Qwen2.5-32B"
AIME_DISTILLED, AIME_RL = (
    Published(72.6, f"{R1} v1 §4.1, table 6: R1-Distill-Qwen-32B, pass@1 of AIME 2024", "primary"),
    Published(47.0, f"{R1} v1 §4.1, table 6: R1-Zero-Qwen-32B, over 10,000 steps of RL", "primary"),
)

CONTEXT_TOKENS = Published(4_989, f"{DAY}: mean cached tokens of an output token", "third-party")
USER_SPEED = Published(20, f"{DAY}: 20 to 22 output tokens a second", "third-party")
NODE_OUTPUT = Published(14_800, f"{DAY}: output tokens a second of a decoding node of 8 H800", "third-party")

V2_TRAINING_SAVED = Published(0.425, f"{V2} §3.2.3: 172.8K against 300.6K H800 hours a trillion tokens", "primary")
V2_CACHE_SAVED = Published(0.933, f"{V2} abstract; §3.2.3: V2's cache has 6 bits a value, DeepSeek 67B's 16", "primary")
V2_THROUGHPUT = Published(5.76, f"{V2} §3.2.3: on a node of 8 H800, weights in FP8 and the cache in 6 bits", "primary")
V2_CACHE_BITS = 6
MOE_COMPUTE = Published(
    0.285, f"{MOE} table 6: 145B with 22.2B active like a dense 67B, of whose operations", "primary"
)

CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""Loss = E + A / N**alpha + B / D**beta; N parameters, D tokens. Hoffmann et al. (arXiv:2203.15556) as fitted anew by
Besiroglu et al. (arXiv:2404.10102), since the first fit's published figures do not follow from its data."""
CHINCHILLA_SOURCE = "Chinchilla (arXiv:2203.15556) as fitted anew in arXiv:2404.10102; models to 16B, extrapolated here"
DEEPSEEK_LAW = {"M": 0.1715, "M_exponent": 0.5243, "D": 5.8316, "D_exponent": 0.4757}
"""Best non-embedding operations a token, M, and tokens, D, for C = M D (DeepSeek LLM, arXiv:2401.02954, formula 4)."""
