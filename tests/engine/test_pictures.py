"""Pictures in the engine: seen once for a group, in the prompt's own pass, and like the whole model sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aha.engine import Engine
from aha.errors import RequestError
from aha.models import InternVL, build_model, load_model
from aha.types import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=9)


@pytest.fixture
def model(vision_folder: Path) -> InternVL:
    loaded = load_model(vision_folder, dtype="float32", device="cpu")
    assert isinstance(loaded, InternVL)
    return loaded


def prompt(model: InternVL, *, num_tiles: int) -> list[int]:
    return [1, 2, 40, *[model.vision.image_token_id] * (4 * num_tiles), 50, 60, 3]


def tiles(count: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def engine_of(model: InternVL, **options: int) -> Engine:
    return Engine(model, stop_token_ids=(), **options)


def full_forward(model: InternVL, prompt_ids: list[int], pixels: Tensor, *, num_tokens: int) -> list[int]:
    token_ids = list(prompt_ids)
    with torch.no_grad():
        for _ in range(num_tokens):
            token_ids.append(int(model(torch.tensor([token_ids]), pixels)[0, -1].argmax()))
    return token_ids[len(prompt_ids) :]


@pytest.mark.parametrize("num_tiles", [1, 3])
def test_greedy_answer_to_a_picture_equals_the_full_forward(model: InternVL, num_tiles: int) -> None:
    prompt_ids, pixels = prompt(model, num_tiles=num_tiles), tiles(num_tiles)
    ((done,),) = engine_of(model).generate([prompt_ids], GREEDY, pixels=[pixels])
    assert list(done.token_ids) == full_forward(model, prompt_ids, pixels, num_tokens=9)


def test_answer_depends_on_the_picture(model: InternVL) -> None:
    prompts = [prompt(model, num_tiles=1)] * 2
    (one,), (other,) = engine_of(model).generate(prompts, GREEDY, pixels=[tiles(1), tiles(1, seed=5)])
    assert one.logprobs[0] != pytest.approx(other.logprobs[0], abs=1e-3)


def test_batch_with_pictures_and_text_equals_each_alone(model: InternVL) -> None:
    text = [1, 2, 70, 80, 3]
    prompts = [text, prompt(model, num_tiles=2), text[:3], prompt(model, num_tiles=1)]
    pixels = [None, tiles(2), None, tiles(1, seed=4)]
    together = engine_of(model).generate(prompts, GREEDY, pixels=pixels)
    for prompt_ids, seen, (done,) in zip(prompts, pixels, together, strict=True):
        ((alone,),) = engine_of(model).generate([prompt_ids], GREEDY, pixels=[seen])
        assert done.token_ids == alone.token_ids
        assert done.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


@pytest.fixture
def looks(model: InternVL, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles each look at pictures took in."""
    counts: list[int] = []
    look = model.image_features

    def counted(pixels_M3YX: Tensor) -> Tensor:
        counts.append(len(pixels_M3YX))
        return look(pixels_M3YX)

    monkeypatch.setattr(model, "image_features", counted)
    return counts


def test_group_shares_one_look_at_its_picture(model: InternVL, looks: list[int]) -> None:
    engine = engine_of(model)
    prompt_ids = prompt(model, num_tiles=2)
    engine.generate([prompt_ids], SamplingParams(num_samples=4, seed=3, max_tokens=6), pixels=[tiles(2)])
    assert looks == [1, 1]  # a tile in each step
    assert engine.num_prefilled_tokens == len(prompt_ids)


def test_text_costs_nothing_in_the_eye(model: InternVL, looks: list[int]) -> None:
    engine_of(model).generate([[1, 2, 70, 3]], GREEDY)
    # What a model has written itself may hold an image token; without pictures it is a token like others.
    engine_of(model).generate([[1, model.vision.image_token_id, 3]], GREEDY)
    assert looks == []


def test_group_larger_than_the_batch_sees_its_picture_in_every_piece(model: InternVL) -> None:
    sampling = SamplingParams(num_samples=5, seed=7, max_tokens=6)
    whole, pieces = (
        engine_of(model, max_batch_size=size).generate([prompt(model, num_tiles=1)], sampling, pixels=[tiles(1)])
        for size in (8, 2)
    )
    assert [done.token_ids for done in whole[0]] == [done.token_ids for done in pieces[0]]


