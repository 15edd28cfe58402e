"""Multi-token prediction against the reference's MtpModel and the report's equations; its tensors in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import MtpModel

from aha.errors import ModelError
from aha.models import PackedAttention, Transformer, load_model, read_config

from .reference import (
    CASES,
    TOLERANCE,
    apart,
    compute_by_loops,
    draw_tokens,
    make_reference,
    randomise,
    reference_class,
    reference_logits,
    worst_difference,
)
from .slow_v3 import Mistake, SlowV3

NUM_LAYERS = 3
SHARED = {"embed_tokens": "model.embed_tokens.weight", "shared_head.head": "lm_head.weight"}
NUM_TOKENS = 35


def make_drafter(case: str, *, depth: int, seed: int) -> tuple[Any, Any]:
    """The reference's model and its multi-token prediction, both random."""
    main = make_reference(case, seed=seed, num_nextn_predict_layers=depth)
    drafter = MtpModel(main, depth).eval()
    compute_by_loops(drafter)
    with torch.no_grad():
        for parameter in drafter.layers.parameters():
            parameter.normal_(0.0, 0.15)
    randomise(drafter.layers)
    return main, drafter


def save_with_mtp(main: Any, drafter: Any, *, folder: Path) -> None:
    """Write both as DeepSeek's files hold them: layers behind the last, experts apart, embedding and head repeated."""
    main.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, values in drafter.layers.state_dict().items():
        depth, _, rest = name.partition(".")
        place = f"model.layers.{NUM_LAYERS + int(depth)}."
        rest = rest.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
        tensors |= {file_name: part.contiguous() for file_name, part in apart(place + rest, values)}
    for depth in range(drafter.num_mtp_layers):
        for repeat, name in SHARED.items():
            if name in tensors:
                tensors[f"model.layers.{NUM_LAYERS + depth}.{repeat}.weight"] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def our_drafts(model: Transformer, token_ids_T: Tensor, *, depth: int) -> Tensor:
    """Logits of module `depth`, chained through those before it, for every position that has all tokens."""
    num_left = len(token_ids_T) - depth
    hidden_ND = model.hidden_states(
        token_ids_T, positions_N=torch.arange(len(token_ids_T)), attention=PackedAttention([len(token_ids_T)])
    )[:num_left]
    for k in range(depth):
        hidden_ND = model.mtp_states(
            hidden_ND, token_ids_T[k + 1 : k + 1 + num_left], depth=k, positions_N=torch.arange(num_left),
            attention=PackedAttention([num_left]),
        )  # fmt: skip
    return F.linear(hidden_ND, model.output_weight)


