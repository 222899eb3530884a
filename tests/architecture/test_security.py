"""What a stranger's file, name or address can do: nothing. The threats are told in docs/security.md."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygap.base.errors import ProxyGapError
from proxygap.base.language import ItemSpec
from proxygap.collect.episodes import read_episodes
from proxygap.collect.labels.dataset import read_preferences
from proxygap.experiment import load_experiment, validate
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import ExperimentFolder
from proxygap.record.rows import read_journal
from proxygap.record.sweep_folder import folder_of
from proxygap.record.tracker import redacted
from proxygap.study import load_study

PACKAGE = Path(__file__).resolve().parents[2] / "platform" / "proxygap"
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "ray.cloudpickle.loads"),
    *("yaml.load", "yaml.unsafe_load", "pandas.read_pickle", "pd.read_pickle", "tempfile.mktemp", "numpy.fromfile"),
}
FORBIDDEN_ARGUMENTS = {("shell", True), ("allow_pickle", True), ("trust_remote_code", True), ("verify", False)}
TINY = {
    "name": "tiny",
    "question": "Does it end?",
    "task": {"kind": "bandit_lm", "prompts": 2, "answers": 8},
    "outcomes": ["gold_reward"],
    "proxy": {"kind": "gold"},
    "loop": {"kind": "tilt", "real_steps": 3, "largest_kl": 0.5},
}


def modules() -> list[Path]:
    found = [path for path in PACKAGE.rglob("*.py") if "testing" not in path.relative_to(PACKAGE).parts]
    assert len(found) > 200
    return found


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offenses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield f"imports from {node.module}"
        elif isinstance(node, ast.Call):
            if (name := dotted(node.func)) in FORBIDDEN_CALLS:
                yield f"calls {name}"
            for keyword in node.keywords:
                if (
                    isinstance(keyword.value, ast.Constant)
                    and (keyword.arg, keyword.value.value) in FORBIDDEN_ARGUMENTS
                ):
                    yield f"passes {keyword.arg}={keyword.value.value}"


def test_the_search_finds_what_it_looks_for() -> None:
    bad = """
