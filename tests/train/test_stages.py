"""Recipes of several stages: what each hands to the next, how each is measured and billed, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aha.models import load_model
from aha.train import train
from aha.train.collecting import Collector
from aha.train.dataset import read_examples
from aha.train.job import Job
from aha.train.rejection import RejectionConfig
from aha.train.sft import ExampleSource, SFTConfig
from aha.train.teacher import LocalTeacher
from tests.train.conftest import Aha, FirstToken, assert_refused, rows, write_stages

SHARED = {
    "task": "first_token", "dtype": "float32", "max_tokens": 2, "eval_problems": 8, "checkpoint_every": 50,
    "learning_rate": 1e-2, "seed": 1,
}  # fmt: skip
COLD = {"kind": "sft", "name": "cold", "steps": 12, "examples_per_step": 4}
RL = {
    "kind": "grpo", "name": "rl", "steps": 2, "prompts_per_step": 3, "group_size": 4, "preflight_prompts": 0,
    "learning_rate": 1e-4,
}  # fmt: skip
REJECTED = {"kind": "rejection", "name": "rejected", "steps": 2, "prompts_per_step": 8, "num_samples": 4}
AGAIN = {"kind": "sft", "name": "again", "start": "base", "data": ["rejected"], "steps": 12, "examples_per_step": 4}
LAST = {**RL, "name": "rl_all"}
TAUGHT = {
    "kind": "distill", "name": "taught", "teacher": "previous", "start": "base", "steps": 12, "collect_steps": 2,
    "prompts_per_step": 8, "examples_per_step": 4, "num_samples": 4,
}  # fmt: skip
FOLLOWED = {**TAUGHT, "name": "followed", "method": "on_policy", "steps": 16}


@pytest.fixture
def run(tmp_path: Path, base_folder: Path, first_token: FirstToken) -> Any:
    def call(*stages: dict[str, object], **changes: object) -> Path:
        recipe = write_stages(tmp_path / "many.toml", {**SHARED, "model": str(base_folder), **changes}, *stages)
        return train(recipe, out=tmp_path / "out")

    return call


def test_the_five_stages_of_r1_run_in_order_and_the_score_rises(run: Any) -> None:
    folder = run(COLD, RL, REJECTED, AGAIN, LAST)
    stages = rows(folder, "stage")
    assert [(row["stage"], row["stage_kind"]) for row in stages] == [
        ("cold", "sft"), ("rl", "grpo"), ("rejected", "rejection"), ("again", "sft"), ("rl_all", "grpo"),
    ]  # fmt: skip
    assert [row["step"] for row in stages] == [12, 14, 16, 28, 30]
    assert stages[2]["pass_at_1"] is None
    before, after = rows(folder, "eval")[0], rows(folder, "eval")[-1]
    assert after["pass_at_1"] > before["pass_at_1"] + 0.5
    assert len(rows(folder, "eval")) == 5
    examples = read_examples(folder / "data" / "rejected")
    assert {example.answer for example in examples} == {"2"}
    page = (folder / "report.html").read_text()
    assert "Stage by stage" in page
    assert "<th>rejected</th><td>rejection</td><td>2</td><td>–</td>" in page


def test_every_stage_has_its_rows_in_the_bill_and_they_add_up(run: Any) -> None:
    folder = run(COLD, REJECTED, AGAIN)
    bill = json.loads((folder / "bill.json").read_text())
    labels = [(phase["stage"], phase["name"]) for phase in bill["phases"]]
    assert labels == [
        ("", "evaluation before"),
        ("cold", "supervised training"),
        ("cold", "evaluation during training"),
        ("rejected", "sampling"),
        ("again", "supervised training"),
        ("", "evaluation after"),
    ]
    assert sum(phase["cost_usd"] for phase in bill["phases"]) == pytest.approx(bill["cost_usd"], abs=1e-12)
    cold = rows(folder, "stage")[0]
    mine = [phase for phase in bill["phases"] if phase["stage"] == "cold"]
    assert cold["cost_usd"] == pytest.approx(sum(phase["cost_usd"] for phase in mine), abs=1e-12)
    assert cold["trained_tokens"] == sum(phase["trained_tokens"] for phase in mine)


def test_stage_that_starts_from_the_base_forgets_what_came_before(run: Any, base_folder: Path) -> None:
    """With a rate too small to matter, what is left after the second stage is the base again."""
    folder = run(COLD, REJECTED, {**AGAIN, "steps": 1, "learning_rate": 1e-12})
    base, final = load_model(base_folder, dtype="float32"), load_model(folder / "model", dtype="float32")
    for name, parameter in final.named_parameters():
        torch.testing.assert_close(parameter, dict(base.named_parameters())[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["sequences", "on_policy"])
def test_student_learns_what_the_stage_before_left(run: Any, method: str) -> None:
    folder = run(COLD, TAUGHT if method == "sequences" else FOLLOWED)
    before, after_teacher, after = (row["pass_at_1"] for row in rows(folder, "eval"))
    assert after_teacher > before + 0.5
    assert after > before + 0.5
    steps = [row for row in rows(folder, "step") if row["step"] > COLD["steps"]]
    if method == "on_policy":
        assert steps[-1]["divergence"] < 0.5 * steps[0]["divergence"]
    else:
        assert [("num_kept" in row, "loss" in row) for row in (steps[0], steps[2])] == [(True, False), (False, True)]
        assert len(steps) == 14


def test_teacher_may_be_a_folder_and_the_student_goes_on_from_the_previous_stage(run: Any, tmp_path: Path) -> None:
    teacher = run(COLD)
    recipe = write_stages(
        tmp_path / "second.toml",
        {**SHARED, "model": SHARED.get("model", str(tmp_path / "base"))},
        {**TAUGHT, "teacher": str(teacher), "start": "previous"},
    )
    base = json.loads((teacher / "run.json").read_text())
    assert base["status"] == "finished"
    overrides = [f"model={read_model(teacher)}"]
    folder = train(recipe, overrides=overrides, out=tmp_path / "student")
    before, after = (row["pass_at_1"] for row in rows(folder, "eval"))
    assert after > before + 0.5
    assert f"| teacher | {teacher} |" in (folder / "data" / "taught" / "README.md").read_text()


def read_model(folder: Path) -> str:
    import tomllib

    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    stage = recipe["stage"][0] if isinstance(recipe["stage"], list) else recipe
    return str(stage["model"])


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        ([{**TAUGHT}], ["'taught'", 'teacher = "previous" needs a stage before it']),
        ([COLD, {**TAUGHT, "start": "previous"}], ['teacher = "previous" needs start = "base"']),
        ([COLD, {**AGAIN, "data": ["rejectd"]}], ["data 'rejectd' is neither an earlier stage"]),
        ([AGAIN, REJECTED], ["data 'rejected' is neither an earlier stage that collects (none)"]),
        ([{**COLD, "demonstration_share": 0.5}], ["demonstration_share mixes demonstrations into data"]),
        ([{**TAUGHT, "teacher": "openai:x@http://127.0.0.1:1/v1"}], ["say how much at most", "budget_usd"]),
        (
            [{**FOLLOWED, "teacher": "openai:x@http://127.0.0.1:1/v1", "budget_usd": 1.0}],
            ["an endpoint does not show its distribution"],
        ),
        ([{**REJECTED, "kind": "rejected"}], ["unknown stage 'rejected'", "did you mean 'rejection'"]),
        ([COLD, {**REJECTED, "keep_per_prompt": 0}], ["keep_per_prompt must be at least 1, got 0"]),
    ],
)
def test_recipe_that_cannot_work_is_refused_before_anything_runs(
    aha: Aha, tmp_path: Path, base_folder: Path, first_token: FirstToken, stages: list[Any], parts: list[str]
) -> None:
    recipe = write_stages(tmp_path / "bad.toml", {**SHARED, "model": str(base_folder)}, *stages)
    assert_refused(aha(recipe, "--out", tmp_path / "never"), *parts)
    assert not (tmp_path / "never").exists()


def test_teacher_with_another_vocabulary_is_refused(
    aha: Aha, tmp_path: Path, base_folder: Path, first_token: FirstToken
) -> None:
    """The built-in model has the same number of tokens as the test's, or another: both must be noticed."""
    other = tmp_path / "other"
    load_model(base_folder, dtype="float32").save(other)
    for path in base_folder.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            text = path.read_text()
            (other / path.name).write_text(text.replace('"a": ', '"ä": ', 1) if path.name == "tokenizer.json" else text)
    assert (other / "tokenizer.json").read_text() != (base_folder / "tokenizer.json").read_text()
    recipe = write_stages(
        tmp_path / "far.toml",
        {**SHARED, "model": str(base_folder)},
        {**FOLLOWED, "teacher": str(other), "start": "previous", "steps": 1},
    )
    assert_refused(aha(recipe, "--out", tmp_path / "out"), "has another tokenizer", 'method = "sequences"')


