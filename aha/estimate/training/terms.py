"""Where a training step's seconds go: one line for each cause, all in GPU seconds a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aha.estimate.flops import causal_keys
from aha.estimate.hardware import GPU, Format
from aha.estimate.training.assumptions import Assumptions
from aha.estimate.training.communication import (
    TENSOR_COLLECTIVES,
    TENSOR_FORWARD_COLLECTIVES,
    all_to_all,
    context_seconds,
    exchange,
    pipeline_seconds,
    tensor_seconds,
)
from aha.estimate.training.compute import (
    BF16_BYTES,
    Device,
    LayerPasses,
    Pass,
    Work,
    head_pass,
    joint_pass,
    layer_passes,
)
from aha.estimate.training.layout import Layout
from aha.estimate.training.memory import MASTER_BYTES, count_sparse_layers, own_parameters
from aha.models.config import ModelConfig

TermKind = Literal["compute", "communication", "waiting", "lost"]


MEMORY_BOUND = ("norms, activations, permutations", "casts to float8")
"""Names of the terms that move bytes and hardly compute."""


class Term(NamedTuple):
    """One line of the bill: where a step's seconds go."""

    name: str
    seconds_per_token: float
    """Of one GPU."""
    note: str
    """The figures it follows from."""
    kind: TermKind = "compute"
    hidden_seconds_per_token: float = 0.0
    """Beside them: communication that goes on behind computation."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the terms of a run follow from."""

    config: ModelConfig
    gpu: GPU
    layout: Layout
    precision: Format
    sequence_tokens: int
    batch_tokens: float
    assumptions: Assumptions

    @property
    def device(self) -> Device:
        return Device(self.gpu, self.assumptions, self.precision)

    @property
    def micro_batch_tokens(self) -> float:
        """Of a tensor-parallel group."""
        return self.layout.micro_batch * self.sequence_tokens / self.layout.context

    @property
    def num_micro_batches(self) -> float:
        """That a pipeline works through in a step."""
        layout = self.layout
        return self.batch_tokens / (self.sequence_tokens * layout.data * layout.micro_batch)

    @property
    def work(self) -> Work:
        tokens, experts = self.micro_batch_tokens, self.config.experts
        gathered = 0.0
        if experts is not None:
            groups = max(1.0, self.layout.expert / self.layout.tensor)
            gathered = tokens * groups * experts.num_experts_per_token / experts.num_experts
        return Work(tensor=self.layout.tensor, tokens=tokens, expert_tokens=gathered)

    def passes(self, *, is_sparse: bool) -> LayerPasses:
        keys = causal_keys(self.sequence_tokens)
        return layer_passes(self.config, is_sparse=is_sparse, visible_keys=keys, device=self.device, work=self.work)

    @property
    def num_sparse(self) -> int:
        return count_sparse_layers(self.config)


def step_terms(setting: Setting) -> list[Term]:
    """Everything a step takes, in the order that it is shown in."""
    kernels = [term for term in kernel_terms(setting) if term.seconds_per_token]
    computed = sum(term.seconds_per_token for term in kernels)
    memory_bound = sum(term.seconds_per_token for term in kernels if term.name in MEMORY_BOUND)
    terms = [*kernels, *slower_terms(setting, computed=computed, memory_bound=memory_bound)]
    busy = sum(term.seconds_per_token for term in terms)
    terms += [uneven_term(setting, busy=busy), *stage_communication_terms(setting, busy=busy)]
    in_stage = sum(term.seconds_per_token for term in terms)
    terms += [bubble_term(setting, in_stage=in_stage), uneven_batch_term(setting, in_stage=in_stage)]
    terms += step_end_terms(setting, busy=busy)
    return [term for term in terms if term.seconds_per_token or term.hidden_seconds_per_token]


