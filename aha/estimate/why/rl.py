"""What R1's choices after pre-training save: no critic, no groups that teach nothing, no RL for the small model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aha.estimate.flops import causal_keys, token_flops
from aha.estimate.hardware import GPU
from aha.estimate.shape import find_shape
from aha.estimate.why.choices import Side
from aha.estimate.why.comparison import Row, Setting
from aha.estimate.why.published import (
    AIME_DISTILLED,
    AIME_RL,
    DISTILLED_EPOCHS,
    DISTILLED_SAMPLES,
    DISTILLED_TOKENS,
    R1_DATA_HOURS,
    R1_GROUP,
    R1_RL_HOURS,
    R1_ZERO_HOURS,
    STUDENT_MODEL,
    V3_MODEL,
)
from aha.estimate.why.text import dollars
from aha.models.config import ModelConfig
from aha.models.counts import count_parameters

POLICY_PASSES = 1 + 1 + 3
"""Passes over a sampled token in GRPO's trainer, in forward passes: the old policy's log-probabilities, the
reference's, and forward and backward of the policy, which are three."""
CRITIC_PASSES = 1 + 3
"""What PPO's critic adds: the values of the samples, then forward and backward of its own."""
TRAINING_BYTES = {"float8": 13, "bfloat16": 14}
"""Bytes of a trained parameter: float32 master and gradient, both moments in bfloat16, and the copy that computes
(DeepSeek-V3 report, arXiv:2412.19437 §3.3.3)."""


@dataclass(frozen=True, kw_only=True)
class RLRun:
    """A run of reinforcement learning, as large as R1's."""

    gpu_hours: float
    """Of GRPO, with nothing dropped."""
    trainer_share: float
    """Of those hours, what is not sampling."""
    usd_per_gpu_hour: float

    def cost_usd(self, *, trainer_work: float = 1.0) -> float:
        """Dollars when the trainer does so much of its work, and sampling is as it was."""
        factor = 1 - self.trainer_share + self.trainer_share * trainer_work
        return self.gpu_hours * factor * self.usd_per_gpu_hour


def work_with_critic() -> float:
    """The trainer's work with a critic as large as the policy, as a multiple of that without."""
    return (POLICY_PASSES + CRITIC_PASSES) / POLICY_PASSES


def critic_bytes(num_parameters: int, *, precision: str) -> int:
    """Weights, gradients and optimiser of a critic as large as the policy."""
    return num_parameters * TRAINING_BYTES[precision]


def gpus_for(num_bytes: float, *, gpu: GPU) -> int:
    """GPUs whose memory holds so many bytes and nothing else."""
    return -int(-num_bytes // gpu.memory_bytes)


def baseline_noise(group_size: int) -> float:
    """Variance of a sample's advantage, with the rest of its group as baseline, over that with the true mean.

    A mean of G - 1 others has a G-1th of a reward's variance, which is added to the reward's own: G / (G - 1).
    """
    assert group_size >= 2, "a lone completion has nothing to compare with"
    return group_size / (group_size - 1)


def distilled_tokens() -> float:
    """Tokens that R1's students were trained on, all epochs."""
    return DISTILLED_SAMPLES.value * DISTILLED_TOKENS.value * DISTILLED_EPOCHS.value


def rl_rows(config: ModelConfig, *, setting: Setting) -> list[Row]:
    """What a run as large as R1's saves without a critic and without flat groups, and what a student saves by copying.

    R1's hours are taken as those of GRPO with nothing dropped, and are scaled by operations a token to another model.
    """
    scale = _training_flops(config, setting=setting) / _training_flops(find_shape(V3_MODEL).config, setting=setting)
    run = RLRun(
        gpu_hours=(R1_ZERO_HOURS.value + R1_RL_HOURS.value) * scale,
        trainer_share=setting.trainer_share,
        usd_per_gpu_hour=setting.price.usd_per_hour,
    )
    memory = critic_bytes(count_parameters(config).total, precision=setting.best_precision)
    held = f"{memory / 1e9:,.0f} GB, {gpus_for(memory, gpu=setting.gpu)} GPUs' memory"
    noise = baseline_noise(round(R1_GROUP.value)) - 1
    critic = Row(
        choice="group_baseline", title="GRPO's group", instead_of="PPO's critic", bill="rl",
        without_usd=run.cost_usd(trainer_work=work_with_critic()), with_usd=run.cost_usd(),
        in_return=f"noise of a baseline of {round(R1_GROUP.value) - 1}: {noise:.1%} more samples; spares {held}",
        source="DeepSeekMath (arXiv:2402.03300) §4.1.1",
    )  # fmt: skip
    dropped = Row(
        choice="flat_groups_dropped", title="flat groups dropped", instead_of="all trained", bill="rl",
        without_usd=run.cost_usd(), with_usd=run.cost_usd(trainer_work=1 - setting.flat_share),
        in_return="no pull of the KL term from them; their sampling stays paid for",
        source="DAPO (arXiv:2503.14476) §3.2",
    )  # fmt: skip
    return [critic, dropped, _distilled(setting)]


def _distilled(setting: Setting) -> Row:
    """Qwen2.5-32B: supervised on R1's 800K samples, or reinforced for as long as R1-Zero."""
    student = find_shape(STUDENT_MODEL).config
    training = replace(setting, tokens=distilled_tokens(), sequence_tokens=round(DISTILLED_TOKENS.value))
    supervised = training.training_usd(Side(config=student, precision="bfloat16"))
    scale = _training_flops(student, setting=setting) / _training_flops(find_shape(V3_MODEL).config, setting=setting)
    teacher = Side(config=find_shape(V3_MODEL).config, precision=setting.best_precision)
    teacher_hours = R1_ZERO_HOURS.value + R1_DATA_HOURS.value + R1_RL_HOURS.value
    teacher_usd = dollars(teacher_hours * setting.price.usd_per_hour)
    scores = f"AIME {AIME_DISTILLED.value:.1f} against {AIME_RL.value:.1f}"
    sampled = DISTILLED_SAMPLES.value * DISTILLED_TOKENS.value / 1e6 * setting.cost_usd(teacher, "output")
    return Row(
        choice="distilling", title="distilling R1", instead_of="RL on Qwen-32B", bill="student",
        without_usd=R1_ZERO_HOURS.value * scale * setting.price.usd_per_hour, with_usd=supervised + sampled,
        in_return=f"a teacher, {teacher_usd} here; and better: {scores}",
        source=AIME_RL.source,
    )  # fmt: skip


def _training_flops(config: ModelConfig, *, setting: Setting) -> float:
    return token_flops(config, visible_keys=causal_keys(setting.sequence_tokens), with_mtp=False).training
