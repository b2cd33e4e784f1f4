"""A window that shows pictures, where OpenCV can open one."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np

_PROBE_WINDOW = "import cv2; cv2.namedWindow('detkit'); cv2.waitKey(1); cv2.destroyAllWindows()"


class Window:
    """A window that shows pictures; q or Esc closes it.

    Args:
        wait: keep each picture until a key is pressed, else go on at once.

    Raises:
        ValueError: no window can be opened here; the message says why and what to do.
    """

    def __init__(self, *, wait: bool) -> None:
        problem = window_problem()
        if problem:
            raise ValueError(problem)
        self.wait = wait
        self.name = "detkit (q to quit)"
        cv2.namedWindow(self.name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, picture: np.ndarray) -> bool:
        """Show `[H, W, 3]` uint8 RGB; False when the user wants no more."""
        cv2.imshow(self.name, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        while True:
            key = cv2.waitKey(50 if self.wait else 1)
            if key >= 0:
                return key & 0xFF not in (ord("q"), 27)
            if cv2.getWindowProperty(self.name, cv2.WND_PROP_VISIBLE) < 1:  # closed by mouse
                return False
            if not self.wait:
                return True

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exception: object) -> None:
        cv2.destroyAllWindows()


def window_problem() -> str | None:
    """Why OpenCV cannot open a window here and what to do about it, None where it can.

    Tried in another process: where there is no display, Qt does not raise but ends its process.
    """
    gui = [
        line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")
    ]
    if gui and "NONE" in gui[0]:
        return (
            "--show: this OpenCV was built without windows (opencv-python-headless took the place "
            "of opencv-python); run: pip install --force-reinstall --no-deps opencv-python"
        )
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE_WINDOW], capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return "--show: opening a window takes too long here; leave out --show and give --out"
    if probe.returncode == 0:
        return None
    return (
        "--show: no window can be opened here (no display?); run it on a desktop, or leave out "
        "--show and give --out"
    )
