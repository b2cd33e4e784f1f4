"""A window where there can be one, and what is said where not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from detkit.inference import window as module
from detkit.inference.window import Window, window_problem


def test_window_needs_an_opencv_with_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "x\n  GUI:                  NONE\n")
    problem = window_problem()
    assert problem and "pip install --force-reinstall --no-deps opencv-python" in problem
    with pytest.raises(ValueError, match="built without windows"):
        Window(wait=False)


def test_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "x\n  GUI:                  QT5\n")
    monkeypatch.setattr(module, "_PROBE_WINDOW", "import os; os.abort()")  # so Qt does it
    problem = window_problem()
    assert problem and "no display?" in problem and "--out" in problem
    monkeypatch.setattr(module, "_PROBE_WINDOW", "pass")
    assert window_problem() is None


class Screen:
    """Stands in for OpenCV's windows: keys come from a list, then the window is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: list[int]) -> None:
        self.keys, self.shown = keys, list[np.ndarray]()
        monkeypatch.setattr(module, "window_problem", lambda: None)
        monkeypatch.setattr(cv2, "namedWindow", lambda *arguments: None, raising=False)
        monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None, raising=False)
        monkeypatch.setattr(
            cv2, "imshow", lambda name, image: self.shown.append(image), raising=False
        )
        monkeypatch.setattr(cv2, "waitKey", self.wait_key, raising=False)
        monkeypatch.setattr(cv2, "getWindowProperty", self.visible, raising=False)

    def wait_key(self, milliseconds: int) -> int:
        return self.keys.pop(0) if self.keys else -1

    def visible(self, name: str, key: int) -> float:
        return 1.0 if self.keys else 0.0


@pytest.mark.parametrize(
    ("wait", "keys", "goes_on", "left"),
    [
        (False, [-1, -1], True, 1),  # a video does not wait
        (False, [ord("q")], False, 0),
        (False, [27], False, 0),
        (False, [ord("x")], True, 0),
        (False, [-1], False, 0),  # closed by mouse
        (True, [-1, -1, ord(" ")], True, 0),  # a picture waits for a key
        (True, [-1, ord("q") | 0x100000], False, 0),  # GTK sets bits above the key
        (True, [-1], False, 0),
    ],
)
def test_window(
    monkeypatch: pytest.MonkeyPatch, wait: bool, keys: list[int], goes_on: bool, left: int
) -> None:
    screen = Screen(monkeypatch, keys)
    with Window(wait=wait) as window:
        assert window.show(np.full((2, 2, 3), (1, 2, 3), np.uint8)) == goes_on
    assert len(keys) == left
    assert screen.shown[0][0, 0].tolist() == [3, 2, 1]  # OpenCV shows BGR
