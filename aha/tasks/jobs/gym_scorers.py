"""Our checkers in place of scorers of reasoning-gym that evaluate model text or can be cheated.

Each takes the problem (`entry`: its answer and metadata), the answer without outer white space, and the generator, and
returns 1 for right, less for partly right. `gym_rules` says why each is here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy

from aha.tasks.jobs.formulas import is_zero, read_arithmetic, read_formula
from aha.tasks.jobs.gym_logic import TruthTables
from aha.tasks.verifiers import UnreadableError

MAX_CUBE_MOVES = 1_000
_AMOUNT = re.compile(r"[-+]?\$?([0-9]{1,3}(,[0-9]{3})+|[0-9]+)(\.[0-9]+)?")
_CUBE_MOVE = re.compile(r"(\d?[LRUDFBMESXYZ]w?'?)([1-3]?)")


def _same_text(entry: Any, text: str, dataset: Any) -> float:
    """The text of the answer, line by line without white space at the ends of lines."""
    return float(_lines(text) == _lines(entry["answer"]))


def _same_letters(entry: Any, text: str, dataset: Any) -> float:
    """The text of the answer, capitals and spaces aside."""
    return float("".join(text.lower().split()) == "".join(entry["answer"].lower().split()))


def _same_words(entry: Any, text: str, dataset: Any) -> float:
    """The words of the answer in their order, capitals aside; part credit for each at its place."""
    return _places([word.lower() for word in text.split()], [word.lower() for word in entry["answer"].split()])


def _sorted_words(entry: Any, text: str, dataset: Any) -> float:
    """The words, separated by commas, in their order; part credit for each at its place."""
    return _places([word.strip() for word in text.split(",")], entry["metadata"]["sorted_words"])


def _queens(entry: Any, text: str, dataset: Any) -> float:
    """One of the boards that solve the puzzle."""
    return float(_lines(text) in [_lines(board) for board in entry["metadata"]["valid_answers"]])


def _sorted_numbers(entry: Any, text: str, dataset: Any) -> float:
    """A list of the numbers in their order."""
    given = _json(text.replace("'", '"'))
    expected = json.loads(entry["answer"].replace("'", '"'))
    if not isinstance(given, list):
        raise UnreadableError("no list")
    return float(list(map(_number, given)) == list(map(_number, expected)))


def _life(entry: Any, text: str, dataset: Any) -> float:
    """The whole board; part credit for each cell of a board of the right size."""
    given, expected = _json(text), json.loads(entry["answer"])
    if given == expected:
        return 1.0
    shape = [len(row) for row in expected]
    if not isinstance(given, list) or [len(row) if isinstance(row, list) else -1 for row in given] != shape:
        return 0.0
    return _places([cell for row in given for cell in row], [cell for row in expected for cell in row])


def _interval(entry: Any, text: str, dataset: Any) -> float:
    """A time in the form of the right one ("34 days", "01:45:29"); part credit for a near one."""
    forms = [re.sub(r"[0-9]+", "0", " ".join(part.split())) for part in (text, entry["answer"])]
    if len(text) > 60 or forms[0] != forms[1]:
        raise UnreadableError("not a time of the form that is asked for")
    return float(dataset.score_answer(text, entry))


def _truth(entry: Any, text: str, dataset: Any) -> float:
    """True or False."""
    if text.lower().strip(".") not in ("true", "false"):
        raise UnreadableError("neither True nor False")
    return float(text.lower().strip(".") == str(entry["answer"]).lower())


def _probability(entry: Any, text: str, dataset: Any) -> float:
    """The exact fraction, or a decimal within 0.0001; closer where 0 or 1 would be within that."""
    rational = entry["metadata"]["rational"]
    expected = Fraction(rational["numerator"], rational["denominator"])
    given = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    return float(abs(given - expected) <= min(Fraction(1, 10_000), min(expected, 1 - expected) / 20))


def _amount(entry: Any, text: str, dataset: Any) -> float:
    """The number, which may have a dollar sign and thousands commas."""
    if not _AMOUNT.fullmatch(text):
        raise UnreadableError("not one number")
    return float(_number(re.sub(r"[$,]", "", text)) == _number(entry["answer"]))


def _countdown(entry: Any, text: str, dataset: Any) -> float:
    """An expression of the numbers, each once, that makes the target."""
    found = read_arithmetic(_left_side(text))
    numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
    return float(sorted(found.numbers) == sorted(numbers) and found.value == target)


def _puzzle24(entry: Any, text: str, dataset: Any) -> float:
    """An expression of the four numbers, each once, that makes 24."""
    found = read_arithmetic(_left_side(text))
    return float(sorted(found.numbers) == sorted(entry["metadata"]["numbers"]) and found.value == 24)


def _integral(entry: Any, text: str, dataset: Any) -> float:
    """A formula whose derivative is the integrand."""
    name = entry["metadata"]["variable"]
    variable = sympy.Symbol(name)
    symbols = {name: variable}
    given = read_formula(text, symbols={"C": sympy.Symbol("C"), **symbols})
    integrand = read_formula(entry["metadata"]["integrand"], symbols=symbols)
    return float(is_zero(sympy.diff(given, variable) - integrand, variable))


def _product(entry: Any, text: str, dataset: Any) -> float:
    """The product multiplied out: the same terms, in any order."""
    names = sorted(set(re.findall(r"[A-Za-z]\w*", entry["answer"])) | set(map(str, entry["metadata"]["variables"])))
    symbols = {name: sympy.Symbol(name) for name in names}
    return float(read_formula(text, symbols=symbols) == read_formula(entry["answer"], symbols=symbols))


def _solutions(entry: Any, text: str, dataset: Any) -> float:
    """All solutions, separated by commas, each within a thousandth."""
    given = sorted(_number(part) for part in text.split(","))
    expected = sorted(_number(part) for part in entry["answer"].split(","))
    if len(given) != len(expected):
        return 0.0
    return float(all(abs(a - b) <= Fraction(1, 1000) for a, b in zip(given, expected, strict=True)))


def _conclusion(entry: Any, text: str, dataset: Any) -> float:
    """A conclusion from the premises together that none of them gives alone."""
    tables = TruthTables(entry["metadata"]["variables"])
    premises = [tables.read(premise) for premise in entry["metadata"]["premises"]]
    return float(tables.is_conclusion(tables.read(text), premises))


def _cube(entry: Any, text: str, dataset: Any) -> float:
    """Moves after which the scrambled cube is solved; part credit for stickers at their place."""
    from magiccube.cube import Cube

    moves: list[str] = []
    for word in text.split():
        match = _CUBE_MOVE.fullmatch(word)
        if match is None:
            raise UnreadableError(f"no move: {word[:20]!r}")
        moves += [match[1]] * int(match[2] or 1)
    if len(moves) > MAX_CUBE_MOVES:
        raise UnreadableError(f"{len(moves)} moves; at most {MAX_CUBE_MOVES} are made")
    size = entry["metadata"]["cube_size"]
    if any(move[0].isdigit() and not 1 <= int(move[0]) <= size for move in moves):
        raise UnreadableError("a move of a layer that is not there")
    cube = Cube(size)
    cube.rotate(entry["metadata"]["scramble_moves"])
    cube.rotate(" ".join(moves))
    return 1.0 if cube.is_done() else min(0.99, float(dataset.partial_score(cube)))


CHECKERS: dict[str, Callable[[Any, str, Any], float]] = {
    "binary_matrix": _same_text,
    "coin_flip": _probability,
    "countdown": _countdown,
    "figlet_font": _same_letters,
    "game_of_life": _life,
    "game_of_life_halting": _truth,
    "gsm_symbolic": _amount,
    "intermediate_integration": _integral,
    "letter_jumble": _same_words,
    "n_queens": _queens,
    "number_sorting": _sorted_numbers,
    "polynomial_equations": _solutions,
    "polynomial_multiplication": _product,
    "propositional_logic": _conclusion,
    "puzzle24": _puzzle24,
    "rubiks_cube": _cube,
    "simple_integration": _integral,
    "spell_backward": _same_letters,
    "spiral_matrix": _same_text,
    "string_insertion": _same_text,
    "time_intervals": _interval,
    "word_sorting": _sorted_words,
}
"""Generator → checker, for the rules with how="ours"."""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _left_side(text: str) -> str:
    """What stands before one equals sign: "(7-3)*8-8 = 24" claims nothing more."""
    return text.split("=")[0] if text.count("=") == 1 else text


def _places(given: list[Any], expected: list[Any]) -> float:
    """Share of the places at which two lists agree; 1 only for equal lists."""
    if given == expected:
        return 1.0
    hits: int = sum(bool(a == b) for a, b in zip(given, expected, strict=False))
    return min(0.99, hits / max(len(given), len(expected), 1))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableError("no JSON") from None


def _number(value: Any) -> Fraction:
    """A finite number, exactly as it is written."""
    try:
        text = str(value).strip()
        if len(text) > 60 or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError
        if abs(int(text.lower().partition("e")[2] or 0)) > 60:
            raise ValueError
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UnreadableError("no number") from None
