"""``data build`` and ``data show``: a dataset becomes a file that says where it is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxygap.cli import commands
from proxygap.collect.data.lineage import Lineage
from proxygap.collect.episodes import read_episodes

GOOD = """
name: small
question: Is it balanced?
task: {kind: continuous_cartpole}
outcomes: [return]
loop: {kind: sac, real_steps: 1000}
data: {kind: random, rows: 60}
expert: {kind: grid, half_width: [1.0], points: 2}
seeds: [5]
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def test_build_writes_a_dataset_with_its_lineage(file: Path) -> None:
    done = call("data", "build", file, "--out", "a.parquet", "--json")
    assert done.exit_code == 0, done.output
    rows, provenance = read_episodes(file.with_name("a.parquet"))
    lineage = Lineage.read(provenance, rows, "a.parquet")
    assert (lineage.kind, lineage.seed, lineage.policy) == ("random", 5, {"kind": "uniform"})
    told = json.loads(done.stdout)
    assert (told["rows"], told["content_hash"]) == (len(rows), rows.content_hash)
    assert told["least_return"] <= told["mean_return"] <= told["best_return"]
    assert json.loads(call("data", "show", "a.parquet", "--json").stdout) == told


def test_seed_section_and_overrides_are_obeyed(file: Path) -> None:
    call("data", "build", file, "--out", "a.parquet", "--seed", 6)
    call("data", "build", file, "expert.points=3", "--section", "expert", "--out", "b.parquet")
    rows, provenance = read_episodes(file.with_name("a.parquet"))
    assert (provenance["seed"], len(rows) <= 60) == ("6", True)
    assert len(read_episodes(file.with_name("b.parquet"))[0]) == 3**5


def test_one_variant_is_chosen(file: Path) -> None:
    file.write_text(GOOD + "variants: {few: {}, more: {data: {rows: 90}}}\n")
    done = call("data", "build", file, "--out", "a.parquet")
    assert done.exit_code == 3
    assert "few, more" in done.stderr
    assert "--variant few" in done.stderr
    done = call("data", "build", file, "--variant", "more", "--out", "a.parquet", "--json")
    assert 60 < json.loads(done.stdout)["rows"] <= 90


def test_show_is_for_readers_too(file: Path) -> None:
    call("data", "build", file, "--out", "a.parquet")
    lines = dict(line.split(maxsplit=1) for line in call("data", "show", "a.parquet").stdout.splitlines())
    assert (lines["kind"], lines["task"], lines["policy"]) == ("random", "ContinuousCartPole", '{"kind":"uniform"}')


def test_errors_are_one_line(file: Path) -> None:
    done = call("data", "build", file, "data=null", "--out", "a.parquet")
    assert (done.exit_code, done.stderr) == (3, "error: data: is no section of this file. Sections: expert\n")
    done = call("data", "show", "absent.parquet")
    assert done.exit_code == 10
    assert done.stderr.startswith("error: absent.parquet: cannot be read as parquet")
