"""The files in ``clusters/``: each is taken by the schema or the parser of the tool that reads it."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from proxygap.cli import commands
from proxygap.experiment import validate
from proxygap.submit.load import load_cluster, load_cluster_file
from proxygap.submit.render import render
from proxygap.submit.settings import Cluster
from proxygap.submit.work import load_work
from tests.submit.structural import ROOT, compose, custom_resource, parsed, pod_template, problems

CLUSTERS = ROOT / "clusters"
QUICKSTART = ROOT / "pipelines" / "quickstart.yaml"
MADE = ("on_prem", "aws", "gcp", "kuberay", "slurm", "mlflow")


def rendered(name: str) -> dict[str, str]:
    made = load_cluster_file(CLUSTERS / f"{name}.yaml")
    job = None
    if name == "kuberay":
        assert isinstance(made, Cluster)
        work = load_work(QUICKSTART, cluster=made)
        job = {"command": work.command, "name": work.name, "text": work.text}
    return render(made, f"{name}.yaml", job)


class TestWhatShips:
    @pytest.mark.parametrize("name", MADE)
    def test_is_what_its_cluster_file_says(self, name: str) -> None:
        files = rendered(name)
        assert {path.name for path in (CLUSTERS / name).iterdir()} - {".env"} == set(files)
        for file, text in files.items():
            stands = (CLUSTERS / name / file).read_text()
            if file == "rayjob.yaml":  # its experiment is written out with the defaults of the day
                stands, text = (_without_experiment(each) for each in (stands, text))
            assert stands == text, f"run `proxygap cluster render clusters/{name}.yaml`"

    def test_the_experiment_of_the_job_is_the_quickstart(self) -> None:
        text = _experiment_in(parsed((CLUSTERS / "kuberay" / "rayjob.yaml").read_text()))
        cluster = load_cluster(CLUSTERS / "kuberay.yaml")
        read = YAML(typ="safe", pure=True).load
        assert validate(read(text)) == validate(read(load_work(QUICKSTART, cluster=cluster).text))

    def test_holds_no_secret_and_opens_nothing_without_a_token(self) -> None:
        texts = {path: path.read_text() for path in CLUSTERS.rglob("*") if path.is_file()}
        assert len(texts) > 15
        for path, text in texts.items():
            for line in text.splitlines():
                assert not re.search(r"(?i)(password|secret_key|access_key)\w*[=:] *[\"']?[A-Za-z0-9+/]{8,}", line), (
                    path,
                    line,
                )
                assert "dashboard-host=0.0.0.0" not in line, path
            if "ray start" in text and path.suffix in (".sh", ".yaml") and path.parent != CLUSTERS:
                assert "RAY_AUTH_MODE=token" in text, path

    @pytest.mark.parametrize("script", [*CLUSTERS.rglob("*.sh"), "head.sh", "worker-gpu.sh"], ids=str)
    def test_a_script_is_one(self, script: Path | str, tmp_path: Path) -> None:
        path = script if isinstance(script, Path) else tmp_path / script
        if isinstance(script, str):
            tree = {"name": "c", "groups": {"head": {"cpus": 1}, "gpu": {"cpus": 1, "gpus": 1}}}
            made_by = {"kind": "ray_start", "host": "10.0.0.1"}
            path.write_text(render(Cluster.model_validate({**tree, "made_by": made_by}), "c.yaml")[script])
        assert subprocess.run(["bash", "-n", path], timeout=30).returncode == 0
        tool = Path(sys.executable).with_name("shellcheck")
        if not tool.exists():
            pytest.skip("shellcheck is not installed")
        # not followed: the site's file; not seen: functions that a trap or another shell calls, words for another shell
        said = subprocess.run(
            [tool, "--exclude=SC1091,SC2329,SC2317,SC2016", path], capture_output=True, text=True, timeout=60
        )
        assert not said.stdout, said.stdout

    def test_the_image_is_made_from_the_lock_for_nobody_special(self) -> None:
        lines = [
            line for line in (CLUSTERS / "image" / "Dockerfile").read_text().splitlines() if line[:1] not in ("", "#")
        ]
        text = "\n".join(lines)
        assert re.match(r"FROM python:3\.11-\S+$", lines[0])
        assert "--constraint requirements.lock" in text
        assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:1000"
        (copied, folder) = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
        ignored = (CLUSTERS / "image" / "Dockerfile.dockerignore").read_text().splitlines()
        for source in [*copied.split(), folder]:
            assert (ROOT / source).exists()
            assert f"!{source.rstrip('/')}" in ignored


class TestLauncher:
    @pytest.mark.parametrize("name", ["on_prem", "aws", "gcp"])
    def test_rays_launcher_takes_it(self, name: str) -> None:
        from ray.autoscaler._private.util import prepare_config, validate_config

        document = _launcher(name)
        prepared = prepare_config(copy.deepcopy(document))
        validate_config(prepared)
        cluster = load_cluster(CLUSTERS / f"{name}.yaml")
        assert prepared["max_workers"] == sum(group.most for key, group in cluster.groups.items() if key != "head")
        assert "ray stop" in prepared["head_start_ray_commands"][0]
        misspelled = {**document, "max_worker": 3}
        with pytest.raises(Exception, match="max_worker"):
            validate_config(prepare_config(misspelled))

    def test_amazon_starts_such_machines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray's own provider asks an EC2 that answers here (moto), which checks every argument that boto3 sends."""
        from moto import mock_aws
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.util import prepare_config

        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        config = prepare_config(_launcher("aws"))
        config["auth"]["ssh_private_key"] = str(tmp_path / "key.pem")
        (tmp_path / "key.pem").write_text("")
        for node in config["available_node_types"].values():  # what needs waits, or a key of somebody's, is given
            node["node_config"] |= {"KeyName": "k", "IamInstanceProfile": {"Arn": "arn:aws:iam::1:instance-profile/p"}}
        with mock_aws():
            config = bootstrap_aws(config)
            provider = AWSNodeProvider(config["provider"], config["cluster_name"])
            for name, node in config["available_node_types"].items():
                node["node_config"].pop("IamInstanceProfile")
                (machine,) = provider.create_node(node["node_config"], {"ray-node-type": "worker"}, 1).values()
                assert machine.instance_type == load_cluster(CLUSTERS / "aws.yaml").groups[name].machine
                assert machine.placement["AvailabilityZone"] == "us-west-2a"


