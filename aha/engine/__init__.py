"""Token ids in, token ids and log-probabilities out: continuous batching for rollouts, evaluation and serving."""

from aha.engine.engine import Engine
from aha.engine.packing import PackedWeights, Quantize
from aha.engine.speculation import Speculation
from aha.engine.step import EngineEvent

__all__ = ["Engine", "EngineEvent", "PackedWeights", "Quantize", "Speculation"]
