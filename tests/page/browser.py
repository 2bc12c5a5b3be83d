"""A headless Chromium that tests drive over its DevTools protocol, through a pair of pipes."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0
"""That one answer may take."""


def find_browser() -> str | None:
    """The program of a browser, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab that shows one file after another, and what its browser complained about."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._numbers, self._buffer, self._session = itertools.count(1), b"", ""
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and wait for its result."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        command = {"id": number, "method": method, "params": parameters, **session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def show(self, file: Path, width: int, *, dark: bool = False) -> list[str]:
        """Load a file in a window of a width; returns the errors of its console."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        return [text for event in self._events for text in _complaints(event)]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, which the page's own policy does not bind."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no answer from the browser in {SECONDS} s"
            received = os.read(self._answers, 1 << 16)
            assert received, "the browser is gone"
            self._buffer += received
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


def _complaints(event: dict[str, Any]) -> Iterator[str]:
    parameters = event["params"]
    if event["method"] == "Runtime.exceptionThrown":
        yield str(parameters["exceptionDetails"])
    if event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning", "assert"}:
        yield str(parameters["args"])
    if event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in {"error", "warning"}:
        yield parameters["entry"]["text"]


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Page]:
    """Start a browser with a profile of its own, and end it."""
    theirs_in, commands = os.pipe()
    answers, theirs_out = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        # The protocol speaks on descriptors 3 and 4; not every sh can rename one of two digits.
        ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", program, *options],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(commands, answers)
    finally:
        process.terminate()
        process.wait(SECONDS)
        os.close(commands)
        os.close(answers)
