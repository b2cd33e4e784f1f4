"""Where the proposals of a data set come from: a search kept on disk, or a file.

P proposals of an image, N images, K proposals in a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.dataset import CocoDataset
from detkit.data.synthetic import default_cache
from detkit.files import write_atomically
from detkit.proposals import SearchSettings, selective_search
from detkit.proposals.selective_search import VERSION

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class SearchedProposals:
    """Selective search, whose results are kept on disk: a file for each picture and settings.

    The name of a file is a digest of the pixels, so that data sets share pictures, and a changed
    picture is searched again. Any number of processes may use one folder: files appear whole.

    Attributes:
        settings: of the search.
        limit: proposals of an image, the best; None takes all.
        cache: the folder of all results; None is `proposals` in the cache folder of detkit.
    """

    settings: SearchSettings
    limit: int | None = None
    cache: Path | None = None

    def __call__(self, image_id: int, image: np.ndarray) -> np.ndarray:
        """Proposals `[P, 4]` of a picture `[H, W, 3]` uint8 RGB, read where they are known."""
        path = self.path(image)
        boxes = _read_boxes(path)
        if boxes is None:
            boxes = selective_search(image, self.settings)
            data = boxes.astype("<f4").tobytes()
            write_atomically(path, _digest(data) + data)
        return boxes[: self.limit]

    def folder(self) -> Path:
        """Of the results with these settings."""
        root = default_cache() / "proposals" if self.cache is None else self.cache
        return root / f"selective_search-v{VERSION}-{_digest(repr(self.settings).encode()).hex()}"

    def path(self, image: np.ndarray) -> Path:
        """Of the result for a picture."""
        shape = repr(image.shape).encode()
        name = _digest(shape + np.ascontiguousarray(image).tobytes()).hex()
        return self.folder() / name[:2] / name[2:]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _read_boxes(path: Path) -> np.ndarray | None:
    """Boxes `[P, 4]` from a file of the cache; None where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if digest != _digest(data):
        logger.warning("%s is damaged; its proposals are computed again", path)
        return None
    return np.frombuffer(data, "<f4").reshape(-1, 4).astype(np.float32)


@dataclass(frozen=True)
class StoredProposals:
    """Proposals of all images in memory, in arrays that worker processes share.

    Attributes:
        image_ids: `[N]` int64, ascending.
        offsets: `[N + 1]`; the proposals of `image_ids[i]` are `boxes[offsets[i]:offsets[i + 1]]`.
        boxes: `[K, 4]` float32 xyxy in pixels of the pictures, best first in each image.
    """

    image_ids: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray

    def __call__(self, image_id: int, image: np.ndarray) -> np.ndarray:
        """Proposals `[P, 4]` of an image of the data set they were read for."""
        place = np.searchsorted(self.image_ids, image_id)
        return self.boxes[self.offsets[place] : self.offsets[place + 1]].copy()


class ProposalFileError(ValueError):
    """Proposals that cannot be used; one line with the file and the reason."""


