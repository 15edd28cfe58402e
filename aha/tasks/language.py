"""How much of a text is in one language: R1's language consistency, by scripts and function words, without a model.

What it sees: the script of every word, and for languages that share a script the small words ("the", "und", "est") of
each sentence. What it cannot see: the language of a sentence without such words, which is left out; whether a sentence
means anything; dialects and languages that are not in LANGUAGES, which pass for the likeliest one of their script.
Digits, formulas, code and punctuation belong to no language and are never counted; words inside formulas and code are
where their script is neither Latin nor Greek.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

MAX_CHARS = 100_000
"""What is read of a longer text is its beginning: the share of so much says enough."""

Language = Literal["ar", "de", "el", "en", "es", "fr", "he", "hi", "it", "ja", "ko", "nl", "pt", "ru", "th", "uk", "zh"]
LANGUAGES: tuple[str, ...] = get_args(Language)

_LATIN = {
    "de": "der die das und ist nicht ein eine einen dem den des zu mit auf für von wir ich es sie auch wenn dann also "
    "aber oder wird sind im als noch nur kann muss jetzt hier haben ergibt",
    "en": "a an the of and to is in that it we for this with as be are so then if but not can have need which from let "
    "now by there must get would at or on what try first next because equals gives think "
    "wait i you he she they me my your do does did how why was were has had all one",
    "es": "el la los las de que y es en un una por con para no se lo del al como más pero entonces si su está son hay "
    "ahora tenemos este esta",
    "fr": "le la les des est et un une que pour dans ce qui pas nous sur avec donc au du il elle sont mais ou si par "
    "plus on cette je alors cela",
    "it": "il lo la gli i che di è e un una per con non del della sono si come ma quindi allora più questo nel abbiamo "
    "dei anche ora da",
    "nl": "de het een en van is dat niet zijn we met op voor te dus als maar er dan ook wordt naar deze bij nog aan "
    "hebben kan ik nu",
    "pt": "o a os as de que e é em um uma para com não se do da no na por mais como mas então são isso temos este "
    "agora também ao",
}
_CYRILLIC = {
    "ru": "и в не на что это мы как с по то но для так из если же от к все он она они значит нам тогда или нужно",
    "uk": "і в не на що це ми як з по то але для так із якщо ж від до все він вона вони отже нам тоді або потрібно є",
}
_FUNCTION_WORDS = {
    language: frozenset(words.split()) for table in (_LATIN, _CYRILLIC) for language, words in table.items()
}
_ONLY_UKRAINIAN, _ONLY_RUSSIAN = frozenset("іїєґ"), frozenset("ыэёъ")
_SCRIPT_OF = {
    **dict.fromkeys(_LATIN, "LATIN"), **dict.fromkeys(_CYRILLIC, "CYRILLIC"), "ar": "ARABIC", "el": "GREEK",
    "he": "HEBREW", "hi": "DEVANAGARI", "ko": "HANGUL", "th": "THAI", "ja": "HAN", "zh": "HAN",
}  # fmt: skip
# What is opened and never closed goes on to the end: looking for an end that does not come from every beginning anew
# would take quadratic time.
_NEUTRAL = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?(?:\$\$|\Z)|\$[^$\n]*\$|\\\[.*?(?:\\\]|\Z)|\\\(.*?(?:\\\)|\Z)|\\[A-Za-z]+|"
    r"https?://\S+",
    re.DOTALL,
)
# Letters that no formula and no program needs, unlike Latin and Greek ones: thinking between dollar signs is thinking.
_WORDS_OF_NO_FORMULA = re.compile("[^\\W\\d_\u0000-\u024f\u0370-\u03ff]+")
_SENTENCE_END = re.compile(r"[.!?;:\n。！？；：]+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class _Words(NamedTuple):
    """Words of a sentence that count for the target, against it, and those that nobody can tell."""

    right: int = 0
    wrong: int = 0


def language_share(text: str, language: str) -> float | None:
    """Share of a text's words that are in `language`; None where it has no word that can be told.

    A sentence that stands several times is counted once: repeating it does not outweigh what stands beside it. A
    Chinese character, a kana and a Thai letter count as a word each, in other scripts a run of letters.

    Source: R1 §2.3.2, the proportion of target language words in the chain of thought. The paper does not say how
    they were told apart.

    Args:
        text: any text; MAX_CHARS of it are read.
        language: one of LANGUAGES.
    """
    sentences = list(dict.fromkeys(_sentences(text[:MAX_CHARS])))
    has_kana = any("KANA" in kinds or "HIRAGANA" in kinds for kinds in map(_scripts_of, sentences))
    counts = [_count(sentence, language, has_kana=has_kana) for sentence in sentences]
    right, wrong = sum(count.right for count in counts), sum(count.wrong for count in counts)
    return right / (right + wrong) if right + wrong else None


def _sentences(text: str) -> Iterator[str]:
    for part in _SENTENCE_END.split(_NEUTRAL.sub(_words_of_no_formula, text)):
        words = _WORD.findall(part)
        if words:
            yield " ".join(words)


def _words_of_no_formula(neutral: re.Match[str]) -> str:
    return f" {' '.join(_WORDS_OF_NO_FORMULA.findall(neutral.group()))} "


def _scripts_of(sentence: str) -> Counter[str]:
    """Words by script; characters in the scripts that write without spaces."""
    found: Counter[str] = Counter()
    for word in sentence.split(" "):
        scripts = [_script(character) for character in word]
        if {"HAN", "KANA", "THAI"} & set(scripts):
            found.update(script for script in scripts if script)
        elif scripts and len(word) > 1:  # a lone letter is a variable, except where it is a word of its own below
            found[scripts[0]] += 1
    return found


def _count(sentence: str, language: str, *, has_kana: bool) -> _Words:
    scripts = _scripts_of(sentence)
    wanted = _SCRIPT_OF[language]
    if wanted == "HAN":
        return _count_han(scripts, language, has_kana=has_kana)
    right, total = scripts[wanted], sum(scripts.values())
    if language not in _FUNCTION_WORDS or not right:
        return _Words(right, total - right)
    found = _likeliest(sentence, language)
    if found is None:  # nobody can tell: its words in the right script count neither way
        return _Words(0, total - right)
    return _Words(right, total - right) if found == language else _Words(0, total)


def _count_han(scripts: Counter[str], language: str, *, has_kana: bool) -> _Words:
    """Chinese has no kana; Japanese has some in nearly every sentence, and Chinese characters beside it."""
    han, kana = scripts["HAN"], scripts["KANA"]
    others = sum(scripts.values()) - han - kana
    if language == "zh":
        is_chinese = not kana
        return _Words(han if is_chinese else 0, others + (0 if is_chinese else han + kana))
    return _Words(han + kana if has_kana else 0, others + (0 if has_kana else han))


def _likeliest(sentence: str, language: str) -> str | None:
    """The language with most function words in a sentence; the wanted one in a draw; None where there are none."""
    words = sentence.casefold().replace("’", "'").split(" ")
    table = _LATIN if language in _LATIN else _CYRILLIC
    pieces = [piece for word in words for piece in (word, *word.split("'")[:-1])]
    hits = {name: sum(piece in _FUNCTION_WORDS[name] for piece in pieces) for name in table}
    if table is _CYRILLIC:
        letters = set("".join(words))
        hits["uk"] += 2 * bool(letters & _ONLY_UKRAINIAN)
        hits["ru"] += 2 * bool(letters & _ONLY_RUSSIAN)
    most = max(hits.values())
    if most == 0:
        return None
    return language if hits[language] == most else max(hits, key=lambda name: hits[name])


def _script(character: str) -> str:
    """LATIN, CYRILLIC, HAN, KANA, …: the first word of the character's Unicode name."""
    name = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    if name in ("HIRAGANA", "KATAKANA"):
        return "KANA"
    return "HAN" if name == "CJK" else name
