"""Makes trl_losses.json: losses and gradients of TRL's own code on made-up numbers, which test_trl.py compares ours to.

Not a test: TRL is heavy and its releases come monthly. To make the file again, with TRL of constraints.txt installed
(`pip install -c constraints.txt trl`): python tests/train/trl_losses.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LENGTHS = (7, 2, 1, 5, 4)
LONGEST = max(LENGTHS)
MAX_TOKENS = 9
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    "grpo with KL": {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.3},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    "dapo": {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
    "dapo with KL and importance": {
        "loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.3, "importance_cap": 1.1,
    },
    "gspo": {"loss_type": "grpo", "epsilon_low": 0.01, "epsilon_high": 0.02, "importance_sampling_level": "sequence"},
    "gspo with importance": {
        "loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.3, "importance_sampling_level": "sequence",
        "importance_cap": 1.1,
    },
    "cispo": {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.15},
    "rloo": {"loss_type": "rloo", "epsilon_low": 0.2, "epsilon_high": 0.2},
}  # fmt: skip


class OneProcess:
    """What the loss asks of an accelerator."""

    num_processes = 1
    sync_gradients = True

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def draw_numbers() -> dict[str, Tensor]:
    """Log-probabilities now, before the update, of the sampler and of the reference, (B, T); advantages (B)."""
    generator = torch.Generator().manual_seed(0)

    def near(values: Tensor, spread: float) -> Tensor:
        return values + spread * torch.randn(values.shape, generator=generator, dtype=torch.float64)

    old_BT = near(torch.full((len(LENGTHS), LONGEST), -2.0, dtype=torch.float64), 0.5)
    return {
        "old_logprobs": old_BT,
        "logprobs": near(old_BT, 0.2),
        "sampled_logprobs": near(old_BT, 0.1),
        "reference_logprobs": near(old_BT, 0.4),
        "advantages": torch.tensor([1.3, -0.4, -1.7, 0.9, -0.6], dtype=torch.float64),
    }


def make_trainer(kind: type, case: dict[str, Any], logprobs_BT: Tensor) -> Any:
    """A trainer with what its `_compute_loss` reads, and a forward pass that returns our numbers."""
    trainer = object.__new__(kind)
    trainer.__dict__ |= {
        "model": SimpleNamespace(training=True),
        "accelerator": OneProcess(),
        "args": SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1),
        "_metrics": {"train": defaultdict(list)},
        "beta": 0.0,
        "importance_sampling_level": "token",
        "use_vllm": "importance_cap" in case,
        "vllm_importance_sampling_correction": "importance_cap" in case,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": MAX_TOKENS,
        **case,
    }
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs_BT, torch.zeros_like(logprobs_BT), None)
    return trainer


def compute(case: dict[str, Any], numbers: dict[str, Tensor]) -> dict[str, Any]:
    """TRL's loss and its gradient with respect to the log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    logprobs_BT = numbers["logprobs"].clone().requires_grad_()
    mask_BT = torch.arange(LONGEST)[None, :] < torch.tensor(LENGTHS)[:, None]
    ratio_BT = torch.exp(numbers["old_logprobs"] - numbers["sampled_logprobs"])
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
        "completion_ids": torch.zeros(len(LENGTHS), LONGEST, dtype=torch.long),
        "completion_mask": mask_BT.long(),
        "advantages": numbers["advantages"],
        "old_per_token_logps": numbers["old_logprobs"],
        "old_logps": (numbers["old_logprobs"] * mask_BT).sum(-1),
        "ref_per_token_logps": numbers["reference_logprobs"],
        # vllm_importance_sampling_mode = "token_truncate", of which the trainer makes this line.
        "importance_sampling_ratio": torch.clamp(ratio_BT, max=case.get("importance_cap"))
        if "importance_cap" in case
        else ratio_BT,
        "num_items_in_batch": mask_BT.sum(),
    }
    trainer = make_trainer(RLOOTrainer if case["loss_type"] == "rloo" else GRPOTrainer, case, logprobs_BT)
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
    assert not gradient_BT[~mask_BT].any()
    return {**case, "loss": loss.item(), "gradient": gradient_BT[mask_BT].tolist()}


def main() -> None:
    import trl

    numbers = draw_numbers()
    mask_BT = torch.arange(LONGEST)[None, :] < torch.tensor(LENGTHS)[:, None]
    content = {
        "trl_version": trl.__version__,
        "lengths": LENGTHS,
        "max_tokens": MAX_TOKENS,
        "advantages": numbers["advantages"].tolist(),
        **{name: values[mask_BT].tolist() for name, values in numbers.items() if name != "advantages"},
        "cases": {name: compute(case, numbers) for name, case in CASES.items()},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
