"""A real browser for tests: fixtures `browser` and `show`, which conftest.py offers to all.

Chromium, spoken to in the DevTools protocol over a pipe
(https://chromedevtools.github.io/devtools-protocol/); tests are skipped where there is none. Its
camera is a test picture.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
PATIENCE = 60  # seconds; a loaded machine starts a browser slowly
DESKTOP, PHONE = (1280, 800), (390, 844)

CONTRAST = """
(() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : color;
  };
  const found = {};
  for (const selector of SELECTORS) {
    const element = document.querySelector(selector);
    const style = getComputedStyle(element);
    const ink = luminance(element.closest("svg") ? style.fill : style.color);
    const paper = luminance(behind(element));
    found[selector] = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }
  return [luminance(behind(document.body)), found];
})()
"""


class Browser:
    """A headless browser and its DevTools connection."""

    def __init__(self, program: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # (read, write): what we say, what it says

        def place() -> None:  # the browser reads from descriptor 3 and writes to 4
            ends = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in = ours[1], theirs[0]
        self._pending = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events that come before are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Until an event of a session has come."""
        while not any(
            each.get("method") == method and each.get("sessionId") == session
            for each in self.events
        ):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._in], [], [], deadline - time.monotonic())
            assert ready, "the browser says nothing"
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has gone"
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self.process.terminate()
        self.process.wait(PATIENCE)


class Tab:
    """A page that is shown."""

    def __init__(self, browser: Browser, page: Path | str) -> None:
        self.browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.appear(DESKTOP, "light")
        self.url = page.resolve().as_uri() if isinstance(page, Path) else page
        self.call("Page.navigate", url=self.url)
        browser.wait("Page.loadEventFired", self._session)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self._session, **parameters)

    def appear(self, size: tuple[int, int], scheme: str) -> None:
        """Take another size and colour scheme."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def click(self, selector: str, index: int = 0) -> None:
        """With the mouse, in the middle of the element."""
        where = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        self.run(f"{where}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = f"(b => [b.x + b.width / 2, b.y + b.height / 2])({where}.getBoundingClientRect())"
        x, y = self.run(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def wait_for(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.problems())
            time.sleep(0.05)
        return value

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                windowsVirtualKeyCode=code,
            )  # fmt: skip

    def contrasts(self, selectors: list[str]) -> tuple[float, dict[str, float]]:
        """Luminance of the page, and contrast of the text of elements with what is behind it."""
        luminance, found = self.run(CONTRAST.replace("SELECTORS", json.dumps(selectors)))
        return luminance, found

    def _events(self, *methods: str) -> Iterator[dict[str, Any]]:
        self.run("1")  # all events so far have come
        for each in self.browser.events:
            if each.get("sessionId") == self._session and each["method"] in methods:
                yield each["params"]

    def problems(self) -> list[str]:
        """Whatever a console would show, and dialogs."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                 "Page.javascriptDialogOpening")  # fmt: skip
        return [json.dumps(each) for each in self._events(*kinds)]

    def requests(self) -> list[str]:
        """Addresses that were asked for, but the page itself and what it holds inside."""
        asked = [each["request"]["url"] for each in self._events("Network.requestWillBeSent")]
        return [url for url in asked if url != self.url and not url.startswith("data:")]

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self._target)


Open = Callable[[Path | str], Tab]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None or sys.platform == "win32":
        pytest.skip("no Chromium here (apt-get install chromium)")
    running = Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    tabs = []

    def open_tab(page: Path | str) -> Tab:
        tabs.append(Tab(browser, page))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.close()
