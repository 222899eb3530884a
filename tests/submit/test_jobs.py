"""Jobs on a real Ray head with token authentication: submitted, attached to, followed, stopped, continued, refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner, Result

import proxygap
from proxygap.base.errors import SubmissionFailed
from proxygap.cli import commands
from proxygap.record.folder import ExperimentFolder
from proxygap.record.rows import ReadingRow, read_journal
from proxygap.record.sweep_folder import SweepFolder, read_ledger
from proxygap.submit import client as transport
from proxygap.submit.client import JobsClient
from proxygap.submit.feasible import check_work, possible_nodes
from proxygap.submit.follow import follow
from proxygap.submit.jobs import Submission, find, stem_of, submit, told
from proxygap.submit.load import load_cluster
from proxygap.submit.package import contents, runtime_env, write_package
from proxygap.submit.settings import Cluster, NodeGroup
from proxygap.submit.work import load_work
from tests.submit.head import Head, free_port
from tests.submit.relay import Relay

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "planted-9f3a1c"
RLOO: dict[str, Any] = {
    "name": "rloo",
    "question": "Does it run there as here?",
    "task": {"kind": "bandit_lm", "prompts": 4, "answers": 8},
    "proxy": {"kind": "gold"},
    "loop": {"kind": "language_rl", "real_steps": 12_800},
    "optimize": {"kind": "rloo", "prompts_per_iteration": 4, "answers_per_prompt": 16},
    "outcomes": ["gold_reward"],
    "probe": {"every": 640, "resamples": 100},
}
SWEEP: dict[str, Any] = {
    "name": "tilts",
    "question": "Does a sweep travel?",
    "task": {"kind": "arms", "arms": 60},
    "proxy": {"kind": "correlated_proxies", "members": 3},
    "judge": {"aggregate": {"kind": "uncertainty_weighted", "penalty": 0.5}},
    "loop": {"kind": "tilt", "real_steps": 4, "largest_kl": 2.0},
    "outcomes": ["gold_reward"],
    "probe": {"resamples": 100},
    "compute": {"cpus_per_seed": 0.5},
    "sweep": {
        "space": {"judge.aggregate.penalty": {"kind": "choice", "values": [0.1, 1.0]}},
        "search": {"kind": "grid"},
    },
}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    made = Head(tmp_path_factory.mktemp("head"))
    secrets = made.folder / "secrets"
    secrets.write_text(f"PLANTED={SECRET}\n")
    secrets.chmod(0o600)
    made.cluster_file(secrets=["PLANTED"], secrets_file=str(secrets))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def cluster(head: Head) -> Cluster:
    """With a secret that the nodes have, and a job needs."""
    return load_cluster(head.folder / "cluster.yaml")


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> JobsClient:
    return JobsClient(cluster)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a token nor a Ray of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "MLFLOW_", "PROXYGAP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def call(*words: object) -> Result:
    return CliRunner().invoke(commands, [str(word) for word in words])


def file_of(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / f"{tree['name']}.yaml"
    path.write_text(json.dumps(tree))
    return path


def readings(folder: str | Path) -> list[dict[str, Any]]:
    rows = [row for row in read_journal(ExperimentFolder(Path(folder)).seed(0).journal) if isinstance(row, ReadingRow)]
    return [
        {
            "clocks": row.reading.clocks.as_dict(),
            **{m.key: repr(m.value) for m in row.reading.measurements if not m.key.startswith("time/")},
        }
        for row in rows
    ]


def wait_for_readings(folder: str, least: int) -> None:
    journal, deadline = ExperimentFolder(Path(folder)).seed(0).journal, time.monotonic() + 240
    while not journal.exists() or journal.read_text().count('"values"') < least:
        assert time.monotonic() < deadline, "the job measured nothing"
        time.sleep(0.05)


class Together(JobsClient):
    """Two submitters that both have looked before either submits."""

    meeting = threading.Barrier(2)

    def jobs(self) -> list[Any]:
        found = super().jobs()
        self.meeting.wait(240)
        return found


@dataclass
class Story:
    """One experiment's life on the cluster."""

    file: Path
    option: tuple[str, ...]
    stem: str
    folder: str
    first: list[Submission]
    refused: str
    interrupted: tuple[int, str, str]
    stopped: dict[str, Any]
    left: int
    followed: str
    cuts: int
    states: dict[int, tuple[str, int]]