def read_proposals(path: str | Path, dataset: CocoDataset) -> StoredProposals:
    """Read the proposals of a data set from a file.

    JSON in COCO's results format is a list of objects with `image_id`, `bbox` [x, y, width, height]
    and optionally `score`. `.npz` has the arrays `image_ids` [K], `boxes` [K, 4] xyxy and
    optionally `scores` [K]. By score where there is one, else in the order of the file. Boxes are
    clipped to their picture; those outside are left out, and so are images of other data sets.

    Raises:
        ProposalFileError: a file that cannot be read, that lacks images of the data set, or with
            boxes that are no finite numbers or have negative sides.
    """
    path = Path(path)
    try:
        ids, boxes, scores = (_read_npz if path.suffix == ".npz" else _read_json)(path)
    except OSError as error:
        raise ProposalFileError(
            f"cannot read proposals {path}: {error.strerror or error}"
        ) from None
    wrong = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
    wrong |= (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ProposalFileError(
            f"{path}: proposal {first} (image {ids[first]}) must have finite numbers and sides not "
            f"below 0, got corners {boxes[first].tolist()}, score {scores[first]:g}"
        )
    known = np.sort(dataset.image_ids)
    missing = np.setdiff1d(known, ids)
    if len(missing):
        raise ProposalFileError(
            f"{path} has no proposals for {len(missing)} of {len(known)} images: ids "
            f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}; "
            "is it of another data set?"
        )
    place = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
    own = np.flatnonzero(known[place] == ids) if len(known) else np.zeros(0, np.int64)
    height, width = dataset.sizes()[np.argsort(dataset.image_ids)][place[own]].T
    clipped = np.clip(boxes[own], 0, np.stack([width, height, width, height], axis=1))
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    own, clipped = own[inside], clipped[inside]
    order = np.lexsort((-scores[own], place[own]))
    counts = np.bincount(place[own], minlength=len(known))
    return StoredProposals(
        known,
        np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        clipped[order].astype(np.float32),
    )


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ids `[K]`, boxes xyxy `[K, 4]` and scores `[K]`."""
    try:
        with np.load(path, allow_pickle=False) as content:
            ids, boxes = content["image_ids"], content["boxes"]
            scores = content["scores"] if "scores" in content else np.zeros(len(ids))
    except OSError:
        raise
    except Exception as error:  # zipfile's, zlib's, numpy's: of damaged files any
        raise ProposalFileError(
            f"{path} is no .npz file with the arrays image_ids, boxes and maybe scores: "
            f"{str(error) or type(error).__name__}"
        ) from None
    shapes = [list(array.shape) for array in (ids, boxes, scores)]
    if shapes != [[len(ids)], [len(ids), 4], [len(ids)]] or ids.dtype.kind not in "iu":
        raise ProposalFileError(
            f"{path}: image_ids, boxes and scores must be [K] integers, [K, 4] and [K], got "
            f"{shapes[0]} {ids.dtype}, {shapes[1]} and {shapes[2]}"
        )
    try:
        return ids.astype(np.int64), boxes.astype(np.float64), scores.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ProposalFileError(f"{path}: boxes and scores must be numbers: {error}") from None


def _read_json(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ids `[K]`, boxes xyxy `[K, 4]` and scores `[K]`."""
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise ProposalFileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, list):
        raise ProposalFileError(
            f"{path} holds a {type(content).__name__}, not a list of objects with image_id, bbox"
        )
    for position, item in enumerate(content):
        _check_item(path, position, item)
    boxes = np.array([item["bbox"] for item in content], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = np.array([item["image_id"] for item in content], np.int64)
    return ids, boxes, np.array([item.get("score", 0.0) for item in content], np.float64)


def _check_item(path: Path, position: int, item: Any) -> None:
    if not isinstance(item, dict):
        raise ProposalFileError(f"{path}: entry {position} must be an object, got {item!r:.40}")
    image_id, bbox, score = item.get("image_id"), item.get("bbox"), item.get("score", 0.0)
    if type(image_id) is not int or abs(image_id) >= 2**63:
        raise ProposalFileError(f"{path}: image_id of entry {position} is {image_id!r:.40}, no id")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise ProposalFileError(
            f"{path}: bbox of entry {position} (image {image_id}) must be four numbers "
            f"[x, y, width, height], got {bbox!r:.80}"
        )
    if not _is_number(score):
        raise ProposalFileError(f"{path}: score of entry {position} is {score!r:.40}, no number")


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**1023)


def proposal_records(
    proposals: Mapping[int, np.ndarray], *, limit: int | None = None
) -> list[dict[str, Any]]:
    """COCO results records `{image_id, category_id, bbox, score}`; the score falls with the place.

    Args:
        proposals: image id to `[P, 4]` xyxy, best first.
        limit: of an image.
    """
    return [
        {"image_id": int(image_id), "category_id": 1, "bbox": box, "score": 1 / (1 + place)}
        for image_id, boxes in proposals.items()
        for place, box in enumerate(_xywh(boxes[:limit]))
    ]


def _xywh(boxes: np.ndarray) -> Sequence[list[float]]:
    # in float64, or the corners that are read again would differ in the last bit
    exact = boxes.astype(np.float64)
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1).tolist()
