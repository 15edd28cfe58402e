"""Recipes and overrides: what they mean, what they refuse, and that what is written is read back equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha import config
from aha.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A job with one field of each kind."""

    task: str
    """What to walk,
    on two lines."""
    steps: int = 10
    """How far."""
    pace: float = 1e-6
    style: Literal["slow", "brisk"] = "slow"
    is_loud: bool = False
    weights: tuple[float, ...] = (0.5, 1.0)
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Rest:
    task: str
    minutes: float = 5.0


KINDS = {"walk": Walk, "rest": Rest}

SEVERAL = """
task = "park"
pace = 2
[[stage]]
kind = "walk"
steps = 3
[[stage]]
name = "pause"
kind = "rest"
[[stage]]
name = "back"
kind = "walk"
task = "street"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trip.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    """The one line a user sees for a flat file and overrides that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        config.load(write(folder, text), Walk, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flat_recipe_is_one_stage_named_after_its_kind(tmp_path: Path) -> None:
    recipe = config.load_recipe(write(tmp_path, 'stage = "walk"\ntask = "park"\nsteps = 4'), kinds=KINDS)
    assert recipe.name == "trip"
    assert [(stage.name, stage.kind) for stage in recipe.stages] == [("walk", "walk")]
    assert config.build(recipe.stages[0], Walk) == Walk(task="park", steps=4)


def test_top_level_keys_are_defaults_for_stages_that_have_them(tmp_path: Path) -> None:
    recipe = config.load_recipe(write(tmp_path, SEVERAL), kinds=KINDS)
    there, pause, back = recipe.stages
    assert config.build(there, Walk) == Walk(task="park", steps=3, pace=2.0)
    assert config.build(pause, Rest) == Rest(task="park")
    assert config.build(back, Walk) == Walk(task="street", pace=2.0)


def test_override_reaches_every_stage_with_the_key_or_the_one_named(tmp_path: Path) -> None:
    overrides = ["pace=0.5", "stage.back.steps=7", "task=beach"]
    there, pause, back = config.load_recipe(write(tmp_path, SEVERAL), kinds=KINDS, overrides=overrides).stages
    assert config.build(there, Walk) == Walk(task="beach", steps=3, pace=0.5)
    assert config.build(pause, Rest) == Rest(task="beach")
    assert config.build(back, Walk) == Walk(task="beach", steps=7, pace=0.5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=25", Walk(task="park", steps=25)),
        ("pace=2e-6", Walk(task="park", pace=2e-6)),
        ("pace=3", Walk(task="park", pace=3.0)),
        ("style=BRISK", Walk(task="park", style="brisk")),
        ("is_loud=true", Walk(task="park", is_loud=True)),
        ("weights=1,2,3", Walk(task="park", weights=(1.0, 2.0, 3.0))),
        ("weights=[0.25]", Walk(task="park", weights=(0.25,))),
        ("limit=9", Walk(task="park", limit=9)),
        ("limit=none", Walk(task="park", limit=None)),
        ("task=jsonl:verify=number", Walk(task="jsonl:verify=number")),
    ],
)
def test_override_is_read_as_its_fields_type(tmp_path: Path, override: str, expected: Walk) -> None:
    assert config.load(write(tmp_path, 'task = "park"'), Walk, [override]) == expected


def test_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'task = "park"\nstesp = 3')
    assert message.startswith(str(tmp_path / "trip.toml"))
    assert "unknown key 'stesp'; did you mean 'steps'?" in message
    assert "unknown key 'pase'; did you mean 'pace'?" in refusal(tmp_path, 'task = "park"', "pase=1")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('steps = "many"', "steps must be a whole number, got 'many', e.g. steps=8"),
        ("steps = 2.5", "steps must be a whole number, got 2.5"),
        ("steps = true", "steps must be a whole number, got True"),
        ("pace = nan", "pace must be a finite number, got nan"),
        ("is_loud = 1", "is_loud must be true or false, got 1"),
        ('style = "fast"', "style must be one of slow, brisk, got 'fast'"),
        ('weights = ["a"]', "weights must be a finite number, got 'a'"),
        ("weights = 1.0", "weights must be a list, each a finite number, got 1.0"),
        ("limit = 1.5", "limit must be a whole number or none, got 1.5"),
        ("steps = 0", "steps must be at least 1, got 0"),
    ],
)
def test_wrong_value_says_field_value_and_what_is_expected(tmp_path: Path, line: str, complaint: str) -> None:
    message = refusal(tmp_path, f'task = "park"\n{line}')
    assert complaint in message
    assert "trip.toml" in message


