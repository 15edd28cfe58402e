from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from aha.engine import Engine, EngineEvent
from aha.errors import RequestError
from aha.models import Transformer
from aha.types import Completion, FinishReason, SamplingParams
from tests.engine.conftest import DEEPSEEK_V3, QWEN3_MOE

PROMPTS = [[1, 2, 3], [4, 4, 4, 4, 4, 4, 4], [9], [40, 41, 42, 43, 44]]

FAMILIES: list[dict[str, Any]] = [
    {"model_type": "llama", "tie_word_embeddings": True},
    {"model_type": "llama", "num_kv_heads": 6, "head_dim": 6, "has_mlp_bias": True},
    {"model_type": "qwen2", "has_qkv_bias": True, "num_kv_heads": 1},
    {"model_type": "qwen3", "has_qk_norm": True, "num_kv_heads": 3, "tie_word_embeddings": True},
    QWEN3_MOE,
    DEEPSEEK_V3,
]
KINDS: list[dict[str, Any]] = [{}, QWEN3_MOE, DEEPSEEK_V3]


@torch.no_grad()
def full_logits(model: Transformer, prompt: list[int], completion: Completion) -> Tensor:
    """Logits (T, V) that the whole sequence in one pass gives for each token of the completion."""
    token_ids = [*prompt, *completion.token_ids]
    logits: Tensor = model(torch.tensor([token_ids]))[0, len(prompt) - 1 : -1].float()
    return logits


