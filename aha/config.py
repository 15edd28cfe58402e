"""Recipes: a TOML file plus `key=value` overrides become frozen dataclasses, one per stage of a run.

A recipe of one stage is flat: `stage = "grpo"` names the job, every other key is a field of that job's dataclass.
A recipe of several stages has one `[[stage]]` table each, with `name` and `kind`; top-level keys beside them are
defaults for every stage that has such a field. An override `key=value` goes to every stage that has the key,
`stage.NAME.key=value` to one.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
import textwrap
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from aha.errors import AhaError, ConfigError, unknown_name


class DataclassInstance(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


ConfigT = TypeVar("ConfigT", bound=DataclassInstance)

Kinds = Mapping[str, type[DataclassInstance]]
"""Stage kind to its config dataclass, e.g. {"grpo": GRPOConfig}."""


@dataclass(frozen=True)
class StageTable:
    """One stage as written; `build` checks it against its dataclass."""

    name: str
    """How `stage.NAME.key=value` addresses it; unique in its recipe."""
    kind: str
    """Which job: a name in `aha.train.STAGES`."""
    values: Mapping[str, object]
    """TOML values. Those of overrides are parsed already."""
    origin: str = "recipe"
    """Where it was read, to begin error messages with."""


@dataclass(frozen=True)
class Recipe:
    """What a run does: its stages in order."""

    name: str
    stages: tuple[StageTable, ...]


class FieldDoc(NamedTuple):
    """What a reader needs to know about one knob."""

    name: str
    type: str
    default: str
    """As written in a recipe; "" for a field that is required."""
    doc: str
    """The docstring under the field, on one line; "" when there is none."""


def load(path: Path, cls: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a flat TOML file of `cls`'s fields, with `key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value has the wrong type or is refused by `cls`.
    """
    recipe = Recipe(path.stem, (StageTable("config", "config", read_toml(path), str(path)),))
    return build(override(recipe, overrides, kinds={"config": cls}).stages[0], cls)


def load_recipe(path: Path, *, kinds: Kinds, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of one or several stages, with overrides.

    Raises:
        ConfigError: the file cannot be read, has no stage, or an override fits no stage. Values from the file are
            checked by `build`.
    """
    table = read_toml(path)
    stage = table.pop("stage", None)
    if isinstance(stage, str):
        stages = [StageTable(stage, _known_kind(stage, kinds=kinds, path=path), table, str(path))]
    elif isinstance(stage, list) and stage and all(isinstance(entry, dict) for entry in stage):
        stages = _with_defaults(
            [_read_stage(entry, kinds=kinds, path=path) for entry in stage], table, kinds=kinds, path=path
        )
    else:
        raise ConfigError(f'{path}: needs stage = "KIND" or [[stage]] tables; kinds: {", ".join(sorted(kinds))}')
    names = [stage.name.lower() for stage in stages]  # they name files, and some disks do not tell A from a
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: two stages are named {twice[0]!r}; give each [[stage]] its own name")
    return override(Recipe(path.stem, tuple(stages)), overrides, kinds=kinds)


def recipe_paths() -> dict[str, Path]:
    """The recipes that come with aha, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def _known_kind(kind: str, *, kinds: Kinds, path: Path) -> str:
    if kind not in kinds:
        raise ConfigError(f"{path}: {unknown_name('stage', kind, kinds)}")
    return kind


def _read_stage(entry: dict[str, object], *, kinds: Kinds, path: Path) -> StageTable:
    values = dict(entry)
    kind = values.pop("kind", None)
    name = values.pop("name", kind)
    if not isinstance(kind, str) or not isinstance(name, str):
        raise ConfigError(f'{path}: each [[stage]] needs kind = "…"; choose from: {", ".join(sorted(kinds))}')
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}", name):
        raise ConfigError(f"{path}: stage name {name[:80]!r} is also that of files: up to 60 letters, digits, _ and -")
    return StageTable(name, _known_kind(kind, kinds=kinds, path=path), values, f"{path}: stage {name!r}")


