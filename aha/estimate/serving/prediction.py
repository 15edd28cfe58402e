"""What a million tokens costs on machines of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from aha.cost.prices import MachinePrice
from aha.errors import ConfigError
from aha.estimate.hardware import GPU
from aha.estimate.serving.assumptions import Assumptions
from aha.estimate.serving.rate import UTILISATIONS, ServingRate, TokenClass, cost_rows, rate_dict
from aha.estimate.serving.replica import (
    CacheFormat,
    Layout,
    Replica,
    WeightFormat,
    describe_memory,
    lay_out,
)
from aha.estimate.serving.roofline import StepTerm, chunk_tokens, decode_terms, prefill_terms
from aha.models.config import ModelConfig

OVERHEAD = 1.35
"""Power, network, storage and people over the GPUs' price: "GPU rate is 60 to 70 % of the real bill"
(mercatus-ai.com/blog/cloud-gpu-pricing, third-party). 1 counts GPUs only, as DeepSeek's inference day does."""


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """How a model is served, and what is asked of it."""

    gpu: GPU
    num_gpus: int = 0
    """Of one replica. 0: the cheapest number within a node; where a node does not hold the model, the cheapest of the
    fewest nodes that do, twice and four times as many."""
    layout: Literal["tensor", "expert", "auto"] = "auto"
    """How the model lies on them (aha.estimate.serving.replica). "auto": the cheaper one."""
    precision: WeightFormat = "bfloat16"
    """Of the layers' weights."""
    cache: CacheFormat = "bfloat16"
    batch: int = 0
    """Conversations decoded together by a replica. 0: as many as fit."""
    user_tokens_per_second: float = 0.0
    """The slowest that an answer may be written; a batch that is chosen keeps to it. 0: however slow."""
    input_tokens: int = 2048
    """Of a request's prompt, cached ones included."""
    output_tokens: int = 1024
    """Of its answer, thinking included."""
    context_tokens: int = 0
    """That a conversation has while it is decoded, on average. 0: the prompt and half of the answer."""
    cache_hits: float = 0.0
    """Share of prompt tokens that lie in the prefix cache, from 0 to 1."""
    accepted: float = 0.0
    """Share of second tokens, drafted by multi-token prediction, that are accepted. 0: nothing is drafted."""
    assumptions: Assumptions | None = None
    """None: those of serving_assumptions.toml."""

    def __post_init__(self) -> None:
        for name, least in (("num_gpus", 0), ("batch", 0), ("context_tokens", 0), ("input_tokens", 1),
                            ("output_tokens", 1)):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= 10**8:
                raise ConfigError(f"{name} must be from {least} to 100,000,000, got {value}")
        for name in ("cache_hits", "accepted"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be a share from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.user_tokens_per_second <= 1e6:
            raise ConfigError(f"user_tokens_per_second must be from 0 to 1e6, got {self.user_tokens_per_second}")

    @property
    def cached_tokens(self) -> int:
        """Of a prompt. The last token is never cached: something has to be computed to answer."""
        return min(round(self.input_tokens * self.cache_hits), self.input_tokens - 1)

    @property
    def new_tokens(self) -> int:
        return self.input_tokens - self.cached_tokens

    @property
    def decoded_context(self) -> float:
        """Tokens of a conversation that is being decoded, on average."""
        return self.context_tokens or self.input_tokens + self.output_tokens / 2

    @property
    def reserved_tokens(self) -> int:
        """Tokens that memory is kept for, for each conversation: all that it will have."""
        return max(self.context_tokens, self.input_tokens + self.output_tokens)


@dataclass(frozen=True, kw_only=True)
class ServingPrediction:
    """What a replica does at full load, by the roofline."""

    plan: ServingPlan
    replica: Replica
    price: MachinePrice
    """Of one GPU for an hour."""
    overhead: float
    batch: int
    largest_batch: int
    """That fits into memory."""
    decode: tuple[StepTerm, ...]
    prefill: tuple[StepTerm, ...]

    @property
    def decode_step_seconds(self) -> float:
        return sum(term.seconds for term in self.decode)

    @property
    def prefill_step_seconds(self) -> float:
        return sum(term.seconds for term in self.prefill)

    @property
    def tokens_per_step(self) -> float:
        """That a conversation gets from a step of decoding."""
        return 1 + self.plan.accepted

    @property
    def decode_tokens_per_second(self) -> float:
        """Of the whole replica while it does nothing else."""
        return self.batch * self.tokens_per_step / self.decode_step_seconds

    @property
    def prefill_tokens_per_second(self) -> float:
        """Of the whole replica while it does nothing else; cached tokens are not among them."""
        return chunk_tokens(self.replica) / self.prefill_step_seconds

    @property
    def user_tokens_per_second(self) -> float:
        """Of one answer while no prompt is in the way."""
        return self.tokens_per_step / self.decode_step_seconds

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader has to know before trusting it."""
        config, plan = self.replica.config, self.plan
        notes = []
        if plan.reserved_tokens > config.max_position_embeddings:
            window = f"the model's window of {config.max_position_embeddings:,}"
            notes.append(f"conversations of {plan.reserved_tokens:,} tokens are longer than {window}")
        if self.replica.layout == "expert" and self.replica.gpus_that_read == 1:
            notes.append(
                "experts spread within one node: published throughputs were 1.1 to 2 times lower than predicted ones"
            )
        return tuple(notes)

    @property
    def first_token_seconds(self) -> float:
        """From a prompt to the first token of its answer, if nobody else is served: it is read alone, in chunks."""
        replica, plan = self.replica, self.plan
        chunk = min(float(plan.new_tokens), replica.assumptions.chunk_tokens)
        alone = replace(replica, assumptions=replace(replica.assumptions, chunk_tokens=chunk))
        terms = prefill_terms(alone, new_tokens=plan.new_tokens, cached_tokens=plan.cached_tokens)
        return plan.new_tokens / chunk * sum(term.seconds for term in terms)

    @property
    def rate(self) -> ServingRate:
        gpu, num_gpus = self.plan.gpu, self.replica.num_gpus
        return ServingRate(
            usd_per_hour=num_gpus * self.price.usd_per_hour * self.overhead,
            seconds_per_input_token=1 / self.prefill_tokens_per_second,
            seconds_per_cached_token=self._cached_seconds(),
            seconds_per_output_token=1 / self.decode_tokens_per_second,
            basis=f"predicted: roofline of {num_gpus} x {gpu.title}, batch {self.batch:,}",
        )

    @property
    def requests_per_second(self) -> float:
        """At the plan's lengths, prompts and answers in turn."""
        rate, plan = self.rate, self.plan
        return 1 / (
            plan.new_tokens * rate.seconds_per_input_token
            + plan.cached_tokens * rate.seconds_per_cached_token
            + plan.output_tokens * rate.seconds_per_output_token
        )

    def blended_usd_per_million(self, *, utilisation: float = 1.0) -> float:
        """Of the plan's own mix of tokens."""
        return self.rate.blended_usd_per_million(
            input_tokens=self.plan.new_tokens,
            cached_tokens=self.plan.cached_tokens,
            output_tokens=self.plan.output_tokens,
            utilisation=utilisation,
        )

    def _cached_seconds(self) -> float:
        """Loading from the host, by all GPUs at once; an engine computes anew what it cannot load sooner."""
        replica = self.replica
        loading = replica.cache_bytes_per_token / (replica.num_gpus * replica.assumptions.host_gb_per_second * 1e9)
        return min(loading, 1 / self.prefill_tokens_per_second)

    def to_dict(self) -> dict[str, Any]:
        """For scripts; the keys are described in docs/serving_cost.md and stay."""
        plan, replica, rate = self.plan, self.replica, self.rate
        return {
            "gpu": plan.gpu.name,
            "num_gpus": replica.num_gpus,
            "layout": replica.layout,
            "precision": replica.weights,
            "cache_precision": replica.cache,
            "input_tokens": plan.input_tokens,
            "cached_tokens": plan.cached_tokens,
            "output_tokens": plan.output_tokens,
            "context_tokens": plan.decoded_context,
            "accepted": plan.accepted,
            "batch": self.batch,
            "largest_batch": self.largest_batch,
            "weight_bytes_per_gpu": replica.weight_bytes_per_gpu,
            "cache_bytes_per_token": replica.cache_bytes_per_token,
            "price_id": self.price.price_id,
            "usd_per_gpu_hour": self.price.usd_per_hour,
            "overhead": self.overhead,
            "usd_per_hour": rate.usd_per_hour,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "user_tokens_per_second": self.user_tokens_per_second,
            "requests_per_second": self.requests_per_second,
            "first_token_seconds": self.first_token_seconds,
            "decode_step_seconds": self.decode_step_seconds,
            "prefill_step_seconds": self.prefill_step_seconds,
            "decode_terms": [term._asdict() for term in self.decode],
            "prefill_terms": [term._asdict() for term in self.prefill],
            **rate_dict(rate),
            "costs": [
                {**cost, "usd_per_million_blended": self.blended_usd_per_million(utilisation=cost["utilisation"])}
                for cost in cost_rows(rate)
            ],
            "notes": list(self.notes),
            "assumptions": [assumption._asdict() for assumption in replica.assumptions.listed()],
        }


def predict_serving(
    config: ModelConfig, *, plan: ServingPlan, price: MachinePrice, overhead: float = OVERHEAD
) -> ServingPrediction:
    """What serving a model of this shape takes and costs.

    Args:
        price: of one GPU for an hour.
        overhead: what an hour costs over its GPUs' price, at least 1.

    Raises:
        ConfigError: a model that does not fit, a batch larger than what fits, a format that the GPU does not multiply,
            or a speed for the user that even one conversation does not reach.
    """
    if not 1 <= overhead <= 100:
        raise ConfigError(f"overhead must be from 1 to 100 times the GPUs' price, got {overhead}")
    found: list[ServingPrediction] = []
    problems: list[ConfigError] = []
    for num_gpus in [plan.num_gpus] if plan.num_gpus else _sizes(plan.gpu):
        if found and num_gpus > _most_gpus(plan.gpu, least=found[0].replica.num_gpus):
            break
        for layout in _layouts(config, plan=plan, num_gpus=num_gpus):
            try:
                sized = replace(plan, num_gpus=num_gpus)
                found.append(_predict(config, plan=sized, layout=layout, price=price, overhead=overhead))
            except ConfigError as error:
                problems.append(error)
    if not found:
        raise problems[0] if plan.num_gpus else problems[-1]
    return min(found, key=lambda prediction: prediction.blended_usd_per_million())


def _sizes(gpu: GPU) -> Iterator[int]:
    """Powers of two within a node, then nodes, doubled up to 64."""
    size = 1
    while size <= 64 * gpu.gpus_per_node:
        yield size
        size *= 2


def _most_gpus(gpu: GPU, *, least: int) -> int:
    """Up to which number replicas are compared, if the smallest that holds the model has `least`."""
    return gpu.gpus_per_node if least <= gpu.gpus_per_node else 4 * least


def _layouts(config: ModelConfig, *, plan: ServingPlan, num_gpus: int) -> list[Layout]:
    """Those to choose from. The one that was asked for is tried whatever the number, so that its error is heard."""
    if plan.layout != "auto":
        return [plan.layout]
    can_spread = config.experts is not None and 1 < num_gpus <= config.experts.num_experts
    can_cut = num_gpus <= config.num_heads or (plan.num_gpus > 0 and not can_spread)
    found: list[Layout] = ["tensor"] if can_cut else []
    return [*found, "expert"] if can_spread else found


def _predict(
    config: ModelConfig, *, plan: ServingPlan, layout: Layout, price: MachinePrice, overhead: float
) -> ServingPrediction:
    replica = lay_out(
        config,
        gpu=plan.gpu,
        num_gpus=plan.num_gpus,
        layout=layout,
        weights=plan.precision,
        cache=plan.cache,
        drafts=1 if plan.accepted else 0,
        assumptions=plan.assumptions,
    )
    largest = replica.largest_batch(plan.reserved_tokens)
    if not largest:
        memory = describe_memory(replica, sequence_tokens=plan.reserved_tokens)
        smaller = "float8" if "float8" in plan.gpu.teraflops else "int8"
        more = f"more GPUs, larger ones, or precision {smaller}"
        raise ConfigError(f"{memory}; try {more if plan.precision == 'bfloat16' else 'more GPUs or larger ones'}")
    if plan.batch > largest:
        raise ConfigError(f"batch {plan.batch:,} does not fit: {plan.num_gpus} GPUs have room for {largest:,}")
    batch = plan.batch or _quick_enough(replica, plan=plan, largest=largest)
    return ServingPrediction(
        plan=plan,
        replica=replica,
        price=price,
        overhead=overhead,
        batch=batch,
        largest_batch=largest,
        decode=decode_terms(replica, batch=batch, context_tokens=plan.decoded_context),
        prefill=prefill_terms(replica, new_tokens=plan.new_tokens, cached_tokens=plan.cached_tokens),
    )


def _quick_enough(replica: Replica, *, plan: ServingPlan, largest: int) -> int:
    """The largest batch in which every answer is written as fast as the plan asks; a step never shrinks with its batch.

    Raises:
        ConfigError: one conversation alone is slower.
    """

    def speed(batch: int) -> float:
        terms = decode_terms(replica, batch=batch, context_tokens=plan.decoded_context)
        return (1 + plan.accepted) / sum(term.seconds for term in terms)

    if speed(1) < plan.user_tokens_per_second:
        raise ConfigError(
            f"one conversation alone gets {speed(1):,.1f} tokens a second from {replica.num_gpus} x "
            f"{replica.gpu.title}, {plan.user_tokens_per_second:g} were asked for"
        )
    low, high = 1, largest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if speed(middle) >= plan.user_tokens_per_second else (low, middle - 1)
    return low


__all__ = [
    "OVERHEAD",
    "UTILISATIONS",
    "Layout",
    "ServingPlan",
    "ServingPrediction",
    "ServingRate",
    "TokenClass",
    "cost_rows",
    "predict_serving",
    "rate_dict",
]
