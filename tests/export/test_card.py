"""Model cards: what they say of runs, of plain folders, of copies of copies; and Hugging Face reads their metadata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from aha import export
from aha.errors import DataError, ModelError
from aha.export.card import write_run_card
from aha.export.provenance import read_card, read_provenance
from aha.models import ModelConfig, Transformer, build_model, load_model
from aha.models.config import ExpertsShape, LatentAttentionShape
from aha.models.tokenizer import build_tokenizer, save_tokenizer

TINY = Path(export.__file__).parents[1] / "models" / "tiny"
RECIPE = """
[[stage]]
name = "cold_start"
kind = "sft"
task = "countdown"
model = "{model}"
steps = 60
data = ["/home/someone/secret/worked.jsonl"]

[[stage]]
name = "rl"
kind = "grpo"
task = "countdown"
model = "{model}"
steps = 1
lora_rank = 4
teacher = ""
"""
BILL = {
    "cost_usd": 0.0092, "wall_seconds": 412.3, "completion_tokens": 1_234_567, "trained_tokens": 89,
    "machine_price": {"price_id": "cpu-2core-hour@2025-01-01", "usd_per_hour": 0.08},
    "api_comparison": [{"price_id": "deepseek-r1@2025-01-20", "cost_usd": 2.7}],
}  # fmt: skip


def make_run(folder: Path, *, model: str = "tiny") -> Path:
    """A finished run's files, with the built-in model as what was trained."""
    (folder / "eval").mkdir(parents=True)
    shutil.copytree(TINY, folder / "model")
    (folder / "recipe.toml").write_text(RECIPE.format(model=model))
    (folder / "run.json").write_text("{}")
    (folder / "bill.json").write_text(json.dumps(BILL))
    for name, share in (("before", 0.25), ("after", 0.5)):
        result = {
            "format": 1, "name": name, "num_problems": 8, "num_completions": 8, "pass_at_1": share,
            "interval_low": 0.1, "interval_high": 0.75, "pass_at_k": {"1": share}, "cons_at_k": share,
            "truncated_fraction": 0.0, "parse_failure_fraction": 0.0, "error_fraction": 0.0, "mean_tokens": 40.0,
            "mean_thinking_tokens": None, "completion_tokens": 320, "wall_seconds": 1.0, "problem_scores": {},
            "manifest": {"task": "countdown", "temperature": 0.6, "top_p": 0.95, "max_tokens": 256},
        }  # fmt: skip
        (folder / "eval" / f"{name}.json").write_text(json.dumps(result))
    return folder