def _with_defaults(
    stages: list[StageTable], shared: dict[str, object], *, kinds: Kinds, path: Path
) -> list[StageTable]:
    """The stages with each shared key that they have a field for and do not set themselves."""
    known = set().union(*(_annotations(kinds[stage.kind]) for stage in stages))
    for key in shared:
        if key not in known:
            raise ConfigError(f"{path}: {unknown_name('key', key, known)}")
    complete = []
    for stage in stages:
        fitting = {key: value for key, value in shared.items() if key in _annotations(kinds[stage.kind])}
        complete.append(replace(stage, values=fitting | dict(stage.values)))
    return complete


def override(recipe: Recipe, overrides: Sequence[str], *, kinds: Kinds) -> Recipe:
    """The recipe with `key=value` applied to every stage that has the key, `stage.NAME.key=value` to one.

    Raises:
        ConfigError: no "=", a key that no addressed stage has, or a value of the wrong type.
    """
    for text in overrides:
        recipe = _override_one(recipe, text, kinds=kinds)
    return recipe


def _override_one(recipe: Recipe, text: str, *, kinds: Kinds) -> Recipe:
    address, equals, value = text.partition("=")
    if not equals or not address.strip():
        raise ConfigError(f"{text!r} is not an override; write key=value, e.g. steps=20")
    stage_name, _, key = address.strip().removeprefix("stage.").rpartition(".")
    targets = [stage for stage in recipe.stages if stage_name in ("", stage.name)]
    if not targets:
        names = [stage.name for stage in recipe.stages]
        raise ConfigError(f"override {text!r}: {unknown_name('stage', stage_name, names)}")
    with_key = [stage.name for stage in targets if key in _annotations(kinds[stage.kind])]
    if not with_key:
        known = set().union(*(_annotations(kinds[stage.kind]) for stage in targets))
        raise ConfigError(f"override {text!r}: {unknown_name('key', key, known)}")
    stages = []
    for stage in recipe.stages:
        if stage.name in with_key:
            parsed = parse_value(value.strip(), _annotations(kinds[stage.kind])[key], name=key)
            stage = replace(stage, values={**stage.values, key: parsed})
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def parse_value(text: str, annotation: object, *, name: str) -> object:
    """Read the text of an override as its field's type: `8`, `2e-6`, `true`, `word`, `1,2,3`, `none`.

    Raises:
        ConfigError: the text does not spell such a value.
    """
    return check_value(_spelled(text, annotation), annotation, name=name)


def _spelled(text: str, annotation: object) -> object:
    """The value that `text` spells if `annotation` admits it, else `text` itself for `check_value` to refuse."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return next((choice for choice in args if str(choice).lower() == text.lower()), text)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        spelled = [_spelled(text, arg) for arg in args if arg is not types.NoneType]
        return next((value for value in spelled if not isinstance(value, str)), spelled[0])
    if origin is tuple:
        # An item in quotes may hold commas: rewards=["accuracy", "length:weight=0.1,target=64"].
        items = re.findall(r"\"[^\"]*\"|'[^']*'|[^,\s][^,]*", text.strip("()[] "))
        return tuple(_spelled(item.strip(" \"'"), args[0]) for item in items)
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if annotation in (int, float):
        try:
            return int(text) if annotation is int else float(text)
        except ValueError:
            return text
    return text


def build(stage: StageTable, cls: type[ConfigT]) -> ConfigT:
    """A stage's values as its frozen dataclass.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a value that the dataclass refuses.
    """
    annotations = _annotations(cls)
    values = {}
    for key, value in stage.values.items():
        if key not in annotations:
            raise ConfigError(f"{stage.origin}: {unknown_name('key', key, annotations)}")
        try:
            values[key] = check_value(value, annotations[key], name=key)
        except ConfigError as error:
            raise ConfigError(f"{stage.origin}: {error}") from error
    required = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        example = _expected(annotations[missing[0]]).example
        raise ConfigError(f"{stage.origin}: needs {', '.join(missing)}; e.g. {missing[0]}={example}")
    try:
        return cls(**values)
    except (AhaError, ValueError) as error:
        raise ConfigError(f"{stage.origin}: {error}") from error


def check_value(value: object, annotation: object, *, name: str) -> object:
    """The value as its field's type: an int may stand for a float, a list for a tuple.

    Raises:
        ConfigError: the value is of another type or not among its choices.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(check_value(item, args[0], name=name) for item in value)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        fitting = [arg for arg in args if arg is not types.NoneType and _fits(value, arg)]
        if fitting:
            return check_value(value, fitting[0], name=name)
    if _fits(value, annotation):
        return float(str(value)) if annotation is float else value
    expected = _expected(annotation)
    hint = "" if origin is Literal else f", e.g. {name}={expected.example}"
    raise ConfigError(f"{name} must be {expected.words}, got {value!r}{hint}")


