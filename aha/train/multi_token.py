"""Multi-token prediction as a training objective: every position also predicts the token after the next.

Source: DeepSeek-V3 report (arXiv:2412.19437) §2.2, equations 24 and 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aha.models import PackedAttention, Routing, Transformer
from aha.models.fp8_product import training_products
from aha.train.balance import RoutedLayer, document_means
from aha.train.batches import PackedBatch, TrainingSequence
from aha.train.logprobs import logprobs_of


class DepthPrediction(NamedTuple):
    """What one module predicted of a micro-batch."""

    logprobs_M: Tensor
    """Of every token that is trained and has so many tokens of its document before it; differentiable."""
    layers: list[RoutedLayer]
    """Of the module's gate, where it has one."""


class _Document(NamedTuple):
    """One sequence of a micro-batch."""

    token_ids_T: Tensor
    is_trained_T: Tensor
    rows: Tensor
    """Which rows of the hidden states before a module are its own, from the first token on."""


def mtp_predictions(
    model: Transformer, sequences: Sequence[TrainingSequence], *, batch: PackedBatch, hidden_ND: Tensor
) -> list[DepthPrediction]:
    """What the modules predict, one after the other; nothing for a model without any.

    Documents stay apart: each is shifted for itself, and its last tokens, whose successors would be another's, are
    left out. They share no rows here: in the trunk the completions of a prompt share the prompt's rows, but a module
    also reads each position's successor, and that of a shared prompt's last token is another one in each document.

    Args:
        sequences: what `batch` was packed from.
        hidden_ND: the batch's hidden states after the final norm; gradients flow into them, as in the paper.
    """
    documents = [
        _Document(batch.token_ids_N[rows], _is_trained(sequence).to(batch.token_ids_N.device), rows)
        for sequence, rows in zip(sequences, batch.rows, strict=True)
    ]
    predictions = []
    for depth in range(model.config.num_mtp_layers):
        # Position i predicts token i + ahead; the last positions of a document have none.
        ahead = depth + 2
        documents = [document for document in documents if len(document.token_ids_T) > ahead]
        if not documents:
            break
        hidden_ND, layers = _states(model, documents, hidden_ND=hidden_ND, depth=depth)
        is_trained_N = torch.cat([document.is_trained_T[ahead:] for document in documents])
        targets_N = torch.cat([document.token_ids_T[ahead:] for document in documents])
        rows_M = is_trained_N.nonzero().squeeze(1)
        logprobs_M = logprobs_of(model, hidden_ND.index_select(0, rows_M), targets_M=targets_N[rows_M]).logprobs_M
        predictions.append(DepthPrediction(logprobs_M, layers))
        lengths = [len(document.token_ids_T) - ahead for document in documents]
        rows = torch.arange(sum(lengths)).split(lengths)
        documents = [document._replace(rows=own) for document, own in zip(documents, rows, strict=True)]
    return predictions


def _states(
    model: Transformer, documents: Sequence[_Document], *, hidden_ND: Tensor, depth: int
) -> tuple[Tensor, list[RoutedLayer]]:
    """The module's hidden states of every position that has a token to predict, document after document."""
    lengths = [len(document.token_ids_T) - depth - 2 for document in documents]
    parts = list(zip(documents, lengths, strict=True))
    rows_N = torch.cat([document.rows[:length] for document, length in parts])
    next_ids_N = torch.cat([document.token_ids_T[depth + 1 :][:length] for document, length in parts])
    routings: list[Routing] = []
    states_ND = model.mtp_states(
        hidden_ND.index_select(0, rows_N.to(hidden_ND.device)),
        next_ids_N,
        depth=depth,
        positions_N=torch.cat([torch.arange(length) for length in lengths]).to(hidden_ND.device),
        attention=PackedAttention(lengths),
        linear=training_products(model),
        routings=routings,
    )
    means_BN = document_means(torch.arange(sum(lengths)).split(lengths), num_rows=sum(lengths))
    return states_ND, [RoutedLayer(routing, means_BN.to(hidden_ND.device)) for routing in routings]


def _is_trained(sequence: TrainingSequence) -> Tensor:
    """Of a sequence's tokens, those that the model should write."""
    of_completion = sequence.is_sampled or (True,) * len(sequence.completion_ids)
    return torch.tensor((False,) * len(sequence.prompt_ids) + tuple(of_completion))
