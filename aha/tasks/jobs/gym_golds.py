"""A right answer for generators of reasoning-gym that accept several and give none."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from aha.tasks.jobs.gym_logic import MAX_VARIABLES, example_conclusion

MAX_POSITIONS = 200_000
"""Of a sliding-block puzzle; the hardest known boards of this size have fewer within reach of a solution."""


def gold_of(name: str, entry: Any) -> str:
    """A right answer to a problem; "" where none is known."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    return _GOLDS[name](entry["metadata"]) if name in _GOLDS else ""


def _coloring(metadata: Any) -> str:
    return json.dumps({str(vertex): color for vertex, color in metadata["possible_answer"].items()})


def _conclusion(metadata: Any) -> str:
    if len(metadata["variables"]) > MAX_VARIABLES:
        return ""
    return example_conclusion(metadata["variables"], metadata["premises"])


def _unscramble(metadata: Any) -> str:
    """The scrambling moves backwards, each undone."""
    moves = reversed(metadata["scramble_moves"].split())
    return " ".join(move[:-1] if move.endswith("'") else f"{move}'" for move in moves)


def _deliver_boxes(metadata: Any) -> str:
    """Carry one box after the other to its target, first along the rows, then along the columns."""
    targets: dict[str, list[tuple[float, float]]] = {}
    boxes: list[tuple[str, tuple[float, float]]] = []
    for place, items in metadata["initial_state"].items():
        row, _, column = place.partition("_")
        for item in items:
            kind, _, color = item.partition("_")
            if kind == "box":
                boxes.append((color, (float(row), float(column))))
            else:
                targets.setdefault(color, []).append((float(row), float(column)))
    steps: list[dict[str, str]] = []
    for color, start in boxes:
        end = targets[color].pop()
        for here, there in _walk(start, end):
            steps.append({f"Agent[{here[0]}, {here[1]}]": f"move(box_{color}, square[{there[0]}, {there[1]}])"})
        steps.append({f"Agent[{end[0]}, {end[1]}]": f"move(box_{color}, target_{color})"})
    return json.dumps(steps)


def _walk(start: tuple[float, float], end: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    here = start
    while here != end:
        axis = 0 if here[0] != end[0] else 1
        step = 1.0 if end[axis] > here[axis] else -1.0
        there = (here[0] + step, here[1]) if axis == 0 else (here[0], here[1] + step)
        yield here, there
        here = there


class _Car(NamedTuple):
    """A car of a sliding-block puzzle; it moves along its line only."""

    is_horizontal: bool
    line: int
    length: int

    def cells(self, start: int) -> Iterator[int]:
        for place in range(start, start + self.length):
            yield self.line * 6 + place if self.is_horizontal else place * 6 + self.line


def _free_the_car(metadata: Any) -> str:
    """The fewest spaces moved, by breadth-first search; the first car must reach the right edge."""
    board = metadata["board_config"]
    walls = {index for index, label in enumerate(board) if label == "x"}
    cells_of = {label: [i for i, other in enumerate(board) if other == label] for label in set(board) - {"o", "x"}}
    labels = sorted(cells_of)
    cars, start = [], []
    for label in labels:
        cells = cells_of[label]
        is_horizontal = cells[1] == cells[0] + 1
        cars.append(_Car(is_horizontal, cells[0] // 6 if is_horizontal else cells[0] % 6, len(cells)))
        start.append(cells[0] % 6 if is_horizontal else cells[0] // 6)
    before: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {tuple(start): ((), "")}
    frontier = deque([tuple(start)])
    while frontier and len(before) < MAX_POSITIONS:
        state = frontier.popleft()
        if state[0] == 6 - cars[0].length:
            return _moves_to(state, before)
        taken = walls | {cell for car, place in zip(cars, state, strict=True) for cell in car.cells(place)}
        for index, (car, place) in enumerate(zip(cars, state, strict=True)):
            for step, new in ((-1, place - 1), (1, place + car.length)):
                after = (*state[:index], place + step, *state[index + 1 :])
                cell = car.line * 6 + new if car.is_horizontal else new * 6 + car.line
                if 0 <= new < 6 and cell not in taken and after not in before:
                    before[after] = (state, f"{chr(ord('A') + index)}{step:+d}")
                    frontier.append(after)
    return ""


def _moves_to(state: tuple[int, ...], before: dict[tuple[int, ...], tuple[tuple[int, ...], str]]) -> str:
    steps = []
    while before[state][1]:
        state, move = before[state]
        steps.append(move)
    moves = [(move, len(list(repeats))) for move, repeats in itertools.groupby(reversed(steps))]
    return " ".join(f"{move[:-1]}{count}" for move, count in moves)


_GOLDS: dict[str, Callable[[Any], str]] = {
    "boxnet": _deliver_boxes,
    "graph_color": _coloring,
    "propositional_logic": _conclusion,
    "rubiks_cube": _unscramble,
    "rush_hour": _free_the_car,
}
