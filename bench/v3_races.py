"""What the children of bench.v3 do: both sides of a race in one process, taking turns on the same random weights."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.engine import Engine
from aha.models import ModelConfig, Transformer, build_model
from aha.models.config import ExpertsShape, LatentAttentionShape
from aha.models.latent import LatentAttention
from aha.train.batches import TrainingSequence, pack
from aha.train.logprobs import token_logprobs
from aha.types import SamplingParams
from bench.child import Job, Measurement, timed

EXPERTS = ("eager", "grouped_mm")
"""transformers' ways to compute experts: a loop over those that were chosen, or grouped products."""
MAX_COPIED_WEIGHTS = 1 << 29
"""Its third way copies an expert's weights for every row: only tried while the prompts' copies stay below so many."""
Sides = Mapping[str, Callable[[], object]]
WARM_UP_TOKENS = 3
SCOUT_TOKENS = 12
"""New tokens while the peer's best settings are looked for."""


def race_training(job: Job) -> Measurement:
    """Forward and backward of one batch. Job: shape, dtype, batch, num_documents, length, rounds."""
    model = make_model(job["shape"], dtype=job["dtype"])
    if job["batch"] == "equal":
        shape = (job["num_documents"], job["length"])
        token_ids_BT = torch.randint(0, job["shape"]["vocab"], shape, generator=torch.Generator().manual_seed(0))
        ours, theirs = (
            partial(_train_on_logits, model, token_ids_BT),
            partial(_train_on_logits, token_ids_BT=token_ids_BT),
        )
        num_tokens = token_ids_BT.numel()
    else:
        sequences = _completions(job)
        ours, theirs = partial(_train_on_completions, model, sequences), partial(_train_padded, sequences=sequences)
        num_tokens = sum(s.num_trained for s in sequences)
    peers = {f"transformers, sdpa, {experts}": partial(theirs, _peer(model, experts=experts)) for experts in EXPERTS}
    trials = {name: timed(step) for name, step in peers.items()}
    best = min(trials, key=lambda name: trials[name])
    seconds = _take_turns({"aha": ours, best: peers[best]}, rounds=job["rounds"])
    return Measurement(seconds=seconds["aha"], num_tokens=num_tokens, details={"seconds": seconds, "trials": trials})


def race_sampling(job: Job) -> Measurement:
    """Greedy completions, all different prompts of 44 tokens. Job: shape, dtype, num_sequences, num_tokens, rounds."""
    model = make_model(job["shape"], dtype=job["dtype"])
    shape = (job["num_sequences"], 44)
    prompts_BT = torch.randint(0, job["shape"]["vocab"], shape, generator=torch.Generator().manual_seed(0))
    engine = Engine(model, stop_token_ids=())

    def ours(num_tokens: int) -> Tensor:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0)
        return torch.tensor([c[0].token_ids for c in engine.generate(prompts_BT.tolist(), sampling)])

    peers = {
        f"transformers generate, {cache} cache, {experts}": partial(_generate, peer, prompts_BT, cache)
        for experts in (*EXPERTS, *_batched(model, num_rows=prompts_BT.numel()))
        for peer in (_peer(model, experts=experts),)
        for cache in ("dynamic", "static")
    }
    trials = {}
    for name, generate in peers.items():
        generate(WARM_UP_TOKENS)
        trials[name] = timed(partial(generate, SCOUT_TOKENS))
    best = min(trials, key=lambda name: trials[name])
    ours(WARM_UP_TOKENS)
    count = job["num_tokens"]
    seconds = _take_turns({"aha": partial(ours, count), best: partial(peers[best], count)}, rounds=job["rounds"])
    same = float((ours(count) == peers[best](count)).float().mean())
    details = {"seconds": seconds, "trials": trials, "same_tokens": same, "num_sequences": len(prompts_BT)}
    return Measurement(seconds=seconds["aha"], num_tokens=count * len(prompts_BT), details=details)


