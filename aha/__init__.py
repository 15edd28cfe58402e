"""Teach an open-weight model to reason at your task with rewards you can verify.

Public names are loaded on first use, so that `import aha` never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from aha.chat import ChatFormat
    from aha.engine import Engine
    from aha.evaluate import EvalResult, evaluate
    from aha.models import DType, Transformer
    from aha.tasks import get_task
    from aha.train import train
    from aha.train.rollouts import respond_with
    from aha.types import Completion, Message, Problem, SamplingParams, Score

_HOMES = {
    "Completion": "aha.types",
    "Engine": "aha.engine",
    "EvalResult": "aha.evaluate",
    "Message": "aha.types",
    "Problem": "aha.types",
    "SamplingParams": "aha.types",
    "Score": "aha.types",
    "evaluate": "aha.evaluate",
    "get_task": "aha.tasks",
    "respond_with": "aha.train.rollouts",
    "train": "aha.train",
}

__all__ = [
    "Completion",
    "Engine",
    "EvalResult",
    "Message",
    "Problem",
    "SamplingParams",
    "Score",
    "evaluate",
    "get_task",
    "load_chat",
    "load_model",
    "respond_with",
    "train",
]


def load_model(name: str | Path, *, dtype: DType = "auto", device: str = "auto") -> Transformer:
    """The model of a folder, a run, a built-in name or a Hugging Face id: `forward(token_ids_BT) -> logits_BTV`.

    Raises:
        AhaError: no such model, or its files cannot be used.
    """
    from aha import hub, models

    return models.load_model(hub.resolve(name), dtype=dtype, device=device, resolve=hub.resolve)


def load_chat(name: str | Path) -> ChatFormat:
    """The tokenizer and chat template that belong to a model.

    Raises:
        AhaError: no such model, or its tokenizer cannot be used.
    """
    from aha import chat, hub

    return chat.ChatFormat.load(hub.resolve(name))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aha' has no attribute {name!r}; it has: {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    # train and evaluate are rooms that can be called (aha/rooms.py): the room itself is the public name.
    value = home if home.__name__ == f"aha.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
