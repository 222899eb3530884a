"""Of the files in ``clusters/``, what can run on one machine does: the real programs, told what the files say.

SLURM's command line with `ray symmetric-run`, the laptop's `ray start`, the MLflow server's command line, and what
makes its bucket.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxygap.submit.load import load_cluster, load_cluster_file
from proxygap.submit.render import render
from proxygap.submit.settings import Cluster
from tests.submit.apart import apart
from tests.submit.structural import ROOT, parsed

pytestmark = pytest.mark.long
CLUSTERS = ROOT / "clusters"
TINY = """
name: tiny
question: How far may the proxy be optimized?
task: {kind: arms, arms: 50}
proxy: {kind: correlated_proxies, members: 3}
loop: {kind: best_of_n, real_steps: 8, pool: 64}
outcomes: [gold_reward]
compute: {parallel_seeds: 2, cpus_per_seed: 0.5}
seeds: [0, 1]
"""


@pytest.mark.slow
class TestWhatRuns:
    def test_slurms_command_line_runs_an_experiment_on_one_node(self, short: Path) -> None:
        (short / "tiny.yaml").write_text(TINY)
        words = ["proxygap", "run", str(short / "tiny.yaml"), f"record.folder={short / 'runs'}", "--json"]
        done = _on_one_node(short, words)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout[done.stdout.index("\n{\n") : done.stdout.rindex("\n}\n") + 3])
        assert told["states"] == {"0": "finished", "1": "finished"}
        assert int((short / "driver").read_text()) > 1

    def test_a_ray_that_does_not_start_is_no_success(self, short: Path) -> None:
        done = _on_one_node(short, ["true"], RAY_TMPDIR=f"{short}/{'too-long-for-a-socket' * 5}")
        assert (done.returncode, done.stderr.splitlines()[-1][:30]) == (4, "error: Ray did not start on th")

    def test_the_laptops_script_starts_a_head_that_asks_for_the_token_and_lets_jobs_end(self, short: Path) -> None:
        script = short / "head.sh"
        script.write_text(render(load_cluster(CLUSTERS / "laptop.yaml"), "laptop.yaml")["head.sh"])
        beside = Path(__file__).with_name("on_a_head.py")
        done = subprocess.run(
            [*apart(), sys.executable, str(beside), str(script), str(short)],
            env=_environment(short),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == {
            "without a token": 401,
            "probe": 200,
            "worker while busy": 1,
            "head": 0,
            "job": "STOPPED",
            "left": "checkpoint",
            "worker": 0,
        }

    def test_the_server_answers_to_its_names_alone(self, server: int) -> None:
        assert _code(server, "/health", host="kubelet") == 200, "probes know no names"
        assert _code(server, _SEARCH, host=f"evil.example.org:{server}", user=_ADMIN) == 403
        for host in (f"tracker.example.org:{server}", "tracker.example.org"):
            assert _code(server, _SEARCH, host=host, user=_ADMIN) == 200

    def test_the_server_asks_for_the_password(self, server: int) -> None:
        pytest.importorskip("flask_wtf", reason="basic-auth needs mlflow[auth]; the server's image has it")
        for user in ("", "admin:password1234"):
            assert _code(server, _SEARCH, host="tracker.example.org", user=user) == 401

    def test_the_bucket_is_made_once(self) -> None:
        """In moto's S3 server, which listens on a port as another store would."""
        from moto.server import ThreadedMotoServer

        (document,) = parsed((CLUSTERS / "mlflow" / "compose.yaml").read_text())
        words = document["services"]["bucket"]["command"]
        assert words[0] == "python"
        store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        store.start()
        try:
            endpoint = "http://{}:{}".format(*store.get_host_and_port())
            keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
            environment = {**os.environ, **keys, "MLFLOW_S3_ENDPOINT_URL": endpoint}
            for _ in range(2):
                subprocess.run([sys.executable, *words[1:]], env=environment, check=True, timeout=120)
            with urllib.request.urlopen(f"{endpoint}/mlflow", timeout=60) as answer:
                assert b"<Name>mlflow</Name>" in answer.read()
        finally:
            store.stop()


_ADMIN = "admin:a-long-password"
_SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The MLflow server of the rendered compose file with SQLite in the database's place; its port."""
    tmp_path = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = load_cluster_file(CLUSTERS / "mlflow.yaml").model_copy(
        update={"hosts": ("tracker.example.org",), "port": port}
    )
    (document,) = parsed(render(made, "mlflow.yaml")["compose.yaml"])
    service, database = document["services"]["mlflow"], f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-m", *service["command"]]
    replaced = {
        "--backend-store-uri": database,
        "--artifacts-destination": str(tmp_path / "a"),
        "--workers": "1",
        "--host": "127.0.0.1",
    }
    for flag, value in replaced.items():
        command[command.index(flag) + 1] = value
    if importlib.util.find_spec("flask_wtf") is None:
        del command[command.index("--app-name") : command.index("--app-name") + 2]
    ini = document["configs"]["auth"]["content"]
    (tmp_path / "auth.ini").write_text(re.sub(r"database_uri = .*", f"database_uri = {database}", ini))
    own = {key: value for key, value in service["environment"].items() if "${" not in value}
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": "a-long-password", "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
    environment = {**os.environ, **own, **secrets, "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini")}
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 180
        while _code(port, "/health", host="any") != 200:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        yield Path(folder)


def _on_one_node(folder: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the function that every node of a batch job calls, as it stands in the script, in a job of one node."""
    groups = {"head": {"cpus": 2, "labels": {"pool": "policy"}}}
    tree = {"name": "c", "folder": str(folder), "groups": groups, "made_by": {"kind": "slurm"}}
    script = render(Cluster.model_validate(tree), "c.yaml")["job.sh"]
    (node,) = re.findall(r"^node\(\) \{$.*?^\}$", script, re.MULTILINE | re.DOTALL)
    (folder / "token").write_text("a" * 64)
    slurm = {"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "PROXYGAP_HEAD": "127.0.0.1:6379"}
    own = {"PROXYGAP_JOB": str(folder), "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    return subprocess.run(
        [*apart(), "bash", "-c", f'set -euo pipefail; {node}; node "$@"', "node", *words],
        env={**_environment(folder), **slurm, **own, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def _code(port: int, path: str, *, host: str, user: str = "") -> int:
    headers = {"Host": host, **({"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"} if user else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _environment(folder: Path) -> dict[str, str]:
    """Of a process apart: programs of this Python, a home and a short folder for Ray's sockets of its own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "HOME": str(folder), "RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT / "platform")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PROXYGAP_", "MLFLOW_"))}
    return {**kept, **own, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
