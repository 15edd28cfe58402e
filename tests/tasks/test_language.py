"""How much of a text is in a language: what is told apart, what is neutral, and that no text is slow or raises."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.tasks.language import LANGUAGES, language_share

THOUGHTS = {
    "ar": "أولا نجمع الأرقام ثم نحصل على النتيجة",
    "de": "Ich muss zuerst die Zahlen addieren. Dann ist das Ergebnis 24, also ist die Antwort richtig.",
    "el": "Πρώτα προσθέτουμε τους αριθμούς",
    "en": "Let me think. We need to add the numbers so that they make 24. Then 3*8 = 24, which is right.",
    "es": "Primero tenemos que sumar los números. Entonces el resultado es 24 y la respuesta es correcta.",
    "fr": "Il faut d'abord additionner les nombres. Donc le résultat est 24 et c'est la bonne réponse.",
    "he": "קודם נחבר את המספרים",
    "hi": "पहले हम संख्याओं को जोड़ते हैं",
    "it": "Prima dobbiamo sommare i numeri. Quindi il risultato è 24 e la risposta è giusta.",
    "ja": "まず数を足します。次に結果は24になります。したがって答えは24です。",
    "ko": "먼저 숫자를 더합니다. 그러면 결과는 24입니다. 따라서 답은 24입니다.",
    "nl": "We moeten eerst de getallen optellen. Dan is het resultaat 24 en dat is dus het goede antwoord.",
    "pt": "Primeiro temos que somar os números. Então o resultado é 24 e a resposta está certa.",
    "ru": "Сначала нужно сложить числа. Тогда результат равен 24, значит это и есть ответ.",
    "th": "ก่อนอื่นเราบวกตัวเลข",
    "uk": "Спочатку потрібно скласти числа. Тоді результат дорівнює 24, отже це і є відповідь.",
    "zh": "首先我们把数字相加。然后结果是24。所以答案是24。",
}


def test_every_language_has_an_example() -> None:
    assert set(THOUGHTS) == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_thinking_in_one_language_is_wholly_in_it_and_hardly_in_others(language: str) -> None:
    assert language_share(THOUGHTS[language], language) == 1.0
    for other in set(LANGUAGES) - {language}:
        assert (language_share(THOUGHTS[language], other) or 0.0) < 0.5, other


def test_mixing_languages_lowers_the_share_in_proportion() -> None:
    half = language_share("We need to add the numbers. 所以答案是二十四。", "en")
    assert half == pytest.approx(6 / (6 + 8))
    assert language_share(f"{THOUGHTS['en']} {THOUGHTS['de']}", "en") == pytest.approx(0.5, abs=0.1)
    assert language_share(f"{THOUGHTS['zh']} {THOUGHTS['ja']}", "zh") == pytest.approx(0.4, abs=0.15)


@pytest.mark.parametrize(
    "text",
    ["", "81-23=58: 17+4=21 17*4=68 17-4=13?", r"\frac{1}{2} $x+y$ \[a^2\]", "```\nfor i in range(3): pass\n```",
     "x y z", "https://example.org/the/of/and", "`the and of`"],
)  # fmt: skip
def test_formulas_code_digits_and_letters_belong_to_no_language(text: str) -> None:
    assert language_share(text, "en") is None
    assert language_share(f"This is the plan. {text}", "en") in (1.0, None)


@pytest.mark.parametrize("hidden", ["`{}`", "$ {} $", "```\n{}\n```", "\\[ {} \\]", "https://x/{}"])
def test_thinking_hidden_in_a_formula_or_code_counts(hidden: str) -> None:
    for language in ("zh", "ru", "ko"):
        text = f"This is the plan. {hidden.format(THOUGHTS[language])}"
        assert (language_share(text, "en") or 0.0) < 0.5
    assert language_share(r"This is the plan. $\text{area} = \pi r^2 \cdot α$", "en") == 1.0


def test_repeated_sentence_counts_once() -> None:
    once = language_share("This is the plan. 所以答案是二十四。", "en")
    often = language_share("This is the plan. " * 500 + "所以答案是二十四。", "en")
    assert once == often == pytest.approx(4 / 12)


def test_sentence_that_nobody_can_tell_counts_neither_way() -> None:
    assert language_share("Xyz abc qwerty. This is the plan.", "en") == 1.0
    assert language_share("Xyz abc qwerty", "en") is None


@given(text=st.text(max_size=300), language=st.sampled_from(LANGUAGES))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_share_between_none_and_one(text: str, language: str) -> None:
    share = language_share(text, language)
    assert share is None or 0.0 <= share <= 1.0


@pytest.mark.parametrize(
    "text", ["\\[", "$", "$a\n", "```", "`", "a'", "\\(", "$$x", "\ud800", "x ", "the ", "中", "e\u0301"]
)
def test_hostile_text_takes_no_time(text: str) -> None:
    started = time.process_time()
    language_share(text * 60_000, "en")
    assert time.process_time() - started < 3.0


@pytest.mark.parametrize("text", ["I say", "I multiply both sides", "Then I'm done. I add three."])
def test_english_in_the_first_person_is_no_italian(text: str) -> None:
    assert language_share(text, "en") == 1.0
    assert language_share("I numeri sono tre", "en") == 0.0