@pytest.mark.parametrize("fields", FAMILIES, ids=lambda f: f"{f['model_type']}-{f.get('num_kv_heads', 2)}")
def test_logprobs_equal_the_full_forward(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    sampling = SamplingParams(num_samples=5, temperature=0.7, max_tokens=33, seed=11)
    for prompt, group in zip(PROMPTS, Engine(model).generate(PROMPTS, sampling), strict=True):
        for completion in group:
            expected_TV = (full_logits(model, prompt, completion) / 0.7).log_softmax(dim=-1)
            picked_T = expected_TV.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(torch.tensor(completion.logprobs), picked_T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fields", FAMILIES, ids=lambda f: f"{f['model_type']}-{f.get('num_kv_heads', 2)}")
def test_greedy_equals_a_loop_without_cache(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    greedy = SamplingParams(temperature=0.0, max_tokens=20)
    for prompt, (completion,) in zip(PROMPTS, Engine(model).generate(PROMPTS, greedy), strict=True):
        token_ids: list[int] = []
        while len(token_ids) < 20 and (not token_ids or token_ids[-1] not in (5, 6)):
            with torch.no_grad():
                token_ids.append(int(model(torch.tensor([prompt + token_ids]))[0, -1].argmax()))
        assert list(completion.token_ids) == token_ids
        expected_TV = full_logits(model, prompt, completion).log_softmax(dim=-1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected_TV.amax(dim=-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_completion_does_not_depend_on_batch_mates(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(eos_token_ids=(5, 6, 7, 8, 9, 10), **fields)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 30, (64,), generator=generator).tolist()
    prompts = [torch.randint(11, 97, (length,), generator=generator).tolist() for length in lengths]
    sampling = [SamplingParams(temperature=1.0, max_tokens=12 + i % 17, seed=i) for i in range(64)]
    together = Engine(model).generate(prompts, sampling)
    crowded = Engine(model, max_batch_size=5).generate(prompts[::-1], sampling[::-1])[::-1]
    for i in (0, 7, 30, 63):
        (alone,) = Engine(model).generate([prompts[i]], sampling[i])
        for other in (together[i], crowded[i]):
            assert other[0].token_ids == alone[0].token_ids
            torch.testing.assert_close(other[0].logprobs, alone[0].logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_samples_of_a_group_are_its_prompt_sampled_alone(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    engine = Engine(model)
    (group,) = engine.generate([PROMPTS[1]], SamplingParams(num_samples=6, max_tokens=9, seed=4))
    assert len({completion.token_ids for completion in group}) > 1
    assert (engine.num_prefilled_tokens, engine.num_cached_prompt_tokens) == (7, 35)
    assert engine.num_decoded_tokens == sum(completion.num_tokens for completion in group)
    (fewer,) = Engine(model).generate([PROMPTS[1]], SamplingParams(num_samples=3, max_tokens=9, seed=4))
    assert [c.token_ids for c in fewer] == [c.token_ids for c in group[:3]]


def test_samples_from_a_later_index_on_are_those_of_the_whole_group(make_model: Any) -> None:
    model = make_model()
    whole = Engine(model).generate(PROMPTS, SamplingParams(num_samples=6, max_tokens=12, seed=4))
    rest = SamplingParams(num_samples=3, first_sample=3, max_tokens=12, seed=4)
    for group, later in zip(whole, Engine(model).generate(PROMPTS, rest), strict=True):
        assert [c.token_ids for c in later] == [c.token_ids for c in group[3:]]


def test_completions_are_handed_over_as_they_end(make_model: Any) -> None:
    handed: list[tuple[int, int, Completion]] = []
    done = Engine(make_model(), max_batch_size=5).generate(
        PROMPTS,
        [SamplingParams(num_samples=3, max_tokens=limit, seed=4) for limit in (30, 20, 10, 2)],
        on_completion=lambda *completion: handed.append(completion),
    )
    assert len(handed) == 12
    assert all(done[prompt][sample] is completion for prompt, sample, completion in handed)
    assert [place[:2] for place in handed] != sorted(place[:2] for place in handed), "short ones do not wait"


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_repeated_run_is_bit_identical_whatever_ran_before(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    engine = Engine(model, max_batch_size=7)
    sampling = SamplingParams(num_samples=4, max_tokens=25, seed=8)
    first = engine.generate(PROMPTS, sampling)
    engine.generate([[3] * 30], SamplingParams(num_samples=9, max_tokens=30))
    assert engine.generate(PROMPTS, sampling) == first == Engine(model, max_batch_size=7).generate(PROMPTS, sampling)


def test_seedless_requests_differ(make_model: Any) -> None:
    engine = Engine(make_model(eos_token_ids=()))
    sampling = SamplingParams(max_tokens=20)
    first, second = (engine.generate([[1, 2]], sampling)[0][0].token_ids for _ in range(2))
    assert first != second


@pytest.mark.parametrize("limits", [{"max_batch_size": 1}, {"max_batch_size": 3}, {"max_cached_tokens": 70}])
def test_more_requests_than_fit_all_finish(make_model: Any, limits: dict[str, int]) -> None:
    model = make_model()
    sampling = SamplingParams(num_samples=5, max_tokens=21, seed=1)
    expected = Engine(model).generate(PROMPTS, sampling)
    done_counts: list[int] = []
    engine = Engine(model, **limits)
    results = engine.generate(PROMPTS, sampling, on_progress=done_counts.append)
    assert [[c.token_ids for c in group] for group in results] == [[c.token_ids for c in group] for group in expected]
    assert done_counts == sorted(done_counts)
    assert done_counts[-1] == 20
    assert not engine.has_work


def test_rows_leave_the_batch_when_they_end(make_model: Any) -> None:
    engine = Engine(make_model(eos_token_ids=()), max_batch_size=2)
    short, long, waiting = (engine.submit([3], SamplingParams(max_tokens=n)) for n in (2, 6, 4))
    ends: dict[int, int] = {}
    for step in range(20):
        for event in engine.step():
            if event.finish_reason:
                ends[event.request_id] = step
        assert engine.num_running <= 2
        if not engine.has_work:
            break
    # Two enter at once; the third is prefilled in the step after the first left.
    assert ends == {short: 1, long: 6, waiting: 5}


def test_prompt_with_its_window_almost_full_ends_with_length(make_model: Any) -> None:
    engine = Engine(make_model(eos_token_ids=()))
    ((completion,),) = engine.generate([[2] * 60], SamplingParams(max_tokens=50))
    assert (completion.num_tokens, completion.finish_reason) == (4, FinishReason.LENGTH)
    ((completion,),) = engine.generate([[2] * 63], SamplingParams(max_tokens=50))
    assert (completion.num_tokens, completion.finish_reason) == (1, FinishReason.LENGTH)


def test_prompt_that_fills_the_window_is_refused_with_both_numbers(make_model: Any) -> None:
    with pytest.raises(RequestError, match=r"prompt has 64 tokens, the model's window is 64") as caught:
        Engine(make_model()).generate([[1], [2] * 64], SamplingParams())
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("prompt", [[], [97], [-1]])
def test_prompt_without_known_tokens_is_refused(make_model: Any, prompt: list[int]) -> None:
    engine = Engine(make_model())
    with pytest.raises(RequestError):
        engine.submit(prompt, SamplingParams())
    assert not engine.has_work


def test_end_token_is_kept_and_wins_over_the_budget(make_model: Any) -> None:
    engine = Engine(make_model(), stop_token_ids=range(97))
    ((completion,),) = engine.generate([[1]], SamplingParams(max_tokens=1))
    assert (completion.num_tokens, completion.finish_reason) == (1, FinishReason.STOP)


def spell(token_ids: Any) -> str:
    """A decoder for tests: every token is one letter."""
    return "".join(chr(ord("a") + token_id % 26) for token_id in token_ids)


def test_stop_string_ends_a_completion_at_the_token_that_completes_it(make_model: Any) -> None:
    model = make_model(eos_token_ids=())
    free = SamplingParams(num_samples=4, max_tokens=40, seed=2)
    (expected,) = Engine(model).generate([[7, 8]], free)
    text = spell(expected[1].token_ids)
    stop = text[17:20]
    sampling = SamplingParams(num_samples=4, max_tokens=40, seed=2, stop=("nothing like it", stop))
    engine = Engine(model, decode=spell, max_batch_size=4)
    (group,) = engine.generate([[7, 8]], sampling)
    for completion, whole in zip(group, expected, strict=True):
        end = spell(whole.token_ids).find(stop) + len(stop)
        is_cut = end >= len(stop)
        assert completion.token_ids == (whole.token_ids[:end] if is_cut else whole.token_ids)
        assert completion.finish_reason is (FinishReason.STOP if is_cut else FinishReason.LENGTH)
    assert group[1].num_tokens <= 20


def test_stop_string_without_decoder_is_refused(make_model: Any) -> None:
    with pytest.raises(RequestError, match="decode"):
        Engine(make_model()).submit([1], SamplingParams(stop=("x",)))


def collect(events: list[EngineEvent]) -> dict[tuple[int, int], list[EngineEvent]]:
    streams: dict[tuple[int, int], list[EngineEvent]] = defaultdict(list)
    for event in events:
        streams[event.request_id, event.sample_index].append(event)
    return streams


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_stepping_streams_what_generate_returns(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    sampling = SamplingParams(num_samples=3, max_tokens=15, seed=5)
    expected = Engine(model).generate(PROMPTS, sampling)
    engine = Engine(model, max_batch_size=4)
    request_ids = [engine.submit(prompt, sampling) for prompt in PROMPTS]
    assert engine.num_waiting == 12
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    streams = collect(events)
    for request_id, group in zip(request_ids, expected, strict=True):
        for index, completion in enumerate(group):
            stream = streams[request_id, index]
            assert tuple(event.token_id for event in stream) == completion.token_ids
            assert [event.finish_reason for event in stream[:-1]] == [None] * (len(stream) - 1)
            assert stream[-1].finish_reason is completion.finish_reason
            torch.testing.assert_close([e.logprob for e in stream], list(completion.logprobs), atol=1e-4, rtol=0)
    assert engine.step() == []


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_abort_drops_running_and_waiting_samples_and_spares_the_others(make_model: Any, fields: dict[str, Any]) -> None:
    model = make_model(eos_token_ids=(), **fields)
    sampling = SamplingParams(num_samples=2, max_tokens=12, seed=6)
    ((*expected,),) = Engine(model).generate([[8, 9]], sampling)
    engine = Engine(model, max_batch_size=4)
    dropped = engine.submit([1, 2, 3], SamplingParams(num_samples=2, max_tokens=30))
    kept = engine.submit([8, 9], sampling)
    never_started = engine.submit([4], SamplingParams(max_tokens=5))
    events = [*engine.step(), *engine.step()]
    engine.abort(dropped)
    engine.abort(never_started)
    engine.abort(12345)
    assert (engine.num_running, engine.num_waiting) == (2, 0)
    later: list[EngineEvent] = []
    while engine.has_work:
        later += engine.step()
    assert {event.request_id for event in later} == {kept}
    streams = collect([event for event in events + later if event.request_id == kept])
    assert [tuple(e.token_id for e in streams[kept, i]) for i in (0, 1)] == [c.token_ids for c in expected]


def test_generate_refuses_an_engine_that_streams(make_model: Any) -> None:
    engine = Engine(make_model())
    engine.submit([1], SamplingParams())
    with pytest.raises(RuntimeError, match="submitted"):
        engine.generate([[1]], SamplingParams())


def test_interrupted_generate_leaves_nothing_behind(make_model: Any) -> None:
    model = make_model()
    engine = Engine(model)

    def interrupt(num_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, SamplingParams(num_samples=3, seed=1), on_progress=interrupt)
    assert not engine.has_work
    sampling = SamplingParams(max_tokens=9, seed=1)
    assert engine.generate(PROMPTS, sampling) == Engine(model).generate(PROMPTS, sampling)


def test_changed_weights_are_used_and_stamped(make_model: Any) -> None:
    # Wide enough that the products run on packed copies, which must follow the weights.
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "head_dim": 32, "vocab_size": 512}
    model, changed = make_model(**shape), make_model(seed=1, **shape)
    engine = Engine(model)
    prompts = [[i + 10, 3, 4] for i in range(40)]
    sampling = SamplingParams(max_tokens=8, seed=9)
    before = engine.generate(prompts, sampling)
    model.load_state_dict(changed.state_dict())
    model.weight_version += 1
    after = engine.generate(prompts, sampling)
    assert [c.token_ids for (c,) in after] == [c.token_ids for (c,) in Engine(changed).generate(prompts, sampling)]
    assert [c.token_ids for (c,) in after] != [c.token_ids for (c,) in before]
    assert {c.weight_version for (c,) in after} == {model.weight_version}
    assert {c.weight_version for (c,) in before} == {model.weight_version - 1}


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_rows_in_flight_end_when_the_weights_change(make_model: Any, fields: dict[str, Any]) -> None:
    model, changed = make_model(eos_token_ids=(), **fields), make_model(seed=1, eos_token_ids=(), **fields)
    engine = Engine(model, max_batch_size=1)
    running = engine.submit([1, 2], SamplingParams(max_tokens=9, seed=3))
    waiting = engine.submit([3, 4], SamplingParams(max_tokens=9, seed=3))
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


def test_training_goes_on_after_sampling(make_model: Any) -> None:
    """Tables that the engine made under inference mode must not reach autograd."""
    model = make_model()
    Engine(model).generate([[1, 2, 3]], SamplingParams(max_tokens=4))
    model(torch.tensor([[1, 2, 3, 4]])).logsumexp(dim=-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bfloat16_probabilities_stay_near_the_trainers(make_model: Any) -> None:
    model = make_model(dtype="bfloat16", initializer_range=0.2, hidden_size=64, head_dim=16)
    sampling = SamplingParams(num_samples=6, max_tokens=30, seed=2)
    differences = []
    for prompt, group in zip(PROMPTS, Engine(model).generate(PROMPTS, sampling), strict=True):
        for completion in group:
            expected_TV = full_logits(model, prompt, completion).softmax(dim=-1)
            picked_T = expected_TV.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
            differences += (torch.tensor(completion.logprobs).exp() - picked_T).abs().tolist()
    assert sum(differences) / len(differences) < 0.005


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f.get("model_type", "llama"))
def test_release_memory_changes_nothing(make_model: Any, fields: dict[str, Any]) -> None:
    engine = Engine(make_model(**fields))
    sampling = SamplingParams(max_tokens=9, seed=1)
    first = engine.generate(PROMPTS, sampling)
    engine.release_memory()
    assert engine.generate(PROMPTS, sampling) == first


def test_every_completion_is_handed_over_as_soon_as_it_ends(make_model: Any) -> None:
    engine = Engine(make_model(), max_batch_size=4)
    sampling = [SamplingParams(num_samples=3, max_tokens=length, seed=1) for length in (2, 9, 5)]
    told: list[tuple[int, int]] = []
    handed = {}

    def on_completion(prompt_index: int, sample_index: int, completion: Completion) -> None:
        told.append((prompt_index, sample_index))
        handed[prompt_index, sample_index] = completion
        # All work is done only when the last one is told.
        assert engine.has_work or len(told) == 9

    done = engine.generate([[1, 2], [3], [4, 5, 6]], sampling, on_completion=on_completion)
    assert sorted(told) == [(p, i) for p in range(3) for i in range(3)]
    assert [[handed[p, i] for i in range(3)] for p in range(3)] == done
