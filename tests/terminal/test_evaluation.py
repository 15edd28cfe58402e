"""`aha eval` below its options: here and at an endpoint, the protocol, the description, the table."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from aha.cost import EntryKind, Ledger, LedgerFilter
from aha.cost.energy import Counter, EnergyMeter
from aha.errors import AhaError, ConfigError
from aha.evaluate import EvalResult, load_result
from aha.terminal.evaluation import EvalOptions, describe_evaluation, run_comparison, run_evaluation

TASK = "arithmetic"


@pytest.fixture
def options(model_folder: Path, tmp_path: Path) -> EvalOptions:
    return EvalOptions(
        model=str(model_folder), task=TASK, num_problems=3, protocol="default", num_samples=2, temperature=None,
        top_p=None, max_tokens=8, seed=0, device="cpu", price="", budget_usd=None, concurrency=4, out=tmp_path / "out",
    )  # fmt: skip


def measured(options: EvalOptions) -> EvalResult:
    run_evaluation(options, form="json")
    assert options.out is not None
    return load_result(options.out / "eval.json")


def test_explicit_options_win_over_the_protocol(options: EvalOptions) -> None:
    manifest = measured(replace(options, protocol="r1", temperature=0.9)).manifest
    assert (manifest["temperature"], manifest["top_p"], manifest["max_tokens"]) == (0.9, 0.95, 8)
    assert manifest["num_samples"] == 2
    assert manifest["protocol"] == ""


def test_r1s_protocol_is_capped_by_a_small_window_with_a_notice(
    options: EvalOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    result = measured(replace(options, protocol="r1", max_tokens=None, num_samples=3, num_problems=1))
    assert (result.manifest["protocol"], result.manifest["max_tokens"]) == ("r1", 32_768)
    cap = result.manifest["max_tokens_cap"]
    assert 0 < cap < 256
    said = capsys.readouterr().err
    assert f"window of 256 tokens leaves {cap} for an answer at the longest prompt, not the 32,768 asked for" in said


def test_r1s_protocol_asks_64_times_unless_told_otherwise(options: EvalOptions) -> None:
    result = measured(replace(options, protocol="r1", num_samples=None, num_problems=1))
    assert (result.manifest["num_samples"], result.num_completions) == (64, 64)
    assert list(result.pass_at_k) == list(result.consensus_at_k) == [1, 2, 4, 8, 16, 32, 64]


def test_unknown_protocol_lists_choices(options: EvalOptions) -> None:
    with pytest.raises(ConfigError, match="unknown protocol 'r2'.*default, r1"):
        run_evaluation(replace(options, protocol="r2"), form="text")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": ""}, "eval needs --task NAME"),
        ({"budget_usd": 1.0}, "--budget-usd is for an endpoint"),
        ({"price": "no-such-hour"}, "unknown machine price 'no-such-hour'"),
        ({"model": "openai:tiny"}, "write openai:MODEL@URL"),
        ({"model": "openai:m@http://127.0.0.1:9/v1", "price": "cheap"}, "or IN/OUT dollars per million tokens"),
        ({"model": "openai:m@http://127.0.0.1:9/v1", "price": "a/b"}, "usd_per_million_input must be a number"),
        ({"model": "openai:m@http://127.0.0.1:9/v1", "budget_usd": 1.0}, "--budget-usd needs --price"),
    ],
)
def test_options_that_cannot_be_used_are_said(options: EvalOptions, changes: dict[str, object], said: str) -> None:
    with pytest.raises(AhaError) as refused:
        run_evaluation(replace(options, **changes), form="text")  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_dollars_are_the_machines_time(options: EvalOptions) -> None:
    result = measured(replace(options, price="36"))
    assert result.cost_usd == pytest.approx(result.wall_seconds / 100, abs=1e-5)
    assert measured(options).manifest["price"].startswith("cpu-2core-hour@")


def test_evaluation_here_is_booked_at_what_its_result_says(options: EvalOptions) -> None:
    result = measured(options)
    with Ledger.open() as ledger:
        totals = ledger.totals(LedgerFilter(kind=EntryKind.EVALUATION, model=options.model))
        assert result.cost_usd is not None
        assert totals.cost_nano_usd == round(result.cost_usd * 1e9)
        assert totals.completion_tokens == result.completion_tokens > 0
        assert totals.prompt_tokens > 0
        assert (totals.num_entries, totals.device_ms) == (1, totals.wall_ms)
        assert ledger.verify() == []


def test_energy_of_an_evaluation_is_booked_where_it_can_be_read(
    options: EvalOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = iter((0, 7_000_000))
    make = EnergyMeter.__init__
    monkeypatch.setattr(EnergyMeter, "__init__", lambda self: make(self, [Counter(lambda: next(reading))]))
    measured(options)
    with Ledger.open() as ledger:
        energy_mj = ledger.totals(LedgerFilter()).energy_mj
        assert energy_mj is not None
        assert 0 < energy_mj <= 7_000


def test_other_weights_are_another_model(options: EvalOptions, model_folder: Path, tmp_path: Path) -> None:
    """A run that was trained on has the same name and is not the same model."""
    from aha.models import load_model

    copy = tmp_path / "noise"
    shutil.copytree(model_folder, copy)
    first = measured(replace(options, model=str(copy))).manifest["model"]
    model = load_model(copy, dtype="float32", device="cpu")
    model.initialise(seed=1)
    model.save(copy)
    second = measured(replace(options, model=str(copy))).manifest["model"]
    assert first != second
    assert first.startswith(f"{copy}@sha256:")
    assert first.endswith((" float32", " bfloat16")), "the dtype moves the texts too"


def test_description_warns_of_many_answers_without_a_verdict(options: EvalOptions) -> None:
    result = measured(options)
    assert "warning" not in describe_evaluation(result)
    assert "warning" not in describe_evaluation(replace(result, error_fraction=0.01))
    doubtful = describe_evaluation(replace(result, error_fraction=0.01, timeout_fraction=0.02))
    assert "warning: 3.0% of the answers have no verdict, and are left out of every score" in doubtful
    assert "(verifier timeouts 2.0%, errors 1.0%)" in doubtful


def test_description_gives_rates_with_intervals_and_dollars(options: EvalOptions) -> None:
    text = describe_evaluation(replace(measured(options), cost_usd=0.25, usd_per_solved=None))
    for part in ("arithmetic: 3 held-out problems x 2", "pass@1", "pass@2", "cons@2", " to ", "$0.250000, no right"):
        assert part in text


def test_comparison_is_one_table_and_the_paired_differences(options: EvalOptions, tmp_path: Path) -> None:
    result = measured(options)
    better = dict.fromkeys(result.problem_scores, (2, 2))
    names = [str(options.out), str(tmp_path / "b.json"), str(tmp_path / "c.json")]
    for name, model in zip(names[1:], ("openai:o1@https://api.openai.com/v1", "evil\x1b[31m"), strict=True):
        changed = replace(
            result, manifest={**result.manifest, "model": model}, problem_scores=better, pass_at_1=1.0, cost_usd=1.5,
            usd_per_solved=0.25,
        )  # fmt: skip
        Path(name).write_text(changed.to_json())
    text = run_comparison(names, form="text")
    lines = text.splitlines()
    assert lines[0] == "arithmetic: the same 3 problems x 2"
    head = "model pass@1 95 % interval pass@2 cons@2 tokens cut off no verdict dollars $ per right answer"
    assert " ".join(lines[1].split()) == head
    assert "1.500000" in lines[3]
    assert "0.250000" in lines[3]
    assert "openai:o1@https://api.openai.com/v1 against" in text
    assert "+100.0 points" in text
    assert "p = 0.2500 (exact sign flips); 3 of 3 problems better, 0 worse" in text
    assert "not corrected for there being 3 of them" in text
    assert "\x1b" not in text
    assert len(json.loads(run_comparison(names, form="json"))["pairs"]) == 3


def test_interrupt_says_how_to_go_on(
    options: EvalOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aha.terminal import evaluation

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(options, form="json")
    assert f"stopped; the answers so far are in {options.out}; the same command goes on" in capsys.readouterr().err
