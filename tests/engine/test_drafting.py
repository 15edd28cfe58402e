"""Drafts against modules that compute whole sequences, and the choice of whether to draft under a clock of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aha.engine import Engine
from aha.engine.cache import KeyValueCache
from aha.engine.rows import Rows
from aha.engine.speculation import SETTLED_STEPS, TRIAL_STEPS, WARM_UP_STEPS, SpeculationTrials
from aha.models import PackedAttention, Transformer
from aha.types import SamplingParams
from tests.engine.conftest import DEEPSEEK_V3

PROMPTS = [[1, 2, 3], [4, 4, 4, 4, 4, 4, 4], [9], [40, 41, 42, 43, 44], [7, 8]]


@torch.no_grad()
def slow_drafts(model: Transformer, token_ids: list[int], *, first: int) -> list[int]:
    """Greedy drafts behind a sequence, every module computed over all positions from `first` on, without a cache."""
    known = torch.tensor(token_ids)
    num_positions = len(known) - 1
    states_ND = model.hidden_states(
        known[:-1], positions_N=torch.arange(num_positions), attention=PackedAttention([num_positions])
    )[first:]
    drafts: list[int] = []
    for depth in range(model.config.num_mtp_layers):
        # A module knows a position from where its token is one that the modules before it knew too.
        next_ids_N = torch.tensor([*token_ids, *drafts])[first + depth + 1 :]
        states_ND = model.mtp_states(
            states_ND,
            next_ids_N,
            depth=depth,
            positions_N=torch.arange(len(states_ND)),
            attention=PackedAttention([len(states_ND)]),
        )
        drafts.append(int(F.linear(states_ND[-1], model.output_weight).argmax()))
    return drafts


def record_drafts(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """The sequence of every row and the drafts behind it, from every step that drafts."""
    recorded: list[tuple[list[int], list[int]]] = []
    drafter = engine._drafter
    assert drafter is not None
    draft = drafter.draft

    def remember(cache: KeyValueCache, rows: Rows) -> Tensor:
        drafts_BK = draft(cache, rows)
        for row, (request, _) in enumerate(rows.owners):
            recorded.append(([*request.prompt_ids, *rows.history(row)[0]], drafts_BK[row].tolist()))
        return drafts_BK

    drafter.draft = remember  # type: ignore[method-assign]
    return recorded


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
@pytest.mark.parametrize("num_mtp_layers", [1, 2, 3])
def test_drafts_equal_modules_over_whole_sequences(make_drafting_model: Any, family: str, num_mtp_layers: int) -> None:
    fields = DEEPSEEK_V3 if family == "deepseek_v3" else {}
    model = make_drafting_model(num_mtp_layers=num_mtp_layers, **fields)
    engine = Engine(model, speculation="always", max_batch_size=4)
    recorded = record_drafts(engine)
    engine.generate(PROMPTS, SamplingParams(num_samples=2, temperature=0.0, max_tokens=18))
    assert len(recorded) > 60
    for sequence, drafts in recorded:
        assert drafts == slow_drafts(model, sequence, first=0)


def test_drafts_after_a_pause_come_from_what_was_seen_since(
    make_drafting_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_drafting_model(num_mtp_layers=2, eos_token_ids=(), **DEEPSEEK_V3)
    engine = Engine(model, speculation="always")
    recorded = record_drafts(engine)
    num_steps = 0

    def drafts_in_some_steps() -> bool:
        nonlocal num_steps
        num_steps += 1
        return num_steps > 6

    monkeypatch.setattr(engine, "_drafts_now", drafts_in_some_steps)
    prompts, greedy = [[1, 2, 3], [4] * 7], SamplingParams(temperature=0.0, max_tokens=25)
    done = engine.generate(prompts, greedy)
    assert [c.token_ids for (c,) in done] == [c.token_ids for (c,) in Engine(model).generate(prompts, greedy)]
    # The prompt, five tokens in five steps, and from the last of these on the modules see everything.
    firsts = {tuple(prompt): len(prompt) - 1 + 5 for prompt in prompts}
    assert len(recorded) > 10
    for sequence, drafts in recorded:
        (first,) = (at for prompt, at in firsts.items() if tuple(sequence[: len(prompt)]) == prompt)
        assert drafts == slow_drafts(model, sequence, first=first)


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self, *, drafting_seconds: float) -> None:
        self.engine: Engine | None = None
        self.drafting_seconds = drafting_seconds
        self._seconds, self._num_calls, self._num_drafted = 0.0, 0, 0

    def __call__(self) -> float:
        assert self.engine is not None
        self._num_calls += 1
        if self._num_calls % 2 == 0:  # the end of a step
            has_drafted = self.engine.num_drafted_tokens > self._num_drafted
            self._seconds += self.drafting_seconds if has_drafted else 1.0
        self._num_drafted = self.engine.num_drafted_tokens
        return self._seconds


def drafted_share(engine: Engine, clock: Clock, *, num_rounds: int) -> float:
    """Drafts of all tokens written in the later rounds of generating for one row."""
    clock.engine = engine
    engine.generate([[1, 2]], SamplingParams(temperature=0.0, max_tokens=120))
    before = (engine.num_drafted_tokens, engine.num_decoded_tokens)
    for _ in range(num_rounds):
        engine.generate([[1, 2]], SamplingParams(temperature=0.0, max_tokens=120))
    return (engine.num_drafted_tokens - before[0]) / (engine.num_decoded_tokens - before[1])


def test_drafting_stops_by_itself_where_it_does_not_pay_and_goes_on_where_it_does(make_drafting_model: Any) -> None:
    model = make_drafting_model(eos_token_ids=(), max_position_embeddings=256)
    expected = Engine(model).generate([[1, 2]], SamplingParams(temperature=0.0, max_tokens=120))[0][0].token_ids
    for drafting_seconds, is_wanted in ((1.01, True), (2.5, False)):
        clock = Clock(drafting_seconds=drafting_seconds)
        engine = Engine(model, speculation="auto", clock=clock)
        share = drafted_share(engine, clock, num_rounds=1)
        assert (share > 0.5) if is_wanted else (share == 0)
        done = engine.generate([[1, 2]], SamplingParams(temperature=0.0, max_tokens=120))
        assert done[0][0].token_ids == expected


def run_trials(trials: SpeculationTrials, *, num_steps: int, drafting_seconds: float, num_rows: int = 4) -> list[bool]:
    """Which way each of so many steps took, where drafts are right every other time."""
    ways = []
    for _ in range(num_steps):
        drafts = trials.drafts_now(num_rows)
        num_tokens = num_rows * 3 // 2 if drafts else num_rows
        seconds = drafting_seconds if drafts else 1.0
        trials.record(num_rows, drafted=drafts, num_tokens=num_tokens, seconds=seconds)
        ways.append(drafts)
    return ways


def test_slower_way_is_tried_again_now_and_then_and_taken_once_it_is_faster() -> None:
    trials = SpeculationTrials()
    one_trial = TRIAL_STEPS + WARM_UP_STEPS
    ways = run_trials(trials, num_steps=2 * one_trial, drafting_seconds=1.7)
    assert ways == [True] * one_trial + [False] * one_trial
    ways = run_trials(trials, num_steps=3 * (SETTLED_STEPS + one_trial + WARM_UP_STEPS), drafting_seconds=1.7)
    assert 0 < sum(ways) / len(ways) < 0.06, "drafting is 1.7 times as slow for 1.5 times the tokens"
    ways = run_trials(trials, num_steps=2 * SETTLED_STEPS, drafting_seconds=1.2)
    assert all(ways[-SETTLED_STEPS // 2 :])


def test_each_size_of_the_batch_is_tried_on_its_own() -> None:
    trials = SpeculationTrials()
    for _ in range(2):
        run_trials(trials, num_steps=2 * (TRIAL_STEPS + WARM_UP_STEPS), drafting_seconds=1.2, num_rows=2)
        run_trials(trials, num_steps=2 * (TRIAL_STEPS + WARM_UP_STEPS), drafting_seconds=2.0, num_rows=64)
    assert (trials.drafts_now(2), trials.drafts_now(3), trials.drafts_now(64)) == (True, True, False)


def test_one_hiccup_of_the_machine_decides_nothing() -> None:
    trials = SpeculationTrials()
    run_trials(trials, num_steps=10, drafting_seconds=1.2)
    run_trials(trials, num_steps=1, drafting_seconds=90.0)
    run_trials(trials, num_steps=2 * (TRIAL_STEPS + WARM_UP_STEPS), drafting_seconds=1.2)
    assert trials.drafts_now(4)