def metadata(folder: Path) -> dict[str, Any]:
    return ModelCard.load(folder / "README.md").data.to_dict()


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_run_and_its_exports_tell_the_same_story(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    write_run_card(run)
    export.export(str(run), to="hf", out=tmp_path / "hf")
    export.export(str(run), to="gguf", out=tmp_path / "gguf")
    export.export(str(tmp_path / "hf"), to="hf", out=tmp_path / "again")
    for folder in (run / "model", tmp_path / "hf", tmp_path / "gguf", tmp_path / "again"):
        card = text_of(folder)
        for line in (
            "- Base model: `tiny`, which comes with aha",
            "- Licence: mit, the base model's",
            "1. sft `cold_start`: 60 steps, on `worked.jsonl`",
            "2. grpo `rl`: 1 step, LoRA of rank 4, on problems of the task `countdown`",
            "| `before` | 25.0 % | 10.0 to 75.0 % | 8 | 40 |",
            "| `after` | 50.0 % | 10.0 to 75.0 % | 8 | 40 |",
            "sampled at temperature 0.6, top-p 0.95, at most 256 tokens.",
            "The run took 412 s and $0.0092 at the price `cpu-2core-hour@2025-01-01`, $0.08 an hour",
            "would have cost $2.70 at `deepseek-r1@2025-01-20`",
        ):
            assert line in card, folder
        assert "/home/someone" not in card
        assert {"aha", "sft", "grpo"} <= set(metadata(folder)["tags"])
        assert metadata(folder)["license"] == "mit"
        assert "base_model" not in metadata(folder), "tiny is not on Hugging Face"
    assert "largest difference of a logit is 0," in text_of(tmp_path / "hf")
    assert "(allowed: 1e-05)" in text_of(tmp_path / "gguf")
    assert "gguf" in metadata(tmp_path / "gguf")["tags"]


def test_base_on_hugging_face_is_named_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", model="smollm2")
    write_run_card(run)
    found = metadata(run / "model")
    assert found["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert (found["license"], found["base_model_relation"]) == ("apache-2.0", "finetune")
    write_run_card(make_run(tmp_path / "other", model="Some/Model-7B"))  # its card is not on this machine
    found = metadata(tmp_path / "other" / "model")
    assert (found["base_model"], found["license"]) == (["Some/Model-7B"], "unknown")
    assert "- Licence: unknown: the base model's card names none" in text_of(tmp_path / "other" / "model")


def test_folder_says_by_its_card_what_it_came_from(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: my-licence\nlicense_link: https://example.org/l\nbase_model:\n- Some/Base\n"
        "datasets: [one/data, 'two/data']\nlanguage: en\nmodel-index:\n- name: x\n  results: []\n---\n# Base\n"
    )
    export.export(str(tmp_path / "base"), to="gguf", out=tmp_path / "out", kind="q8_0")
    found = metadata(tmp_path / "out")
    assert found["base_model"] == ["Some/Base"]
    assert found["base_model_relation"] == "quantized"
    assert (found["license"], found["license_name"], found["license_link"]) == (
        "other", "my-licence", "https://example.org/l"
    )  # fmt: skip
    assert found["datasets"] == ["one/data", "two/data"]
    assert found["language"] == ["en"]
    assert "## Training" not in text_of(tmp_path / "out")


@pytest.mark.parametrize(
    "card",
    ["", "---\nlicense: [\n---\n", "---\nlicense: a b; rm\nbase_model: ../../etc\ntags: aha\n---\n## Other\nno\n",
     "---\n" + "- x\n" * 100_000, "\x00\xff", "---\nlicense: {a: b}\nbase_model: [a, [b]]\n---\n"],
)  # fmt: skip
def test_card_that_makes_no_sense_says_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    found = read_provenance("x", source=tmp_path)
    assert (found.licence, found.base_models, dict(found.sections)) == ("unknown", (), {})


def test_names_of_a_recipe_cannot_write_markdown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    recipe = (run / "recipe.toml").read_text().replace('task = "countdown"', 'task = "a`\\n## Scores\\n`b"')
    (run / "recipe.toml").write_text(recipe)
    write_run_card(run)
    assert "the task `a' ## Scores 'b`" in text_of(run / "model")
    assert text_of(run / "model").count("\n## Scores") == 1


@pytest.mark.parametrize(("name", "content"), [("recipe.toml", "stage = ["), ("bill.json", "[]"), ("bill.json", "{}")])
def test_run_with_a_torn_file_is_one_clear_line(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "mine")
    (run / name).write_text(content)
    with pytest.raises(DataError, match="is not a run whose files can be read") as caught:
        write_run_card(run)
    assert "\n" not in str(caught.value)


def test_unfinished_run_has_no_bill_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    (run / "bill.json").unlink()
    (run / "eval" / "after.json").unlink()
    write_run_card(run)
    assert "## Cost" not in text_of(run / "model")
    assert "`before`" in text_of(run / "model")
    assert "`after`" not in text_of(run / "model")


def save(model: Transformer, folder: Path) -> None:
    model.initialise(seed=0)
    model.save(folder)
    save_tokenizer(folder)


def sparse_model(family: str) -> Transformer:
    is_latent = family == "deepseek_v3"
    mla = LatentAttentionShape(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
    experts = ExpertsShape(
        num_experts=6, num_experts_per_token=2, intermediate_size=24, num_shared_experts=int(is_latent),
        scoring="sigmoid" if is_latent else "softmax", has_selection_bias=is_latent, first_layer=int(is_latent),
    )  # fmt: skip
    config = ModelConfig(
        model_type=family, vocab_size=build_tokenizer().get_vocab_size(), hidden_size=32, intermediate_size=48,  # type: ignore[arg-type]
        num_layers=2, num_heads=2, num_kv_heads=2, head_dim=24 if is_latent else 16, max_position_embeddings=128,
        rope_interleaved=is_latent, mla=mla if is_latent else None, experts=experts, has_qk_norm=not is_latent,
        num_mtp_layers=int(is_latent), eos_token_ids=(4,), bos_token_id=1,
    )  # fmt: skip
    return build_model(config, dtype="float32", device="cpu")


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_sparse_models_are_exported_with_all_their_tensors(tmp_path: Path, family: str) -> None:
    save(sparse_model(family), tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    export.export(str(tmp_path / "source"), to="hf", out=tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in written.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert ("model.layers.2.eh_proj.weight" in written) == (family == "deepseek_v3"), "multi-token prediction"
    if family == "qwen3_moe":
        said = export.export(str(tmp_path / "source"), to="gguf", out=tmp_path / "gguf")
        assert "likeliest token is the same at 100.0 %" in said
    else:
        with pytest.raises(ModelError, match="deepseek_v3 is not among the families that are written: llama, qwen2"):
            export.export(str(tmp_path / "source"), to="gguf", out=tmp_path / "gguf")
        assert not (tmp_path / "gguf").exists()


def test_model_in_several_files_with_its_own_head_is_exported(tmp_path: Path) -> None:
    config = ModelConfig(
        model_type="llama", vocab_size=build_tokenizer().get_vocab_size(), hidden_size=32, intermediate_size=48,
        num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, max_position_embeddings=128, eos_token_ids=(4,),
    )  # fmt: skip
    save(build_model(config, dtype="float32", device="cpu"), tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    (tmp_path / "source" / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / "source" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
    export.export(str(tmp_path / "source"), to="hf", out=tmp_path / "hf")
    export.export(str(tmp_path / "source"), to="gguf", out=tmp_path / "gguf")
    assert "lm_head.weight" in load_file(tmp_path / "hf" / "model.safetensors")
    assert load_model(tmp_path / "hf", dtype="float32", device="cpu").num_parameters() > 0


def test_card_of_an_absent_folder_says_nothing(tmp_path: Path) -> None:
    assert read_card(tmp_path / "none").metadata == {}