def test_waiting_picture_is_seen_with_the_new_weights(model: InternVL) -> None:
    engine = engine_of(model)
    prompt_ids, pixels = prompt(model, num_tiles=1), tiles(1)
    engine.submit(prompt_ids, GREEDY, pixels_M3YX=pixels)
    with torch.no_grad():
        model.multi_modal_projector.linear_2.weight.mul_(-1.5)
    model.weight_version += 1
    drawn: list[int] = []
    while engine.has_work:
        drawn += [event.token_id for event in engine.step() if event.token_id is not None]
    assert drawn == full_forward(model, prompt_ids, pixels, num_tokens=9)


def test_request_with_a_picture_can_be_withdrawn(model: InternVL, looks: list[int]) -> None:
    engine = engine_of(model)
    waiting = engine.submit(prompt(model, num_tiles=1), GREEDY, pixels_M3YX=tiles(1))
    engine.abort(waiting)
    assert not engine.has_work
    running = engine.submit(prompt(model, num_tiles=1), GREEDY, pixels_M3YX=tiles(1))
    assert len(engine.step()) == 1
    engine.abort(running)
    assert (engine.has_work, looks) == (False, [1])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 3, 28, 28), r"4 image tokens \(id 13[0-9]+\) for 2 tiles of 4 features; they must be 8"),
        ((0, 3, 28, 28), r"tiles have the shape \(0, 3, 28, 28\)"),
        ((1, 3, 14, 28), r"the model sees tiles of \(3, 28, 28\)"),
        ((3, 28, 28), r"tiles of \(3, 28, 28\)"),
    ],
)
def test_pictures_that_do_not_fit_the_prompt_are_refused(model: InternVL, shape: tuple[int, ...], said: str) -> None:
    engine = engine_of(model)
    with pytest.raises(RequestError, match=said):
        engine.submit(prompt(model, num_tiles=1), GREEDY, pixels_M3YX=torch.zeros(shape))
    assert not engine.has_work


def test_model_without_an_eye_refuses_pictures(model: InternVL) -> None:
    blind = build_model(dataclasses.replace(model.config, vision=None), dtype="float32", device="cpu")
    blind.initialise(seed=0)
    with pytest.raises(RequestError, match="no vision tower"):
        Engine(blind).submit([1, 2, 3], GREEDY, pixels_M3YX=tiles(1))


def test_running_answers_and_new_texts_go_on_while_a_picture_is_looked_at(model: InternVL) -> None:
    engine = engine_of(model)
    text = engine.submit([1, 2, 70, 3], GREEDY)
    engine.step()
    seeing = engine.submit(prompt(model, num_tiles=4), GREEDY, pixels_M3YX=tiles(4))
    late = -1
    order: list[list[int]] = []
    while engine.has_work:
        order.append([event.request_id for event in engine.step()])
        if len(order) == 1:
            late = engine.submit([1, 2, 80, 3], GREEDY)
    # A tile in each of four steps, and in each of them a token of the others, or a prompt.
    assert order[:4] == [[text], [late], [text, late], [seeing]]
    assert [sum(step.count(one) for step in order) for one in (text, late, seeing)] == [8, 9, 9]


def test_step_says_what_it_spent_on_looking(model: InternVL) -> None:
    engine = engine_of(model)
    request_id = engine.submit(prompt(model, num_tiles=2), GREEDY, pixels_M3YX=tiles(2))
    assert engine.step() == []
    assert engine.queue.unseen.last_look is not None
    assert engine.queue.unseen.last_look.request_id == request_id
    assert engine.queue.unseen.last_look.elapsed_ns > 0
    assert len(engine.step()) == 1
    engine.step()
    assert engine.queue.unseen.last_look is None


def test_new_weights_in_the_middle_of_a_look_start_it_over(model: InternVL, looks: list[int]) -> None:
    engine = engine_of(model)
    prompt_ids, pixels = prompt(model, num_tiles=2), tiles(2)
    engine.submit(prompt_ids, GREEDY, pixels_M3YX=pixels)
    engine.step()
    with torch.no_grad():
        model.multi_modal_projector.linear_2.weight.mul_(-1.5)
    model.weight_version += 1
    drawn: list[int] = []
    while engine.has_work:
        drawn += [event.token_id for event in engine.step() if event.token_id is not None]
    assert looks == [1, 1, 1]
    assert drawn == full_forward(model, prompt_ids, pixels, num_tokens=9)
