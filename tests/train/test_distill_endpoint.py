"""Distilling from a model behind an endpoint: what is learned, what is paid, and what a kill costs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aha.cost.ledger import Ledger, LedgerFilter
from aha.errors import AhaError
from aha.train import train
from aha.train.dataset import read_examples
from aha.train.job import Job
from tests.client.conftest import KEY, LiveEndpoint, Request, completion, ok, refuse
from tests.train.conftest import FirstToken, rows, write_stages

STAGE = {
    "kind": "distill", "name": "taught", "teacher_price": "1/10", "budget_usd": 1.0, "concurrency": 2,
    "collect_steps": 2, "prompts_per_step": 4, "num_samples": 1, "steps": 12, "examples_per_step": 4,
}  # fmt: skip
SHARED = {"task": "words.jsonl", "max_tokens": 4, "dtype": "float32", "eval_problems": 8, "learning_rate": 1e-2}
COST_OF_ONE = 12 * 1_000 + 30 * 10_000
"""Nano-dollars of the 12 + 30 tokens that the endpoint reports."""


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveEndpoint]:
    monkeypatch.setenv("AHA_ENDPOINT_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    server = LiveEndpoint()
    server.default = teach
    yield server
    server.stop()


def teach(request: Request) -> None:
    """Right for three prompts of four; the thinking comes as DeepSeek's API sends it."""
    number = int(request.body["messages"][-1]["content"].split()[-1])
    answer = "2" if number % 4 else "3"
    message = {"role": "assistant", "content": answer, "reasoning_content": "I say"}
    request.say(json.dumps(completion(message=message)).encode())


@pytest.fixture
def recipe(tmp_path: Path, base_folder: Path, live: LiveEndpoint, first_token: FirstToken) -> Path:
    problems = [{"prompt": f"question {n}", "answer": "2"} for n in range(40)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    stage = {**STAGE, "teacher": f"openai:deepseek-reasoner@{live.base_url}"}
    return write_stages(tmp_path / "far.toml", {**SHARED, "model": str(base_folder)}, stage)


def test_student_learns_from_right_answers_and_the_bill_has_what_they_cost(
    recipe: Path, live: LiveEndpoint, tmp_path: Path
) -> None:
    folder = train(recipe, out=tmp_path / "out")
    assert len(live.bodies) == 8
    examples = read_examples(folder / "data" / "taught")
    assert 3 <= len(examples) <= 8
    assert {(e.reasoning, e.answer) for e in examples} == {("I say", "2")}
    bill = json.loads((folder / "bill.json").read_text())
    assert sum(phase["endpoint_cost_usd"] for phase in bill["phases"]) == pytest.approx(8 * COST_OF_ONE / 1e9)
    assert bill["cost_usd"] == pytest.approx(sum(phase["cost_usd"] for phase in bill["phases"]), abs=1e-12)
    with Ledger.open() as ledger:
        assert ledger.total_nano_usd() == round(bill["cost_usd"] * 1e9)
        charged = ledger.grouped(LedgerFilter(), by="price")
        (priced,) = [name for name in charged if not name.startswith("cpu")]
        assert charged[priced].cost_nano_usd == 8 * COST_OF_ONE
        assert (charged[priced].prompt_tokens > 0, charged[priced].wall_ms) == (True, 0)
        assert ledger.verify() == []
    losses = [row["loss"] for row in rows(folder, "step") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_key_is_written_nowhere(recipe: Path, live: LiveEndpoint, tmp_path: Path) -> None:
    folder = train(recipe, out=tmp_path / "out")
    assert live.headers[0]["authorization"] == f"Bearer {KEY}"
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        assert KEY.encode() not in path.read_bytes(), path


def test_resumed_run_does_not_pay_twice(
    recipe: Path, live: LiveEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first answers were paid for and before any checkpoint."""

    def stop(job: Job, step: int, metrics: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "log_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=tmp_path / "out")
    assert len(live.bodies) == 4
    folder = train(recipe, out=tmp_path / "out", resume=True)
    assert len(live.bodies) == 8
    bill = json.loads((folder / "bill.json").read_text())
    assert sum(phase["endpoint_cost_usd"] for phase in bill["phases"]) == pytest.approx(8 * COST_OF_ONE / 1e9)


def test_budget_is_never_exceeded_and_what_it_bought_is_used(recipe: Path, live: LiveEndpoint, tmp_path: Path) -> None:
    """Worst case of a request: some 0.3 thousandths of a dollar in, 40 out; it settles at 0.312."""
    budget = 0.00125
    folder = train(recipe, overrides=[f"budget_usd={budget}", "concurrency=1", "collect_steps=4"], out=tmp_path / "out")
    bill = json.loads((folder / "bill.json").read_text())
    spent = sum(phase["endpoint_cost_usd"] for phase in bill["phases"])
    assert 0 < spent <= budget
    assert 0 < len(live.bodies) < 16
    assert len(rows(folder, "step")) > 12


def test_endpoint_that_refuses_for_good_stops_the_run_in_one_line_and_it_can_be_resumed(
    recipe: Path, live: LiveEndpoint, tmp_path: Path
) -> None:
    live.script = [refuse(401, "no such key")] * 4
    with pytest.raises(AhaError, match="no such key") as error:
        train(recipe, out=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)
    live.script.clear()
    folder = train(recipe, out=tmp_path / "out", resume=True)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_prompt_that_the_endpoint_refuses_is_left_out(recipe: Path, live: LiveEndpoint, tmp_path: Path) -> None:
    def picky(request: Request) -> None:
        is_refused = int(request.body["messages"][-1]["content"].split()[-1]) % 2 == 0
        (refuse(400, "this prompt is not allowed") if is_refused else teach)(request)

    live.default = picky
    folder = train(recipe, overrides=["collect_steps=4"], out=tmp_path / "out")
    prompts = [example.prompt for example in read_examples(folder / "data" / "taught")]
    assert prompts
    assert all(int(prompt.split()[-1]) % 2 for prompt in prompts)


def test_wrong_answers_alone_leave_nothing_to_learn_from(recipe: Path, live: LiveEndpoint, tmp_path: Path) -> None:
    live.default = ok("3")
    with pytest.raises(AhaError, match=re.escape("kept no answer at all (wrong: 8)")):
        train(recipe, out=tmp_path / "out")


def test_endpoint_without_a_price_cannot_keep_a_budget(recipe: Path, live: LiveEndpoint, tmp_path: Path) -> None:
    with pytest.raises(AhaError, match="price"):
        train(recipe, overrides=["teacher_price="], out=tmp_path / "out")
    assert not live.bodies


def test_budget_that_buys_nothing_is_what_the_error_speaks_of(recipe: Path, live: LiveEndpoint, tmp_path: Path) -> None:
    with pytest.raises(AhaError, match="raise budget_usd"):
        train(recipe, overrides=["budget_usd=0.0001"], out=tmp_path / "out")
    assert not live.bodies


def test_resumed_run_cannot_change_how_its_steps_are_counted(
    recipe: Path, live: LiveEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.script = [refuse(401, "no such key")] * 4
    with pytest.raises(AhaError):
        train(recipe, out=tmp_path / "out")
    with pytest.raises(AhaError, match="began with collect_steps=2"):
        train(recipe, out=tmp_path / "out", resume=True, overrides=["collect_steps=1"])
