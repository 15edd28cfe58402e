"""InternVL: a language model of any family behind a vision tower (Hugging Face layout, `internvl`).

Source: InternVL 1.5 (arXiv:2404.16821) §3.1, "ViT-MLP-LLM". Without pictures it is its language model and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.errors import ModelError
from aha.models.attention import PackedAttention
from aha.models.config import ModelConfig
from aha.models.projection import StoredPart
from aha.models.transformer import Transformer
from aha.models.vision import Projector, VisionTower, pixel_shuffle
from aha.models.vision_config import VisionShape

MAX_TILES = 4
"""Tiles of one pass through the tower outside training; bounds the memory of its activations."""


class InternVL(Transformer):
    """A decoder with eyes: features of pictures take the places of their tokens' embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(self.vision)
        self.multi_modal_projector = Projector(self.vision, width=config.hidden_size)

    @property
    def vision(self) -> VisionShape:
        """The shape of the eye."""
        assert self.config.vision is not None, "build_model makes this class for configurations that have one"
        return self.config.vision

    @torch.no_grad()
    def initialise(self, *, seed: int) -> None:
        """Draw weights, those of the vision tower as the reference does: its class token and positions are 0."""
        super().initialise(seed=seed)
        for room in (self.vision_tower, self.multi_modal_projector):
            for name, parameter in room.named_parameters():
                if name.endswith("bias") or ("embeddings" in name and parameter.ndim == 3):
                    parameter.zero_()
                elif "norm" in name:
                    parameter.fill_(1.0)
                elif "lambda" in name:
                    parameter.fill_(self.vision.layer_scale)

    def image_features(self, pixels_M3YX: Tensor) -> Tensor:
        """What the language model reads of M tiles: (N, D), N = M x `tokens_per_tile`, tiles in order.

        Args:
            pixels_M3YX: normalised colours in any float dtype.
        """
        pixels_M3YX = pixels_M3YX.to(self.device, self.dtype)
        size = len(pixels_M3YX) if torch.is_grad_enabled() else MAX_TILES
        return torch.cat([self._features(tiles) for tiles in pixels_M3YX.split(size)])

    def _features(self, pixels_M3YX: Tensor) -> Tensor:
        patches_MTD = self.vision_tower(pixels_M3YX)[:, 1:]  # without the class token
        patches_MYXD = patches_MTD.unflatten(1, (self.vision.grid, self.vision.grid))
        shuffled_MYXD = pixel_shuffle(patches_MYXD, downsample=self.vision.downsample)
        return cast(Tensor, self.multi_modal_projector(shuffled_MYXD.flatten(1, 2)).flatten(0, 1))

    def embed(self, token_ids_N: Tensor, *, features_ND: Tensor) -> Tensor:
        """Embeddings (N, D) of tokens, with the features in the places of the image tokens, in order.

        Raises:
            ModelError: there are not as many features as image tokens.
        """
        is_image_N = token_ids_N == self.vision.image_token_id
        if int(is_image_N.sum()) != len(features_ND):
            raise ModelError(
                f"{int(is_image_N.sum())} image tokens (id {self.vision.image_token_id}) stand for {len(features_ND)} "
                f"features of pictures; a tile takes {self.vision.tokens_per_tile} tokens"
            )
        embedded_ND = F.embedding(token_ids_N, self.embed_tokens)
        return embedded_ND.masked_scatter(is_image_N.unsqueeze(1), features_ND.to(embedded_ND.dtype))

    def forward(self, token_ids_BT: Tensor, pixels_M3YX: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of B sequences of equal length, positions from 0, with the tiles of all their pictures."""
        if pixels_M3YX is None:
            return super().forward(token_ids_BT)
        batch, length = token_ids_BT.shape
        token_ids_N = token_ids_BT.reshape(-1)
        hidden_ND = self.hidden_states(
            token_ids_N,
            positions_N=torch.arange(length, device=token_ids_BT.device).repeat(batch),
            attention=PackedAttention([length] * batch),
            embeddings_ND=self.embed(token_ids_N, features_ND=self.image_features(pixels_M3YX)),
        )
        return F.linear(hidden_ND, self.output_weight).view(batch, length, -1)

    def stored_parts(self) -> Iterator[StoredPart]:
        yield from super().stored_parts()
        for room in ("vision_tower", "multi_modal_projector"):
            for name, parameter in getattr(self, room).named_parameters():
                yield StoredPart(f"{room}.{name}", parameter)


# What the names of tensors begin with, in files of transformers 4 (and of version 5, which still writes them so) and in
# version 5's memory; longest first. To the right: as if the language model stood alone, and the eye beside it.
_PREFIXES = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "model.",
    "language_model.": "",
}
_EYE = ("vision_tower.", "multi_modal_projector.")


def short_name(name: str) -> str:
    """A file's name of a tensor of InternVL, with the prefix of either version taken off."""
    for prefix, short in _PREFIXES.items():
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def published_name(name: str) -> str:
    """The name that InternVL's files give a tensor: the inverse of `short_name`."""
    return name if name.startswith(_EYE) else f"language_model.{name}"
