"""How long a step takes: bytes to read, operations to compute, tokens to exchange, and what passes in between.

A term is the larger of reading and computing, because they overlap; the terms follow one another and add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from aha.estimate.flops import attention_flops
from aha.estimate.serving.replica import Replica
from aha.models.config import ModelConfig

Phase = Literal["prefill", "decode"]


class StepTerm(NamedTuple):
    """A part of a step's time."""

    name: str
    seconds: float
    note: str
    """The figures it follows from."""


class Work(NamedTuple):
    """What one GPU reads and computes in a part of a step."""

    name: str
    num_bytes: float
    operations: float
    operations_per_second: float
    """That are reached."""

    def seconds(self, *, bytes_per_second: float) -> float:
        return max(self.num_bytes / bytes_per_second, self.operations / self.operations_per_second)

    def halved(self) -> Work:
        return self._replace(num_bytes=self.num_bytes / 2, operations=self.operations / 2)


def touched_experts(num_experts: int, *, num_chosen: int, num_tokens: float) -> float:
    """Experts of a layer that a batch needs, on average, if each token chooses k of E alike: E (1 - (1 - k/E)**T)."""
    missed: float = (1 - num_chosen / num_experts) ** num_tokens
    return num_experts * (1 - missed)


def decode_terms(replica: Replica, *, batch: float, context_tokens: float) -> tuple[StepTerm, ...]:
    """A step of decoding, in which every conversation is given its next token, or two that are then judged.

    Args:
        batch: conversations of the whole replica.
        context_tokens: of each, on average.
    """
    drafts = replica.config.num_mtp_layers
    rows = batch if replica.layout == "tensor" else batch / replica.num_gpus
    tokens = rows * (1 + drafts)
    context = _context_work(replica, rows=rows, queries=1 + drafts, context_tokens=context_tokens)
    head = _head_work(replica, tokens=tokens, times=1 + drafts)
    everyone = tokens * (replica.num_gpus if replica.layout == "expert" else 1)
    return _terms(replica, tokens=tokens, everyone=everyone, attention=context, head=head, phase="decode")


def prefill_terms(replica: Replica, *, new_tokens: int, cached_tokens: int) -> tuple[StepTerm, ...]:
    """A step that reads a chunk of prompts, each of so many new tokens behind cached ones.

    The chunk has `chunk_tokens` tokens for each of the GPUs that read their own.
    """
    tokens = replica.assumptions.chunk_tokens
    visible = cached_tokens + (new_tokens + 1) / 2
    attention = Work(
        name="attention over the context",
        # Every prompt of the chunk has its keys read once, the cached ones too.
        num_bytes=tokens / new_tokens * (new_tokens + cached_tokens) * replica.cache_bytes_per_gpu_token,
        operations=replica.num_layers
        * tokens
        * attention_flops(replica.config, visible_keys=visible)
        / replica.gpus_that_share,
        operations_per_second=replica.assumptions.attention * replica.gpu.flops_per_second("bfloat16"),
    )
    # Only the last token of a prompt is asked for what follows.
    head = _head_work(replica, tokens=tokens / new_tokens, times=1 + replica.config.num_mtp_layers)
    everyone = tokens * replica.gpus_that_read
    return _terms(replica, tokens=tokens, everyone=everyone, attention=attention, head=head, phase="prefill")


def chunk_tokens(replica: Replica) -> float:
    """Prompt tokens that the whole replica reads in a step of `prefill_terms`."""
    return replica.assumptions.chunk_tokens * replica.gpus_that_read


def decoded_attention_flops(config: ModelConfig, *, visible_keys: float) -> float:
    """Of one layer and token while decoding. A latent is attended to as it is cached: R and the rotated key for the
    scores, R again for what they weigh, over every head (the absorbed form, DeepSeek-V2, arXiv:2405.04434 §2.1.2)."""
    if config.mla is None:
        return attention_flops(config, visible_keys=visible_keys)
    return 2.0 * visible_keys * config.num_heads * (config.mla.cached_width + config.mla.kv_lora_rank)