def test_two_stages_of_one_kind_do_not_repeat_each_other(run: Any) -> None:
    """The same settings, seed and all: other problems in GRPO, other demonstrations and another order in SFT."""
    still = {"learning_rate": 1e-12, "steps": 1, "samples_per_step": 8, "prompts_per_step": 8}
    folder = run({**RL, **still}, {**LAST, **still}, eval_problems=0)
    prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(prompts) == 16
    assert prompts[:8] != prompts[8:]


@pytest.mark.parametrize("data", [(), ("many.jsonl",)])
def test_examples_of_two_stages_come_in_another_order(job: Job, first_token: FirstToken, data: tuple[str, ...]) -> None:
    Path("many.jsonl").write_text("".join(json.dumps({"prompt": f"q{n}", "answer": "2"}) + "\n" for n in range(40)))
    config = SFTConfig(task="first_token", data=data, examples_per_step=8, seed=3)
    first = ExampleSource(config, job).draw(0)
    job.stage_index = 1
    assert ExampleSource(config, job).draw(0) != first


def test_two_collecting_stages_ask_other_problems(job: Job, first_token: FirstToken) -> None:
    asked = []
    for index in (0, 1):
        job.stage_index, job.stage_name = index, f"collected_{index}"
        collector = Collector.resumed(
            RejectionConfig(task="first_token"), job, teacher=LocalTeacher(job.engine, job.chat, name=""), state=None
        )
        asked.append([problem.prompt for problem in collector.stream.take(8)])
    assert asked[0] != asked[1]


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "", ".hidden", "x" * 300, "a.b", "a\nb"])
def test_name_that_no_folder_should_have_is_refused(
    aha: Aha, tmp_path: Path, base_folder: Path, first_token: FirstToken, name: str
) -> None:
    recipe = write_stages(
        tmp_path / "bad.toml", {**SHARED, "model": str(base_folder)}, COLD, {**REJECTED, "name": name}
    )
    assert_refused(aha(recipe, "--out", tmp_path / "never"), "name", "letters, digits")
    assert not (tmp_path / "never").exists()


