"""How each of reasoning-gym's generators is scored, from reading every scorer of version 0.1.25.

docs/reasoning_gym.md is made from this table, and a test holds the two equal.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

REVIEWED_VERSION = "0.1.25"

How = Literal["exact", "own", "guarded", "ours", "refused"]
MEANINGS: dict[How, str] = {
    "exact": "the library's comparison with the one right answer, as it is",
    "own": "the generator's own scorer, as it is",
    "guarded": "the generator's own scorer, once the whole answer has the form that the question asks for",
    "ours": "our checker in place of the generator's scorer",
    "refused": "not available",
}


class Rule(NamedTuple):
    """How answers to one generator are scored."""

    how: How
    why: str = ""
    """What is wrong with the generator's own scorer; "" where nothing is."""
    form: str = ""
    """The pattern that the whole answer must match, in any case of its letters; "" for none."""
    hint: str = ""
    """A line put after the question, where our rule asks for more than the question says."""

    @property
    def evaluates_text(self) -> bool:
        """Whether the generator's own scorer hands the answer to eval."""
        return "eval" in self.why


_EXACT = """
acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes
course_schedule gcd isomorphic_strings largest_island lcm leg_counting letter_counting list_functions mahjong_puzzle
maze modulo_grid number_filtering number_sequence ransom_note rotate_matrix rotten_oranges simple_equations
simple_geometry string_manipulation string_splitting string_synthesis syllogism word_sequence_reversal
"""

_OWN = """
ab arc_agi bitwise_arithmetic boxnet calendar_arithmetic chain_sum circuit_logic codeio color_cube_rotation
cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships futoshiki graph_color
group_anagrams jugs knight_swap manipulate_matrix mini_sudoku needle_haystack
number_format palindrome_generation palindrome_partitioning path_star pool_matrix prime_factorization products rearc
rectangle_count self_reference sentence_reordering shortest_path sudoku tower_of_hanoi tsumego word_ladder
zebra_puzzles
"""

_ROLE = r"[^\W\d_]+ is (an? )?[^\W\d_]+"
_NUMBER = r"[-+]?\d+(\.\d+)?"
_GUARDED = {
    "advanced_geometry": Rule(
        "guarded", "reads the first two of many numbers", rf"\(?\s*{_NUMBER}\s*(,\s*{_NUMBER}\s*)?\)?\s*°?"
    ),
    "complex_arithmetic": Rule("guarded", '"nan" scores 1', r"[-+0-9.ij() ]+"),
    "fraction_simplification": Rule(
        "guarded",
        "reads the first of many fractions",
        r"\$?\s*(\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)\s*\$?",
    ),
    "kakurasu": Rule("guarded", "picks the digits out of any prose", r"[01\s]+"),
    "knights_knaves": Rule(
        "guarded",
        "passes over what names nobody's role, a denial too",
        rf"{_ROLE}((\s*,\s*(and\s+)?|\s+(and\s+)?){_ROLE})*\.?",
    ),
    "power_function": Rule("guarded", "passes special values of Decimal", r"[-+]?[0-9.]+(e[-+]?\d{1,4})?"),
    "quantum_lock": Rule("guarded", "picks the letters A, B and C out of any prose", r"[ABC](\s*(→|->|,|\s)\s*[ABC])*"),
    "rush_hour": Rule(
        "guarded",
        "picks moves out of any prose; one move of a billion steps never ends",
        r"[A-Z][-+][1-5](\s+[A-Z][-+][1-5]){0,99}",
    ),
    "sokoban": Rule("guarded", "picks moves out of any prose", r"[UDLR\s]+"),
    "survo": Rule("guarded", "picks the numbers out of any prose", r"[-0-9\s]+"),
}

_OURS = {
    "binary_matrix": "calls eval on the answer",
    "coin_flip": 'scores the beginning of the right number as right: "0" for 0.3125',
    "countdown": "calls sympy's parse_expr on the answer, which is eval",
    "figlet_font": "counts ten equal letters as right, whatever follows",
    "game_of_life": "looks at the cells of the right board only, whatever else is there",
    "game_of_life_halting": "compares bool(text) with bool(text): every answer is right",
    "gsm_symbolic": "reads the first of many numbers, without its sign",
    "intermediate_integration": "calls sympy's parse_expr on the answer, which is eval; takes Integral(…)",
    "letter_jumble": "scores the right words followed by any others as right",
    "n_queens": "calls eval on the answer",
    "number_sorting": 'tolerates differences of 1, and "[NaN, NaN]"',
    "polynomial_equations": "passes over what is no number, so that prose means no solution",
    "polynomial_multiplication": "calls sympy's parse_expr on the answer, which is eval",
    "propositional_logic": "accepts a premise said again or weakened",
    "puzzle24": "calls sympy's parse_expr on the answer, which is eval; accepts any four numbers",
    "rubiks_cube": "drops moves of inner layers; one move of a billion turns never ends",
    "simple_integration": "calls sympy's parse_expr on the answer, which is eval; takes Integral(…)",
    "spell_backward": "scores the right word followed by anything as right, for some lengths",
    "spiral_matrix": "calls eval on the answer",
    "string_insertion": "calls eval on the answer",
    "time_intervals": "reads the first of many answers, and a date's days out of a longer time",
    "word_sorting": "scores the right words followed by any others as right",
}

_HINTS = {
    "propositional_logic": "The conclusion must need at least two of the statements.",
    "rubiks_cube": "Write a move of inner layers with their number in front, such as 2L or 3Rw.",
}

RULES: dict[str, Rule] = dict(
    sorted(
        {
            **{name: Rule("exact") for name in _EXACT.split()},
            **{name: Rule("own") for name in _OWN.split()},
            **_GUARDED,
            **{name: Rule("ours", why, hint=_HINTS.get(name, "")) for name, why in _OURS.items()},
            "composite": Rule("refused", "mixes other generators; name each as a task of its own"),
        }.items()
    )
)
"""Generator → rule, every generator of the reviewed version."""