def _context_work(replica: Replica, *, rows: float, queries: int, context_tokens: float) -> Work:
    flops = decoded_attention_flops(replica.config, visible_keys=context_tokens)
    return Work(
        name="attention over the context",
        num_bytes=rows * context_tokens * replica.cache_bytes_per_gpu_token,
        operations=replica.num_layers * rows * queries * flops / replica.gpus_that_share,
        operations_per_second=replica.assumptions.attention * replica.gpu.flops_per_second("bfloat16"),
    )


def _head_work(replica: Replica, *, tokens: float, times: int) -> Work:
    return Work(
        name="output head",
        num_bytes=times * replica.head_bytes / replica.gpus_that_share,
        operations=times * tokens * replica.head_bytes / replica.gpus_that_share,
        operations_per_second=replica.assumptions.products * replica.gpu.flops_per_second("bfloat16"),
    )


def _terms(
    replica: Replica, *, tokens: float, everyone: float, attention: Work, head: Work, phase: Phase
) -> tuple[StepTerm, ...]:
    """All terms of a step; with experts spread over nodes, the quicker of exchanging in turn or beside computing.

    Beside computing means two half batches, each computed while the other is exchanged (DeepSeek-V3 report §3.4): the
    weights are then read twice, and a part of the shorter of the two is hidden. Within one node engines take turns.
    """
    exchanged = exchange_seconds(replica, tokens=tokens, phase=phase)
    idle = _idle(replica, phase=phase)
    works = [_dense_work(replica, tokens=tokens), *_expert_work(replica, everyone=everyone), head, attention]
    in_turn = (*_to_terms(replica, works), exchanged, idle)
    if replica.layout == "tensor" or replica.num_gpus <= replica.gpu.gpus_per_node:
        return in_turn
    halves = [_dense_work(replica, tokens=tokens / 2), *_expert_work(replica, everyone=everyone / 2)]
    halves += [head._replace(operations=head.operations / 2), attention.halved()]
    computed = tuple(
        term._replace(seconds=2 * term.seconds, note=f"twice {term.note}") for term in _to_terms(replica, halves)
    )
    hidden = replica.assumptions.hidden * min(exchanged.seconds, sum(term.seconds for term in computed))
    note = f"{exchanged.note}; {hidden * 1e3:,.2f} ms more are hidden"
    beside = (*computed, exchanged._replace(seconds=exchanged.seconds - hidden, note=note), idle)
    return min(in_turn, beside, key=lambda terms: sum(term.seconds for term in terms))


def _dense_work(replica: Replica, *, tokens: float) -> Work:
    """All that every token is multiplied with in the layers.

    Args:
        tokens: that go through a GPU's own matrices.
    """
    share = replica.gpus_that_share
    operations = 2 * tokens * replica.num_dense_active / share
    return Work("dense weights", replica.dense_bytes / share, operations, _product_rate(replica))


def _expert_work(replica: Replica, *, everyone: float) -> list[Work]:
    """Routed experts, if there are any.

    Args:
        everyone: tokens of all GPUs together.
    """
    experts = replica.config.experts
    if experts is None or not replica.num_sparse_layers:
        return []
    touched = touched_experts(experts.num_experts, num_chosen=experts.num_experts_per_token, num_tokens=everyone)
    imbalance = replica.assumptions.imbalance if replica.layout == "expert" else 1.0
    return [
        Work(
            name=f"routed experts ({touched:,.0f} of {experts.num_experts} touched)",
            num_bytes=replica.routed_bytes * replica.experts_share * touched / experts.num_experts,
            operations=imbalance * 2 * everyone * replica.num_routed_active / replica.num_gpus,
            operations_per_second=_product_rate(replica),
        )
    ]


def _product_rate(replica: Replica) -> float:
    return replica.assumptions.products * replica.gpu.flops_per_second(replica.product_format)