@pytest.mark.parametrize(
    "override", ["steps=many", "steps=1e3", "style=fast", "is_loud=yes", "weights=1,b", "pace=inf"]
)
def test_wrong_override_is_refused(tmp_path: Path, override: str) -> None:
    assert f"{override.split('=')[0]} must be" in refusal(tmp_path, 'task = "park"', override)


def test_missing_field_is_named_with_an_example(tmp_path: Path) -> None:
    assert "needs task; e.g. task=name" in refusal(tmp_path, "steps = 3")


def test_override_without_equals_is_refused(tmp_path: Path) -> None:
    assert "write key=value" in refusal(tmp_path, 'task = "park"', "steps")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps = 1", 'needs stage = "KIND"'),
        ('stage = "wakl"', "unknown stage 'wakl'; did you mean 'walk'?"),
        ("stage = []", 'needs stage = "KIND"'),
        ("stage = 3", 'needs stage = "KIND"'),
        ("[[stage]]\nsteps = 1", "each [[stage]] needs kind"),
        ('[[stage]]\nkind = "walk"\n[[stage]]\nkind = "walk"', "two stages are named 'walk'"),
        ('stesp = 1\n[[stage]]\nkind = "walk"', "unknown key 'stesp'"),
        ("steps = ", "is not a TOML file"),
        ("a = " + "[" * 100_000, "is not a TOML file"),
    ],
)
def test_unusable_recipe_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=r"trip\.toml") as caught:
        config.load_recipe(write(tmp_path, text), kinds=KINDS)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match=str(path)):
            config.read_toml(path)


def test_unknown_stage_in_an_override_lists_the_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown stage 'bakc'; did you mean 'back'"):
        config.load_recipe(write(tmp_path, SEVERAL), kinds=KINDS, overrides=["stage.bakc.steps=1"])


@settings(max_examples=60, deadline=None)
@given(
    walk=st.builds(
        Walk,
        task=st.text(st.characters(codec="utf-8")),
        steps=st.integers(1, 2**62),
        pace=st.floats(allow_nan=False, allow_infinity=False),
        style=st.sampled_from(["slow", "brisk"]),
        is_loud=st.booleans(),
        weights=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4).map(tuple),
        limit=st.none() | st.integers(-5, 5),
    )
)
def test_dumped_config_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, walk: Walk) -> None:
    path = write(tmp_path_factory.getbasetemp(), config.dump(walk))
    assert config.load(path, Walk) == walk


def test_dumped_recipe_loads_back_equal(tmp_path: Path) -> None:
    for text in (SEVERAL, 'stage = "rest"\ntask = "a \\"b\\""'):
        recipe = config.load_recipe(write(tmp_path, text), kinds=KINDS)
        built = [config.build(stage, KINDS[stage.kind]) for stage in recipe.stages]
        tables = [
            config.stage_table(value, name=stage.name, kind=stage.kind)
            for value, stage in zip(built, recipe.stages, strict=True)
        ]
        resolved = write(tmp_path, config.dump_recipe(config.Recipe("trip", tuple(tables))))
        again = config.load_recipe(resolved, kinds=KINDS)
        assert [config.build(stage, KINDS[stage.kind]) for stage in again.stages] == built
        assert [stage.name for stage in again.stages] == [stage.name for stage in recipe.stages]


def test_describe_reads_types_defaults_and_docstrings() -> None:
    docs = {doc.name: doc for doc in config.describe(Walk)}
    assert docs["task"] == config.FieldDoc("task", "str", "", "What to walk, on two lines.")
    assert docs["steps"] == config.FieldDoc("steps", "int", "10", "How far.")
    assert docs["style"].type == "slow|brisk"
    assert docs["limit"].default == "none"
    assert docs["pace"].doc == ""
