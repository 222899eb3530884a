"""Headless Chromium, driven over its DevTools protocol: what a page shows, asks for, and complains about."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

QUIET = {
    "headless": "",
    "no-sandbox": "",
    "disable-gpu": "",
    "disable-quic": "",
    "no-first-run": "",
    "disable-background-networking": "",
    "disable-component-update": "",
    "disable-sync": "",
    "disable-dev-shm-usage": "",
    "disable-features": "=IsolateSandboxedIframes",  # so that `inside` reaches them
    "window-size": "=1400,1000",
    "remote-debugging-port": "=0",
}


class Page:
    """One tab. ``requests`` lists every address that it asked for, ``errors`` what its console complained about."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go somewhere, afresh also where only the fragment differs."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def inside(self, script: str) -> Any:
        """The value of a JavaScript expression inside the page's first frame; None while there is no frame."""
        frames = self._call("Page.getFrameTree")["frameTree"].get("childFrames", [])
        if not frames:
            return None
        world = self._call("Page.createIsolatedWorld", frameId=frames[0]["frame"]["id"])["executionContextId"]
        return self._call("Runtime.evaluate", expression=script, contextId=world, returnByValue=True)["result"].get(
            "value"
        )

    def wait(self, script: str, within_s: float = 60.0, *, inside: bool = False) -> None:
        """Until an expression is true, on the page or inside its first frame."""
        until, ask = time.monotonic() + within_s, self.inside if inside else self.evaluate
        while not ask(f"Boolean({script})"):
            assert time.monotonic() < until, f"never true: {script}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.2)

    def wait_for(self, *texts: str) -> str:
        """All that can be read on the page, as soon as these texts can."""
        self.wait(f"{json.dumps(texts)}.every(text => document.body.innerText.includes(text))")
        return str(self.evaluate("document.body.innerText"))

    def click(self, text: str, kind: str = "*") -> None:
        """Click the innermost element whose whole text (or label) this is, as a mouse would, once it is there."""
        find = (
            f"[...document.querySelectorAll({json.dumps(kind)})].filter(each => each.innerText?.trim() === "
            f"{json.dumps(text)} || each.ariaLabel === {json.dumps(text)}).at(-1)"
        )
        self.wait(find)
        place = self.evaluate(
            f"(() => {{const e = {find}; e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); "
            "return {x: r.x + r.width / 2, y: r.y + r.height / 2}})()"
        )
        for action in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=action, button="left", clickCount=1, **place)

    def screenshot(self, path: Path) -> None:
        """What is to be seen, as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._notice(message.get("method", ""), message.get("params", {}))

    def _notice(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:500])
        if event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        if event == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(json.dumps([each.get("value", each.get("description")) for each in told["args"]])[:500])


@contextmanager
def tab(chromium: str) -> Iterator[Page]:
    """A tab of a Chromium of its own, with a fresh profile."""
    with ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        switches = [f"--{name}{value}" for name, value in QUIET.items()]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = stack.enter_context(subprocess.Popen([chromium, *switches, f"--user-data-dir={profile}"], **quiet))
        stack.callback(process.kill)
        port = _port(Path(profile) / "DevToolsActivePort", process)
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(asked, timeout=30) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        yield Page(stack.enter_context(connect(address, max_size=None)))


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 60
    while not file.exists() or not file.read_text().strip():
        assert process.poll() is None, "Chromium ended"
        assert time.monotonic() < until, "Chromium does not answer"
        time.sleep(0.1)
    return int(file.read_text().splitlines()[0])
