"""Evaluate a model on a task under a fixed protocol: pass@1 with its interval, pass@k, cons@k, lengths, all outputs.

`evaluate` is handed `respond`, so that an engine in this process and an endpoint behind HTTP are measured by the
same code. The protocol is written into the result's manifest; the outputs lie beside it as JSON lines.
"""

from aha.evaluate.asking import Progress, Respond, RespondsOneByOne, conversation, select_problems
from aha.evaluate.comparison import Comparison, Difference, Entry, compare, compare_all, read_entries
from aha.evaluate.evaluation import Used, evaluate
from aha.evaluate.protocols import PROTOCOLS, Protocol, find_protocol
from aha.evaluate.result import EvalResult, consensus, load_result
from aha.evaluate.statistics import (
    PairedTest,
    Vote,
    bootstrap_interval,
    consensus_at_k,
    mcnemar_p_value,
    paired_test,
    pass_at_k,
    sign_flip_p_value,
)
from aha.rooms import make_callable

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "Difference",
    "Entry",
    "EvalResult",
    "PairedTest",
    "Progress",
    "Protocol",
    "Respond",
    "RespondsOneByOne",
    "Used",
    "Vote",
    "bootstrap_interval",
    "compare",
    "compare_all",
    "consensus",
    "consensus_at_k",
    "conversation",
    "evaluate",
    "find_protocol",
    "load_result",
    "mcnemar_p_value",
    "paired_test",
    "pass_at_k",
    "read_entries",
    "select_problems",
    "sign_flip_p_value",
]

make_callable(__name__)