def test_names_that_differ_in_case_alone_are_refused(
    aha: Aha, tmp_path: Path, base_folder: Path, first_token: FirstToken
) -> None:
    """They would be one folder where the disk does not tell them apart."""
    recipe = write_stages(
        tmp_path / "bad.toml", {**SHARED, "model": str(base_folder)}, COLD, REJECTED, {**REJECTED, "name": "Rejected"}
    )
    assert_refused(aha(recipe, "--out", tmp_path / "never"), "two stages are named")


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ({**TAUGHT, "teacher": "nowhere/at-all.x"}, ["stage 'taught'", "teacher", "nowhere/at-all.x"]),
        ({**TAUGHT, "teacher": "hollow"}, ["stage 'taught'", "teacher", "hollow"]),
        (
            {**TAUGHT, "teacher": "openai:x", "budget_usd": 1.0, "teacher_price": "1/2"},
            ["stage 'taught'", "is no endpoint"],
        ),
        (
            {**TAUGHT, "teacher": "openai:x@http://127.0.0.1:1/v1", "budget_usd": 1.0, "teacher_price": "a"},
            ["stage 'taught'", "price"],
        ),
        (
            {**TAUGHT, "teacher": "openai:x@http://127.0.0.1:1/v1", "budget_usd": 1.0, "teacher_price": ""},
            ["stage 'taught'", "price"],
        ),
        ({**AGAIN, "data": ["odd.jsonl"]}, ["stage 'again'", "odd.jsonl line 2"]),
        ({**AGAIN, "data": [], "task": "words.jsonl"}, ["stage 'again'", "has no demonstrations"]),
    ],
)
def test_later_stage_that_cannot_work_is_refused_before_the_first_one_runs(
    aha: Aha, tmp_path: Path, base_folder: Path, first_token: FirstToken, stage: dict[str, object], parts: list[str]
) -> None:
    words = [json.dumps({"prompt": f"question {n}", "answer": "2"}) for n in range(40)]
    (tmp_path / "words.jsonl").write_text("\n".join(words))
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": 3}\n')
    shutil.copytree(base_folder, tmp_path / "hollow", ignore=shutil.ignore_patterns("*.safetensors*"))
    recipe = write_stages(tmp_path / "bad.toml", {**SHARED, "model": str(base_folder)}, COLD, stage)
    assert_refused(aha(recipe, "--out", tmp_path / "never"), *parts)
    assert not (tmp_path / "never").exists()


def test_evaluations_can_be_left_out_altogether(run: Any) -> None:
    folder = run({**COLD, "eval_every": 4}, RL, eval_problems=0)
    assert not rows(folder, "eval")