def kernel_terms(setting: Setting) -> Iterator[Term]:
    """Kernels at the speed that they are benchmarked with."""
    config, gpu, assumptions = setting.config, setting.gpu, setting.assumptions
    dense, sparse = setting.passes(is_sparse=False), setting.passes(is_sparse=True)
    num_sparse = setting.num_sparse
    num_dense = config.num_layers - num_sparse

    def over_layers(name: str) -> float:
        return float(num_dense * getattr(dense, name).total + num_sparse * getattr(sparse, name).total)

    reached = gpu.reached_flops_per_second(setting.precision) / 1e12
    products = f"{setting.precision} products at {reached:,.0f} TFLOP/s, and the writing of their results"
    yield Term("attention projections", over_layers("projections"), products)
    share = assumptions.attention_share(gpu.generation)
    yield Term(
        "attention",
        over_layers("attention"),
        f"causal over {setting.sequence_tokens:,} tokens, 3.5 forward passes at {share:.0%} of the bfloat16 peak",
    )
    yield Term("feed-forward", over_layers("feed_forward"), "dense layers and shared experts, likewise")
    if num_sparse and config.experts is not None:
        experts = over_layers("experts") + over_layers("gate")
        chosen = f"{config.experts.num_experts_per_token} of {config.experts.num_experts} experts"
        yield Term("routed experts", experts, f"{chosen}, {setting.work.expert_tokens:,.0f} tokens each at a time")
    head = head_pass(config, device=setting.device, work=setting.work).total
    yield Term("output head", head, f"{config.vocab_size:,} logits in bfloat16, and the loss")
    if config.num_mtp_layers:
        yield Term(
            "multi-token prediction",
            config.num_mtp_layers * (_layer_total(sparse if config.experts else dense) + head + _joint(setting)),
            f"{config.num_mtp_layers} layer(s) more, and the head again for each",
        )
    bandwidth = f"{gpu.memory_gb_per_second:,.0f} GB/s at {assumptions.elementwise_bandwidth_share:.0%}"
    moving, casting = MEMORY_BOUND
    yield Term(moving, over_layers("memory"), f"bytes moved, {bandwidth}")
    yield Term(casting, over_layers("casts"), f"bytes moved, {bandwidth}")
    yield _recomputation(setting, dense=dense, sparse=sparse)


def _joint(setting: Setting) -> float:
    return joint_pass(setting.config, device=setting.device, work=setting.work).total


def _layer_total(passes: LayerPasses) -> float:
    return sum(each.total for each in passes if isinstance(each, Pass))


def _recomputation(setting: Setting, *, dense: LayerPasses, sparse: LayerPasses) -> Term:
    config, chosen = setting.config, setting.layout.recomputation
    num_sparse = setting.num_sparse + (config.num_mtp_layers if config.experts else 0)
    num_dense = config.num_layers + config.num_mtp_layers - num_sparse
    if chosen == "none":
        return Term("recomputation", 0.0, "nothing")
    if chosen == "selective":
        seconds = sum(
            count * (passes.up_projections + passes.recomputed_memory)
            for count, passes in ((num_dense, dense), (num_sparse, sparse))
        )
        what = "norms, activations" + (" and MLA's up-projections" if config.mla else "")
        return Term("recomputation", seconds, f"{what}, a second time in the backward pass")
    seconds = sum(
        count * sum(each.forward for each in passes if isinstance(each, Pass))
        for count, passes in ((num_dense, dense), (num_sparse, sparse))
    )
    return Term("recomputation", seconds, "every layer's forward pass a second time")


def slower_terms(setting: Setting, *, computed: float, memory_bound: float) -> Iterator[Term]:
    """Why kernels in training are slower than in a benchmark.

    Args:
        computed: GPU seconds a token of all kernels.
        memory_bound: of those, the ones that memory sets the pace of.
    """
    assumptions, layout, gpu = setting.assumptions, setting.layout, setting.gpu
    if layout.expert > 1:
        sparse = setting.passes(is_sparse=True)
        seconds = (setting.num_sparse + setting.config.num_mtp_layers) * sparse.experts.total
        excess = assumptions.expert_imbalance - 1
        yield Term(
            "uneven experts", seconds * excess, f"the busiest GPU's experts see {excess:.0%} more tokens", "waiting"
        )
    if layout.schedule == "dualpipe" and layout.expert > 1:
        lent = assumptions.overlap_multiprocessors
        slower = gpu.multiprocessors / (gpu.multiprocessors - lent) - 1
        note = f"{lent} of {gpu.multiprocessors} send and receive; what is bound by memory does not miss them"
        seconds = slower * (computed - memory_bound)
        yield Term("multiprocessors lent", seconds, note, "communication")
        computed += seconds
    share = assumptions.sustained_share
    yield Term(
        "sustained below benchmarked speed",
        computed * (1 / share - 1),
        f"{share:.0%} of it: power, clocks, gaps between kernels, stragglers",
        "waiting",
    )


