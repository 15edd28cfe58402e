"""Choices measured on small models: every side runs, and its figures become rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aha.estimate.why.measured import read_measured
from aha.models.counts import cache_bytes_per_token, count_parameters
from bench import why
from bench.child import Measurement
from bench.why_races import race_critic, race_decoding, tiny_config, variants


def test_variants_differ_from_the_model_in_one_choice_each() -> None:
    found = variants()
    counts = {side: count_parameters(config) for side, (_, config, _, _) in found.items()}
    whole = counts["as it is"]
    assert counts["dense, as many parameters"].total == pytest.approx(whole.total, rel=1e-3)
    assert counts["dense, as many active"].total == pytest.approx(whole.active, rel=1e-3)
    assert counts["without prediction"].mtp == 0
    assert counts["bfloat16"] == whole
    assert len({choice for choice, *_ in found.values()}) == 6


def test_training_rows_are_compared_with_the_model_as_it_is() -> None:
    seconds = {side: (2.0, 1.0, 4.0) if side == "as it is" else (4.0,) for side in variants()}
    counts = {side: {"total": 3, "active": 2} for side in seconds}
    found = Measurement(seconds=(2.0,), num_tokens=100, details={"seconds": seconds, "parameters": counts})
    rows = list(why.training_rows(found))
    assert (rows[0]["side"], rows[0]["median"], rows[0]["ratio"]) == ("as it is", 50.0, 1.0)
    assert all(row["ratio"] == 0.5 and row["num_active_parameters"] == 2 for row in rows[1:])


def test_decoding_race_tells_what_a_token_leaves_in_the_cache() -> None:
    found = race_decoding({"prompt": 12, "rows": 2, "num_tokens": 2, "rounds": 1})
    assert found.details["cache_bytes_per_token"] == {"as it is": 4 * 4 * (64 + 16), "full heads": 4 * 4 * 2 * 4 * 32}
    assert found.details["cache_bytes_per_token"]["as it is"] == cache_bytes_per_token(tiny_config(), bytes_per_value=4)
    cache = [row for row in why.decoding_rows(found) if row["what"] == "cache"]
    assert [row["ratio"] for row in cache] == [1.0, pytest.approx(3.2)]


@pytest.mark.slow
def test_critic_race_has_the_critic_only_where_it_is_asked_for() -> None:
    job = {"shape": "tiny", "num_sequences": 1, "length": 20, "rounds": 1}
    assert list(race_critic({**job, "side": "group"}).details["seconds"]) == ["GRPO's group"]
    assert list(race_critic({**job, "side": "critic"}).details["seconds"]) == ["GRPO's group", "PPO's critic"]


def test_docs_show_the_figures_that_are_kept() -> None:
    root = Path(why.__file__).parents[1]
    kept = json.loads(why.RESULTS.read_text(encoding="utf-8"))
    assert why.to_markdown(kept["rows"]) in (root / "docs" / "why.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_quick_run_measures_every_choice_and_keeps_a_readable_file(tmp_path: Path) -> None:
    why.main(["--quick", "--results", str(tmp_path / "why.json")])
    found = read_measured(str(tmp_path / "why.json"))
    assert found["is_quick"]
    assert len(found["rows"]) >= 17
    raw = json.loads((tmp_path / "why.json").read_text(encoding="utf-8"))
    assert {row["choice"] for row in raw["cited"]} == {"distilling", "flat_groups_dropped"}
