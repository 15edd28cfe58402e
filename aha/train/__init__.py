"""The loops: supervised fine-tuning, GRPO, and the run around them."""

from aha.rooms import make_callable
from aha.train.losses import LOSSES
from aha.train.pipeline import train
from aha.train.stages import STAGES

__all__ = ["LOSSES", "STAGES", "train"]

make_callable(__name__)
