"""Rooms that are called by their own name: `aha.train(...)` trains, and `aha.train.STAGES` is still in the room."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A module whose main function has the module's name.

    Importing a submodule makes it an attribute of its package, where it would hide the function; so it is callable.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(self, name)(*args, **kwargs)


def make_callable(module_name: str) -> None:
    """Let the module of this name be called like its main function."""
    sys.modules[module_name].__class__ = CallableRoom