import pickle
from dill import loads
os.system(x)
subprocess.run(c, shell=True)
eval(y)
np.load(f, allow_pickle=True)
"""
    assert len(list(offenses(ast.parse(bad)))) == 6


def test_nothing_unpickles_evaluates_or_asks_a_shell() -> None:
    found = {str(path.relative_to(PACKAGE)): list(offenses(ast.parse(path.read_text()))) for path in modules()}
    assert {path: told for path, told in found.items() if told} == {}


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[bytes]:
    mark = tmp_path / "sprung"
    payload = pickle.dumps(Trap(tmp_path / "proof"))
    pickle.loads(payload)
    assert (tmp_path / "proof").is_dir(), "the trap must work, or its silence proves nothing"
    yield pickle.dumps(Trap(mark))
    assert not mark.exists(), "a file from a stranger ran a program"


def spoilt_checkpoint(folder: Path, payload: bytes) -> None:
    place = folder / "checkpoints" / "step-0000000001"
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(payload)
    (place / "policy.safetensors").write_bytes(payload)
    CheckpointStore(folder / "checkpoints", keep=2).load_newest("x")


def spoilt_preferences(folder: Path, payload: bytes) -> None:
    (folder / "labels.parquet").write_bytes(payload)
    read_preferences(folder / "labels.parquet", ItemSpec(max_tokens=1, vocabulary=4))


def spoilt_metadata(folder: Path, payload: bytes) -> None:
    table = pa.table({"chosen": [[1]], "rejected": [[2]]}).replace_schema_metadata(
        {"pandas": payload, "ARROW:x": payload}
    )
    pq.write_table(table, folder / "labels.parquet")
    read_preferences(folder / "labels.parquet", ItemSpec(max_tokens=1, vocabulary=4))
    raise ProxyGapError("plain columns are read, and foreign metadata is not looked at")


def spoilt_episodes(folder: Path, payload: bytes) -> None:
    (folder / "episodes.parquet").write_bytes(payload)
    read_episodes(folder / "episodes.parquet")


def spoilt_journal(folder: Path, payload: bytes) -> None:
    (folder / "journal.jsonl").write_bytes(payload + b"\n" + payload + b"\n")
    read_journal(folder / "journal.jsonl")


def spoilt_identity(folder: Path, payload: bytes) -> None:
    (folder / "identity.json").write_bytes(payload)
    _ = ExperimentFolder(folder).identity


def spoilt_sweep(folder: Path, payload: bytes) -> None:
    for name in ("identity.json", "sweep.json", "sweep.yaml", "ledger.jsonl"):
        (folder / name).write_bytes(payload)
    _ = folder_of(folder).identity


def spoilt_experiment(folder: Path, payload: bytes) -> None:
    (folder / "experiment.yaml").write_bytes(payload)
    load_experiment(folder / "experiment.yaml")


@pytest.mark.parametrize(
    "reader",
    [
        spoilt_checkpoint,
        spoilt_preferences,
        spoilt_metadata,
        spoilt_episodes,
        spoilt_journal,
        spoilt_identity,
        spoilt_sweep,
        spoilt_experiment,
    ],
)
def test_a_pickle_in_place_of_a_file_is_refused_unread(
    reader: Callable[[Path, bytes], None], trap: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    with pytest.raises(ProxyGapError):
        reader(folder, trap)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.mkdir [{mark}]",
        "!!python/object/new:os.mkdir [{mark}]",
        "name: !!python/name:os.system",
        "a: &a [x]\nb: &b [*a, *a]\nname: *b",
    ],
)
def test_yaml_makes_no_objects(text: str, tmp_path: Path) -> None:
    file, mark = tmp_path / "e.yaml", tmp_path / "mark"
    file.write_text(text.format(mark=mark))
    with pytest.raises(ProxyGapError):
        load_experiment(file)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../escape", "/etc/x", "a/b", "..", "", "a\x00b", "$(reboot)", "a;b", "a\nb", "-rf"])
def test_names_that_leave_their_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProxyGapError, match="name"):
        validate({**TINY, "name": name})
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({**TINY, "variants": {name: {}}}))
    try:
        study = load_study(file, (), ())
    except ProxyGapError:
        return
    for experiment in study.experiments.values():  # what is accepted must be a plain name by then
        place = ExperimentFolder.place(tmp_path, experiment.name, experiment.identity).path
        assert place.parent == tmp_path
        assert place.name.isprintable()


@pytest.mark.parametrize("part", ["../policy", "/policy", "a/b", "..", ""])
def test_parts_of_checkpoints_stay_in_their_folder(part: str, tmp_path: Path) -> None:
    from proxygap.base.clock import Clocks
    from proxygap.base.protocols import State

    with pytest.raises(ValueError, match="names its file"):
        CheckpointStore(tmp_path / "checkpoints", keep=2).save({part: State({}, {})}, Clocks(), "me")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["checkpoints"])


def test_a_run_writes_no_secret_anywhere(tmp_path: Path) -> None:
    """Not to its folder, not to the store, not to the screen; nor does the doctor."""
    secrets = {
        "RAY_AUTH_TOKEN": "planted-ray-token-71c9",
        "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token-5f02",
        "MLFLOW_TRACKING_PASSWORD": "planted-password-88ab",
        "AWS_SECRET_ACCESS_KEY": "planted-aws-key-1d3e",
    }
    file = tmp_path / "e.yaml"
    file.write_text(json.dumps({**TINY, "record": {"folder": str(tmp_path / "runs")}}))
    said = ""
    for command in (["run", str(file), "--json"], ["doctor", "--folder", str(tmp_path / "runs")]):
        done = subprocess.run(
            [sys.executable, "-m", "proxygap.cli", *command],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, **secrets, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr[-2000:]
        said += done.stdout + done.stderr
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) > 10_000
    for secret in secrets.values():
        assert secret not in said
        assert secret.encode() not in written


def test_uris_are_shown_without_passwords() -> None:
    assert "hunter2" not in redacted("http://me:hunter2@tracker:5000/x")
    assert "hunter2" not in redacted("postgresql://me:hunter2@db/mlflow")


def test_a_file_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    file.write_text("\n".join([*lines, "seeds: *a11"]))
    with pytest.raises(ProxyGapError, match="values"):
        load_experiment(file)
