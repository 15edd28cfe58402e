"""Verifiers for tasks that are a data file: is this answer the gold answer?

`VERIFIERS` maps a kind to its function `(gold, answer, **options) -> Score`. `answer` is what a model wrote after its
thinking, any text of any length; nothing here raises, hangs or executes because of it. A gold answer that its verifier
cannot use gives Outcome.ERROR: `aha.tasks.table` finds that when the file is read, long before training.
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NoReturn

from aha.errors import ConfigError
from aha.tasks import worker
from aha.tasks.code_judge import code
from aha.types import Outcome, Score

MAX_ANSWER_CHARS = 10_000
"""Longest answer that is read. Numbers and choices are looked for at the end, so there only the beginning is cut."""
MAX_NUMERAL_CHARS = 60
"""Longest numeral that is read, and largest power of ten: exact arithmetic on a million digits would stall a run."""
MAX_JSON_DEPTH = 60
MAX_JSON_EXPONENT = 308
"""Largest power of ten in a JSON number, as in a double."""
_NUMBERS = (int, Fraction)
LETTERS = "ABCDEFGHIJ"
"""The choices of a question, in order."""

RIGHT = Score(1.0, True, "right")


class UnreadableError(ValueError):
    """The text holds no answer of the kind that is looked for; the message is the score's note."""


def number(gold: str, answer: str, *, tolerance: float = 0.0) -> Score:
    """Whether the last number of the answer, or of its last \\boxed{}, equals the gold number.

    Numbers may have a sign, thousands commas, decimals, an exponent, or be fractions ("3/4", "1 1/2"); currency and
    per cent signs are passed over ("50%" is 50). Values are compared as exact fractions.

    Args:
        gold: a text with exactly one number.
        tolerance: largest absolute difference that still counts as right; 0 is exact.
    """
    try:
        expected = only_number(gold)
    except UnreadableError as error:
        return _unusable(error)
    try:
        value = last_number(answer)
    except UnreadableError as error:
        return _unread(error)
    # Fraction(str()): the float 0.3 is a little below 3/10 and would refuse a difference of exactly 0.3.
    is_right = abs(value - expected) <= Fraction(str(tolerance))
    return RIGHT if is_right else _wrong(f"{float(value):.12g}" if value.denominator > 1 else str(value))


def exact(gold: str, answer: str, *, case: Literal["match", "ignore"] = "match") -> Score:
    """Whether the answer is the gold text, runs of white space counting as one space.

    Args:
        case: "ignore" takes "Paris" and "PARIS" for equal.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return _unread(_too_long(answer))
    if not answer.strip():
        return _unread(UnreadableError("no answer"))
    expected, given = (_normalised(text, case=case) for text in (gold, answer))
    return RIGHT if expected == given else _wrong(given)


def choice(gold: str, answer: str, *, choices: Sequence[str] = ()) -> Score:
    """Whether the answer names the gold choice, and no other, by its letter or its text.

    Args:
        gold: a letter, or the text of one of the choices.
        choices: the texts of choices A, B, C …; without them the answer must be a letter.
    """
    try:
        expected = _chosen(gold, choices)
    except UnreadableError as error:
        return _unusable(error)
    try:
        letter = _chosen(answer, choices)
    except UnreadableError as error:
        return _unread(error)
    return RIGHT if letter == expected else _wrong(letter)


def json_value(gold: str, answer: str, *, tolerance: float = 0.0) -> Score:
    """Whether the answer is the gold JSON value; the order of keys does not matter, that of lists does.

    The answer is the whole text, one fenced block, or what stands from the first bracket to the last.

    Args:
        tolerance: largest absolute difference between two numbers; 0 is exact.
    """
    try:
        expected = _read_json(gold)
    except UnreadableError as error:
        return _unusable(error)
    try:
        value = _read_json(_json_part(answer))
    except UnreadableError as error:
        return _unread(error)
    return RIGHT if _same_json(expected, value, tolerance=tolerance, depth=0) else _wrong("another value")


def regex(gold: str, answer: str) -> Score:
    """Whether the whole answer, without the white space around it, matches the gold pattern (Python syntax).

    A match that takes too long gives Outcome.TIMEOUT, a wrong pattern Outcome.ERROR; neither trains: the pattern is at
    fault, not the model.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return _unread(_too_long(answer))
    if not answer.strip():
        return _unread(UnreadableError("no answer"))
    reply = full_match(gold, text=answer.strip())
    if reply.outcome is not Outcome.SCORED or reply.value["invalid"]:
        outcome = Outcome.TIMEOUT if reply.outcome is Outcome.TIMEOUT else Outcome.ERROR
        return Score(0.0, False, f"pattern {gold[:40]!r}: {reply.note or reply.value['invalid']}"[:160], outcome)
    return RIGHT if reply.value["is_match"] else Score(0.0, False, "does not match")