class TestKubeRay:
    @pytest.mark.parametrize("file", ["raycluster.yaml", "rayjob.yaml"])
    def test_the_crd_takes_it(self, file: str) -> None:
        documents = parsed((CLUSTERS / "kuberay" / file).read_text())
        _resolves(documents, outside={"proxygap-runs", "proxygap-job"})
        (own,) = (each for each in documents if each["apiVersion"] == "ray.io/v1")
        validator = custom_resource(own["kind"])
        assert problems(validator, own) == []
        wrong = copy.deepcopy(own)
        spec = wrong["spec"].get("rayClusterSpec", wrong["spec"])
        spec["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
        spec["workerGroupSpecs"][0]["minReplicas"] = "1"
        assert len(problems(validator, wrong)) == 2

    def test_every_option_is_one_of_the_crd(self) -> None:
        fields = {
            "kind": "kuberay",
            "image": "r/p:1",
            "fault_tolerant": True,
            "redis_address": "r:6379",
            "secrets": ("s",),
        }
        groups = {
            "head": {"cpus": 1},
            "g": {"cpus": 1, "gpus": 1, "machine": "g6", "resources": {"slots": 2.0}, "most": 3},
        }
        tree = {"name": "c", "folder": "/runs", "storage": "s3://b/x", "entrypoint_cpus": 1.0, "groups": groups}
        cluster = Cluster.model_validate({**tree, "made_by": {**fields, "storage_claim": "claim"}})
        for name, text in render(cluster, "c.yaml", {"command": "run", "name": "x", "text": "a: b\n"}).items():
            documents = parsed(text)
            _resolves(documents, outside={"claim", "s"})
            for own in (each for each in documents if each["apiVersion"] == "ray.io/v1"):
                assert problems(custom_resource(own["kind"]), own) == [], name

    def test_rays_autoscaler_counts_what_the_groups_have(self) -> None:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        document = parsed((CLUSTERS / "kuberay" / "raycluster.yaml").read_text())[0]
        counted = _derive_autoscaling_config_from_ray_cr(document)["available_node_types"]
        cluster = load_cluster(CLUSTERS / "kuberay.yaml")
        assert counted["gpu"]["resources"] == {"CPU": 8, "GPU": 1, "accelerator_type:H100": 1, "memory": 32 * 2**30}
        for name in ("cpu", "gpu"):
            group = cluster.groups[name]
            assert (counted[name]["min_workers"], counted[name]["max_workers"]) == (group.least, group.most)
            assert counted[name]["labels"] == group.labels

    def test_the_operators_own_rules(self) -> None:
        """Those of KubeRay's ``validation.go`` that no schema says."""
        for file in ("raycluster.yaml", "rayjob.yaml"):
            (own,) = (
                each for each in parsed((CLUSTERS / "kuberay" / file).read_text()) if each["apiVersion"] == "ray.io/v1"
            )
            assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", own["metadata"]["name"])
            spec = own["spec"].get("rayClusterSpec", own["spec"])
            assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0), "older ones know no token"
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                assert not {"labels", "num-cpus", "num-gpus", "resources"} & set(group["rayStartParams"])
                assert "restartPolicy" not in group["template"]["spec"], "autoscaler v2"


