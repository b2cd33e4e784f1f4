"""Detect with an exported file: python examples/infer_onnx.py best.onnx photo.jpg --out drawn/.

Needs numpy, opencv-python and onnxruntime, and neither torch nor detkit: copy this file beside the
model. What the model takes and gives is said in `detect`; class names and how pictures are resized
stand in the file itself, as JSON under the key "detkit" of its metadata.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

Metadata = dict[str, Any]


def load(path: str) -> tuple[onnxruntime.InferenceSession, Metadata]:
    """The model and what it says of itself; on the GPU where this onnxruntime can use one."""
    try:
        session = onnxruntime.InferenceSession(
            path,
            providers=[
                each
                for each in ("CUDAExecutionProvider", "CPUExecutionProvider")
                if each in onnxruntime.get_available_providers()
            ],
        )
    except Exception as error:  # each kind of damage has its own class, which is not public
        raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from None
    text = session.get_modelmeta().custom_metadata_map.get("detkit")
    if text is None:
        raise ValueError(f"{path} has no detkit metadata; export it with tools/export.py")
    metadata = json.loads(text)
    if "proposals" in metadata["inputs"]:
        raise ValueError(
            f"{path} looks at regions that another program proposes ({metadata['detector']}); this "
            "example has none to give: use detkit.load, or export a detector with proposals=rpn"
        )
    return session, metadata


def read(path: str) -> np.ndarray:
    """A picture `[H, W, 3]` uint8 RGB, upright: OpenCV applies the EXIF orientation."""
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise ValueError(f"cannot read {path}: {str(error).strip()}") from None
    if image is None:
        raise ValueError(f"cannot read {path}: it is no picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, shortest: int | None, longest: int | None) -> np.ndarray:
    """Scale until the shortest or the longest side has its limit; both None: as it is."""
    height, width = image.shape[:2]
    scale = min(
        math.inf if shortest is None else shortest / min(height, width),
        math.inf if longest is None else longest / max(height, width),
    )
    if math.isinf(scale):
        return image
    size = max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
    if size == (height, width):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def detect(
    session: onnxruntime.InferenceSession, metadata: Metadata, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes `[K, 4]` xyxy in pixels of the image, scores `[K]` and labels `[K]`, best first."""
    small = resize(image, **metadata["resize"])
    height, width = small.shape[:2]
    divisor = metadata["divisor"]
    rows, columns = (-(-side // divisor) * divisor for side in (height, width))
    images = np.zeros((1, 3, rows, columns), np.uint8)  # padded right and below
    images[0, :, :height, :width] = small.transpose(2, 0, 1)
    sizes = np.array([[height, width]], np.int64)
    boxes, scores, labels = session.run(
        ["boxes", "scores", "labels"], {"images": images, "sizes": sizes}
    )
    found = labels[0] >= 0  # the number of rows is fixed, those left over have the label -1
    ratio = np.array([image.shape[1] / width, image.shape[0] / height] * 2, np.float32)
    return boxes[0, found] * ratio, scores[0, found], labels[0, found]


def draw(image: np.ndarray, found: list[dict[str, Any]]) -> np.ndarray:
    """A copy of the picture with boxes, classes and scores, as OpenCV has it: BGR."""
    drawn = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    thickness = max(1, round(max(image.shape) / 500))
    for each in reversed(found):  # the best lie on top
        x1, y1, x2, y2 = map(round, each["box"])
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (40, 40, 230), thickness)
        text = f"{each['class']} {each['score']:.2f}".encode("ascii", "replace").decode()
        corner = (x1 + 2, max(12 * thickness, y1 - 4))
        cv2.putText(drawn, text, corner, 0, 0.5 * thickness, (40, 40, 230), thickness, cv2.LINE_AA)
    return drawn


def main() -> None:
    """Detect in each picture, draw where asked to, and print everything as JSON."""
    parser = argparse.ArgumentParser(description="Detect with a file that detkit exported.")
    parser.add_argument("model", help="best.onnx")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (default: 0.5)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="draw into this folder")
    options = parser.parse_args()
    session, metadata = load(options.model)
    results = []
    for path in options.pictures:
        image = read(path)
        found = [
            {
                "box": box.tolist(),
                "score": float(score),
                "class": metadata["class_names"][label],
                "category_id": metadata["category_ids"][label],
            }
            for box, score, label in zip(*detect(session, metadata, image), strict=True)
            if score >= options.threshold
        ]
        results.append({"file": path, "detections": found})
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            target = options.out / f"{Path(path).stem}.jpg"
            cv2.imencode(".jpg", draw(image, found))[1].tofile(target)
    json.dump(results, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