def full_match(pattern: str, *, text: str) -> worker.Reply:
    """Whether the whole of `text` matches: {"is_match": bool, "invalid": why the pattern is none, or ""}."""
    return worker.ask("regex", {"pattern": pattern, "text": text})


def math(gold: str, answer: str) -> Score:
    """Whether the final answer is mathematically the gold answer, as math-verify compares LaTeX.

    The final answer stands in the last \\boxed{}; without one it is the last formula between dollar signs, all of an
    answer that is nothing but a formula, or the last number. Where the gold answer is a plain number the answer must be
    one too: the question said again, such as 3^5 - 2, is not its answer. A gold answer that cannot be read gives
    Outcome.ERROR, a comparison that takes too long Outcome.TIMEOUT.
    """
    if not answer.strip():
        return _unread(UnreadableError("no answer"))
    # The beginning is cut, not the end; a final answer is far shorter.
    reply = worker.ask("math", {"gold": gold, "text": answer[-MAX_ANSWER_CHARS:]})
    if reply.outcome is not Outcome.SCORED:
        return Score(0.0, False, reply.note, reply.outcome)
    return RIGHT if reply.value["is_right"] else _wrong(reply.value["read"])


def require_math() -> None:
    """Check that answers can be compared as mathematics here.

    Raises:
        ConfigError: when math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError("verify=math: math-verify is not installed; pip install 'aha[tasks]'")


VERIFIERS: dict[str, Callable[..., Score]] = {
    "number": number,
    "exact": exact,
    "choice": choice,
    "json": json_value,
    "math": math,
    "regex": regex,
    "code": code,
}


def vote(kind: str, answer: str, *, choices: Sequence[str] = ()) -> str:
    """What an answer counts for in a majority vote: the number or letter it gives, else its text without blanks."""
    try:
        if kind == "number":
            return str(last_number(answer))
        if kind == "choice":
            return _chosen(answer, choices)
    except UnreadableError:
        pass
    return "".join(last_boxed(answer[-MAX_ANSWER_CHARS:]).split())


def _wrong(given: str) -> Score:
    return Score(0.0, False, f"says {given[:60]}")


def _unread(error: UnreadableError) -> Score:
    return Score(0.0, False, str(error), Outcome.PARSE_FAILURE)


def _unusable(error: UnreadableError) -> Score:
    return Score(0.0, False, f"gold answer: {error}", Outcome.ERROR)


def _too_long(answer: str) -> UnreadableError:
    return UnreadableError(f"answer of {len(answer):,} characters; at most {MAX_ANSWER_CHARS:,} are read")


# A numeral never starts in the middle of a word ("H2O", "x1") or in an exponent ("cm^2", "10^{3}"): ASCII digits only,
# since \d also takes other scripts' digits, which a prompt never asked for.
_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    r"(?:(?P<sign>(?<![0-9A-Za-z_)\]}%])[-+])[$€£¥]?\(?)?[$€£¥]?"
    r"(?<![0-9A-Za-z_^])(?<!\^\{)(?<!\^[-+])"
    rf"(?:(?:(?P<whole>[0-9]+) )?(?P<top>[0-9]+) ?/ ?(?P<bottom>[0-9]+)|(?P<numeral>{_NUMERAL}))"
)
_SPELLINGS = (
    (re.compile("[\u2212\u2013]"), "-"),  # the typographic minus and the dash used for it
    (re.compile(r"\{,\}"), ","),  # LaTeX's thousands comma
    (re.compile(r"\\%|\\\$"), " "),
    (re.compile(r"(?<=[0-9])\\[dt]?frac"), r" \\frac"),  # 1\frac{1}{2} is a mixed number
    (re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}"), r"\1/\2"),
)


def last_number(text: str) -> Fraction:
    """The value of the last number of a text, or of its last \\boxed{}.

    Raises:
        UnreadableError: when there is none, or it is too long or divides by zero.
    """
    matches = _find_numbers(last_boxed(text[-MAX_ANSWER_CHARS:]))
    if not matches:
        raise UnreadableError("no number" if text.strip() else "no answer")
    return _value(matches[-1])


def only_number(text: str) -> Fraction:
    """The value of a text that holds exactly one number.

    Raises:
        UnreadableError: when it holds none, several (as "3,14" does), or an unreadable one.
    """
    matches = _find_numbers(text[:MAX_ANSWER_CHARS])
    if len(matches) != 1:
        raise UnreadableError(f"{text[:40]!r} holds {len(matches) or 'no'} number{'s'[: len(matches) != 1]}, needs one")
    return _value(matches[0])


def _find_numbers(text: str) -> list[re.Match[str]]:
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return list(_NUMBER.finditer(text))


def _value(match: re.Match[str]) -> Fraction:
    if len(match.group()) > MAX_NUMERAL_CHARS:
        raise UnreadableError(f"number of {len(match.group())} characters")
    if match["numeral"] is None:
        if int(match["bottom"]) == 0:
            raise UnreadableError("division by zero")
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        exponent = match["numeral"].lower().partition("e")[2]
        if abs(int(exponent or 0)) > MAX_NUMERAL_CHARS:
            raise UnreadableError(f"power of ten {exponent}")
        value = Fraction(match["numeral"].replace(",", ""))
    return -value if match["sign"] == "-" else value


def last_boxed(text: str) -> str:
    """What stands in the last \\boxed{}, nested braces included; the whole text when there is none."""
    _, marker, boxed = text.rpartition("\\boxed{")
    if not marker:
        return text
    depth = 1
    for index, character in enumerate(boxed):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return boxed[:index]
    return boxed


def _normalised(text: str, *, case: Literal["match", "ignore"]) -> str:
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    return spaced.casefold() if case == "ignore" else spaced


def _chosen(text: str, choices: Sequence[str]) -> str:
    """The letter of the one choice that a text names.

    Raises:
        UnreadableError: when it names none or several.
    """
    letters = LETTERS[: len(choices)] if choices else LETTERS
    final = last_boxed(text[-MAX_ANSWER_CHARS:]).strip().strip("*_`()[]\"'.,:; \n")
    if len(final) == 1 and final.upper() in letters:
        return final.upper()
    wanted = _normalised(final, case="ignore")
    texts = [_normalised(option, case="ignore").strip(".") for option in choices]
    if wanted in texts:
        return letters[texts.index(wanted)]
    # The last statement decides, if there is one: "Not A, since … The answer is B".
    statement = re.split(r"(?i)\banswer\b", final)[-1]
    # "A" and "I" are English words too ("A dog …", "I think …"), choices only before words that follow a name.
    is_word = r"[AI] (?!(?:or|and|is|because|since)\b)[a-z]"
    words_of = {letter: _words(option) for letter, option in zip(letters, texts, strict=False)}
    said = f" {_words(statement)} "
    named = _listed(said, letters, words_of)
    named = named or set(re.findall(rf"(?<![\w'])(?!{is_word})[{letters}](?![\w'])", statement))
    named = named or {letter for letter, words in words_of.items() if words and f" {words} " in said}
    if len(named) != 1:
        several = f"several choices: {', '.join(sorted(named))}"
        raise UnreadableError(several if named else "no choice" if final else "no answer")
    return named.pop()


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", _normalised(text, case="ignore")).strip()


def _listed(said: str, letters: str, words_of: Mapping[str, str]) -> set[str]:
    """The choices in a statement that is nothing but choices, as letters and texts: "B or (a), New York"; else none."""
    named = set()
    for letter, words in sorted(words_of.items(), key=lambda item: -len(item[1])):
        if words and f" {words} " in said:
            named.add(letter)
            said = said.replace(f" {words} ", "  ")
    rest = set(said.upper().split()) - {"AND", "OR", "IS"}
    return named | rest if rest <= set(letters) else set()


def _json_part(answer: str) -> str:
    if len(answer) > MAX_ANSWER_CHARS:
        raise _too_long(answer)
    parts = answer.split("```")
    if len(parts) == 3:
        return parts[1].removeprefix("json").strip()
    text = answer.strip()
    if not text:
        raise UnreadableError("no answer")
    starts = [index for index in (text.find("{"), text.find("[")) if index >= 0]
    end = max(text.rfind("}"), text.rfind("]"))
    # A bare string may hold brackets; anything else is read from its first bracket to its last, so that two values
    # side by side are no JSON at all.
    return text[min(starts) : end + 1] if starts and not text.startswith('"') else text


def _read_json(text: str) -> Any:
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_int=_read_integer,
            parse_float=_read_decimal,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UnreadableError(f"no JSON: {reason}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # {"a": 1, "a": 2} would be two answers at once
        raise ValueError("a key stands twice")
    return values


def _read_integer(digits: str) -> int:
    if len(digits) > MAX_NUMERAL_CHARS:
        raise ValueError(f"number of {len(digits)} characters")
    return int(digits)


def _read_decimal(text: str) -> Fraction:
    """Exactly as it is written: as floats, 2**53 + 1 is 2.0**53, and 1e400 is 1e500."""
    if len(text) > MAX_NUMERAL_CHARS or abs(int(text.lower().partition("e")[2] or 0)) > MAX_JSON_EXPONENT:
        raise ValueError(f"number of {len(text)} characters, or beyond 1e{MAX_JSON_EXPONENT}")
    return Fraction(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _same_json(a: Any, b: Any, *, tolerance: float, depth: int) -> bool:
    if depth > MAX_JSON_DEPTH:
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(
            _same_json(a[key], b[key], tolerance=tolerance, depth=depth + 1) for key in a
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(
            _same_json(x, y, tolerance=tolerance, depth=depth + 1) for x, y in zip(a, b, strict=True)
        )
    # bool first: in Python True == 1, in JSON it is not.
    if isinstance(a, bool) or isinstance(b, bool) or not (isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS)):
        return type(a) is type(b) and bool(a == b)
    return abs(Fraction(a) - Fraction(b)) <= Fraction(str(tolerance))
