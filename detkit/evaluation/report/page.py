"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from detkit.evaluation.inputs import CocoTruths
from detkit.evaluation.report import charts, curves, examples, numbers, worst
from detkit.evaluation.report.html import Markup, element, join, shorten
from detkit.evaluation.report.models import Model
from detkit.evaluation.report.pictures import Album, image_names
from detkit.evaluation.result import CocoResult
from detkit.files import check_writable, write_atomically

FILE_NAME = "report.html"


class Section(NamedTuple):
    """A part of the page with an entry in its navigation."""

    key: str
    title: str
    content: Markup


def check_report(folder: str | Path, *, images: str | Path | None = None) -> None:
    """Raise unless a report can be written; to be asked before the work that it is about.

    Args:
        folder: where it is to be.
        images: where its pictures are.

    Raises:
        ValueError: nothing can be written there, or there is no folder of pictures.
    """
    check_writable(Path(folder) / FILE_NAME)
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"no folder of pictures at {images}; name the one that holds them")


def write_report(
    results: Mapping[str, CocoResult],
    folder: str | Path,
    *,
    pictures: Sequence[Path | None] | None = None,
    resamples: int = 1000,
) -> Path:
    """Write `report.html`, which opens from disk without a network.

    Args:
        results: of one or several models on the same ground truth, by name; the first is the one
            that the others are compared with.
        folder: made where it is missing.
        pictures: `[I]` the file of each image, in the order of the truths' `image_ids`; None for
            one that has none, or for all. Those that cannot be read are left out, and the page says
            so.
        resamples: of the images, for the interval of AP.

    Returns:
        The file.

    Raises:
        ValueError: no result, results on different ground truths, or nothing can be written there.
    """
    path = Path(folder) / FILE_NAME
    check_writable(path)
    write_atomically(path, render(results, pictures=pictures, resamples=resamples))
    return path


def render(
    results: Mapping[str, CocoResult],
    *,
    pictures: Sequence[Path | None] | None = None,
    resamples: int = 1000,
) -> str:
    """The page of `write_report`, which see."""
    models = [
        Model(name, result, place, resamples)
        for place, (name, result) in enumerate(results.items())
    ]
    if not models:
        raise ValueError("a report needs the result of one model at least, got none")
    headline = numbers.headline(models)  # first: it is here that models turn out not to compare
    album = _album(models[0].result.truths, pictures)
    sections = [
        Section("numbers", "Numbers", numbers.twelve_numbers(models)),
        Section("classes", "Classes", numbers.classes(models)),
        Section("curves", "Curves", curves.curves(models)),
        Section("errors", "Errors", charts.errors(models)),
        Section("confusion", "Confusion", charts.confusion(models)),
        Section("scores", "Scores", charts.scores(models)),
        Section("parts", "Parts", charts.parts(models)),
        *_pictures(models, album),
    ]
    return _document(models, headline, sections)


def _pictures(models: Sequence[Model], album: Album) -> Iterator[Section]:
    images = worst.worst_images(models, album)
    errors = examples.typical_errors(models, album)
    labels = examples.label_errors(models, album)
    # after the pictures: only now it is known which of them could be shown
    yield Section("images", "Worst images", join(worst.about_pictures(album), images))
    if errors is not None:
        yield Section("examples", "Typical errors", errors)
    yield Section("labels", "Labels", labels)


def _album(truths: CocoTruths, pictures: Sequence[Path | None] | None) -> Album:
    names = image_names(truths)
    files = list(pictures) if pictures is not None else [None] * len(names)
    if len(files) != len(names):
        raise ValueError(
            f"{len(files)} pictures were given for {len(names)} images; give one each, None where "
            "there is none"
        )
    shown = [
        name or (file.name if file else f"image {image_id}")
        for name, file, image_id in zip(names, files, truths.image_ids.tolist(), strict=True)
    ]
    return Album(files, shown)


def _document(models: Sequence[Model], headline: Markup, sections: Sequence[Section]) -> str:
    style, script = _asset("style.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    title = f"{' and '.join(shorten(model.name, 40) for model in models)}: detection report"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("link", rel="icon", href="data:,"),  # or a browser asks for one
        element("style", Markup(style)),
    )
    links = [element("a", each.title, href=f"#{each.key}") for each in sections]
    parts = [
        element("section", element("h2", each.title), each.content, id=each.key)
        for each in sections
    ]
    body = element(
        "body",
        element("h1", "Detection report"),
        headline,
        element("nav", *links),
        element("main", *parts),
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    """A text of this package; nothing in it may end the element that it is put into."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What the policy knows an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