class TestTrackerServer:
    def test_the_schema_of_compose_takes_it(self) -> None:
        (document,) = parsed((CLUSTERS / "mlflow" / "compose.yaml").read_text())
        assert problems(compose(), document) == []
        assert problems(compose(), {**document, "service": {}})
        for name, service in document["services"].items():
            assert set(service.get("depends_on", {})) <= set(document["services"])
            for volume in service.get("volumes", []):
                assert volume.partition(":")[0] in document["volumes"]
            for config in service.get("configs", []):
                assert config["source"] in document["configs"]
            assert service["cap_drop"] == ["ALL"], name
            assert service["user"] != "0:0" or service["network_mode"] == "none", name

    def test_the_example_names_every_secret_that_is_asked_for(self) -> None:
        folder = CLUSTERS / "mlflow"
        asked = set(re.findall(r"\$\{(\w+):\?", (folder / "compose.yaml").read_text()))
        assert asked == set(re.findall(r"^(\w+)=$", (folder / ".env.example").read_text(), re.MULTILINE))
        keys = {ref["key"] for ref in _secret_references(parsed((folder / "kubernetes.yaml").read_text()))}
        assert keys == asked

    def test_kubernetes_takes_its_pods_and_finds_what_they_name(self) -> None:
        documents = parsed((CLUSTERS / "mlflow" / "kubernetes.yaml").read_text())
        _resolves(documents, outside={"proxygap-mlflow-secrets"})
        pods = [each["spec"]["template"] for each in documents if each["kind"] in ("Deployment", "StatefulSet")]
        assert len(pods) == 3
        for pod in pods:
            assert problems(pod_template(), pod) == []
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in pod["spec"]["containers"]:
                assert container["readinessProbe"]
                assert container["livenessProbe"]
                assert container["resources"]["requests"] == container["resources"]["limits"]


