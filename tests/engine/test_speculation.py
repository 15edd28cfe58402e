"""What the engine writes with drafts is what it writes without, whatever becomes of them."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from aha.engine import Engine, EngineEvent
from aha.engine import engine as engine_module
from aha.engine.step import RUNNING, STOP, Verified, verify
from aha.models import Transformer
from aha.types import Completion, FinishReason, SamplingParams
from tests.engine.conftest import DEEPSEEK_V3, QWEN3_MOE
from tests.engine.test_sampling import surviving_probs

PROMPTS = [[1, 2, 3], [4, 4, 4, 4, 4, 4, 4], [9], [40, 41, 42, 43, 44], [7, 8]]
FAMILIES: dict[str, dict[str, Any]] = {"deepseek_v3": DEEPSEEK_V3, "qwen3_moe": QWEN3_MOE, "llama": {}}


def assert_same(done: Sequence[Sequence[Completion]], expected: Sequence[Sequence[Completion]]) -> None:
    for one, other in zip(itertools.chain(*done), itertools.chain(*expected), strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason is other.finish_reason
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_mtp_layers", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_completions_are_the_same_with_and_without_drafts(
    make_drafting_model: Any, family: str, num_mtp_layers: int, temperature: float
) -> None:
    model = make_drafting_model(num_mtp_layers=num_mtp_layers, **FAMILIES[family])
    sampling = [
        SamplingParams(num_samples=3, temperature=temperature, top_p=0.9, max_tokens=limit, seed=limit)
        for limit in (24, 60, 15, 2, 1)
    ]
    expected = Engine(model).generate(PROMPTS, sampling)
    for limits in ({}, {"max_batch_size": 4}):
        engine = Engine(model, speculation="always", **limits)
        assert_same(engine.generate(PROMPTS, sampling), expected)
        # Enough of both kinds: a model that is always right or always wrong would prove nothing.
        assert 0.1 < engine.num_accepted_tokens / engine.num_drafted_tokens < 0.9
        assert engine.num_decoded_tokens == sum(c.num_tokens for group in expected for c in group)


def test_model_without_modules_never_drafts(make_model: Any) -> None:
    model = make_model()
    sampling = SamplingParams(num_samples=2, max_tokens=20, seed=1)
    engine = Engine(model, speculation="always")
    assert engine.generate(PROMPTS, sampling) == Engine(model).generate(PROMPTS, sampling)
    assert engine.num_drafted_tokens == 0


def test_int8_engine_never_drafts(make_drafting_model: Any) -> None:
    engine = Engine(make_drafting_model(), speculation="always", quantize="int8")
    engine.generate(PROMPTS, SamplingParams(max_tokens=9, seed=1))
    assert engine.num_drafted_tokens == 0


def test_group_and_batch_mates_make_no_difference_to_drafted_completions(make_drafting_model: Any) -> None:
    model = make_drafting_model(num_mtp_layers=2, **DEEPSEEK_V3)
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(11, 97, (length,), generator=generator).tolist()
        for length in torch.randint(1, 30, (40,), generator=generator).tolist()
    ]
    sampling = [SamplingParams(temperature=1.0, max_tokens=12 + i % 17, seed=i) for i in range(40)]
    together = Engine(model, speculation="always").generate(prompts, sampling)
    for i in (0, 7, 30, 39):
        assert_same(Engine(model, speculation="always").generate([prompts[i]], sampling[i]), [together[i]])


@pytest.mark.slow
def test_repeated_run_with_drafts_is_bit_identical(make_drafting_model: Any) -> None:
    model = make_drafting_model(num_mtp_layers=2, **DEEPSEEK_V3)
    engine = Engine(model, max_batch_size=7, speculation="always")
    sampling = SamplingParams(num_samples=4, max_tokens=25, seed=8)
    first = engine.generate(PROMPTS, sampling)
    engine.generate([[3] * 30], SamplingParams(num_samples=9, max_tokens=30))
    assert engine.generate(PROMPTS, sampling) == first
    engine.release_memory()
    assert engine.generate(PROMPTS, sampling) == first


def test_completion_ends_at_an_end_token_within_accepted_drafts(make_drafting_model: Any) -> None:
    """Every position of a long completion becomes the end once, so that some lie within accepted drafts."""
    model = make_drafting_model(num_mtp_layers=3, eos_token_ids=(), **DEEPSEEK_V3)
    greedy = SamplingParams(temperature=0.0, max_tokens=40)
    (whole,) = Engine(model).generate([[40]], greedy)[0]
    num_drafted_ends = 0
    for token_id in set(whole.token_ids):
        engine = Engine(model, speculation="always", stop_token_ids=[token_id])
        engine.submit([40], greedy)
        events: list[EngineEvent] = []
        while engine.has_work:
            events += engine.step()
        end = whole.token_ids.index(token_id) + 1
        assert tuple(event.token_id for event in events) == whole.token_ids[:end]
        assert [event.finish_reason for event in events] == [None] * (end - 1) + [FinishReason.STOP]
        num_drafted_ends += events[-1].was_drafted
    assert num_drafted_ends > 0


@pytest.mark.parametrize("num_mtp_layers", [1, 3])
def test_budget_and_window_end_within_drafts(make_drafting_model: Any, num_mtp_layers: int) -> None:
    model = make_drafting_model(num_mtp_layers=num_mtp_layers, eos_token_ids=(), **DEEPSEEK_V3)
    for max_tokens in range(1, 14):
        sampling = SamplingParams(num_samples=2, temperature=0.5, max_tokens=max_tokens, seed=1)
        done = Engine(model, speculation="always").generate([[2] * 56, [3, 9]], sampling)
        assert_same(done, Engine(model).generate([[2] * 56, [3, 9]], sampling))
        assert [c.num_tokens for c in (done[0][0], done[1][0])] == [min(max_tokens, 8), max_tokens]
        assert done[0][0].finish_reason is FinishReason.LENGTH


def spell(token_ids: Sequence[int]) -> str:
    """A decoder for tests: every token is one letter."""
    return "".join(chr(ord("a") + token_id % 26) for token_id in token_ids)


@pytest.mark.slow
def test_stop_strings_end_a_completion_within_accepted_drafts(make_drafting_model: Any) -> None:
    model = make_drafting_model(num_mtp_layers=3, eos_token_ids=(), **DEEPSEEK_V3)
    free = SamplingParams(num_samples=2, temperature=0.3, max_tokens=40, seed=2)
    (wholes,) = Engine(model).generate([[7, 8]], free)
    text = spell(wholes[0].token_ids)
    for start in range(0, 24, 3):
        stop = text[start : start + 3]
        sampling = SamplingParams(num_samples=2, temperature=0.3, max_tokens=40, seed=2, stop=("not it", stop))
        engine = Engine(model, decode=spell, speculation="always")
        (group,) = engine.generate([[7, 8]], sampling)
        assert_same([group], Engine(model, decode=spell).generate([[7, 8]], sampling))
        assert engine.num_decoded_tokens == sum(completion.num_tokens for completion in group)
        assert spell(group[0].token_ids).endswith(stop)


def collect(events: Sequence[EngineEvent]) -> dict[tuple[int, int], list[EngineEvent]]:
    streams: dict[tuple[int, int], list[EngineEvent]] = defaultdict(list)
    for event in events:
        streams[event.request_id, event.sample_index].append(event)
    return streams


def test_stepping_streams_several_tokens_of_a_row_in_order(make_drafting_model: Any) -> None:
    model = make_drafting_model(num_mtp_layers=2, **DEEPSEEK_V3)
    sampling = SamplingParams(num_samples=3, max_tokens=15, seed=5)
    expected = Engine(model).generate(PROMPTS, sampling)
    engine = Engine(model, max_batch_size=4, speculation="always")
    request_ids = [engine.submit(prompt, sampling) for prompt in PROMPTS]
    events: list[EngineEvent] = []
    most = 0
    while engine.has_work:
        new = engine.step()
        most = max(most, *Counter((event.request_id, event.sample_index) for event in new).values())
        events += new
    assert most == 3
    streams = collect(events)
    for request_id, group in zip(request_ids, expected, strict=True):
        for index, completion in enumerate(group):
            stream = streams[request_id, index]
            assert tuple(event.token_id for event in stream) == completion.token_ids
            assert [event.finish_reason for event in stream[:-1]] == [None] * (len(stream) - 1)
            assert stream[-1].finish_reason is completion.finish_reason
            torch.testing.assert_close([e.logprob for e in stream], list(completion.logprobs), atol=1e-5, rtol=0)
    assert sum(event.was_drafted for event in events) == engine.num_accepted_tokens > 0
    num_rejected = engine.num_drafted_tokens - engine.num_accepted_tokens
    assert sum(event.num_rejected_drafts for event in events) == num_rejected


def test_requests_that_come_and_go_leave_drafted_rows_alone(make_drafting_model: Any) -> None:
    model = make_drafting_model(num_mtp_layers=2, eos_token_ids=(), **DEEPSEEK_V3)
    sampling = SamplingParams(num_samples=2, max_tokens=30, seed=6)
    ((*expected,),) = Engine(model).generate([[8, 9]], sampling)
    engine = Engine(model, max_batch_size=5, speculation="always")
    dropped = engine.submit([1, 2, 3], SamplingParams(num_samples=2, max_tokens=30))
    kept = engine.submit([8, 9], sampling)
    events = [event for _ in range(4) for event in engine.step()]
    engine.submit([40] * 20, SamplingParams(max_tokens=3, seed=1))
    events += engine.step()
    engine.abort(dropped)
    while engine.has_work:
        events += engine.step()
    streams = collect([event for event in events if event.request_id == kept])
    assert [tuple(e.token_id for e in streams[kept, i]) for i in (0, 1)] == [c.token_ids for c in expected]


def test_rows_with_drafts_end_when_the_weights_change(make_drafting_model: Any) -> None:
    model, changed = (make_drafting_model(seed=i, eos_token_ids=(), **DEEPSEEK_V3) for i in (0, 1))
    engine = Engine(model, max_batch_size=1, speculation="always")
    running = engine.submit([1, 2], SamplingParams(max_tokens=9, seed=3))
    waiting = engine.submit([3, 4], SamplingParams(max_tokens=9, seed=3))
    engine.step()
    engine.step()
    model.load_state_dict(changed.state_dict())
    model.weight_version += 1
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    streams = collect(events)
    assert streams[running, 0] == [EngineEvent(running, 0, None, 0.0, FinishReason.ABORT)]
    ((expected,),) = Engine(changed).generate([[3, 4]], SamplingParams(max_tokens=9, seed=3))
    assert tuple(event.token_id for event in streams[waiting, 0]) == expected.token_ids


def test_drafts_are_written_up_to_the_first_wrong_one_or_the_end() -> None:
    drawn_BT = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    drafts_BK = torch.tensor([[9, 2], [1, 9], [1, 2], [1, 2]])
    codes_BT = torch.full_like(drawn_BT, RUNNING)
    codes_BT[3, 0] = STOP
    counts_B, num_accepted_B = verify(drawn_BT, drafts_BK=drafts_BK, codes_BT=codes_BT)
    assert counts_B.tolist() == [1, 2, 3, 1]
    assert num_accepted_B.tolist() == [0, 1, 2, 1], "the token that ended the last row had been drafted"


VOCABULARY = 6
NUM_DRAWS = 4000


def exact_joint(model: Transformer, *, num_tokens: int, sampling: SamplingParams) -> Tensor:
    """Probability (V**num_tokens,) of every continuation of the prompt [1], by full passes and a slow truncation."""
    continuations = list(itertools.product(range(VOCABULARY), repeat=num_tokens))
    with torch.no_grad():
        logits_NTV = model(torch.tensor([[1, *tokens[:-1]] for tokens in continuations]))
    probs: dict[tuple[int, ...], list[float]] = {}
    joint = []
    for continuation, logits_TV in zip(continuations, logits_NTV.tolist(), strict=True):
        probability = 1.0
        for place, token_id in enumerate(continuation):
            before = continuation[:place]
            if before not in probs:
                probs[before] = surviving_probs(
                    logits_TV[place], temperature=sampling.temperature, top_k=0, top_p=sampling.top_p, min_p=0.0
                )
            probability *= probs[before][token_id]
        joint.append(probability)
    return torch.tensor(joint)


def chi_square_excess(engine: Engine, *, sampling: SamplingParams, expected: Tensor, num_tokens: int) -> float:
    """How far above its mean the statistic of what was sampled lies, in standard deviations; cells under 5 in one."""
    (group,) = engine.generate([[1]], sampling)
    cells = [sum(t * VOCABULARY**i for i, t in enumerate(reversed(c.token_ids[:num_tokens]))) for c in group]
    counts = torch.bincount(torch.tensor(cells), minlength=len(expected)).double()
    expected = expected.double() * len(group)
    assert bool((counts[expected == 0] == 0).all())
    is_rare = expected < 5
    counts = torch.cat((counts[~is_rare], counts[is_rare].sum().unsqueeze(0)))
    expected = torch.cat((expected[~is_rare], expected[is_rare].sum().unsqueeze(0)))
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    assert degrees > 20
    return float(((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.6, 1.0), (1.3, 0.9)])
@pytest.mark.slow
def test_sampled_distribution_is_the_models(
    make_drafting_model: Any, monkeypatch: pytest.MonkeyPatch, temperature: float, top_p: float
) -> None:
    model = make_drafting_model(num_mtp_layers=2, vocab_size=VOCABULARY, eos_token_ids=(), **DEEPSEEK_V3)
    sampling = SamplingParams(num_samples=NUM_DRAWS, temperature=temperature, top_p=top_p, max_tokens=4, seed=7)
    expected = exact_joint(model, num_tokens=3, sampling=sampling)
    engine = Engine(model, speculation="always")
    assert chi_square_excess(engine, sampling=sampling, expected=expected, num_tokens=3) < 4
    assert 0.1 < engine.num_accepted_tokens / engine.num_drafted_tokens < 0.95

    def believe_drafts(token_ids_BT: Tensor, *, drafts_BK: Tensor, codes_BT: Tensor) -> Verified:
        token_ids_BT[:, :-1] = drafts_BK
        return verify(token_ids_BT, drafts_BK=drafts_BK, codes_BT=codes_BT)

    def go_one_too_far(token_ids_BT: Tensor, *, drafts_BK: Tensor, codes_BT: Tensor) -> Verified:
        counts_B, num_accepted_B = verify(token_ids_BT, drafts_BK=drafts_BK, codes_BT=codes_BT)
        return Verified((counts_B + 1).clamp(max=token_ids_BT.shape[1]), num_accepted_B)

    for wrong in (believe_drafts, go_one_too_far) if top_p == 1.0 else ():
        monkeypatch.setattr(engine_module, "verify", wrong)
        drafting = Engine(model, speculation="always")
        assert chi_square_excess(drafting, sampling=sampling, expected=expected, num_tokens=3) > 8