@torch.inference_mode()
def race_latent(job: Job) -> Measurement:
    """One layer's attention of one new token a row, behind `length` cached ones. Job: length, rows, dtype, rounds.

    16 heads of 64 + 32 channels over latents of 256 + 32: V3's ratios on an eighth of its width.
    """
    from aha.engine.cache import DecodeAttention, KeyValueCache
    from aha.engine.packing import PackedWeights

    shape = {"hidden": 1024, "layers": 1, "heads": 16, "nope": 64, "rope": 32, "latent": 256, "experts": 2, "chosen": 1,
             "expert_width": 16, "dense_width": 16, "vocab": 8}  # fmt: skip
    model = make_model(shape, dtype=job["dtype"])
    layer = model.layers[0]
    attention = layer.attention  # type: ignore[union-attr]
    assert isinstance(attention, LatentAttention)
    rows, length = job["rows"], job["length"]
    cache = KeyValueCache(model.config, dtype=model.dtype, device=model.device)
    cache.reset(rows, num_columns=length + 1)
    latents_BSR = cache.views(rows)[0].values_NSC
    latents_BSR.normal_(generator=torch.Generator().manual_seed(0))
    lengths_B = torch.full((rows,), length)
    packed = PackedWeights()
    x_BD = torch.randn(rows, shape["hidden"], generator=torch.Generator().manual_seed(1)).to(model.dtype)

    def step(form: Any) -> Tensor:
        return attention(0, x_BD, model.begin_pass(lengths_B, attention=form, linear=packed))

    absorbed = DecodeAttention(cache, lengths_B=lengths_B)
    per_head = _PerHeadCache(*_expand(attention, latents_BSR[:, : length + 1]), length=length)
    each_step = _ExpandEachStep(attention, latents_BSR, length=length)
    sides = {"absorbed": absorbed, "per-head cache": per_head, "expanded each step": each_step}
    results = [step(form) for form in sides.values()]
    for other in results[1:]:
        tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
        torch.testing.assert_close(results[0], other, atol=tolerance, rtol=tolerance)
    seconds = _take_turns({name: partial(step, form) for name, form in sides.items()}, rounds=job["rounds"])
    return Measurement(seconds=seconds["absorbed"], num_tokens=rows, details={"seconds": seconds})


class _PerHeadCache:
    """Decoding as grouped-query attention does it: keys (B*H, S, C) and values of every head are cached."""

    form: Literal["expanded", "latent"] = "expanded"

    def __init__(self, k_NSC: Tensor, v_NSC: Tensor, *, length: int) -> None:
        self._keys_NSC, self._values_NSC, self._length = k_NSC, v_NSC, length

    def __call__(self, layer: int, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor, /, *, scale: float,
                 latent_NR: Tensor | None = None) -> Tensor:  # fmt: skip
        self._keys_NSC[:, self._length] = k_NKC.flatten(0, 1)
        self._values_NSC[:, self._length] = v_NKC.flatten(0, 1)
        # Whole blocks, as dense as the products like them: what is cached reaches exactly to this token.
        scores_N1S = torch.bmm(q_NHC.flatten(0, 1).unsqueeze(1), self._keys_NSC.transpose(1, 2)).mul_(scale)
        attended_N1C = torch.bmm(scores_N1S.softmax(dim=-1), self._values_NSC)
        return attended_N1C.view(*q_NHC.shape[:2], -1)


class _ExpandEachStep:
    """Decoding over a cache of latents that are expanded into every head's keys and values at every step."""

    form: Literal["expanded", "latent"] = "expanded"

    def __init__(self, attention: LatentAttention, latents_BSR: Tensor, *, length: int) -> None:
        self._attention, self._latents_BSR, self._length = attention, latents_BSR, length

    def __call__(self, layer: int, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor, /, *, scale: float,
                 latent_NR: Tensor | None = None) -> Tensor:  # fmt: skip
        assert latent_NR is not None
        self._latents_BSR[:, self._length] = latent_NR
        k_NSC, v_NSC = _expand(self._attention, self._latents_BSR[:, : self._length + 1])
        attend = _PerHeadCache(k_NSC, v_NSC, length=self._length)
        return attend(layer, q_NHC, k_NKC, v_NKC, scale=scale)


def _expand(attention: LatentAttention, latents_BSR: Tensor) -> tuple[Tensor, Tensor]:
    """Every head's keys (B*H, S, C) and values of cached latents."""
    rank = attention.kv_b_proj.in_features
    rows, columns = latents_BSR.shape[:2]
    latent_BSR, rope_BSC = latents_BSR.split((rank, latents_BSR.shape[2] - rank), dim=-1)
    kv_BHSC = F.linear(latent_BSR, attention.kv_b_proj.weight).view(rows, columns, 16, 128).transpose(1, 2)
    k_BHSC = torch.cat((kv_BHSC[..., :64], rope_BSC.unsqueeze(1).expand(-1, 16, -1, -1)), dim=-1)
    return k_BHSC.flatten(0, 1).contiguous(), kv_BHSC[..., 64:].flatten(0, 1).contiguous()


def _take_turns(sides: Sides, *, rounds: int) -> dict[str, tuple[float, ...]]:
    """Seconds of each side in each round, after one that warms up."""
    for run in sides.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            found[name].append(timed(run))
    return {name: tuple(seconds) for name, seconds in found.items()}


