"""verify=math: what math-verify takes for equal, which final answer counts, and what a text cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aha.errors import DataError
from aha.tasks import get_task
from aha.tasks.verifiers import math
from aha.tasks.worker import JOBS, Pool
from aha.types import Outcome, Score

pytest.importorskip("math_verify", reason="math-verify is not installed")


def boxed(text: str) -> str:
    return f"So the answer is \\boxed{{{text}}}."


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", boxed("5")),
        ("5", boxed("x = 5.0")),
        ("5", f"{boxed('3')} No: {boxed('5')}"),
        ("5", "The answer is $5$."),
        ("5", "The answer is 5."),
        ("$\\boxed{5}$", "5"),
        ("\\frac{1}{2}", boxed("0.5")),
        ("\\dfrac12", boxed("1/2")),
        ("3\\frac{1}{2}", boxed("3.5")),
        ("10,\\!000", boxed("10000")),
        ("1500000", boxed("1.5 \\times 10^6")),
        ("\\$36", boxed("36")),
        ("50\\%", boxed("50")),
        ("90^\\circ", boxed("90")),
        ("12", boxed("12\\text{ cm}")),
        ("2\\sqrt{3}", boxed("\\sqrt{12}")),
        ("1,2", boxed("2, 1")),
        ("(3,\\frac{\\pi}{2})", "It is $\\left( 3, \\frac{\\pi}{2} \\right)$."),
        ("\\left(-\\infty,3\\right]", boxed("(-\\infty, 3]")),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", boxed("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}")),
        ("x^2+2x+1", boxed("1+2x+x^2")),
        ("\\text{Evelyn}", boxed("Evelyn")),
        ("\\text{(C)}", boxed("C")),
        ("\\sqrt{2}", "\\sqrt{2}"),
        ("1.6 \\times 10^{-19}", boxed("1.60 \\times 10^{-19}")),
        ("0.0005", boxed("5 \\times 10^{-4}")),
        ("0.0", boxed("0")),
        ("11_2", boxed("11_{2}")),
        ("11_2", boxed("11")),
        ("\\int f(x) dx", boxed("\\int f(x) dx")),
        ("x+1", "1 + x"),
        ("\\text{Evelyn}", "Evelyn"),
    ],
)
def test_same_mathematics_is_right(gold: str, answer: str) -> None:
    assert math(gold, answer) == Score(1.0, True, "right")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", boxed("6")),
        ("5", f"{boxed('5')} or {boxed('6')}"),
        ("5", boxed("5 \\text{ or } 6")),
        ("5", boxed("4, 5, 6")),
        ("5", boxed("5 \\neq 6")),
        ("5", boxed("\\infty")),
        ("243", boxed("3^5")),
        ("45", boxed("\\sum_{i=1}^{9} i")),
        ("1", boxed("9^{9^{9^{9}}}")),
        ("1", boxed("10^{10^{10}}")),
        ("1", boxed("(999999!)!")),
        ("1,2,3", boxed("1,2,3,4")),
        ("even", boxed("neve")),
        ("\\frac{1}{3}", boxed("0.33")),
        ("0.0000003", boxed("0.0000001")),
        ("1.6 \\times 10^{-19}", boxed("9.1 \\times 10^{-31}")),
        ("1.6 \\times 10^{-19}", boxed("0.0")),
        ("0.0", boxed("0.0000001")),
        ("2x", boxed("\\frac{d}{dx} x^2")),
        ("2x", boxed("\\frac{\\partial}{\\partial x} x^2")),
        ("\\frac{x^2}{2}", boxed("\\int_0^x t dt")),
        ("\\ln 2", boxed("\\int_1^2 \\frac{1}{x} dx")),
        ("\\sqrt{2}", boxed("\\lim_{n\\to 0} \\sqrt{2+n}")),
        ("e", boxed("\\sum_{k=0}^{\\infty} \\frac{1}{k!}")),
        ("11_2", boxed("11_7")),
        ("11_{2}", boxed("11_{10}")),
    ],
)
def test_other_mathematics_is_wrong(gold: str, answer: str) -> None:
    found = math(gold, answer)
    assert (found.reward, found.is_correct, found.outcome) == (0.0, False, Outcome.SCORED)


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know",
        boxed(""),
        boxed("__import__('os').system('true')"),
        boxed("(" * 500),
        boxed("{" * 500),
        "\\boxed{",
    ],
)
def test_text_without_a_final_answer_is_a_parse_failure(answer: str) -> None:
    assert math("5", answer).outcome is Outcome.PARSE_FAILURE


@pytest.mark.parametrize("gold", ["", "}{", "\\cup"])
def test_gold_answer_that_cannot_be_read_is_an_error(gold: str) -> None:
    assert math(gold, boxed("5")).outcome is Outcome.ERROR


@pytest.mark.slow
def test_comparison_that_takes_too_long_times_out_and_the_next_is_judged() -> None:
    pool = Pool(replace(JOBS["math"], cpu_seconds=0.5), num_workers=1)
    power = boxed("\\sqrt{2}^{10^{10}}")
    assert pool.ask({"gold": "\\sqrt{3}", "text": power}).outcome is Outcome.TIMEOUT
    assert pool.ask({"gold": "5", "text": boxed("5")}).value == {"is_right": True, "read": "5"}
    pool.close()


def test_data_file_is_judged_as_mathematics(tmp_path: Path) -> None:
    path = tmp_path / "roots.jsonl"
    rows = [
        '{"prompt": "a", "answer": "\\\\sqrt{2}", "split": "train"}',
        '{"prompt": "b", "answer": "x+1", "split": "test"}',
    ]
    path.write_text("\n".join(rows))
    task = get_task(f"{path}:verify=math")
    assert "\\boxed{}" in task.system_prompt
    assert next(iter(task.problems("test", seed=0))).answer == "x+1"
    path.write_text("\n".join([rows[0], '{"prompt": "b", "answer": "}{", "split": "test"}']))
    with pytest.raises(DataError, match="line 2: the answer '}{' does not pass verify=math"):
        get_task(f"{path}:verify=math")
