"""What a million tokens costs on machines of one's own."""

from aha.estimate.serving.prediction import (
    OVERHEAD,
    UTILISATIONS,
    ServingPlan,
    ServingPrediction,
    ServingRate,
    TokenClass,
    predict_serving,
)

__all__ = [
    "OVERHEAD",
    "UTILISATIONS",
    "ServingPlan",
    "ServingPrediction",
    "ServingRate",
    "TokenClass",
    "predict_serving",
]