def _train_on_logits(model: Any, token_ids_BT: Tensor) -> None:
    model.zero_grad()
    logits_BTV = model(token_ids_BT) if isinstance(model, Transformer) else model(token_ids_BT, use_cache=False).logits
    F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), token_ids_BT[:, 1:].flatten()).backward()


def _train_on_completions(model: Transformer, sequences: list[TrainingSequence]) -> None:
    model.zero_grad()
    token_logprobs(model, pack(sequences)).logprobs_M.mean().neg().backward()


def _train_padded(peer: Any, sequences: list[TrainingSequence]) -> None:
    """The same log-probabilities from sequences padded on the right, as trainers on transformers compute them."""
    peer.zero_grad()
    num_prompt, longest = len(sequences[0].prompt_ids), max(s.num_tokens for s in sequences)
    token_ids = [s.prompt_ids + s.completion_ids + (0,) * (longest - s.num_tokens) for s in sequences]
    token_ids_BT = torch.tensor(token_ids)
    is_token_BT = torch.tensor([[1] * s.num_tokens + [0] * (longest - s.num_tokens) for s in sequences])
    kept = longest - num_prompt + 1
    output = peer(token_ids_BT, attention_mask=is_token_BT, use_cache=False, logits_to_keep=kept)
    targets_BT = token_ids_BT[:, num_prompt:].masked_fill(is_token_BT[:, num_prompt:] == 0, -100)
    F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), targets_BT.flatten()).backward()


def _completions(job: Job) -> list[TrainingSequence]:
    """Groups of 8 completions whose lengths spread as sampled ones do: from an eighth of the longest to all of it."""
    generator = torch.Generator().manual_seed(0)
    vocab, longest = job["shape"]["vocab"], job["length"]
    sequences = []
    for index in range(job["num_documents"]):
        if index % 8 == 0:
            prompt = tuple(torch.randint(0, vocab, (44,), generator=generator).tolist())
        share = math.exp(-2.08 * float(torch.rand((), generator=generator)))
        length = max(1, round(longest * share)) if index else longest
        sequences.append(
            TrainingSequence(prompt, tuple(torch.randint(0, vocab, (length,), generator=generator).tolist()))
        )
    return sequences


def _generate(peer: Any, prompts_BT: Tensor, cache: str, num_tokens: int) -> Tensor:
    import transformers

    make_config: Any = transformers.GenerationConfig
    config = make_config(
        do_sample=False, max_new_tokens=num_tokens, pad_token_id=0,
        cache_implementation=None if cache == "dynamic" else cache,
    )  # fmt: skip
    with torch.inference_mode():
        mask_BT = torch.ones_like(prompts_BT)
        completed_BT: Tensor = peer.generate(prompts_BT, attention_mask=mask_BT, generation_config=config)
    return completed_BT[:, prompts_BT.shape[1] :]


def _batched(model: Transformer, *, num_rows: int) -> tuple[str, ...]:
    """transformers' third way to compute experts, where memory allows it."""
    experts = model.config.experts
    assert experts is not None
    copied = num_rows * experts.num_experts_per_token * 2 * experts.intermediate_size * model.config.hidden_size
    return ("batched_mm",) if copied <= MAX_COPIED_WEIGHTS else ()


def make_model(shape: Mapping[str, int], *, dtype: Literal["float32", "bfloat16"]) -> Transformer:
    """A random DeepSeek-V3 of the shape."""
    mla = LatentAttentionShape(
        q_lora_rank=None, kv_lora_rank=shape["latent"], qk_nope_head_dim=shape["nope"], qk_rope_head_dim=shape["rope"],
        v_head_dim=shape["nope"],
    )  # fmt: skip
    experts = ExpertsShape(
        num_experts=shape["experts"], num_experts_per_token=shape["chosen"], intermediate_size=shape["expert_width"],
        num_shared_experts=1, scoring="sigmoid", has_selection_bias=True, scaling_factor=2.5, first_layer=1,
    )  # fmt: skip
    config = ModelConfig(
        model_type="deepseek_v3", vocab_size=shape["vocab"], hidden_size=shape["hidden"],
        intermediate_size=shape["dense_width"], num_layers=shape["layers"], num_heads=shape["heads"],
        num_kv_heads=shape["heads"], head_dim=shape["nope"] + shape["rope"], max_position_embeddings=16_384,
        rope_interleaved=True, mla=mla, experts=experts,
    )  # fmt: skip
    model = build_model(config, dtype=dtype, device="cpu")
    model.initialise(seed=0)
    return model


def _peer(model: Transformer, *, experts: str) -> Any:
    """The same weights in transformers' class, which reads them from a folder."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        peer: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=model.dtype, attn_implementation="sdpa", experts_implementation=experts
        )
    peer.generation_config = transformers.GenerationConfig()  # type: ignore[no-untyped-call]
    return peer