def _to_terms(replica: Replica, works: Iterable[Work]) -> Iterable[StepTerm]:
    bytes_per_second = replica.assumptions.memory * replica.gpu.memory_gb_per_second * 1e9
    for work in works:
        reading = work.num_bytes / bytes_per_second
        computing = work.operations / work.operations_per_second
        bound = "reading" if reading >= computing else "computing"
        note = f"{work.num_bytes / 1e9:,.2f} GB, {work.operations / 1e12:,.2f} TFLOP a GPU: bound by {bound}"
        yield StepTerm(work.name, work.seconds(bytes_per_second=bytes_per_second), note)


def exchange_seconds(replica: Replica, *, tokens: float, phase: Phase) -> StepTerm:
    """What the GPUs of a replica tell one another in a step.

    tensor: two sums over all GPUs a layer, by scattering and gathering within a node, then between nodes.
    expert: every token to its experts in one byte a channel with FP8 weights, else two, and back in two. While decoding
    each copy goes its own way; of a prompt, one copy goes to each node and is spread there (DeepSeek-V3 report §3.2.2,
    §3.4).
    """
    if replica.num_gpus == 1:
        return StepTerm("exchange between GPUs", 0.0, "one GPU")
    if replica.layout == "tensor":
        link, network, count = _sums(replica, tokens=tokens)
    else:
        link, network, count = _sendings(replica, tokens=tokens, phase=phase)
    gpu, reached = replica.gpu, replica.assumptions.links
    moving = max(link / (reached * gpu.link_gb_per_second * 1e9), network / (reached * gpu.network_gb_per_second * 1e9))
    waiting = count * replica.assumptions.exchange_microseconds * 1e-6
    roads = [f"{size / 1e9:,.2f} GB by {road}" for size, road in ((link, "link"), (network, "network")) if size]
    note = f"{' and '.join(roads)} a GPU, {count} exchanges"
    return StepTerm("exchange between GPUs", moving + waiting, note)


class _Exchanged(NamedTuple):
    link_bytes: float
    network_bytes: float
    num_exchanges: int


def _sums(replica: Replica, *, tokens: float) -> _Exchanged:
    count = 2 * replica.num_layers
    size = tokens * replica.config.hidden_size * 2.0 * count
    in_node = min(replica.num_gpus, replica.gpu.gpus_per_node)
    nodes = -(-replica.num_gpus // in_node)
    return _Exchanged(2 * size * (in_node - 1) / in_node, 2 * size / in_node * (nodes - 1) / nodes, count)


def _sendings(replica: Replica, *, tokens: float, phase: Phase) -> _Exchanged:
    experts, gpus = replica.config.experts, replica.num_gpus
    assert experts is not None, "only experts are sent to"
    in_node = min(gpus, replica.gpu.gpus_per_node)
    nodes = -(-gpus // in_node)
    width = replica.config.hidden_size * (replica.bytes_per_parameter + 2.0)
    size = tokens * width * replica.num_sparse_layers * replica.assumptions.imbalance
    copies = experts.num_experts_per_token
    if phase == "decode":
        return _Exchanged(
            size * copies * (in_node - 1) / gpus, size * copies * (gpus - in_node) / gpus, 2 * replica.num_sparse_layers
        )
    # Node-limited routing: each group of experts lies on one node, so that many nodes are all a token goes to.
    reached = min(copies, nodes, experts.num_groups_per_token if experts.num_groups > 1 else nodes)
    return _Exchanged(
        size * copies * (in_node - 1) / in_node, size * reached * (nodes - 1) / nodes, 2 * replica.num_sparse_layers
    )


def _idle(replica: Replica, *, phase: Phase) -> StepTerm:
    layers = replica.num_layers * replica.assumptions.layer_microseconds * 1e-6
    seconds = layers + replica.assumptions.step_milliseconds * 1e-3
    return StepTerm("launches and scheduling", seconds, f"{replica.num_layers} layers, and once a step of {phase}")
