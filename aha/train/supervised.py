"""What a supervised step minimises: the next token, multi-token prediction, and the balance of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from aha.models import Routing, Transformer
from aha.train.balance import RoutedLayer, document_means, sequence_balance_loss
from aha.train.batches import TrainingSequence, pack
from aha.train.logprobs import logprobs_of, packed_states
from aha.train.multi_token import mtp_predictions


@dataclass(frozen=True, kw_only=True)
class SupervisedLosses:
    """Sums over a micro-batch; those of a step add up."""

    next_token: Tensor
    """Nats of all trained tokens; differentiable, as are the others."""
    mtp: Tensor | None
    """Nats of all tokens that the modules of multi-token prediction predicted; None without any."""
    num_mtp_targets: int
    balance: Tensor | None
    """`sequence_balance_loss`; None where it has no weight."""
    num_balanced: int
    """Documents times sparse layers that it sums over."""
    loads: list[Tensor]

    def detached(self) -> SupervisedLosses:
        """The numbers without what computed them."""
        mtp, balance = self.mtp, self.balance
        return replace(
            self,
            next_token=self.next_token.detach(),
            mtp=None if mtp is None else mtp.detach(),
            balance=None if balance is None else balance.detach(),
        )


@dataclass(frozen=True, kw_only=True)
class WantedLosses:
    """Which losses have a weight, and how they add up."""

    mtp_weight: float
    """lambda / D of the report's equation 25; 0 leaves multi-token prediction out."""
    balance_loss_coef: float
    """alpha of its equation 17; 0 leaves the balance loss out."""

    def weigh(self, losses: SupervisedLosses, *, num_targets: int, num_sequences: int) -> Tensor:
        """A micro-batch's share of the step's loss.

        Args:
            num_targets: trained tokens of the whole step. Multi-token prediction is divided by it too, as in equation
                24, whose mean is over all T tokens and not over those alone that this depth can predict.
            num_sequences: of the whole step.
        """
        loss = losses.next_token / num_targets
        if losses.mtp is not None:
            loss = loss + self.mtp_weight * losses.mtp / num_targets
        if losses.balance is not None:
            loss = loss + self.balance_loss_coef * losses.balance / num_sequences
        return loss


def wanted_losses(model: Transformer, *, mtp_weight: float, balance_loss_coef: float) -> WantedLosses:
    """What of a stage's weights means something for this model: a module, or experts with a selection bias.

    Experts without one (Qwen3-MoE) were balanced in another way, and are not pulled over to this one.
    """
    num_modules, experts = model.config.num_mtp_layers, model.config.experts
    is_balanced = experts is not None and experts.has_selection_bias
    return WantedLosses(
        mtp_weight=mtp_weight / num_modules if num_modules else 0.0,
        balance_loss_coef=balance_loss_coef if is_balanced else 0.0,
    )


def supervised_losses(
    model: Transformer, sequences: Sequence[TrainingSequence], *, wanted: WantedLosses
) -> SupervisedLosses:
    """The losses of one micro-batch."""
    batch = pack(sequences)
    routings: list[Routing] = []
    hidden_ND = packed_states(model, batch, routings=routings)
    predicting_MD = hidden_ND.index_select(0, batch.predictor_rows_M)
    next_token = -logprobs_of(model, predicting_MD, targets_M=batch.targets_M).logprobs_M.sum()
    # Of rows that documents share, each document's mean takes its part.
    means_BN = document_means(batch.rows, num_rows=len(hidden_ND)).to(hidden_ND.device)
    layers = [RoutedLayer(routing, means_BN) for routing in routings]
    mtp, num_mtp_targets = None, 0
    if wanted.mtp_weight:
        mtp = next_token.new_zeros(())
        for prediction in mtp_predictions(model, sequences, batch=batch, hidden_ND=hidden_ND):
            mtp = mtp - prediction.logprobs_M.sum()
            num_mtp_targets += len(prediction.logprobs_M)
            layers += prediction.layers
    balance = None
    if wanted.balance_loss_coef:
        assert model.config.experts is not None
        balance = sequence_balance_loss(layers, num_experts_per_token=model.config.experts.num_experts_per_token)
    return SupervisedLosses(
        next_token=next_token,
        mtp=mtp,
        num_mtp_targets=num_mtp_targets,
        balance=balance,
        num_balanced=sum(len(layer.document_means_BN) for layer in layers),
        loads=[layer.expert_load() for layer in layers],
    )


def mean_losses(losses: Sequence[SupervisedLosses], *, num_targets: int) -> dict[str, float]:
    """A step's losses for its row of metrics: each a mean over what it is a sum of; those that were asked for."""
    found = {"loss": sum(part.next_token.item() for part in losses) / num_targets}
    mtp = [part.mtp.item() for part in losses if part.mtp is not None]
    if mtp:
        found["mtp_loss"] = sum(mtp) / max(sum(part.num_mtp_targets for part in losses), 1)
    balance = [part.balance.item() for part in losses if part.balance is not None]
    if balance:
        found["balance_loss"] = sum(balance) / sum(part.num_balanced for part in losses)
    return found
