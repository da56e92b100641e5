"""A real browser for tests: headless Chromium, driven by its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests
from websockets.sync.client import connect


class Browser:
    """One page of a Chromium of its own."""

    def __init__(self, folder: Path):
        chromium = shutil.which("chromium")
        assert chromium, "needs Chromium: apt-get install chromium"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        self.process = subprocess.Popen(
            [chromium, *options, f"--user-data-dir={folder}", "--window-size=1200,900", "about:blank"],
            stderr=subprocess.DEVNULL,
        )
        address = folder / "DevToolsActivePort"
        self.wait(lambda: address.exists() and len(address.read_text().split()) == 2)
        tabs = requests.get(f"http://127.0.0.1:{address.read_text().split()[0]}/json/list", timeout=60).json()
        page = next(tab for tab in tabs if tab["type"] == "page")
        self._open = ExitStack()
        self._connection = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=2**26))
        self._numbers = itertools.count()

    def close(self) -> None:
        self._open.close()
        self.process.terminate()
        self.process.wait(30)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its answer; events are passed over."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self._connection.recv(60))).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(lambda: self.evaluate("document.readyState") == "complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def enter(self, selector: str, value: object) -> None:
        """Sets a field as a person would: its handlers run."""
        field = f"document.querySelector({json.dumps(selector)})"
        events = "['input', 'change'].forEach((e) => field.dispatchEvent(new Event(e, {bubbles: true})))"
        self.evaluate(f"{{ const field = {field}; field.value = {json.dumps(value)}; {events} }}")

    def upload(self, selector: str, files: list[Path]) -> None:
        """Chooses files in an input of that kind."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=node["objectId"])

    def wait(self, holds, seconds: float = 60) -> None:
        """Until something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
