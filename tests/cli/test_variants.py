"""A file with variants as a shell sees it: run, compared, interrupted and continued, checked, and described."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from proxygap import cli
from proxygap.base.clock import Clocks
from proxygap.base.protocols import State
from proxygap.cli import commands
from proxygap.experiment import Experiment
from proxygap.loops import report, session
from proxygap.loops.run import RunSummary
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import RunState
from proxygap.record.rows import EventRow, ReadingRow, read_journal
from proxygap.study import load_study

ARMS: dict[str, Any] = {
    "name": "arms",
    "question": "Which aggregate keeps the gold?",
    "task": {"kind": "arms", "arms": 50},
    "proxy": {"kind": "correlated_proxies"},
    "loop": {"kind": "best_of_n", "real_steps": 4},
    "outcomes": ["gold_reward"],
    "seeds": [0],
    "probe": {"resamples": 100},
    "variants": {"single": {"judge": {"aggregate": {"kind": "single"}}}, "mean": None},
}
real_runs = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def write(folder: Path, **sections: Any) -> Path:
    """An experiment file (JSON is YAML) whose runs go beside it."""
    tree = {**ARMS, "record": {"folder": str(folder / "runs"), "flush_s": 1.0}, **sections}
    path = folder / "study.yaml"
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))
    return path


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "proxygap.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=environment)


def shell(folder: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command that must end with ``code``."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit code {process.returncode}\n{out[-3000:]}\n{err[-3000:]}"
    return out, err


def call(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def journal(folder: Path, variant: str) -> Path:
    (found,) = (folder / "runs").glob(f"arms.{variant}-*/seed-0/journal.jsonl")
    return found


def measured(folder: Path, variant: str) -> list[dict[str, str]]:
    """Every reading of a variant, times left out; values as text, so that NaN compares."""
    rows = [row for row in read_journal(journal(folder, variant)) if isinstance(row, ReadingRow)]
    return [{m.key: repr(m.value) for m in row.reading.measurements if m.side != "time"} for row in rows]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a study that was run with ``--json``, and what it answered."""
    folder = tmp_path_factory.mktemp("study")
    out, _ = shell(folder, "run", write(folder), "--json")
    return folder, json.loads(out)


class TestRun:
    pytestmark = real_runs

    def test_json_tells_of_every_variant_and_of_the_page(self, answered: tuple[Path, dict[str, Any]]) -> None:
        folder, answer = answered
        assert list(answer) == ["variants", "comparison"]
        assert list(answer["variants"]) == ["single", "mean"]
        experiments = load_study(folder / "study.yaml").experiments
        for name, told in answer["variants"].items():
            assert told["states"] == {"0": "finished"}
            assert told["folder"] == str(folder / "runs" / experiments[name].folder_name)
            assert Path(told["report"]).is_file()
            assert "at least 5 are needed" in told["verdict"]
        page = Path(answer["comparison"])
        assert page == load_study(folder / "study.yaml").page_folder / "comparison.html"
        assert "Undecided whether mean or single gives the better gold reward" in page.read_text()
        assert "Which aggregate keeps the gold?" in page.read_text()

    def test_again_without_json_it_only_says_where_the_pages_are(self, answered: tuple[Path, dict[str, Any]]) -> None:
        folder, answer = answered
        before = {name: journal(folder, name).read_bytes() for name in ("single", "mean")}
        os.utime(answer["comparison"], (0, 0))
        out, _ = shell(folder, "run", "study.yaml")
        page = Path(answer["comparison"])
        assert f"Comparison of all variants: {page.relative_to(folder)}" in out
        assert page.stat().st_mtime > 0, "the page is made again"
        assert {name: journal(folder, name).read_bytes() for name in before} == before, "nothing is run again"

    @pytest.mark.long
    def test_a_study_that_was_interrupted_continues_where_it_was(self, tmp_path: Path) -> None:
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        for folder in (whole, broken):
            folder.mkdir()
            write(folder, loop={"kind": "best_of_n", "real_steps": 1024, "per_doubling": 3})
        alone = json.loads(shell(whole, "run", "study.yaml", "--variant", "mean", "--json")[0])
        assert alone["states"] == {"0": "finished"}, "one variant is an experiment like any other"
        process = start(broken, "run", "study.yaml", "--json")
        interrupt_in(broken, "mean", process)
        out, err = process.communicate(timeout=240)
        answer = json.loads(out)
        assert process.returncode == 130, err[-3000:]
        assert answer["comparison"] is None
        states = {name: told["states"]["0"] for name, told in answer["variants"].items()}
        assert states == {"single": "finished", "mean": "interrupted"}
        first = journal(broken, "single").read_bytes()
        out, _ = shell(broken, "run", "study.yaml", "--json")
        assert Path(json.loads(out)["comparison"]).is_file()
        assert journal(broken, "single").read_bytes() == first
        events = [row.kind for row in read_journal(journal(broken, "mean")) if isinstance(row, EventRow)]
        assert events == ["interrupted", "resumed"]
        assert measured(broken, "mean") == measured(whole, "mean")
        assert len(measured(broken, "mean")) > 20

    def test_a_variant_that_fails_stops_no_other_and_ends_with_8(self, tmp_path: Path) -> None:
        write(tmp_path)
        doomed = load_study(tmp_path / "study.yaml").experiments["mean"]
        checkpoints = tmp_path / "runs" / doomed.folder_name / "seed-0" / "checkpoints"
        CheckpointStore(checkpoints, keep=2).save({"loop": State({}, {})}, Clocks(), "another run, so it is refused")
        out, err = shell(tmp_path, "run", "study.yaml", "--json", code=8)
        answer = json.loads(out)
        states = {name: told["states"] for name, told in answer["variants"].items()}
        assert states == {"single": {"0": "finished"}, "mean": {"0": "failed"}}
        assert "checkpoints" in answer["variants"]["mean"]["reasons"]["0"], "the reason names the place"
        assert "error: 1 of 1 seeds failed: 0" in err
        page = Path(answer["comparison"]).read_text()
        assert "mean and single share no seed on which both gave a gold reward." in page
        assert "real step 4" in page, "the last one of the variant that finished"
        assert "0 of 1, 1 not finished" in page


