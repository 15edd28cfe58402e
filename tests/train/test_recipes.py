"""The shipped recipes of R1's pipeline, smaller than they are: the score rises in each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aha.config import recipe_paths
from aha.train import train
from aha.train.source import read_source
from tests.train.conftest import rows

SMALLER = {
    "r1_zero": ["steps=6", "prompts_per_step=24", "group_size=8"],
    "r1": [
        "stage.cold_start.steps=5", "stage.reasoning_rl.steps=4", "prompts_per_step=24", "group_size=8",
        "stage.rejected.prompts_per_step=64", "stage.rejected.steps=4", "stage.sft.steps=60",
        "stage.rl_over_everything.steps=4",
    ],
    "distill": [
        "stage.teacher.steps=6", "prompts_per_step=24", "group_size=8", "stage.student.prompts_per_step=64",
        "stage.student.collect_steps=4", "stage.student.steps=60",
    ],
    "v3_tiny": ["stage.pretraining.steps=1000", "stage.rl.steps=4", "prompts_per_step=24", "group_size=8"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_score_rises_in_a_smaller_run(name: str, tmp_path: Path) -> None:
    folder = train(name, overrides=[*SMALLER[name], "eval_problems=300"], out=tmp_path / name)
    before, after = rows(folder, "eval")[0]["pass_at_1"], rows(folder, "eval")[-1]["pass_at_1"]
    assert after > before + 0.05
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("path", recipe_paths().values(), ids=lambda path: path.stem)
def test_first_comment_says_machine_time_dollars_and_score(path: Path) -> None:
    comment = "\n".join(line for line in path.read_text().splitlines()[:4] if line.startswith("#"))
    if "Not run here" in comment:
        assert "--dry-run" in comment
    else:
        assert "core" in comment
        assert "minute" in comment or "hour" in comment
        assert "$" in comment or "cent" in comment
        assert "%" in comment


@pytest.mark.parametrize("path", recipe_paths().values(), ids=lambda path: path.stem)
def test_every_setting_of_a_recipe_is_in_order(path: Path) -> None:
    assert read_source(str(path), overrides=()).configs


PAGE = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_recipes_of_the_page_on_stages_are_in_order(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.toml").write_text(text, encoding="utf-8")
    assert read_source(str(tmp_path / "page.toml"), overrides=()).configs


def test_page_on_stages_trains_only_what_there_is() -> None:
    commands = re.findall(r"^aha train (\S+)((?: [\w.]+=\S+)*)", PAGE, re.MULTILINE)
    assert len(commands) >= 6
    for name, overrides in commands:
        assert read_source(name, overrides=overrides.split()).configs
