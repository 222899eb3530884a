"""What a test does beside a head that ``head.sh`` has started: who may ask, and how its jobs end before it does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
AGENT = "http://127.0.0.1:52365"
DRIVER = """
import pathlib, signal, sys, time, ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=0)
class Busy:
    def ping(self): return 1
busy = Busy.remote(); ray.get(busy.ping.remote())
def stop(*_):
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True: time.sleep(0.2)
"""


def code(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until(what: object, holds: object, within: float = 90.0) -> None:
    deadline = time.monotonic() + within
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def drain(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "proxygap.submit.drain", *words], timeout=120).returncode


def main(script: str, folder: Path) -> None:
    head = subprocess.Popen(["bash", script], stdout=sys.stderr)
    try:
        until("the head answers", lambda: code(f"{AGENT}/api/healthz") == 200 and code(f"{ADDRESS}/api/version"))
        told = {"without a token": code(f"{ADDRESS}/api/jobs/"), "probe": code(f"{AGENT}/api/healthz")}
        client = JobSubmissionClient(ADDRESS)
        (folder / "driver.py").write_text(DRIVER)
        job = client.submit_job(entrypoint=f"{sys.executable} {folder}/driver.py {folder}/left")
        until("the job is ready", lambda: "ready" in client.get_job_logs(job))
        told["worker while busy"] = drain("worker", "--wait", "0.5")
        told["head"] = drain("head", "--wait", "60", "--address", ADDRESS)
        told["job"] = str(client.get_job_status(job))
        told["left"] = (folder / "left").read_text()
        told["worker"] = drain("worker", "--wait", "60")
        sys.stdout.write(json.dumps(told) + "\n")
    finally:
        head.terminate()
        head.wait(30)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