def interrupt_in(folder: Path, variant: str, process: subprocess.Popen[str], readings: int = 3) -> None:
    """Send SIGINT once a variant has so many readings on disk."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        found = list((folder / "runs").glob(f"arms.{variant}-*/seed-0/journal.jsonl"))
        if found and found[0].read_text().count('"values"') >= readings:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("signaled", "code", "ended", "shown"),
    [
        pytest.param("single", 0, 130, "1 of 2 variants are done. Run it again to continue.", id="between variants"),
        pytest.param("single", 143, 143, "0 of 2 variants are done. Run it again to continue.", id="in the first"),
        pytest.param("mean", 143, 143, "1 of 2 variants are done. Run it again to continue.", id="in the last"),
        pytest.param("mean", 0, 0, "Comparison of all variants: ", id="after everything"),
        pytest.param("mean", 8, 8, "Comparison of all variants: ", id="after everything, one failed"),
    ],
)
def test_a_study_never_ends_well_before_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signaled: str,
    code: int,
    ended: int,
    shown: str,
) -> None:
    """Signals at moments that no test can hit for sure, so the runs themselves are stood in for."""
    study = load_study(write(tmp_path))

    def watch(experiment: Experiment, *_: object) -> tuple[int, RunSummary]:
        now = experiment.name == f"arms.{signaled}"
        return (code if now else 0), RunSummary(tmp_path, {0: RunState.FINISHED}, {}, tmp_path, "", 0, now, "")

    monkeypatch.setattr(cli.run, "_watch", watch)
    monkeypatch.setattr(session, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(report, "make_comparison", lambda *_: tmp_path / "comparison.html")
    assert cli.run._run_variants(study, fresh=False, as_json=False) == ended
    told = capsys.readouterr()
    assert shown in told.out + told.err


def test_validate_prints_one_document_for_each_variant(tmp_path: Path) -> None:
    path = write(tmp_path)
    done = call("validate", path, "seeds=[3]")
    assert done.exit_code == 0
    assert done.stdout.count("\n---\n") == 1
    documents = list(YAML(typ="safe").load_all(done.stdout))
    assert [document["name"] for document in documents] == ["arms.single", "arms.mean"]
    assert [document["judge"]["aggregate"]["kind"] for document in documents] == ["single", "mean"]
    assert [document["seeds"] for document in documents] == [[3], [3]]
    for experiment in load_study(path, ["seeds=[3]"]).experiments.values():
        assert f"# identity: {experiment.identity}\n" in done.stdout
        assert experiment.folder_name in done.stdout


def test_what_validate_prints_of_a_variant_is_the_same_experiment(tmp_path: Path) -> None:
    path = write(tmp_path)
    done = call("validate", path, "--variant", "mean")
    assert "---" not in done.stdout
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    assert load_study(again).experiments[""] == load_study(path).experiments["mean"]


def test_validate_answers_in_json_by_variant(tmp_path: Path) -> None:
    path = write(tmp_path)
    answer = json.loads(call("validate", path, "--json").stdout)
    assert list(answer["variants"]) == ["single", "mean"]
    for name, experiment in load_study(path).experiments.items():
        told = answer["variants"][name]
        assert (told["valid"], told["identity"]) == (True, experiment.identity)
        assert told["experiment"] == experiment.model_dump(mode="json")
    alone = json.loads(call("validate", path, "--json", "--variant", "single").stdout)
    assert alone == answer["variants"]["single"]


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(
    ("sections", "arguments", "line"),
    [
        pytest.param({}, ["--variant", "men"], "--variant = 'men': no such variant. Did you mean 'mean'?", id="near"),
        pytest.param({"variants": None}, ["--variant", "a"], "--variant = 'a': the file has no variants", id="none"),
        pytest.param({"variants": {"a": {"seeds": []}}}, [], "variants.a: seeds = []", id="field of a variant"),
        pytest.param({"variants": ["a"]}, [], "variants: must map 1 to 64 names", id="list"),
    ],
)  # fmt: skip
def test_what_is_wrong_ends_with_3_and_names_the_variant(
    tmp_path: Path, command: str, sections: dict[str, Any], arguments: list[str], line: str
) -> None:
    done = call(command, write(tmp_path, **sections), *arguments)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {line}")
    assert not (tmp_path / "runs").exists()


def test_the_schema_knows_variants() -> None:
    told = json.loads(call("schema").stdout)["properties"]["variants"]
    assert told["type"] == "object"
    assert told["additionalProperties"] == {"type": ["object", "null"]}
    assert "compared" in told["description"]
