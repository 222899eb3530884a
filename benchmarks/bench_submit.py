"""From submission to the first training iteration: `proxygap submit` against a bare `ray job submit` of the same loop.

A head with token authentication runs here. The bare job is a script that builds the same experiment from the same
package (shipped as a working directory, as a careful user would), trains one iteration and measures once; ours is the
command, with its checks, its folder, its journal and its delivery to SQLite. Timed is, from the start of the client,
when the first iteration has ended and is measured, as either job writes it to a file. They take turns, each on a
package that the head has seen before; wall clock, since a job is mostly waited for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.submit.head import Head  # noqa: E402 - the head of the tests, with a token of its own

ROUNDS, AT_LEAST, LIMIT_S = 4, 0.8, 300.0
EXPERIMENT = {
    "question": "How soon?",
    "task": {"kind": "gymnasium", "id": "Pendulum-v1"},
    "outcomes": ["return"],
    "collect": {"random_steps": 100},
    "optimize": {"kind": "sac", "hidden": [32, 32]},
    "loop": {"kind": "sac", "real_steps": 200, "steps_per_iteration": 50},
    "probe": {"every": 50, "episodes": 1},
}
BARE = """
import json, sys
from pathlib import Path
from proxygap.experiment import load_experiment
from proxygap.loops.session import ray_session

experiment = load_experiment("experiment.yaml")
with ray_session():
    loop = experiment.loop.start(experiment, 0)
    loop.train()
    loop.measure()
    Path(json.loads(Path("mark.json").read_text())).touch()
    loop.stop()
"""


def waited(done: Path, started: float) -> float:
    while not done.exists():
        assert time.monotonic() - started < LIMIT_S, f"{done} did not come"
        time.sleep(0.02)
    return time.monotonic() - started


def first_reading(runs: Path, started: float) -> float:
    """Seconds until a journal holds its first reading."""
    while True:
        for journal in runs.glob("*/seed-0/journal.jsonl"):
            if '"values"' in journal.read_text():
                return time.monotonic() - started
        assert time.monotonic() - started < LIMIT_S, "no reading came"
        time.sleep(0.02)


def ours(folder: Path, number: int, environment: dict[str, str]) -> float:
    runs = folder / f"runs-{number}"
    file, cluster = folder / f"e{number}.json", folder / f"c{number}.json"
    file.write_text(json.dumps({"name": f"bench-{number}", **EXPERIMENT}))
    cluster.write_text(json.dumps({"name": "bench", "address": environment["ADDRESS"], "folder": str(runs)}))
    started = time.monotonic()
    command = [sys.executable, "-m", "proxygap.cli", "submit", str(file), "--cluster", str(cluster), "--follow"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        seconds = first_reading(runs, started)
        assert client.wait(LIMIT_S) == 0
    return seconds


def bare(folder: Path, number: int, environment: dict[str, str]) -> float:
    work, mark = folder / "bare", folder / f"mark-{number}"
    if not work.exists():
        shutil.copytree(ROOT / "platform" / "proxygap", work / "proxygap", ignore=shutil.ignore_patterns("__pycache__"))
        (work / "main.py").write_text(BARE)
    (work / "experiment.yaml").write_text(json.dumps({"name": f"bare-{number}", **EXPERIMENT}))
    (work / "mark.json").write_text(json.dumps(str(mark)))
    started = time.monotonic()
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "job", "submit", "--address", environment["ADDRESS"], "--working-dir", str(work), "--"]
    with subprocess.Popen([*command, "python", "main.py"], env=environment, stdout=subprocess.DEVNULL) as client:
        seconds = waited(mark, started)
        assert client.wait(LIMIT_S) == 0
    return seconds


def main() -> bool:
    folder = Path(tempfile.mkdtemp(prefix="bench-submit-"))
    head = Head(folder)
    head.start()
    try:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **token, "ADDRESS": head.address, "PYTHONPATH": str(ROOT / "platform")}
        found: dict[str, list[float]] = {"proxygap submit": [], "ray job submit": []}
        for number in range(ROUNDS + 1):
            ways = [("proxygap submit", ours), ("ray job submit", bare)]
            for name, way in ways if number % 2 else reversed(ways):
                seconds = way(folder, number, environment)
                if number:
                    found[name].append(seconds)
    finally:
        head.close()
        shutil.rmtree(folder, ignore_errors=True)
    rates = {name: [1 / value for value in seconds] for name, seconds in found.items()}
    details = {"seconds": {name: [round(value, 2) for value in seconds] for name, seconds in found.items()}}
    claims = [Ratio("proxygap submit", "ray job submit", AT_LEAST)]
    return report("submit", unit="1/s", samples=rates, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
