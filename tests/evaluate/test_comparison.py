"""Evaluations side by side: the paired numbers by hand, what is refused, what is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aha.errors import DataError
from aha.evaluate import Entry, EvalResult, compare, compare_all, read_entries

MANIFEST = {
    "task": "sums", "split": "test", "num_problems": 50, "problem_seed": 0, "num_samples": 1, "temperature": 0.6,
    "top_p": 0.95, "top_k": 0, "min_p": 0.0, "max_tokens": 512, "stop": [], "extractor": "Sums.score",
    "problems_sha256": "abc", "max_tokens_cap": None,
}  # fmt: skip


def result(scores: dict[str, tuple[int, int]], *, name: str = "eval", **changed: Any) -> EvalResult:
    shares = [right / of for right, of in scores.values() if of]
    pass_at_1 = sum(shares) / max(1, len(shares))
    return EvalResult(
        name=name, manifest={**MANIFEST, "model": name, **changed}, num_problems=len(scores),
        num_completions=len(scores), pass_at_1=pass_at_1, interval_low=0.0, interval_high=1.0,
        pass_at_k={1: pass_at_1}, cons_at_k=pass_at_1, truncated_fraction=0.0, parse_failure_fraction=0.0,
        error_fraction=0.0, mean_tokens=10.0, mean_thinking_tokens=None, completion_tokens=10 * len(scores),
        wall_seconds=1.0, problem_scores=scores, cost_usd=0.5, usd_per_solved=0.01,
    )  # fmt: skip


def one_each(*right: int) -> dict[str, tuple[int, int]]:
    return {f"p{i}": (value, 1) for i, value in enumerate(right)}


def test_difference_of_single_answers_is_tested_by_mcnemar() -> None:
    before = result(one_each(*[0] * 9, 1, *[1] * 40))
    after = result(one_each(*[1] * 9, 0, *[1] * 40))
    change = compare(before, after)
    assert change.pass_at_1 == pytest.approx(8 / 50)
    assert (change.num_improved, change.num_worsened, change.num_problems) == (9, 1, 50)
    assert (change.test, change.p_value) == ("exact McNemar", pytest.approx(22 / 1024))
    back = compare(after, before)
    assert (back.pass_at_1, back.p_value) == (pytest.approx(-8 / 50), pytest.approx(22 / 1024))


def test_difference_of_several_answers_is_tested_by_sign_flips() -> None:
    before = result({"a": (1, 4), "b": (0, 4), "c": (2, 4), "d": (4, 4)}, num_samples=4)
    after = result({"a": (4, 4), "b": (2, 4), "c": (1, 4), "d": (4, 4)}, num_samples=4)
    change = compare(before, after)
    # ±3 ±2 ±1: 4 or more away from 0 in 4 of the 8 ways.
    assert (change.test, change.p_value) == ("exact sign flips", pytest.approx(0.5))
    assert change.pass_at_1 == pytest.approx(1 / 4)


def test_problem_without_a_verdict_on_one_side_is_left_out() -> None:
    change = compare(result({"a": (0, 1), "b": (1, 1)}), result({"a": (1, 1), "b": (0, 0)}))
    assert (change.num_problems, change.pass_at_1, change.p_value) == (1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"temperature": 1.0}, "temperature 0.6 and 1.0"),
        ({"max_tokens": 32_768}, "max_tokens 512 and 32768"),
        ({"num_samples": 4}, "num_samples 1 and 4"),
        ({"extractor": "Other.score"}, "extractor 'Sums.score' and 'Other.score'"),
        ({"problems_sha256": "def"}, "problems_sha256"),
    ],
)
def test_another_protocol_is_refused_and_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as refused:
        compare(result(one_each(1, 0), name="ours"), result(one_each(1, 1), name="theirs", **changed))
    assert said in str(refused.value)
    assert "'ours'" in str(refused.value)


def test_models_may_differ_in_all_that_is_their_own() -> None:
    theirs = result(one_each(1, 1), template="another", max_tokens_cap=100, weight_version=7, price="x", model="o1")
    assert compare(result(one_each(1, 0)), theirs).num_improved == 1


def test_result_of_an_older_version_is_compared_by_what_it_says() -> None:
    old = result(one_each(1, 0))
    del old.manifest["problems_sha256"]
    assert compare(old, result(one_each(1, 1))).pass_at_1 == 0.5


def test_other_problems_are_refused_and_named() -> None:
    with pytest.raises(DataError, match=r"asked different problems \(num_problems 50 and 3\)"):
        compare(result(one_each(1, 0)), result(one_each(1, 0, 1), num_problems=3))


def test_all_pairs_are_compared_and_named() -> None:
    entries = [Entry(label=label, result=result(one_each(*right))) for label, right in
               (("a", (0, 0, 0)), ("b", (1, 0, 0)), ("c", (1, 1, 1)))]  # fmt: skip
    found = json.loads(compare_all(entries).to_json())
    assert [row["label"] for row in found["evaluations"]] == ["a", "b", "c"]
    assert [(pair["before"], pair["after"]) for pair in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["pairs"][1]["pass_at_1_difference"] == 1.0
    assert found["pairs"][1]["p_value"] == pytest.approx(0.25)
    assert found["evaluations"][0].keys() >= {"cost_usd", "usd_per_solved", "pass_at_k", "consensus_at_k", "model"}
    entries[1] = Entry(label="odd", result=replace(entries[1].result, manifest={**MANIFEST, "temperature": 2.0}))
    with pytest.raises(DataError, match="'a' and 'odd'"):
        compare_all(entries)
    with pytest.raises(DataError, match="at least two"):
        compare_all(entries[:1])


def test_folders_runs_and_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = result(one_each(1, 0)).to_json()
    for path in ("scores/eval.json", "runs/ours/eval/after.json", "runs/ours/eval/before.json", "alone.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    names = ["scores", "ours", "runs/ours", "runs/ours/eval", "runs/ours/eval/before.json", "alone.json"]
    assert [entry.label for entry in read_entries(names)] == names, "the models' names are all the same"
    (tmp_path / "other.json").write_text(result(one_each(1, 1), model="runs/b@sha256:12 float32").to_json())
    assert [entry.label for entry in read_entries(["scores", "other.json"])] == ["eval", "runs/b"]


def test_what_is_no_evaluation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no evaluation at 'nowhere'; give a file"):
        read_entries(["nowhere"])
    (tmp_path / "half").mkdir()
    (tmp_path / "half/eval.jsonl.partial").write_text("")
    with pytest.raises(DataError, match="in half is not finished"):
        read_entries(["half"])
