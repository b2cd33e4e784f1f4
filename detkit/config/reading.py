"""How a YAML file becomes a recipe, and what is said about one that cannot be used."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ValidationError

from detkit.config.base import ConfigError, Section
from detkit.config.recipe import ClassifierRecipe, Recipe
from detkit.registry import suggest

R = TypeVar("R", Recipe, ClassifierRecipe)


class _Loader(yaml.SafeLoader):
    """Safe YAML: `1e-3` is a float, `off` is text, there are no dates and no key is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, (list, dict, set)):
                raise yaml.YAMLError(f"the key in line {line} is a {type(key).__name__}, not text")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text, be it the name "1e3"."""


# As in YAML 1.2: `train.amp=off` is a choice, not False
_BOOL = ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"),
    list("-+.0123456789"),
)
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":float", ":bool"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _resolver in (_BOOL, _FLOAT):
    _Loader.add_implicit_resolver(*_resolver)
    _Dumper.add_implicit_resolver(*_resolver)


def parse_yaml(text: str, name: str) -> Any:
    """YAML text to plain values; `name` stands in the error message."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: not valid YAML: {reason}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key.path=value` overrides.

    Raises:
        ConfigError: unknown key, wrong type, wrong choice, no such file.
    """
    return load_recipe_as(Recipe, path, overrides)


def load_recipe_as(schema: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """What `load_recipe` does, for a recipe of another schema."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = (
            sorted(str(p) for p in path.parent.glob("[!.]*.yaml")) if path.parent.is_dir() else []
        )
        hint = f"; {suggest(str(path), near)}" if near else ""
        raise ConfigError(f"no recipe at {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe {path}: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, e.g. 'name: my_run'")
    tree.setdefault("name", path.stem)
    return build_recipe_as(schema, tree, overrides, where=str(path))


def build_recipe(
    tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> Recipe:
    """Check a tree of plain values; `where` names its origin in error messages."""
    return build_recipe_as(Recipe, tree, overrides, where=where)


def build_recipe_as(
    schema: type[R], tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> R:
    """What `build_recipe` does, for a recipe of another schema."""
    for override in overrides:
        tree = apply_override(tree, override, schema=schema)
    try:
        # Through JSON, because only there does strict mode take lists for tuples.
        return schema.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        lines = [f"{where}: {_explain(problem, schema)}" for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    except (TypeError, ValueError, RecursionError) as error:  # of json: bytes, a set, a circle
        raise ConfigError(
            f"{where}: a recipe holds mappings, lists, text and numbers only: {error}"
        ) from None


def apply_override(
    tree: dict[str, Any], override: str, *, schema: type[Section] = Recipe
) -> dict[str, Any]:
    """A copy of `tree` with `key.path=value` set; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    parts = key.split(".")
    if parts[0] not in schema.model_fields:
        raise ConfigError(
            f"override {override!r}: unknown key; {suggest(parts[0], schema.model_fields)}"
        )
    value = parse_yaml(text, f"override {override!r}")
    result = dict(tree)
    node = result
    for part in parts[:-1]:
        child = node.get(part)
        node[part] = dict(child) if isinstance(child, dict) else {}
        node = node[part]
    node[parts[-1]] = value
    return result


def recipe_to_yaml(recipe: Recipe | ClassifierRecipe) -> str:
    """The resolved recipe, every default written out."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


_LONG = 60  # letters of a value in a message


def _explain(problem: Any, schema: type[Section]) -> str:
    """One line for one pydantic error: the key, what was given, what is allowed."""
    keys, section, is_section = _locate(problem["loc"], schema)
    key, given, kind = ".".join(keys), problem["input"], problem["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {suggest(keys[-1], section.model_fields if section else ())}"
    if kind == "missing":
        return f"{key}: missing; set it"
    if kind == "union_tag_invalid":
        given = problem["ctx"]["tag"]
        choices = re.findall(r"'(\w+)'", problem["ctx"]["expected_tags"])
        return f"{key}.format: got {given!r}; {suggest(given, choices)}"
    if kind == "union_tag_not_found":
        return f"{key}: got {_short(given)}; it needs 'format: coco', voc, yolo, csv or auto"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{key}: got {_short(given)}; {suggest(str(given), choices)}"
    if kind == "tuple_type":
        return f"{key}: got {_short(given)}; should be a list, in brackets: [...]"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if is_section and kind == "value_error" and len(repr(given)) > _LONG:
        return f"{key}: {message}"  # which names the keys that do not go together
    return f"{key}: got {_short(given)}; {message}" if key else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _locate(
    loc: Iterable[str | int], schema: type[Section]
) -> tuple[list[str], type[Section] | None, bool]:
    """Turn pydantic's location into a key path.

    Returns:
        The path, the section that its last key is in, and whether the key is a section itself.
    """
    keys: list[str] = []
    sections: list[type[Section]] = [schema]
    parent: type[Section] | None = schema
    for part in loc:
        tagged = [s for s in sections if s.model_fields.get("format") is not None]
        if len(sections) > 1 and any(s.model_fields["format"].default == part for s in tagged):
            sections = [s for s in tagged if s.model_fields["format"].default == part]
            continue  # the tag of a union, not a key
        if "[" in str(part):
            continue  # one of the types that a value may have, as in 'tuple[int, ...]'
        keys.append(str(part))
        parent = sections[0] if sections else parent
        field = sections[0].model_fields.get(str(part)) if sections else None
        sections = list(_sections_in(field.annotation)) if field is not None else []
    return keys, parent, bool(keys and sections)


def _sections_in(annotation: Any) -> Iterable[type[Section]]:
    """All sections that a type annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, UnionType):
        for argument in typing.get_args(annotation):
            yield from _sections_in(argument)
