"""Cluster files as what tools read: what each maker writes, what it refuses, and what nobody can break out of."""

from __future__ import annotations

import itertools
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render import render
from proxygap.submit.settings import Cluster, TrackerServer

GROUPS: dict[str, Any] = {
    "head": {"cpus": 4},
    "gpu": {"cpus": 8, "gpus": 2, "accelerator_type": "H100", "labels": {"pool": "reward"}},
}
HOSTILE = "\"; touch pwned; # $(touch pwned) `touch pwned` '; touch pwned; '"
JOB = {"command": "run", "name": "Best.of_N", "text": "name: x\n"}


def made(maker: dict[str, Any], **fields: Any) -> Cluster:
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in maker.items()}
    return Cluster.model_validate({"name": "c", "folder": "/runs", "groups": GROUPS, "made_by": tuples, **fields})


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


KUBERAY = {"kind": "kuberay", "image": "r/p:1", "attempts": 1}
LOCAL = {"kind": "launcher", "provider": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
AWS = {"kind": "launcher", "provider": "aws", "region": "us-west-2", "image": "r/p:1"}
SLURM = {"kind": "slurm"}
ALIKE = {"head": {"cpus": 4, "gpus": 1}, "pool": {"cpus": 4, "gpus": 1, "labels": {"pool": "a"}, "least": 2, "most": 2}}


class TestRefused:
    @pytest.mark.parametrize(
        ("maker", "fields", "told"),
        [
            ({**KUBERAY, "image": "a b"}, {}, r"made_by\.image"),
            ({**KUBERAY, "fault_tolerant": True}, {}, r"made_by\.fault_tolerant: goes with redis_address"),
            (KUBERAY, {"folder": "~/runs"}, r"folder = '~/runs': must be absolute"),
            (
                {**LOCAL, "worker_ips": ["10.0.0.2", "10.0.0.3"]},
                {},
                r"made_by\.worker_ips: lists 2 machines, .* have 1",
            ),
            ({**LOCAL, "worker_ips": ["$(x)"]}, {}, r"made_by\.worker_ips = '\$\(x\)': is no address"),
            ({**LOCAL, "head_ip": None}, {}, r"made_by\.worker_ips = '': is no address|made_by\.head_ip: is missing"),
            (AWS, {}, r"groups\.head\.machine: is missing"),
            (
                {**AWS, "region": None},
                {"groups": {"head": {"cpus": 1, "machine": "m"}}},
                r"made_by\.region: is missing",
            ),
            (SLURM, {}, r"groups\.gpu\.cpus = 8: differs from groups\.head\.cpus = 4"),
            ({**SLURM, "warn_s": 60}, {"groups": ALIKE}, r"made_by\.warn_s = 60: is less than stop_wait_s = 120"),
            ({**SLURM, "account": "a b"}, {"groups": ALIKE}, r"made_by\.account = 'a b': is no name in SLURM"),
            (
                SLURM,
                {"groups": {"head": {"cpus": 1}, "w": {"cpus": 1, "least": 0}}},
                r"groups\.w: has nodes that come and go",
            ),
            ({"kind": "ray_start"}, {}, r"made_by\.host = '127\.0\.0\.1': cannot be reached"),
            (KUBERAY, {"groups": {"head": {"cpus": 1, "most": 2}}}, r"groups\.head: must be one node"),
            (
                KUBERAY,
                {"groups": {"head": {"cpus": 1, "resources": {"a b": 1.0}}}},
                r"groups\.head = 'a b': is no name",
            ),
            (
                KUBERAY,
                {"groups": {"head": {"cpus": 1, "resources": {"a": 0.5}}}},
                r"resources\.a = 0\.5: is a fraction",
            ),
            (KUBERAY, {"groups": {"head": {"cpus": 1, "accelerator_type": "$(x)"}}}, r"is no name of a resource"),
            (KUBERAY, {"env": {"A B": "x"}}, r"env = 'A B': is no name of a variable"),
            (KUBERAY, {"env": {"A": "x\ny"}}, r"env\.A = .*control characters"),
            (None, {}, r"made_by: is missing, so there is nothing to render"),
        ],
    )
    def test_what_a_tool_could_not_take(self, maker: dict[str, Any] | None, fields: dict[str, Any], told: str) -> None:
        cluster = made(maker, **fields) if maker else Cluster(name="c")
        with pytest.raises(InvalidExperiment, match=told):
            render(cluster, "c.yaml")

    @pytest.mark.parametrize(
        "labels", [{"a b": "c"}, {"pool": HOSTILE}, {"pool": "a,b=c"}, {"ray.io/x": "y"}, {"p": "a\nb"}]
    )
    @pytest.mark.parametrize(
        "maker", [KUBERAY, LOCAL, AWS, SLURM, {"kind": "ray_start"}], ids=["kuberay", "local", "aws", "slurm", "ray"]
    )
    def test_a_label_that_is_none(self, maker: dict[str, Any], labels: dict[str, str]) -> None:
        with pytest.raises(InvalidExperiment, match=r"groups\.head\.labels = .*is no label"):
            render(made(maker, groups={"head": {"cpus": 1, "labels": labels}}), "c.yaml")

    def test_a_name_that_is_none(self) -> None:
        for name in (HOSTILE, "a\nb", "UP", "a" * 41, ""):
            with pytest.raises(ValidationError):
                Cluster(name=name)

    def test_attempts_that_could_not_continue_one_another(self) -> None:
        with pytest.raises(InvalidExperiment, match=r"made_by\.attempts = 2: is more than one.*Set storage"):
            render(made({**KUBERAY, "attempts": 2}), "c.yaml", JOB)
        assert "rayjob.yaml" in render(made({**KUBERAY, "attempts": 2}, storage="s3://b/x"), "c.yaml", JOB)
        claimed = made({**KUBERAY, "attempts": 2, "storage_claim": "runs"}, folder="/runs")
        assert "rayjob.yaml" in render(claimed, "c.yaml", JOB)

    def test_a_job_for_another_maker(self) -> None:
        with pytest.raises(InvalidExperiment, match="--job: is for KubeRay alone"):
            render(made(SLURM, groups=ALIKE), "c.yaml", JOB)


class TestKubeRay:
    def test_a_group_says_what_ray_offers_and_what_the_pod_takes(self) -> None:
        groups = {
            "head": {"cpus": 1},
            "gpu": {**GROUPS["gpu"], "resources": {"slots": 3.0}, "machine": "g6.xlarge", "most": 4},
        }
        cluster, policy = documents(render(made(KUBERAY, groups=groups, stop_wait_s=300), "c.yaml")["raycluster.yaml"])
        (group,) = cluster["spec"]["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
        assert group["labels"] == {"pool": "reward"}
        assert group["resources"] == {"CPU": "8", "GPU": "2", "accelerator_type:H100": "1", "slots": "3"}
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"] == {"cpu": "8", "memory": "8192Mi", "nvidia.com/gpu": "2"}
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "g6.xlarge"}
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert pod["terminationGracePeriodSeconds"] > 300
        assert container["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["--wait", "300"]
        assert cluster["spec"]["enableInTreeAutoscaling"] is True
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()

    def test_the_token_is_the_operators_and_the_redis_password_a_secrets(self) -> None:
        maker = {**KUBERAY, "fault_tolerant": True, "redis_address": "redis:6379", "secrets": ["keys"]}
        cluster = documents(render(made(maker), "c.yaml")["raycluster.yaml"])[0]["spec"]
        assert cluster["authOptions"] == {"mode": "token"}
        password = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
        assert password == {"name": "proxygap-redis", "key": "password"}
        (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]

    def test_a_job_brings_its_experiment(self) -> None:
        cluster = made({**KUBERAY, "attempts": 3, "deadline_s": 60}, storage="s3://b/x")
        config, job, _ = documents(
            render(cluster, "c.yaml", {**JOB, "command": "sweep", "text": HOSTILE})["rayjob.yaml"]
        )
        assert config["data"] == {"experiment.yaml": HOSTILE}
        assert job["metadata"]["name"] == config["metadata"]["name"] == "c-best-of-n"
        spec = job["spec"]
        assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (2, 60)
        assert spec["entrypoint"] == "proxygap sweep /etc/proxygap/experiment.yaml"
        pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        assert pod["volumes"] == [{"name": "experiment", "configMap": {"name": "c-best-of-n"}}]
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/etc/proxygap"

    def test_a_value_is_not_expanded_by_kubernetes(self) -> None:
        cluster = documents(render(made(KUBERAY, env={"A": "$(B) " + HOSTILE}), "c.yaml")["raycluster.yaml"])[0]
        (container,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        value = next(one["value"] for one in container["env"] if one["name"] == "A")
        assert value == ("$(B) " + HOSTILE).replace("$(", "$$(")


class TestLauncher:
    def test_each_machine_of_ones_own_starts_as_its_group_says(self, tmp_path: Path) -> None:
        groups = {**GROUPS, "cpu": {"cpus": 2, "least": 2, "most": 2}}
        maker = {**LOCAL, "worker_ips": ["10.0.0.2", "10.0.0.3", "10.0.0.4"], "image": "r/p:1"}
        (document,) = documents(render(made(maker, groups=groups), "c.yaml")["launcher.yaml"])
        start = document["worker_start_ray_commands"][1]
        for address, options in {
            "10.0.0.2": [
                "--num-cpus=8",
                "--num-gpus=2",
                '--resources={"accelerator_type:H100": 1}',
                "--labels=pool=reward",
            ],
            "10.0.0.4": ["--num-cpus=2", "--num-gpus=0"],
            "10.0.0.40": [],
        }.items():
            told = told_to_ray(start, tmp_path, {"hostname": f"echo 172.17.0.1 {address}"}, RAY_HEAD_IP="10.0.0.1")
            assert told.words == ["start", "--address=10.0.0.1:6379", "--object-manager-port=8076", *options]
            assert told.environment["RAY_AUTH_MODE"] == "token"

    def test_the_dashboard_stays_on_the_head_and_the_token_goes_by_ssh(self) -> None:
        (document,) = documents(render(made(LOCAL, token_file="/k/token"), "c.yaml")["launcher.yaml"])
        assert "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][1]
        assert document["file_mounts"]["~/.ray/auth_token"] == "/k/token"
        assert "chmod 600 ~/.ray/auth_token" in document["setup_commands"]

    def test_a_group_of_a_cloud_says_what_the_autoscaler_counts(self) -> None:
        groups = {"head": {"cpus": 4, "machine": "m"}, "gpu": {**GROUPS["gpu"], "machine": "g", "least": 0, "most": 5}}
        (document,) = documents(render(made(AWS, groups=groups), "c.yaml")["launcher.yaml"])
        group = document["available_node_types"]["gpu"]
        assert (group["min_workers"], group["max_workers"], document["max_workers"]) == (0, 5, 5)
        assert group["resources"] == {"CPU": 8, "GPU": 2, "accelerator_type:H100": 1}
        assert group["labels"] == {"pool": "reward"}
        assert document["docker"]["image"] == "r/p:1"

    def test_hostile_values_stay_values(self, tmp_path: Path) -> None:
        maker = {**LOCAL, "image": "r/p:1", "ssh_user": HOSTILE}
        (document,) = documents(render(made(maker, env={"A": HOSTILE}, token_file=HOSTILE), "c.yaml")["launcher.yaml"])
        assert document["auth"]["ssh_user"] == document["file_mounts"]["~/.ray/auth_token"] == HOSTILE
        told = told_to_ray(document["head_start_ray_commands"][1], tmp_path)
        assert told.environment["A"] == HOSTILE


class TestScripts:
    def test_the_head_makes_a_token_for_its_owner_alone_and_keeps_it(self, tmp_path: Path) -> None:
        (script,) = render(Cluster.model_validate({"name": "c", "made_by": {"kind": "ray_start"}}), "c.yaml").values()
        told = told_to_ray(script, tmp_path, HOME=str(tmp_path))
        token = tmp_path / ".ray" / "auth_token"
        assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert told.environment["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert "--dashboard-host=127.0.0.1" in told.words
        before = token.read_text()
        told_to_ray(script, tmp_path, HOME=str(tmp_path))
        assert token.read_text() == before

    def test_a_worker_without_the_token_does_not_start(self, tmp_path: Path) -> None:
        scripts = render(made({"kind": "ray_start", "host": "10.0.0.1"}), "c.yaml")
        assert list(scripts) == ["head.sh", "worker-gpu.sh"]
        with pytest.raises(subprocess.CalledProcessError) as caught:
            told_to_ray(scripts["worker-gpu.sh"], tmp_path, HOME=str(tmp_path))
        assert "no token of the cluster" in caught.value.stderr
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t")
        told = told_to_ray(scripts["worker-gpu.sh"], tmp_path, HOME=str(tmp_path))
        assert told.words[:3] == ["start", "--block", "--address=10.0.0.1:6379"]

    def test_hostile_values_stay_values(self, tmp_path: Path) -> None:
        cluster = made({"kind": "ray_start", "host": HOSTILE}, env={"A": HOSTILE}, token_file=str(tmp_path / "token"))
        (tmp_path / "token").write_text("t")
        told = told_to_ray(render(cluster, "c.yaml")["head.sh"], tmp_path)
        assert f"--node-ip-address={HOSTILE}" in told.words
        assert told.environment["A"] == HOSTILE

    @pytest.mark.parametrize("field", ["folder", "activate", "storage"])
    def test_hostile_values_of_a_batch_job_stay_values(self, field: str, tmp_path: Path) -> None:
        value = {"folder": f"{tmp_path}/{HOSTILE.replace('/', '')}", "activate": HOSTILE, "storage": f"s3://{HOSTILE}"}[
            field
        ]
        maker = {**SLURM, **({"activate": value} if field == "activate" else {})}
        fields = {} if field == "activate" else {field: value}
        script = render(made(maker, groups=ALIKE, **{"folder": str(tmp_path), **fields}), "c.yaml")["job.sh"]
        stand_ins = {"srun": _SAY, "hostname": "echo 10.0.0.1"}
        told = told_to_ray(f"set -- run f.yaml seeds=[1]\n{script}", tmp_path, stand_ins, SLURM_JOB_ID="7")
        folder = value if field == "folder" else str(tmp_path)
        assert told.words[-6:] == ["node", "proxygap", "run", "f.yaml", f"record.folder={folder}", "seeds=[1]"]
        if field == "storage":
            assert told.environment["PROXYGAP_STORAGE"] == value

    def test_directives_say_what_the_groups_are(self) -> None:
        maker = {**SLURM, "partition": "gpu", "time": "2-00:00:00", "warn_s": 200, "requeue": False}
        options = directives(render(made(maker, groups=ALIKE), "c.yaml")["job.sh"])
        assert options["nodes"] == "3"
        assert options["ntasks-per-node"] == options["gpus-per-node"] == "1"
        assert (options["partition"], options["time"], options["signal"]) == ("gpu", "2-00:00:00", "B:TERM@200")
        assert {"exclusive", "no-requeue"} <= set(options)
        assert "scontrol" not in render(made(maker, groups=ALIKE), "c.yaml")["job.sh"]

    def test_the_job_has_a_token_of_its_own_that_goes_with_it(self, tmp_path: Path) -> None:
        script = render(made(SLURM, groups=ALIKE, folder=str(tmp_path)), "c.yaml")["job.sh"]
        looked = f"stat -c '%a %s' {tmp_path}/.slurm-7 {tmp_path}/.slurm-7/token >&2; {_SAY}"
        told = told_to_ray(
            f"set -- run f.yaml\n{script}", tmp_path, {"srun": looked, "hostname": "echo ::1"}, SLURM_JOB_ID="7"
        )
        folder, token = told.stderr.splitlines()[-2:]
        assert (folder.split()[0], token) == ("700", "600 64")
        assert told.environment["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/.slurm-7/token"
        assert not (tmp_path / ".slurm-7").exists()


class TestTrackerServer:
    def test_each_name_is_allowed_with_and_without_the_port(self) -> None:
        files = render(TrackerServer(hosts=("ml.example.org",), port=5001, namespace="ns", name="m"), "m.yaml")
        (compose,) = documents(files["compose.yaml"])
        flags = options_of(compose["services"]["mlflow"]["command"])
        assert flags["--allowed-hosts"] == "ml.example.org,ml.example.org:5001"
        server = next(one for one in documents(files["kubernetes.yaml"]) if one["kind"] == "Deployment")
        flags = options_of(server["spec"]["template"]["spec"]["containers"][0]["command"])
        assert {"m.ns.svc.cluster.local:5001", "m:5001", "ml.example.org"} <= set(flags["--allowed-hosts"].split(","))

    def test_ports_are_published_on_loopback_alone(self) -> None:
        (compose,) = documents(render(TrackerServer(), "m.yaml")["compose.yaml"])
        published = [port for service in compose["services"].values() for port in service.get("ports", [])]
        assert [(port["host_ip"], port["published"]) for port in published] == [("127.0.0.1", "5000")]

    def test_without_a_store_of_its_own(self) -> None:
        amazon = render(TrackerServer(store_image=None, s3_endpoint=None, artifacts="s3://mine/x"), "m.yaml")
        (compose,) = documents(amazon["compose.yaml"])
        assert set(compose["services"]) == {"postgres", "mlflow"}
        assert "AWS_" not in amazon["compose.yaml"] + amazon["kubernetes.yaml"] + amazon[".env.example"]

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"artifacts": "gs://b"}, "store_image: would not be used"),
            ({"s3_endpoint": None}, "s3_endpoint: is missing"),
            ({"hosts": ("a,*",)}, r"hosts = 'a,\*': is no name"),
            ({"artifacts": "s3://${HOME}"}, "artifacts = .*cannot be used"),
            ({"listen": "0.0.0.0; x"}, "listen = .*cannot be used"),
            ({"image": HOSTILE}, "image = .*is no name of an image"),
        ],
    )
    def test_what_is_refused(self, fields: dict[str, Any], told: str) -> None:
        with pytest.raises(InvalidExperiment, match=told):
            render(TrackerServer(**fields), "m.yaml")


_SAY = """printf '%s\\0' "$@" >words; env -0 >environment"""
"""In place of a program: writes down what it was told, so that a test sees through the shell's quoting."""


class Told:
    def __init__(self, folder: Path, stderr: str) -> None:
        self.words = (folder / "words").read_text().split("\0")[:-1]
        lines = (line.partition("=") for line in (folder / "environment").read_text().split("\0")[:-1])
        self.environment = {name: value for name, _, value in lines}
        self.stderr = stderr


def told_to_ray(script: str, folder: Path, stand_ins: dict[str, str] | None = None, **environment: str) -> Told:
    """What a script tells ``ray`` (or another program), by words and variables; nothing else may have happened."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in {"ray": _SAY, **(stand_ins or {})}.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "script"],
        cwd=folder,
        env={"HOME": "/nowhere", **environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, "script", done.stdout, done.stderr)
    assert not (folder / "pwned").exists()
    return Told(folder, done.stderr)


def directives(script: str) -> dict[str, str]:
    """The options of ``#SBATCH`` lines, which SLURM reads up to the first command."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[name] = value
        elif not line.startswith("#"):
            break
    return found


def options_of(command: list[str]) -> dict[str, str]:
    return {word: value for word, value in itertools.pairwise(command) if word.startswith("--")}
