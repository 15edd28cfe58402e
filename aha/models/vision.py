"""InternVL's eye: a vision transformer, and the projector that makes its patches tokens of the language model.

Source: InternVL (arXiv:2312.14238) §3.2 for the tower, InternVL 1.5 (arXiv:2404.16821) §3.1 for pixel shuffle and
projector; names and details as in the Hugging Face layout. The parameters are named as their tensors in the files.

Shape suffixes of this room: M tiles · Y and X rows and columns (of pixels or patches) · T positions of the tower,
the class token first · D width of the tower, or of the language model after the projector · H heads · C width per head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aha.models.vision_config import VisionShape

PROJECTOR_EPS = 1e-5
"""Of the projector's norm: torch's default, which the reference takes whatever layer_norm_eps says."""
QK_NORM_EPS = 1e-6
"""Of the norms of queries and keys, fixed likewise."""


def _norm(shape: VisionShape) -> nn.Module:
    if shape.norm_type == "rms_norm":
        return nn.RMSNorm(shape.hidden_size, eps=shape.layer_norm_eps)
    return nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)


class PatchEmbeddings(nn.Module):
    """A linear map of each patch's pixels, written as the convolution that it is stored as."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            shape.num_channels, shape.hidden_size, kernel_size=shape.patch_size, stride=shape.patch_size
        )

    def forward(self, pixels_M3YX: Tensor) -> Tensor:
        patches_MDYX: Tensor = self.projection(pixels_M3YX)
        return patches_MDYX


class VisionEmbeddings(nn.Module):
    """Patches in reading order behind a class token, each with its learned position."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self._grid = shape.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.hidden_size))
        if shape.has_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.hidden_size))
        self.patch_embeddings = PatchEmbeddings(shape)
        self.position_embeddings: nn.Parameter | None = None
        if shape.has_position_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + shape.grid**2, shape.hidden_size))

    def forward(self, pixels_M3YX: Tensor) -> Tensor:
        patches_MDYX = self.patch_embeddings(pixels_M3YX)
        x_MTD = torch.cat(
            (self.cls_token.expand(len(pixels_M3YX), -1, -1), patches_MDYX.flatten(2).transpose(1, 2)), dim=1
        )
        if self.position_embeddings is None:
            return x_MTD
        return x_MTD + self._positions(patches_MDYX.shape[2], patches_MDYX.shape[3])

    def _positions(self, num_rows: int, num_columns: int) -> Tensor:
        """The positions (1, T, D), stretched to another grid where the tile is not of the size trained with."""
        assert self.position_embeddings is not None
        if (num_rows, num_columns) == (self._grid, self._grid):
            return self.position_embeddings
        cls_11D, rest_1TD = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid_1DYX = rest_1TD.unflatten(1, (self._grid, self._grid)).permute(0, 3, 1, 2)
        grid_1DYX = F.interpolate(grid_1DYX, size=(num_rows, num_columns), mode="bicubic", align_corners=False)
        return torch.cat((cls_11D, grid_1DYX.flatten(2).transpose(1, 2)), dim=1)


class VisionAttention(nn.Module):
    """Every patch sees every other one of its tile; tiles do not see each other."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self._num_heads = shape.num_heads
        self.q_proj = nn.Linear(width, width, bias=shape.has_qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=shape.has_qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=shape.has_qkv_bias)
        self.projection_layer = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width, eps=QK_NORM_EPS) if shape.has_qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width, eps=QK_NORM_EPS) if shape.has_qk_norm else nn.Identity()

    def forward(self, x_MTD: Tensor) -> Tensor:
        q_MTD, k_MTD, v_MTD = self.q_norm(self.q_proj(x_MTD)), self.k_norm(self.k_proj(x_MTD)), self.v_proj(x_MTD)
        q_MHTC, k_MHTC, v_MHTC = (x.unflatten(2, (self._num_heads, -1)).transpose(1, 2) for x in (q_MTD, k_MTD, v_MTD))
        attended_MHTC = F.scaled_dot_product_attention(q_MHTC, k_MHTC, v_MHTC)
        attended_MTD: Tensor = self.projection_layer(attended_MHTC.transpose(1, 2).flatten(2))
        return attended_MTD


class VisionFeedForward(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.fc2 = nn.Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x_MTD: Tensor) -> Tensor:
        mapped_MTD: Tensor = self.fc2(F.gelu(self.fc1(x_MTD)))
        return mapped_MTD


class VisionLayer(nn.Module):
    """Pre-norm attention and feed-forward, each scaled by channel (LayerScale, arXiv:2103.17239 §3)."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.attention = VisionAttention(shape)
        self.mlp = VisionFeedForward(shape)
        self.layernorm_before = _norm(shape)
        self.layernorm_after = _norm(shape)
        self.lambda_1 = nn.Parameter(torch.ones(shape.hidden_size))
        self.lambda_2 = nn.Parameter(torch.ones(shape.hidden_size))

    def forward(self, x_MTD: Tensor) -> Tensor:
        x_MTD = x_MTD + self.lambda_1 * self.attention(self.layernorm_before(x_MTD))
        return cast(Tensor, x_MTD + self.lambda_2 * self.mlp(self.layernorm_after(x_MTD)))


class VisionEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(VisionLayer(shape) for _ in range(shape.num_layers))

    def forward(self, x_MTD: Tensor) -> Tensor:
        for layer in cast(Iterable[VisionLayer], self.layer):
            x_MTD = layer(x_MTD)
        return x_MTD


class VisionTower(nn.Module):
    """A vision transformer over the patches of each tile."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(shape)
        self.encoder = VisionEncoder(shape)
        self.layernorm: nn.Module = nn.Identity()
        if shape.has_final_norm:
            self.layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, pixels_M3YX: Tensor) -> Tensor:
        """Features (M, T, D) of the class token and the patches, after the last layer.

        Args:
            pixels_M3YX: normalised colours, of any size that holds whole patches.
        """
        features_MTD: Tensor = self.layernorm(self.encoder(self.embeddings(pixels_M3YX)))
        return features_MTD


class Projector(nn.Module):
    """From the patches of a square, side by side, to one token of the language model.

    Args:
        width: of the language model.
    """

    def __init__(self, shape: VisionShape, *, width: int) -> None:
        super().__init__()
        shuffled_width = shape.hidden_size * shape.downsample**2
        self.layer_norm = nn.LayerNorm(shuffled_width, eps=PROJECTOR_EPS)
        self.linear_1 = nn.Linear(shuffled_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, shuffled_MTD: Tensor) -> Tensor:
        features_MTD: Tensor = self.linear_2(F.gelu(self.linear_1(self.layer_norm(shuffled_MTD))))
        return features_MTD


def pixel_shuffle(x_MYXD: Tensor, *, downsample: int) -> Tensor:
    """Each square of patches as one position with all their channels: (M, Y/s, X/s, s*s*D).

    Source: InternVL 1.5 (arXiv:2404.16821) §3.1, in the version ("v2") that the published weights were trained with:
    the first one left the grid transposed.

    Raises:
        RuntimeError: the grid does not divide into squares of `downsample`.
    """
    squares = x_MYXD.unflatten(1, (-1, downsample)).unflatten(3, (-1, downsample))  # M, Y/s, s, X/s, s, D
    return cast(Tensor, squares.permute(0, 1, 3, 2, 4, 5).flatten(3))
