"""The commands that need no run, as a shell sees them: exit codes, one line per error, JSON that is only JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from proxygap.base.errors import HostFailed, InvalidExperiment
from proxygap.cli import HINT, commands
from proxygap.cli.group import only_answers
from proxygap.cli.run import failed_code
from proxygap.experiment import load_experiment

GOOD = """
name: small
question: Is it balanced?
task: {kind: continuous_cartpole}
outcomes: [return]
loop: {kind: sac, real_steps: 1000}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxygap.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_validate_prints_the_resolved_experiment_as_yaml(file: Path) -> None:
    done = call("validate", file, "optimize.discount=0.9", "seeds=[3, 4]")
    assert done.exit_code == 0
    resolved = YAML(typ="safe").load(done.stdout)
    assert (resolved["optimize"]["discount"], resolved["seeds"]) == (0.9, [3, 4])
    assert resolved["probe"]["every"] == 250, "defaults are filled in"
    experiment = load_experiment(file, ["optimize.discount=0.9"])
    assert f"# identity: {experiment.identity}" in done.stdout
    assert f"# folder: runs/small-{experiment.identity[:8]}" in done.stdout


def test_what_validate_prints_is_the_same_experiment(file: Path) -> None:
    again = file.with_name("again.yaml")
    again.write_text(call("validate", file, "optimize.discount=0.9").stdout)
    assert load_experiment(again) == load_experiment(file, ["optimize.discount=0.9"])


def test_validate_answers_in_json(file: Path) -> None:
    answer = json.loads(call("validate", file, "--json").stdout)
    assert answer["valid"] is True
    assert answer["experiment"] == load_experiment(file).model_dump(mode="json")


def test_an_invalid_experiment_ends_with_3_and_a_line_that_names_field_value_and_remedy(file: Path) -> None:
    done = shell("validate", file, "optimize.discont=0.9")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: optimize.discont: is not a known key. Did you mean 'discount'?\n"


def test_each_problem_has_a_line_of_its_own(file: Path) -> None:
    done = call("validate", file, "seeds=x", "compute.threads=0")
    assert [line.partition(" =")[0] for line in done.stderr.splitlines()] == ["error: compute.threads", "error: seeds"]


def test_an_error_is_json_where_json_was_asked_for(file: Path) -> None:
    done = shell("validate", file, "outcomes=[]", "--json")
    told = json.loads(done.stdout)["error"]
    assert (done.returncode, told["exit_code"], told["kind"], told["field"]) == (3, 3, "InvalidExperiment", "outcomes")
    assert "does not start" in told["message"]
    assert done.stderr.startswith("error: outcomes = []: ")


def test_validate_looks_at_the_task(file: Path) -> None:
    done = call("validate", file, "task={kind: gymnasium, id: CartPole-v1}")
    assert done.exit_code == 3
    assert "real numbers" in done.stderr


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_missing_file_is_an_invalid_experiment(command: str, tmp_path: Path) -> None:
    done = call(command, tmp_path / "absent.yaml")
    assert done.exit_code == 3
    assert "absent.yaml: no such file" in done.stderr


def test_run_refuses_before_anything_is_launched(file: Path) -> None:
    script = (
        "import sys; from proxygap.cli import commands\n"
        f"try: commands(['run', {str(file)!r}, 'probe.every=0'])\n"
        "except SystemExit as end: print(end.code, [m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "3 []"


def test_schema_is_json_schema_with_every_field_described() -> None:
    schema = json.loads(call("schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["required"]) == {"name", "question", "task", "outcomes", "loop"}
    silent = [
        (name, field)
        for name, model in {**schema["$defs"], "Experiment": schema}.items()
        for field, told in model["properties"].items()
        if field != "kind" and "description" not in told
    ]
    assert silent == []


def test_list_shows_every_part_with_its_paper() -> None:
    done = call("list")
    for word in ("gaussian_ensemble", "mbpo", "Janner et al. 2019", "held_out_log_likelihood", "episode_length"):
        assert word in done.stdout


@pytest.mark.parametrize("words", [("dynamics", "loss"), ("dynamics_loss",), ("dynamics-loss",)])
def test_list_takes_one_seam(words: tuple[str, ...]) -> None:
    found = json.loads(call("list", *words, "--json").stdout)
    assert {row["kind"] for row in found} == {
        "likelihood",
        "mse",
        "multi_step",
        "expert_distance",
        "value_gradient",
        "generalized_gaussian",
    }
    assert {row["seam"] for row in found} == {"dynamics loss"}


def test_list_suggests_the_nearest_seam() -> None:
    done = call("list", "outcomes")
    assert done.exit_code == 2
    assert "Did you mean 'outcome'?" in done.stderr


def test_unknown_commands_get_a_suggestion() -> None:
    done = call("validat", "x")
    assert done.exit_code == 2
    assert "validate" in done.stderr


def test_compare_needs_two() -> None:
    done = call("compare", "one")
    assert done.exit_code == 2
    assert "two runs" in done.stderr


@pytest.mark.parametrize("command", ["report", "resume", "sync", "ui"])
def test_without_a_run_there_is_nothing_to_look_at(command: str, tmp_path: Path) -> None:
    done = call(command, "--folder", tmp_path)
    assert done.exit_code == 9
    assert f"error: {tmp_path}: no run is here" in done.stderr


def test_an_error_of_a_class_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HostFailed("did not answer", field="host 3", remedy="Look at its log")

    monkeypatch.setattr(commands.commands["schema"], "callback", fail)
    done = call("schema")
    assert (done.exit_code, done.stderr) == (7, "error: host 3: did not answer. Look at its log\n")


def test_a_defect_keeps_its_traceback_and_asks_for_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(commands.commands["schema"], "callback", fail)
    done = call("schema")
    assert isinstance(done.exception, ZeroDivisionError)
    assert done.exception.__notes__ == [HINT]


def test_failed_seeds_end_with_8(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed_code({0: "finished", 1: "finished"}) == 0
    assert failed_code({0: "finished", 1: "failed", 2: "failed"}) == 8
    assert capsys.readouterr().err == "error: 2 of 3 seeds failed: 1, 2\n"


def test_what_others_print_does_not_reach_a_json_answer() -> None:
    script = (
        "import os, sys; from proxygap.cli.group import only_answers\n"
        "with only_answers(True):\n"
        "    print('chatter'); os.write(1, b'native chatter'); os.system('echo chatter of a child')\n"
        "print('answer')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "answer\n"
    assert done.stderr.count("chatter") == 3


def test_without_json_nothing_is_redirected(capfd: pytest.CaptureFixture[str]) -> None:
    with only_answers(False):
        click.echo("seen")
    assert capfd.readouterr().out == "seen\n"


def test_every_command_explains_itself() -> None:
    for name, command in commands.commands.items():
        first = (command.help or "").partition("\n")[0]
        assert first.endswith("."), name
        assert len(first) <= 66, f"{name}: the list of commands cuts this off"


def test_every_error_class_has_a_code_of_its_own() -> None:
    from proxygap.base import errors

    codes = [kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(set(codes)) == len(codes)
    assert InvalidExperiment.exit_code == 3
    assert not {0, 2} & set(codes), "0 is success and 2 is click's"
    assert click.UsageError.exit_code == 2
