"""Which run a name means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from proxygap.base.errors import StorageError
from proxygap.lookup import catalog, find_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for age, name in enumerate(["quickstart-1111", "quickstart-2222", "quickstart-2222-2", "hopper-3333"]):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "identity.json").write_text(json.dumps({"experiment_hash": "x", "execution": "y"}))
        os.utime(folder / "identity.json", (1000 + age, 1000 + age))
    (tmp_path / "runs" / "not-a-run").mkdir()
    return tmp_path / "runs"


def test_no_name_is_the_newest(root: Path) -> None:
    assert find_run(None, root) == root / "hopper-3333"


def test_a_path_is_a_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert find_run("hopper-3333", Path("elsewhere")) == root / "hopper-3333"
    assert find_run(str(root / "quickstart-1111") + "/", Path("elsewhere")) == root / "quickstart-1111"


@pytest.mark.parametrize(
    ("name", "found"),
    [("h", "hopper-3333"), ("quickstart-1", "quickstart-1111"), ("quickstart-2222", "quickstart-2222")],
)
def test_the_beginning_of_one_name_is_enough(root: Path, name: str, found: str) -> None:
    assert find_run(name, root) == root / found


def test_the_beginning_of_several_names_is_not(root: Path) -> None:
    with pytest.raises(StorageError, match="quickstart-1111, quickstart-2222, quickstart-2222-2"):
        find_run("quickstart", root)


def test_a_typing_error_gets_a_suggestion(root: Path) -> None:
    with pytest.raises(StorageError, match="Did you mean 'hopper-3333'"):
        find_run("hoper-3333", root)


def test_a_folder_that_is_no_run_is_refused(root: Path) -> None:
    with pytest.raises(StorageError, match="neither"):
        find_run(str(root / "not-a-run"), root)


def test_an_empty_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run is here"):
        find_run(None, tmp_path / "absent")


def test_the_catalog_names_the_loops_of_an_objective() -> None:
    rows = {row["kind"]: row for row in catalog() if row["seam"] == "objective"}
    assert rows["value_estimate"]["line"].endswith("Measured by: mbpo, sac, ppo, preference_control.")
    assert rows["held_out_mse"]["line"].endswith("Measured by: mbpo, pets, model_population, adversarial_model.")
