"""Clocks, measurements, errors, canonical hashes and seeds: small values with promises."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from proxygap.base import errors
from proxygap.base.clock import Clocks
from proxygap.base.config import Settings, canonical_hash, canonical_json
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.base.seeds import derived_seed, generator, generator_state, restore_generator, torch_generator


def test_clocks_tick_apart() -> None:
    start = Clocks(real_step=5)
    assert start.tick(real_step=2, label=1) == Clocks(real_step=7, label=1)
    assert start == Clocks(real_step=5), "a reading never changes"
    names = ["iteration", "real_step", "imagined_step", "model_update", "policy_update", "label"]
    assert list(start.as_dict()) == names


def test_clocks_never_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        Clocks(real_step=5).tick(real_step=-1)


def test_an_unknown_clock_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Clocks().tick(second=1)


def test_a_measurement_is_named_by_its_side() -> None:
    found = Measurement("return", 3.0, Side.OUTCOME, "reward", Direction.HIGHER)
    assert found.key == "outcome/return"
    assert Reading(Clocks(), (found,)).value("outcome/return") == 3.0
    with pytest.raises(KeyError, match="objective/return"):
        Reading(Clocks(), (found,)).value("objective/return")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, "is wrong"),
        ({"field": "a.b"}, "a.b: is wrong"),
        ({"field": "a.b", "value": "x", "remedy": "Mend it"}, "a.b = 'x': is wrong. Mend it"),
        ({"remedy": "Mend it"}, "is wrong. Mend it"),
        ({"field": "a.b", "value": 0}, "a.b = 0: is wrong"),
    ],
)
def test_an_error_is_one_sentence(given: dict[str, str], shown: str) -> None:
    assert str(errors.InvalidExperiment("is wrong", **given)) == shown  # type: ignore[arg-type]


def _all_errors() -> list[type[errors.ProxyGapError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProxyGapError)]


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_out_of_an_actor(kind: type[errors.ProxyGapError]) -> None:
    error = kind("is wrong", field="a", value=[1], remedy="Mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.problem, again.field, again.value, again.remedy) == ("is wrong", "a", [1], "Mend it")
    assert str(again) == str(error)


class _Small(Settings):
    """An example."""

    number: float = 0.1
    """A number."""


def test_equal_values_have_equal_hashes() -> None:
    assert canonical_hash({"a": 1, "b": [1.5, "é"]}) == canonical_hash({"b": [1.5, "é"], "a": 1})
    assert canonical_json({"b": 0.1, "a": "é"}) == '{"a":"\\u00e9","b":0.1}'
    known = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of "{}"
    assert canonical_hash({}) == known


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, -math.inf]])
def test_what_is_no_number_has_no_hash(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_hash(value)


def test_settings_are_strict_and_hash_their_defaults() -> None:
    assert _Small().hash == canonical_hash({"number": 0.1})
    assert _Small(number=0.1).hash == _Small().hash
    for wrong in ({"number": "0.1"}, {"other": 1}, {"number": math.nan}):
        with pytest.raises(ValidationError):
            _Small(**wrong)  # type: ignore[arg-type]
    assert _Small.model_fields["number"].description == "A number."


def test_seeds_are_pinned() -> None:
    """A changed derivation would silently change every result ever recorded."""
    assert derived_seed(0, "policy") == 9182047540165156489
    assert derived_seed(7, "replay") == 5159113180622670485
    assert derived_seed(0, "a") != derived_seed(1, "a") != derived_seed(1, "b")


def test_seeds_do_not_depend_on_the_process() -> None:
    script = "from proxygap.base.seeds import derived_seed; print(derived_seed(3, 'replay'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "7")
    }
    assert {int(number) for number in found} == {derived_seed(3, "replay")}


def test_a_generator_continues_where_it_was() -> None:
    rng = generator(0, "replay")
    rng.random(7)
    rng.integers(10, dtype=np.int32)  # leaves half a word behind
    kept = json.loads(json.dumps(generator_state(rng)))
    ahead = (rng.integers(10, size=5, dtype=np.int32).tolist(), rng.normal(size=5).tolist())
    other = generator(99, "elsewhere")
    restore_generator(other, kept)
    assert (other.integers(10, size=5, dtype=np.int32).tolist(), other.normal(size=5).tolist()) == ahead


def test_every_component_has_a_stream_of_its_own() -> None:
    draws = {generator(seed, name).integers(2**62) for seed in (0, 1) for name in ("a", "b")}
    assert len(draws) == 4
    one, same = torch_generator(0, "a"), torch_generator(0, "a")
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=same))