def uneven_term(setting: Setting, *, busy: float) -> Term:
    """Stages of whole layers: the slowest sets the pace. The last has the heads; DualPipe pairs it with the first."""
    config, layout = setting.config, setting.layout
    name = "uneven stages"
    if layout.pipeline == 1:
        return Term(name, 0.0, "one stage", "waiting")
    layers = config.num_layers + config.num_mtp_layers
    layer = _layer_total(setting.passes(is_sparse=config.experts is not None))
    head = head_pass(config, device=setting.device, work=setting.work).total
    heads = ((1 + config.num_mtp_layers) * head + config.num_mtp_layers * _joint(setting)) / layer
    groups = layout.pipeline // 2 if layout.schedule == "dualpipe" else layout.pipeline
    slowest = slowest_load(layers, heads=heads, groups=groups)
    excess = slowest * groups / (layers + heads) - 1
    note = f"the slowest of {groups} has {slowest:.1f} layers' work, the mean {(layers + heads) / groups:.1f}"
    return Term(name, busy * excess, note, "waiting")


def slowest_load(num_layers: int, *, heads: float, groups: int) -> float:
    """Least load of the fullest group, in layers, when whole layers and, in one group, the heads are dealt out."""
    for load in sorted({*(float(n) for n in range(num_layers + 1)), *(n + heads for n in range(num_layers + 1))}):
        if load >= heads and (groups - 1) * int(load) + int(load - heads + 1e-9) >= num_layers:
            return load
    return num_layers + heads


def stage_communication_terms(setting: Setting, *, busy: float) -> Iterator[Term]:
    """Of every micro-batch: tensor, context, expert, pipeline parallelism, and ZeRO-3's gathering of weights."""
    config, layout, gpu, assumptions = setting.config, setting.layout, setting.gpu, setting.assumptions
    layers = config.num_layers + config.num_mtp_layers
    times = TENSOR_COLLECTIVES + (TENSOR_FORWARD_COLLECTIVES if layout.recomputation == "full" else 0)
    tensor = layers * times * tensor_seconds(config, layout=layout, gpu=gpu, assumptions=assumptions)
    yield _partly_hidden(
        "tensor parallelism",
        tensor,
        assumptions.exposed_tensor_share,
        f"{times} collectives a layer, TP{layout.tensor}",
    )
    context = layers * context_seconds(config, layout=layout, gpu=gpu, assumptions=assumptions)
    yield _partly_hidden(
        "context parallelism", context, assumptions.exposed_context_share, f"keys and values, CP{layout.context}"
    )
    sent = all_to_all(config, layout=layout, gpu=gpu, precision=setting.precision, assumptions=assumptions)
    experts = (setting.num_sparse + config.num_mtp_layers) * sent.seconds
    where = f"{sent.network_bytes / 1e3:,.0f} kB a layer to other nodes, {sent.link_bytes / 1e3:,.0f} kB inside"
    if layout.schedule == "dualpipe":
        yield Term("expert all-to-all", max(0.0, experts - busy), where, "communication", min(experts, busy))
    else:
        yield Term("expert all-to-all", experts, where, "communication")
    pipeline = pipeline_seconds(config, layout=layout, gpu=gpu, assumptions=assumptions)
    yield _partly_hidden(
        "pipeline sends", pipeline, assumptions.exposed_pipeline_share, "activations and their gradients"
    )
    own = own_parameters(config, layout=layout)
    swap = exchange(own.dense, own.experts, layout=layout, gpu=gpu, assumptions=assumptions)
    gathering = swap.micro_batch_seconds * layout.tensor * layout.context
    gathering /= layout.micro_batch * setting.sequence_tokens
    excess = max(0.05 * gathering, gathering - 0.9 * busy)
    yield Term("weights gathered", excess, "ZeRO-3, behind the layer before", "communication", gathering - excess)


