"""Token ids in, token ids and log-probabilities out: continuous batching for rollouts, evaluation and serving."""

from aha.engine.engine import Engine, EngineEvent
from aha.engine.packing import PackedWeights, Quantize

__all__ = ["Engine", "EngineEvent", "PackedWeights", "Quantize"]