class TestCommands:
    def test_render_writes_beside_the_file_and_check_sees_drift(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text((CLUSTERS / "slurm.yaml").read_text())
        done = _call("cluster", "render", file)
        assert done.exit_code == 0, done.output
        script = tmp_path / "mine" / "job.sh"
        assert done.stdout.splitlines() == [str(script)]
        assert os.access(script, os.X_OK)
        assert _call("cluster", "check", file).exit_code == 0
        script.write_text(script.read_text() + "\n")
        done = _call("cluster", "check", file)
        assert done.exit_code == 3
        assert "job.sh below" in done.stderr
        assert "proxygap cluster render" in done.stderr

    def test_render_prints_and_says_what_is_wrong(self, tmp_path: Path) -> None:
        done = _call("cluster", "render", CLUSTERS / "slurm.yaml", "--out", "-")
        assert done.stdout == (CLUSTERS / "slurm" / "job.sh").read_text()
        file = tmp_path / "c.yaml"
        file.write_text("name: c\nmade_by: {kind: slurm, partiton: x}\ngroups: {head: {cpus: 1}}\n")
        done = _call("cluster", "render", file)
        assert done.exit_code == 3
        assert done.stderr.strip() == "error: made_by.partiton: is not a known key. Did you mean 'partition'?"

    def test_check_answers_in_json(self) -> None:
        told = json.loads(_call("cluster", "check", CLUSTERS / "mlflow.yaml", "--json").stdout)
        assert told["files"] == ["compose.yaml", "kubernetes.yaml", ".env.example", ".gitignore"]
        told = json.loads(_call("cluster", "check", CLUSTERS / "slurm.yaml", "--json").stdout)
        assert any(notice.startswith("storage is not set") for notice in told["notices"])

    def test_a_job_that_names_local_files_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "labels.parquet").write_bytes(b"x")
        text = QUICKSTART.read_text() + f"labels: {{file: {tmp_path / 'labels.parquet'}}}\n"
        (tmp_path / "e.yaml").write_text(text)
        done = _call("cluster", "render", CLUSTERS / "kuberay.yaml", "--out", "-", "--job", tmp_path / "e.yaml")
        assert done.exit_code == 3
        assert "names 1 local files" in done.stderr


def _call(*words: object) -> Any:
    return CliRunner().invoke(commands, [str(word) for word in words])


def _launcher(name: str) -> dict[str, Any]:
    (document,) = parsed((CLUSTERS / name / "launcher.yaml").read_text())
    return document


def _experiment_in(documents: list[dict[str, Any]]) -> str:
    (text,) = (each["data"]["experiment.yaml"] for each in documents if each["kind"] == "ConfigMap")
    return str(text)


def _without_experiment(text: str) -> str:
    """The file's text up to the experiment and after it."""
    before, rest = text.split("  experiment.yaml: |\n", 1)
    return before + rest[rest.index("\n---\n") :]


def _secret_references(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, list):
        for item in node:
            yield from _secret_references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("secretKeyRef", "secretRef"):
                yield value
            yield from _secret_references(value)


def _resolves(documents: list[dict[str, Any]], outside: set[str]) -> None:
    """Every document is one, and whatever pods, services and policies name is there, or known to be made by hand."""
    found = {(each["kind"], each["metadata"]["name"]) for each in documents}
    assert len(found) == len(documents), "no two of a kind by one name"
    for each in documents:
        assert {"apiVersion", "kind", "metadata"} <= set(each)
    assert {reference["name"] for reference in _secret_references(documents)} <= outside | {"proxygap-redis"}
    pods = list(_pods(documents))
    for pod in pods:
        claims = {claim["metadata"]["name"] for claim in pod["claims"]}
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in found
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in outside
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes) | claims
    for each in documents:
        selector = {"Service": each.get("spec", {}).get("selector")}.get(each["kind"])
        if each["kind"] == "NetworkPolicy":
            selector = each["spec"]["podSelector"]["matchLabels"]
        if selector:
            assert any(selector.items() <= pod["labels"].items() for pod in pods), each["metadata"]


def _pods(node: Any, claims: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from _pods(item, claims)
    elif isinstance(node, dict):
        claims = tuple(node.get("volumeClaimTemplates", claims))
        template = node.get("template")
        if isinstance(template, dict) and "containers" in template.get("spec", {}):
            yield {"spec": template["spec"], "labels": template["metadata"]["labels"], "claims": claims}
        for value in node.values():
            yield from _pods(value, claims)