def _partly_hidden(name: str, seconds: float, exposed: float, note: str) -> Term:
    return Term(name, exposed * seconds, f"{note}; {exposed:.0%} exposed", "communication", (1 - exposed) * seconds)


def bubble_share(layout: Layout, *, num_micro_batches: float) -> float:
    """Idle time of a pipeline over its busy time.

    1F1B: (p - 1) / m, with v chunks a v-th of it (arXiv:2104.04473 §2.2). ZB1P: (p - 1)(F + B - 2W) over m (F + B);
    DualPipe: (p/2 - 1)(F&B + B - 3W) over the same (arXiv:2412.19437 table 2), with a backward pass of inputs and of
    weights as long as a forward pass each, and F&B as long as F + B.
    """
    if layout.pipeline == 1:
        return 0.0
    if layout.schedule == "1f1b":
        return (layout.pipeline - 1) / (layout.virtual * num_micro_batches)
    forward, backward, weights = 1.0, 2.0, 1.0
    if layout.schedule == "zb1p":
        idle = (layout.pipeline - 1) * (forward + backward - 2 * weights)
    else:
        idle = (layout.pipeline / 2 - 1) * (forward + backward + backward - 3 * weights)
    return idle / (num_micro_batches * (forward + backward))


def bubble_term(setting: Setting, *, in_stage: float) -> Term:
    layout, count = setting.layout, setting.num_micro_batches
    share = bubble_share(layout, num_micro_batches=count)
    formula = {
        "1f1b": "(p - 1) / (v m)",
        "zb1p": "(p - 1)(F + B - 2W) / m(F + B)",
        "dualpipe": "(p/2 - 1)(F&B + B - 3W) / m(F + B)",
    }[layout.schedule]
    note = f"{formula} = {share:.1%}: p = {layout.pipeline}, v = {layout.virtual}, m = {count:,.0f}"
    return Term("pipeline bubble", share * in_stage, note, "waiting")


def uneven_batch_term(setting: Setting, *, in_stage: float) -> Term:
    """A copy works on whole micro-batches: where they do not divide, the copies with one more are waited for."""
    count = setting.num_micro_batches
    most = math.ceil(count * (1 - 1e-12))
    note = f"{count:,.2f} micro-batches for a copy on average, {most:,} for the busiest"
    return Term("uneven batch", in_stage * (most / count - 1), note, "waiting")


def step_end_terms(setting: Setting, *, busy: float) -> Iterator[Term]:
    """Once a step: gradients and weights between copies, and the optimiser."""
    config, layout, gpu, assumptions = setting.config, setting.layout, setting.gpu, setting.assumptions
    own = own_parameters(config, layout=layout)
    swap = exchange(own.dense, own.experts, layout=layout, gpu=gpu, assumptions=assumptions)
    per_token = layout.num_gpus / setting.batch_tokens
    yield _partly_hidden(
        "gradients and weights exchanged",
        swap.step_seconds * per_token,
        assumptions.exposed_data_share,
        f"{own.total / 1e9:,.2f} billion parameters a GPU, once a step of {setting.batch_tokens / 1e6:,.1f}M tokens",
    )
    copies = layout.data * layout.context
    spread = own.dense / copies + own.experts / layout.expert_copies
    moved = assumptions.gradient_bytes + 2 * (MASTER_BYTES + 2 * assumptions.moment_bytes) + BF16_BYTES
    seconds = setting.device.memory_seconds(moved * spread) * per_token
    yield Term("optimiser", seconds, f"AdamW on {spread / 1e9:,.3f} billion parameters a GPU, {moved} bytes each")