@torch.no_grad()
def reference_drafts(main: Any, drafter: Any, token_ids_T: Tensor, *, depth: int) -> Tensor:
    num_left = len(token_ids_T) - depth
    hidden = main.model(token_ids_T.unsqueeze(0)).last_hidden_state[:, :num_left]
    for k in range(depth):
        # Its positions are those of the embedded tokens, one further each time.
        positions = torch.arange(k + 1, k + 1 + num_left).unsqueeze(0)
        hidden = drafter.forward_layer(
            k, hidden, positions, None, input_ids=token_ids_T[k + 1 : k + 1 + num_left].unsqueeze(0)
        )
    logits: Tensor = drafter._project_to_logits(hidden)[0]
    return logits


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("case", ["v3_yarn", "v3_moonlight", "v3_tied_biases", "v3_all_dense"])
def test_drafts_equal_the_reference_at_every_position(case: str, depth: int, tmp_path: Path) -> None:
    assert case in CASES
    main, drafter = make_drafter(case, depth=2, seed=depth)
    save_with_mtp(main, drafter, folder=tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    assert model.config.num_mtp_layers == 2
    token_ids_T = draw_tokens(NUM_TOKENS)
    theirs = reference_drafts(main, drafter, token_ids_T, depth=depth)
    assert worst_difference(our_drafts(model, token_ids_T, depth=depth), theirs) < TOLERANCE
    assert worst_difference(model(token_ids_T.unsqueeze(0)), reference_logits(main, token_ids_T.unsqueeze(0))) < 1e-5


def test_drafted_tokens_equal_the_references_own_loop(tmp_path: Path) -> None:
    """MtpModel.forward, which hands each module's drafted token to the next one."""
    main, drafter = make_drafter("v3_yarn", depth=2, seed=5)
    save_with_mtp(main, drafter, folder=tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    token_ids_T = draw_tokens(NUM_TOKENS, seed=5)
    known_T, successors_T = token_ids_T[:-1], token_ids_T[1:]
    with torch.no_grad():
        hidden = main.model(known_T.unsqueeze(0)).last_hidden_state
        positions = torch.arange(1, NUM_TOKENS).unsqueeze(0)
        drafted, logits, _ = drafter(successors_T.unsqueeze(0), hidden, None, positions, None)
        first = our_drafts(model, token_ids_T, depth=1)[-1]
        # The second module sees the same hidden states, and at their last one the token that the first drafted.
        second = our_drafts(model, torch.cat((token_ids_T, first.argmax().view(1))), depth=2)[-1]
    assert drafted[0].tolist() == [int(first.argmax()), int(second.argmax())]
    assert worst_difference(torch.stack((first, second)), logits[0]) < TOLERANCE


@pytest.mark.parametrize("mistake", [None, "embedding_second", "hidden_before_norm"])
@pytest.mark.parametrize("depth", [1, 2])
def test_drafts_equal_the_equations_and_no_wrong_order(mistake: Mistake | None, depth: int, tmp_path: Path) -> None:
    main, drafter = make_drafter("v3_yarn", depth=2, seed=9)
    save_with_mtp(main, drafter, folder=tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    slow = SlowV3(load_file(tmp_path / "model.safetensors"), raw, mistake=mistake)
    token_ids_T = draw_tokens(22, seed=9)
    slow_NV = slow.drafts(token_ids_T.tolist(), depth=depth)
    ours_NV = our_drafts(load_model(tmp_path, dtype="float32", device="cpu"), token_ids_T, depth=depth)
    difference = worst_difference(ours_NV.double(), slow_NV)
    assert difference < TOLERANCE if mistake is None else difference > 1000 * TOLERANCE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_with_mtp(*make_drafter("v3", depth=1, seed=0), folder=tmp_path / "model")
    return tmp_path / "model"


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def error_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu")
    return str(caught.value)


def test_every_tensor_of_a_file_is_written_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    is_bias = "e_score_correction_bias"
    change_tensors(folder, lambda t: t.update({n: x.bfloat16() for n, x in t.items() if not n.endswith(is_bias)}))
    load_model(folder, dtype="bfloat16", device="cpu").save(tmp_path / "ours")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    assert "model.layers.3.shared_head.head.weight" in after
    for name, values in before.items():
        assert values.dtype == after[name].dtype
        assert torch.equal(values, after[name]), name
    assert read_config(folder) == read_config(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_repeated_embedding_and_head_are_written_only_where_they_were(folder: Path, tmp_path: Path) -> None:
    repeats = [f"model.layers.3.{name}.weight" for name in SHARED]
    change_tensors(folder, lambda t: [t.pop(name) for name in repeats])
    load_model(folder, dtype="float32", device="cpu").save(tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_the_repeated_follow_what_they_repeat(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, dtype="float32", device="cpu")
    with torch.no_grad():
        model.embed_tokens.mul_(2.0)
    model.save(tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(tensors["model.layers.3.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    load_model(tmp_path / "ours", device="cpu")


@pytest.mark.parametrize("repeat", SHARED)
def test_repeated_tensor_that_differs_is_named(repeat: str, folder: Path) -> None:
    name = f"model.layers.3.{repeat}.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][5, 7] += 0.5

    change_tensors(folder, change)
    assert f"tensor {name!r} differs from {SHARED[repeat]!r}" in error_of(folder)


def test_config_that_promises_modules_without_tensors_is_the_model_without(folder: Path, tmp_path: Path) -> None:
    change_tensors(folder, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.3.")])
    model = load_model(folder, dtype="float32", device="cpu")
    assert (model.config.num_mtp_layers, len(model.mtp)) == (0, 0)
    model.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_module_with_a_tensor_missing_is_refused(folder: Path) -> None:
    change_tensors(folder, lambda t: t.pop("model.layers.3.enorm.weight"))
    assert "the first is 'model.layers.3.enorm.weight'" in error_of(folder)


@pytest.mark.parametrize("promised", [0, None])
def test_tensors_of_a_module_that_the_config_does_not_have_are_refused(promised: int | None, folder: Path) -> None:
    change_config(folder, num_nextn_predict_layers=promised)
    message = error_of(folder)
    assert "unexpected tensor 'model.layers.3." in message
    assert "set num_nextn_predict_layers to 1" in message


def test_reference_reads_what_we_save_and_leaves_the_modules_out(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, dtype="float32", device="cpu")
    model.save(tmp_path / "ours")
    theirs = reference_class("v3").from_pretrained(tmp_path / "ours", experts_implementation="eager").eval()
    token_ids_BT = draw_tokens(2, 30)
    assert worst_difference(model(token_ids_BT), reference_logits(theirs, token_ids_BT)) < TOLERANCE