@pytest.fixture(scope="module")
def story(head: Head, cluster: Cluster, client: JobsClient, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Submitted twice at once, submitted again, stopped, continued while another execution runs undisturbed."""
    file, option = file_of(tmp_path_factory.mktemp("story"), RLOO), ("--cluster", str(head.folder / "cluster.yaml"))
    work, first = load_work(file, cluster=cluster), list[Submission]()
    both = [threading.Thread(target=lambda: first.append(submit(Together(cluster), cluster, work))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    (folder,) = first[0].job.folders
    with pytest.raises(SubmissionFailed) as refused:
        submit(client, cluster, load_work(file, ["seeds=[0, 1]"], cluster=cluster))
    code, said = attached_and_interrupted(file, *option)
    interrupted = (code, said, find(client, stem_of(work)).state)
    wait_for_readings(folder, 2)
    stopped = json.loads(call("jobs", "stop", file, *option, "--json").stdout)
    left = len(readings(folder))
    assert call("submit", file, *option).exit_code == 0
    submit(client, cluster, work, fresh=True)
    text = list[str]()
    with Relay(head.port) as relay:
        through = cluster.model_copy(update={"address": f"http://127.0.0.1:{relay.port}"})
        done = threading.Event()
        cutter = threading.Thread(target=cut_now_and_then, args=(relay, done))
        cutter.start()
        follow(JobsClient(through), f"{stem_of(work)}-2", text.append)
        done.set()
        cutter.join()
    follow(client, f"{stem_of(work)}-3", lambda _: None)
    states = {job.attempt: (job.state, job.exit_code) for job in map(told, client.jobs()) if job.stem == stem_of(work)}
    return Story(
        file=file,
        option=option,
        stem=stem_of(work),
        folder=folder,
        first=first,
        refused=str(refused.value),
        interrupted=interrupted,
        stopped=stopped,
        left=left,
        followed="".join(text),
        cuts=relay.cuts,
        states=states,
    )


def attached_and_interrupted(file: Path, *option: str) -> tuple[int, str]:
    """Follow from a process of its own, and press Ctrl-C there; its exit code, and what it said."""
    command = [sys.executable, "-m", "proxygap.cli", "submit", str(file), "--follow", *option]
    environment = {**os.environ, "PYTHONPATH": str(Path(proxygap.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as following:
        assert following.stdout is not None
        following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=120)
    return following.returncode, said


def cut_now_and_then(relay: Relay, done: threading.Event) -> None:
    while not done.wait(1.5):
        relay.cut()


def test_of_two_submitters_one_submits_and_the_other_attaches(story: Story) -> None:
    assert {each.outcome for each in story.first} == {"submitted", "attached"}
    assert {each.job.id for each in story.first} == {f"{story.stem}-1"}
    assert f"job {story.stem}-1 is writing to it" in story.refused, "other work of the same folder waits"


def test_who_submits_again_attaches_and_ctrl_c_leaves_the_job_running(story: Story) -> None:
    code, said, state = story.interrupted
    assert (code, state) == (130, "RUNNING")
    assert f"{story.stem}-1 does this already" in said
    assert f"{story.stem}-1 goes on; `proxygap jobs stop {story.stem}-1" in said


def test_a_stopped_job_is_at_a_checkpoint_and_its_next_attempt_continues_to_the_undisturbed_end(
    story: Story, client: JobsClient
) -> None:
    assert (story.stopped["state"], story.stopped["killed"], story.stopped["exit_code"]) == ("STOPPED", False, 143)
    assert 2 <= story.left < 20, "it was stopped on its way"
    logs = client.get_job_logs(f"{story.stem}-2")[-3000:]
    assert story.states == {1: ("STOPPED", 143), 2: ("SUCCEEDED", 0), 3: ("SUCCEEDED", 0)}, logs
    assert len(readings(story.folder)) == 20
    assert readings(story.folder) == readings(f"{story.folder}-2"), "bit for bit"


def test_what_was_done_is_not_done_again(story: Story) -> None:
    told_again = call("submit", story.file, *story.option, "--follow", "--json")
    assert (told_again.exit_code, json.loads(told_again.stdout)["outcome"]) == (0, "succeeded")
    assert story.folder in told_again.stderr


def test_following_survives_broken_connections_without_losing_or_repeating_a_line(
    story: Story, client: JobsClient
) -> None:
    assert story.cuts >= 2
    assert story.followed == client.get_job_logs(f"{story.stem}-2")


def test_a_job_is_found_by_its_id_its_beginning_or_its_file(story: Story) -> None:
    for wanted in (f"{story.stem}-2", story.stem, str(story.file)):
        found = json.loads(call("jobs", "status", wanted, *story.option, "--json").stdout)
        assert found["id"] == f"{story.stem}-{2 if wanted.endswith('-2') else 3}"
    assert story.stem in call("jobs", "list", *story.option).stdout
    assert "seed 0: finished" in call("jobs", "logs", f"{story.stem}-2", *story.option).stdout


def test_a_job_that_is_not_there_is_told_with_what_to_do(story: Story) -> None:
    missing = call("jobs", "status", "nothing", *story.option)
    assert (missing.exit_code, missing.stderr.count("\n")) == (12, 1)
    assert "does not know it" in missing.stderr


def test_nothing_that_the_cluster_tells_holds_the_secret_or_the_token(
    story: Story, head: Head, cluster: Cluster, client: JobsClient
) -> None:
    found = [client._do_request("GET", f"/api/jobs/{story.stem}-{n}").text for n in (1, 2, 3)]
    found += [client._do_request("GET", path).text for path in ("/api/jobs/", "/api/v0/jobs?detail=1", "/api/v0/nodes")]
    found += [client._do_request("GET", "/api/v0/actors?detail=1").text, story.followed]
    found += [client.get_job_logs(f"{story.stem}-{n}") for n in (1, 3)]
    found += [path.read_text(errors="replace") for path in Path(story.folder).rglob("*.json*")]
    work = load_work(story.file, cluster=cluster)
    found += [content.decode(errors="replace") for content in contents(work, cluster).values()]
    assert len([text for text in found[:8] if "rloo" in text]) >= 6, "they tell something"
    for secret in (SECRET, head.token):
        assert not [text for text in found if secret in text]


def test_workers_have_the_secret_that_no_one_sent(head: Head, cluster: Cluster, client: JobsClient) -> None:
    """A plain Ray job in the same runtime environment: what a seed on another node would have."""
    package = head.folder / "hook.zip"
    code = contents(load_work(file_of(head.folder, RLOO), cluster=cluster), cluster)
    script = (
        "import os, ray, hashlib\n"
        "ray.init(address=os.environ['RAY_ADDRESS'])\n"
        "told = ray.remote(lambda: hashlib.sha256(os.environ.get('PLANTED', '').encode()).hexdigest())\n"
        "print('worker has', ray.get(told.remote()))\n"
    )
    write_package(package, {**code, "ask.py": script.encode()})
    environment = {**runtime_env(cluster, 1), "working_dir": str(package)}
    job_id = client.submit_job(entrypoint="exec python ask.py", runtime_env=environment)
    text = list[str]()
    assert follow(client, job_id, text.append).state == "SUCCEEDED", "".join(text)
    assert f"worker has {hashlib.sha256(SECRET.encode()).hexdigest()}" in "".join(text)


def test_a_run_that_fails_there_ends_with_its_code_here(head: Head, tmp_path: Path) -> None:
    file = head.cluster_file("lacking", secrets=["MISSING_ONE"])
    failing = call("submit", file_of(tmp_path, {**RLOO, "name": "failing"}), "--cluster", file, "--follow")
    assert failing.exit_code == 12
    assert failing.stdout.count("error: secrets: not set on the nodes: MISSING_ONE") == 1
    assert "the run ended with exit code 12" in failing.stderr


@pytest.mark.long
def test_a_sweep_travels(head: Head, tmp_path: Path) -> None:
    done = call("submit", file_of(tmp_path, SWEEP), "--cluster", head.folder / "cluster.yaml", "--follow", "--json")
    assert done.exit_code == 0, done.stderr[-3000:]
    (folder,) = json.loads(done.stdout)["folders"]
    ledger = read_ledger(SweepFolder(Path(folder)).ledger)
    assert [str(trial.state) for trial in ledger.values()] == ["finished", "finished"]


def test_a_job_of_a_cluster_that_was_restarted_is_told_as_forgotten(story: Story, client: JobsClient) -> None:
    """Deleting a job leaves the cluster as a restart does: it has never heard of it."""
    assert client.delete_job(f"{story.stem}-3")
    with pytest.raises(SubmissionFailed, match=r"was forgotten: the cluster was restarted\. Submit the file again"):
        follow(client, f"{story.stem}-3", lambda _: None)


def test_what_can_never_fit_is_refused_before_it_is_sent(head: Head, client: JobsClient, tmp_path: Path) -> None:
    tree = {**RLOO, "name": "large", "proxy": {"kind": "mlp_reward"}, "serve": {"reward": {"hosts": 1, "gpus": 1.0}}}
    file, option = file_of(tmp_path, tree), ("--cluster", str(head.folder / "cluster.yaml"))
    refused = call("submit", file, *option)
    assert (refused.exit_code, refused.stderr.count("\n")) == (4, 1)
    assert "serve.reward.gpus" in refused.stderr
    assert not [job for job in client.jobs() if str(job.submission_id).startswith("large-")]
    here = len(client.nodes())
    group = NodeGroup(cpus=8, gpus=1, least=0, most=2, labels={"pool": "reward"})
    growing = load_cluster(head.folder / "cluster.yaml").model_copy(update={"groups": {"gpu": group}})
    nodes = possible_nodes(growing, client.nodes())
    assert (len(nodes), nodes[0].labels["pool"], nodes[-1].resources["GPU"]) == (here + 2, "head", 1.0)
    check_work(load_work(file, cluster=growing), growing, client.nodes())


def test_a_token_is_asked_for_and_never_shown(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-token-1234")
    bare = load_cluster(head.folder / "cluster.yaml").model_copy(update={"token_file": None})
    cases = {
        "does not take this token": bare.model_copy(update={"token_file": str(wrong)}),
        "wants a token, and there is none here": bare,
        "cannot be read": bare.model_copy(update={"token_file": str(tmp_path / "absent")}),
    }
    for problem, asked in cases.items():
        with pytest.raises(SubmissionFailed, match=problem) as caught:
            JobsClient(asked)
        assert caught.value.remedy
        assert "not-the-token" not in str(caught.value)
    for name, value in (("RAY_AUTH_TOKEN", head.token), ("RAY_AUTH_TOKEN_PATH", str(head.token_file))):
        monkeypatch.setenv(name, value)
        assert JobsClient(bare).nodes()
        monkeypatch.delenv(name)
    wrong.write_text("two\nlines")
    with pytest.raises(SubmissionFailed, match="holds no token"):
        JobsClient(cases["does not take this token"])


def test_the_cluster_file_says_where_to_go_whatever_ray_was_told(
    head: Head, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:8265")
    assert JobsClient(cluster).get_address() == head.address
    assert os.environ["RAY_ADDRESS"] == "http://192.0.2.1:8265"


class Other(BaseHTTPRequestHandler):
    """A server that is no Ray of this version."""

    answer = b"<html>welcome</html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refusal(address: str, **fields: Any) -> str:
    with pytest.raises(SubmissionFailed) as caught:
        JobsClient(Cluster(name="there", address=address, **fields))
    assert caught.value.exit_code == 12
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_cluster_is_told_in_one_line(
    other: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = other.server_address[1]
    assert "cannot be reached (Connection refused)" in refusal(f"http://127.0.0.1:{free_port()}")
    assert "is no Ray dashboard" in refusal(f"http://127.0.0.1:{port}")
    monkeypatch.setattr(Other, "answer", b'{"ray_version": "2.9.3"}')
    assert f"runs Ray 2.9.3, and this is Ray {ray.__version__}" in refusal(f"http://127.0.0.1:{port}")
    monkeypatch.setattr(transport, "CONNECT_S", 0.5)
    assert "cannot be reached" in refusal("http://192.0.2.1:8265", token_file=None)  # nobody is there (RFC 5737)


def test_a_certificate_that_is_not_trusted_is_told_with_ca_file(other: ThreadingHTTPServer, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    asked += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *asked], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    other.socket = context.wrap_socket(other.socket, server_side=True)
    address = f"https://localhost:{other.server_address[1]}"
    assert "has a certificate that is not trusted here" in refusal(address)
    assert "is no Ray dashboard" in refusal(address, ca_file=str(certificate)), "it is trusted now"
    assert "ca_file" in refusal(address, ca_file=str(tmp_path / "absent.pem"))
