"""DeepSeek-V3 written down equation by equation, one token and one head at a time, in float64: a second oracle.

Source: DeepSeek-V3 report (arXiv:2412.19437) §2.1.1, §2.1.2 and §2.2; YaRN (arXiv:2309.00071) §3.2 to 3.4. It shares no
code with `aha` and knows nothing of its classes: tensors come by their Hugging Face names, settings from a config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

LATENT_EPS = 1e-6
Mistake = Literal[
    "no_temperature", "latent_eps", "half_split", "norm_on_rope_key", "bias_in_weights", "no_bias", "groups_by_max",
    "softmax_scores", "not_renormalised", "shared_scaled", "unscaled", "values_before_keys", "rope_first",
    "embedding_second", "hidden_before_norm",
]  # fmt: skip
"""What a re-implementation gets wrong; a comparison that does not notice it is worth nothing."""


class SlowV3:
    """Logits of a checkpoint for one sequence.

    Args:
        tensors: by their Hugging Face names.
        raw: config.json in the dialect of transformers 4 or 5.
        mistake: what to compute wrongly; None computes what the report says.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], raw: Mapping[str, Any], *, mistake: Mistake | None = None
    ) -> None:
        self.tensors = {name: values.double() for name, values in tensors.items()}
        self.raw = raw
        self.mistake = mistake
        self.eps = raw["rms_norm_eps"]
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        self.theta = rope.get("rope_theta", raw.get("rope_theta"))
        self.rope = rope if rope.get("rope_type", rope.get("type", "default")) == "yarn" else None
        self.frequencies = [self._frequency(i) for i in range(raw["qk_rope_head_dim"] // 2)]

    def hidden(self, token_ids: list[int]) -> list[Tensor]:
        """h_i of every token after the last layer, before the final norm."""
        x = [self.tensors["model.embed_tokens.weight"][t] for t in token_ids]
        for layer in range(self.raw["num_hidden_layers"]):
            x = self._layer(x, f"model.layers.{layer}.")
        return x

    def logits(self, token_ids: list[int]) -> Tensor:
        return torch.stack([self._head(self._norm(h, "model.norm")) for h in self.hidden(token_ids)])

    def drafts(self, token_ids: list[int], *, depth: int) -> Tensor:
        """Logits of token i + depth + 1 at every i for which the tokens before it are there (depth from 1)."""
        hidden = self.hidden(token_ids)
        if self.mistake != "hidden_before_norm":
            hidden = [self._norm(h, "model.norm") for h in hidden]
        for k in range(1, depth + 1):
            place = f"model.layers.{self.raw['num_hidden_layers'] + k - 1}."
            x = []
            for i in range(len(token_ids) - k):
                embedding = self._norm(self.tensors["model.embed_tokens.weight"][token_ids[i + k]], place + "enorm")
                state = self._norm(hidden[i], place + "hnorm")
                pair = (state, embedding) if self.mistake == "embedding_second" else (embedding, state)
                x.append(self.tensors[place + "eh_proj.weight"] @ torch.cat(pair))
            hidden = [self._norm(h, place + "shared_head.norm") for h in self._layer(x, place)]
        return torch.stack([self._head(h) for h in hidden])

    def _layer(self, x: list[Tensor], place: str) -> list[Tensor]:
        attended = self._attention([self._norm(h, place + "input_layernorm") for h in x], place + "self_attn.")
        x = [h + a for h, a in zip(x, attended, strict=True)]
        return [h + self._feed_forward(self._norm(h, place + "post_attention_layernorm"), place + "mlp.") for h in x]

    def _attention(self, x: list[Tensor], place: str) -> list[Tensor]:
        """Equations 1 to 11."""
        raw, heads = self.raw, self.raw["num_attention_heads"]
        nope, rope, value, rank = (
            raw[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
        )
        queries, keys, values = [], [], []
        for position, h in enumerate(x):
            down = self._linear(h, place + "kv_a_proj_with_mqa")
            latent, shared = self._latent_norm(down[:rank], place + "kv_a_layernorm"), down[rank:]
            if self.mistake == "norm_on_rope_key":
                shared = shared / torch.sqrt((shared**2).mean() + LATENT_EPS)
            shared = self._rotate(shared, position)
            up = self._linear(latent, place + "kv_b_proj")
            query = self._queries(h, place)
            for head in range(heads):
                block = up[head * (nope + value) : (head + 1) * (nope + value)]
                key_part, value_part = block[:nope], block[nope:]
                if self.mistake == "values_before_keys":
                    value_part, key_part = block[:value], block[value:]
                own = query[head * (nope + rope) : (head + 1) * (nope + rope)]
                own_nope, own_rope = own[:nope], own[nope:]
                if self.mistake == "rope_first":
                    own_rope, own_nope = own[:rope], own[rope:]
                queries.append(torch.cat((own_nope, self._rotate(own_rope, position))))
                keys.append(torch.cat((key_part, shared)))
                values.append(value_part)
        scale = (nope + rope) ** -0.5 * self._temperature_squared()
        return [
            self._linear(
                torch.cat([self._attend(queries, keys, values, head, i, heads, scale) for head in range(heads)]),
                place + "o_proj",
            )
            for i in range(len(x))
        ]

    @staticmethod
    def _attend(
        q: list[Tensor], k: list[Tensor], v: list[Tensor], head: int, position: int, heads: int, scale: float
    ) -> Tensor:
        scores = [float(q[position * heads + head] @ k[j * heads + head]) * scale for j in range(position + 1)]
        weights = [math.exp(s - max(scores)) for s in scores]
        total = torch.zeros_like(v[0])
        for j, weight in enumerate(weights):
            total = total + weight / sum(weights) * v[j * heads + head]
        return total

    def _queries(self, h: Tensor, place: str) -> Tensor:
        if self.raw["q_lora_rank"] is None:
            return self._linear(h, place + "q_proj")
        latent = self._latent_norm(self._linear(h, place + "q_a_proj"), place + "q_a_layernorm")
        return self._linear(latent, place + "q_b_proj")

    def _feed_forward(self, h: Tensor, place: str) -> Tensor:
        if place + "gate.weight" not in self.tensors:
            return self._gated(h, place)
        result = torch.zeros_like(h)
        for expert, weight in self._gate(h, place + "gate."):
            result = result + weight * self._gated(h, f"{place}experts.{expert}.")
        shared = self._gated(h, place + "shared_experts.")
        return result + shared * (self.raw["routed_scaling_factor"] if self.mistake == "shared_scaled" else 1.0)

    def _gate(self, h: Tensor, place: str) -> list[tuple[int, float]]:
        """Equations 13 to 16, and node-limited routing: (expert, its weight) of each chosen one."""
        raw = self.raw
        logits = [float(row @ h) for row in self.tensors[place + "weight"]]
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
        if self.mistake == "softmax_scores":
            total = sum(math.exp(logit) for logit in logits)
            scores = [math.exp(logit) / total for logit in logits]
        bias = [float(b) for b in self.tensors[place + "e_score_correction_bias"]]
        if self.mistake == "no_bias":
            bias = [0.0] * len(bias)
        choice = [s + b for s, b in zip(scores, bias, strict=True)]
        size = len(choice) // raw["n_group"]
        groups = [range(g * size, (g + 1) * size) for g in range(raw["n_group"])]
        num_best = 1 if self.mistake == "groups_by_max" else 2
        by_score = sorted(groups, key=lambda g: -sum(sorted((choice[e] for e in g), reverse=True)[:num_best]))
        candidates = [e for group in by_score[: raw["topk_group"]] for e in group]
        chosen = sorted(candidates, key=lambda e: -choice[e])[: raw["num_experts_per_tok"]]
        weights = [choice[e] if self.mistake == "bias_in_weights" else scores[e] for e in chosen]
        if raw["norm_topk_prob"] and self.mistake != "not_renormalised":
            weights = [w / sum(weights) for w in weights]
        factor = 1.0 if self.mistake == "unscaled" else raw["routed_scaling_factor"]
        return [(e, w * factor) for e, w in zip(chosen, weights, strict=True)]

    def _gated(self, h: Tensor, place: str) -> Tensor:
        gate, up = self._linear(h, place + "gate_proj"), self._linear(h, place + "up_proj")
        return self._linear(gate / (1 + torch.exp(-gate)) * up, place + "down_proj")

    def _linear(self, h: Tensor, place: str) -> Tensor:
        product = self.tensors[place + ".weight"] @ h
        return product + self.tensors[place + ".bias"] if place + ".bias" in self.tensors else product

    def _head(self, h: Tensor) -> Tensor:
        tied = self.raw.get("tie_word_embeddings", False)
        return self.tensors["model.embed_tokens.weight" if tied else "lm_head.weight"] @ h

    def _norm(self, h: Tensor, place: str) -> Tensor:
        return h / torch.sqrt((h**2).mean() + self.eps) * self.tensors[place + ".weight"]

    def _latent_norm(self, h: Tensor, place: str) -> Tensor:
        eps = 1e-5 if self.mistake == "latent_eps" else LATENT_EPS
        return h / torch.sqrt((h**2).mean() + eps) * self.tensors[place + ".weight"]

    def _rotate(self, x: Tensor, position: int) -> Tensor:
        """Channels 2i and 2i + 1 are a pair; with `rope_interleave` false, i and i + half."""
        half = len(x) // 2
        is_interleaved = self.raw.get("rope_interleave", True) and self.mistake != "half_split"
        turned = x.clone()
        for i, frequency in enumerate(self.frequencies):
            first, second = (2 * i, 2 * i + 1) if is_interleaved else (i, i + half)
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            turned[first] = x[first] * cos - x[second] * sin
            turned[second] = x[second] * cos + x[first] * sin
        return turned * self._rotation_scale()

    def _frequency(self, i: int) -> float:
        dim = self.raw["qk_rope_head_dim"]
        plain = float(self.theta ** (-2 * i / dim))
        if self.rope is None:
            return plain

        def channel(rotations: float) -> float:
            window = self.rope["original_max_position_embeddings"]  # type: ignore[index]
            return float(dim * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(self.theta)))

        low = max(math.floor(channel(self.rope.get("beta_fast", 32))), 0)
        high = min(math.ceil(channel(self.rope.get("beta_slow", 1))), dim - 1)
        share = min(max((i - low) / ((high - low) or 0.001), 0.0), 1.0)
        return plain / self.rope["factor"] * share + plain * (1 - share)

    def _temperature(self, mscale: float) -> float:
        assert self.rope is not None
        return 0.1 * mscale * math.log(self.rope["factor"]) + 1.0

    def _temperature_squared(self) -> float:
        if self.rope is None or not self.rope.get("mscale_all_dim") or self.mistake == "no_temperature":
            return 1.0
        return self._temperature(self.rope["mscale_all_dim"]) ** 2

    def _rotation_scale(self) -> float:
        if self.rope is None:
            return 1.0
        if self.rope.get("mscale") and self.rope.get("mscale_all_dim"):
            return self._temperature(self.rope["mscale"]) / self._temperature(self.rope["mscale_all_dim"])
        return self._temperature(1.0)