def _fits(value: object, annotation: object) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(item, args[0]) for item in value)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(annotation, type) and isinstance(value, annotation)


class _Expected(NamedTuple):
    words: str
    example: str


_EXPECTED: dict[object, _Expected] = {
    bool: _Expected("true or false", "true"),
    int: _Expected("a whole number", "8"),
    float: _Expected("a finite number", "1e-4"),
    str: _Expected("text", "name"),
    types.NoneType: _Expected("none", "none"),
}


def _expected(annotation: object) -> _Expected:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _Expected(f"one of {', '.join(str(choice) for choice in args)}", str(args[0]))
    if origin is tuple:
        item = _expected(args[0])
        return _Expected(f"a list, each {item.words}", f"{item.example},{item.example}")
    if origin in (Union, types.UnionType):
        options = [_expected(arg) for arg in args]
        return _Expected(" or ".join(option.words for option in options), options[0].example)
    return _EXPECTED[annotation]


def _annotations(cls: type[DataclassInstance]) -> dict[str, object]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.init}


def stage_table(config: DataclassInstance, *, name: str, kind: str) -> StageTable:
    """A built config as a table again, every default written out; None is left out, as TOML has none."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.init}
    return StageTable(name, kind, {key: value for key, value in values.items() if value is not None})


def dump(config: DataclassInstance) -> str:
    """A config as flat TOML that `load` reads back to an equal one."""
    return _dump_values(stage_table(config, name="config", kind="config").values, docs={})


def dump_recipe(recipe: Recipe, *, documented: Kinds | None = None) -> str:
    """A recipe as TOML that `load_recipe` reads back: flat for one stage of its kind's name, else [[stage]] tables.

    Args:
        documented: puts each field's docstring above its key, from these classes; None writes no comments.
    """
    parts = []
    for stage in recipe.stages:
        docs = {doc.name: doc.doc for doc in describe(documented[stage.kind])} if documented else {}
        is_flat = len(recipe.stages) == 1 and stage.name == stage.kind
        names = f"name = {_toml(stage.name)}\nkind = {_toml(stage.kind)}\n"
        head = f"stage = {_toml(stage.kind)}\n" if is_flat else f"[[stage]]\n{names}"
        parts.append(head + _dump_values(stage.values, docs=docs))
    return "\n".join(parts)


def _dump_values(values: Mapping[str, object], *, docs: Mapping[str, str]) -> str:
    lines = []
    for key, value in values.items():
        if docs.get(key):
            lines += ["", f"# {docs[key]}"]
        lines.append(f"{key} = {_toml(value)}")
    return "\n".join([*lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def describe(cls: type[DataclassInstance]) -> tuple[FieldDoc, ...]:
    """Every knob of a config dataclass in order, with the docstring that stands under it."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _attribute_docs(base)
    annotations = _annotations(cls)
    return tuple(
        FieldDoc(f.name, _type_words(annotations[f.name]), _default_text(f), docs.get(f.name, ""))
        for f in fields(cls)
        if f.init
    )


def _attribute_docs(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, follower in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match follower:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[statement.target.id] = " ".join(text.split())
    return docs


def _type_words(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)


def _default_text(config_field: Field[Any]) -> str:
    if config_field.default is not MISSING:
        return "none" if config_field.default is None else _toml(config_field.default)
    if config_field.default_factory is not MISSING:
        return _toml(config_field.default_factory())
    return ""
