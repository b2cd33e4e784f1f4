"""What an exported file says of itself: classes, how pictures are prepared, what goes in.

One JSON text under the key `detkit`: in ONNX's `metadata_props`, in TorchScript's and
torch.export's archives a file of that name among the extra files. It is read before anything else
of the file is loaded.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.config import Recipe, build_recipe
from detkit.engine.views import resize_limits

KEY = "detkit"
VERSION = 1
SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "torch_export": ".pt2"}
PRECISIONS = ("fp32", "fp16", "int8")
_READ = ("recipe", "class_names", "category_ids", "precision", "inputs")


@dataclass(frozen=True)
class Metadata:
    """What is known of an exported detector.

    Attributes:
        recipe: resolved; its section `model` is what was exported.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1` in the data set.
        precision: one of `PRECISIONS`.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    precision: str = "fp32"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what goes in; proposals where the detector does not find them itself."""
        outside = self.recipe.model.proposals in ("selective_search", "file")
        return ("images", "sizes", "proposals") if outside else ("images", "sizes")

    def with_overrides(self, overrides: Sequence[str]) -> Recipe:
        """The recipe with `key.path=value` changes."""
        content = self.recipe.model_dump(mode="json")
        return build_recipe(content, overrides, where="the exported file")

    def as_dict(self) -> dict[str, Any]:
        """As it is written; what other programs need stands beside the recipe it comes from."""
        model = self.recipe.model
        shortest, longest = resize_limits(self.recipe)
        return {
            "version": VERSION,
            "detector": model.detector,
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "recipe": self.recipe.model_dump(mode="json"),
            "divisor": model.size_divisor,
            "resize": {"shortest": shortest, "longest": longest},
            "max_detections": model.select.max_detections,
            "score_threshold": model.select.score_threshold,
            "inputs": list(self.inputs),
            "precision": self.precision,
        }


def parse_metadata(text: str | None, where: str | Path) -> Metadata:
    """Read the JSON text of a file.

    Args:
        text: None where the file has none.
        where: the file, for messages.

    Raises:
        ValueError: there is none, it is damaged, or of a later version.
    """
    again = "export the checkpoint again with tools/export.py"
    if text is None:
        raise ValueError(f"{where} was not exported by detkit: it has no {KEY} metadata; {again}")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: its metadata is no JSON ({error}); {again}") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("version"), int):
        raise ValueError(f"{where}: its metadata names no version; {again}")
    if content["version"] != VERSION:
        raise ValueError(
            f"{where} has metadata version {content['version']}, this detkit reads {VERSION}; "
            f"use the version of detkit that wrote it, or {again}"
        )
    return _checked(content, where, again)


def _checked(content: Mapping[str, Any], where: str | Path, again: str) -> Metadata:
    if missing := [key for key in _READ if key not in content]:
        raise ValueError(f"{where}: its metadata lacks {', '.join(missing)}; {again}")
    names, ids, precision = (content[key] for key in ("class_names", "category_ids", "precision"))
    whole = isinstance(content["recipe"], dict) and isinstance(names, list)
    if not whole or not isinstance(ids, list) or not 0 < len(names) == len(ids):
        raise ValueError(f"{where}: its metadata is damaged (recipe, classes or ids); {again}")
    if precision not in PRECISIONS:
        raise ValueError(f"{where}: its metadata has precision {precision!r}; {again}")
    metadata = Metadata(
        recipe=build_recipe(content["recipe"], (), where=f"metadata of {where}"),
        class_names=tuple(map(str, names)),
        category_ids=tuple(map(int, ids)),
        precision=precision,
    )
    if list(metadata.inputs) != content["inputs"]:
        raise ValueError(f"{where}: its metadata has the inputs {content['inputs']}; {again}")
    return metadata


def format_of(path: str | Path) -> str | None:
    """The format that a file's name says, None where it is no exported file by its name."""
    suffix = Path(path).suffix.lower()
    return next((name for name, each in SUFFIXES.items() if each == suffix), None)


def archive_metadata(path: str | Path) -> str | None:
    """The text in an archive of TorchScript or torch.export; None where it has none.

    Nothing of the archive is executed.

    Raises:
        ValueError: it is no archive, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{path} is damaged (wrong checksum of {damaged})")
            ends = (f"extra/{KEY}", f"extra_files/{KEY}")  # the latter until torch 2.7
            found = [name for name in archive.namelist() if name.endswith(ends)]
            return archive.read(found[0]).decode() if found else None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no exported file ({error})") from None
