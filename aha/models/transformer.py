"""A decoder: families differ in the attention and the feed-forward of their layers, so they are one module.

Training, evaluation and serving run the same code on the same parameters: `hidden_states` takes tokens with all
padding removed, and an `Attention` that says which keys each of them sees (a packed batch, or a cache).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aha.models.attention import PackedAttention
from aha.models.config import ModelConfig
from aha.models.experts import Routing
from aha.models.layer import Layer
from aha.models.mtp import MultiTokenPrediction
from aha.models.projection import Attention, Linear, Pass, StoredPart
from aha.models.rope import RopeTables

if TYPE_CHECKING:
    from aha.models.lora import Lora


class Transformer(nn.Module):
    """A causal language model whose parameters the engine and the trainer share."""

    weight_version: int
    """Raised by whoever changes the parameters; caches and packed copies are keyed by it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight_version = 0
        self.lora: Lora | None = None
        """What adapters lie beside the matrices; None for a plain model."""
        self.activations: Literal["keep", "recompute"] = "keep"
        """Whether training keeps what each layer computes for the backward pass, or its input only."""
        self.repeats_shared = False
        """Whether embedding and head stand in the file once more with each module of multi-token prediction."""
        self.products: Literal["full", "fp8"] = "full"
        """What training multiplies the layers' matrices in: the parameters' dtype, or FP8 (aha.models.fp8_product)."""
        self.embed_tokens = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config, index=i) for i in range(config.num_layers))
        self.final_norm = nn.Parameter(torch.ones(config.hidden_size))
        if not config.tie_word_embeddings:
            self.lm_head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.mtp = nn.ModuleList(MultiTokenPrediction(config, depth=k) for k in range(config.num_mtp_layers))
        self.rope_tables = RopeTables(config)

    @property
    def output_weight(self) -> Tensor:
        """The head's weight (V, D); the embedding itself when the two are tied."""
        return self.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.device

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def initialise(self, *, seed: int) -> None:
        """Draw weights: normal with `initializer_range`, projections into the residual stream smaller by depth."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.config.initializer_range / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                std = residual_std if is_residual else self.config.initializer_range
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        for name, buffer in self.named_buffers():
            assert name.endswith("selection_bias")
            buffer.zero_()
        self.weight_version += 1

    def hidden_states(
        self,
        token_ids_N: Tensor,
        *,
        positions_N: Tensor,
        attention: Attention,
        linear: Linear = F.linear,
        routings: list[Routing] | None = None,
        embeddings_ND: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (N, D), after the last norm, of N tokens without padding.

        Args:
            token_ids_N: int64.
            positions_N: int64, each token's position in its own sequence.
            attention: which keys every token sees, and where keys and values are kept.
            linear: the matrix product; the engine passes one with prepacked weights.
            routings: where to append what the gate of each sparse layer decided, in order.
            embeddings_ND: what the layers begin with, where that is not the tokens' own embeddings (InternVL).
        """
        run = self.begin_pass(positions_N, attention=attention, linear=linear)
        x_ND = F.embedding(token_ids_N, self.embed_tokens) if embeddings_ND is None else embeddings_ND
        for layer in cast(Iterable[Layer], self.layers):
            x_ND, routing = self._through(layer, x_ND, run)
            if routings is not None and routing is not None:
                routings.append(routing)
        return F.rms_norm(x_ND, (self.config.hidden_size,), self.final_norm, self.config.rms_norm_eps)

    def mtp_states(
        self,
        hidden_ND: Tensor,
        next_token_ids_N: Tensor,
        *,
        depth: int,
        positions_N: Tensor,
        attention: Attention,
        linear: Linear = F.linear,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Hidden states (N, D) of which the head makes logits of the token `depth` + 2 places ahead.

        Args:
            hidden_ND: what `hidden_states` returned, or this with one depth less.
            next_token_ids_N: int64, the token `depth` + 1 places ahead of each.
            depth: which module, from 0.
            positions_N: int64; a constant shift of all of them makes no difference.
            attention: as in `hidden_states`; the module's layer is number `num_layers + depth`.
        """
        run = self.begin_pass(positions_N, attention=attention, linear=linear)
        module = cast(MultiTokenPrediction, self.mtp[depth])
        x_ND, routing = self._through(module, F.embedding(next_token_ids_N, self.embed_tokens), hidden_ND, run)
        if routings is not None and routing is not None:
            routings.append(routing)
        return x_ND

    def begin_pass(self, positions_N: Tensor, *, attention: Attention, linear: Linear) -> Pass:
        """What the layers need to compute tokens at these positions."""
        return Pass(attention, linear, self.weight_version, self.rope_tables.at(positions_N, dtype=self.dtype))

    def _through(self, module: nn.Module, *arguments: Tensor | Pass) -> tuple[Tensor, Routing | None]:
        """A layer's or module's result, whose insides are kept for the backward pass or computed again there."""
        if self.activations == "recompute" and torch.is_grad_enabled():
            return cast(
                tuple[Tensor, Routing | None],
                checkpoint(module, *arguments, use_reentrant=False, preserve_rng_state=False),
            )
        return cast(tuple[Tensor, Routing | None], module(*arguments))

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of B sequences of equal length, positions from 0."""
        batch, length = token_ids_BT.shape
        hidden_ND = self.hidden_states(
            token_ids_BT.reshape(-1),
            positions_N=torch.arange(length, device=token_ids_BT.device).repeat(batch),
            attention=PackedAttention([length] * batch),
        )
        return F.linear(hidden_ND, self.output_weight).view(batch, length, -1)

    def stored_parts(self) -> Iterator[StoredPart]:
        """Tensors outside the layers, by their full names."""
        yield StoredPart("model.embed_tokens.weight", self.embed_tokens)
        yield StoredPart("model.norm.weight", self.final_norm)
        if not self.config.tie_word_embeddings:
            yield StoredPart("lm_head.weight", self.lm_head)

    def save(
        self,
        folder: Path | str,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        form: Literal["full", "fp8", "fp8_ue8m0"] = "full",
    ) -> None:
        """Write config.json and model.safetensors in the Hugging Face layout, each file atomically; adapters merged."""
        from aha.models.checkpoint import save_model  # here: checkpoint imports this module

        save_model(self, folder=Path(folder), dtype=dtype, form=form)
