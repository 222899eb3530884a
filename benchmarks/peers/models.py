"""Models that both sides hold: random data, and our weights as arrays that the peer reads.

Shape legend: M members, B rows, I inputs, T predicted targets (the change of the observation, then the reward).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from peers.worker import Peer
from proxygap.base.records import Transitions
from proxygap.fit.dynamics.ensemble import GaussianEnsemble
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

Columns = dict[str, np.ndarray]


def random_transitions(obs: int, action: int, rows: int) -> Transitions:
    """Smooth changes of random states."""
    rng = np.random.default_rng(0)
    state = rng.standard_normal((rows, obs)).astype(np.float32)
    unended = np.zeros(rows, bool)
    return Transitions(
        state,
        rng.uniform(-1, 1, (rows, action)).astype(np.float32),
        (state + 0.1 * np.tanh(state)).astype(np.float32),
        state[:, 0].copy(),
        np.zeros((rows, 0), np.float32),
        unended,
        unended,
        np.zeros(rows, np.int64),
        np.arange(rows),
    )


def columns(data: Transitions) -> Columns:
    """What the peer's replay buffer takes."""
    return {"obs": data.obs_BO, "action": data.action_BA, "next_obs": data.next_obs_BO, "reward": data.outcome_reward_B}


def build(sizes: Mapping[str, Any], **settings: Any) -> GaussianEnsemble:
    """An ensemble of ours of the sizes that the peer is told, learning the reward."""
    chosen = {"members": sizes["members"], "elites": sizes["elites"], "hidden": tuple(sizes["hidden"])} | settings
    return GaussianEnsembleSettings(**chosen).build(
        obs_size=sizes["obs"], action_size=sizes["action"], learn_reward=True, learn_termination=False, seed=0
    )


def exported(model: GaussianEnsemble) -> Columns:
    """Our weights for the peer, which does not normalize targets: their scale goes into the last layer.

    Scaling a target by s adds 2 log s to its log-variance; a bound that moves along keeps the soft clamp what it was.
    """
    arrays = model.state().arrays
    last = max(int(name.removeprefix("weight_")) for name in arrays if name.startswith("weight_"))
    mean_T, std_T = arrays["target_mean"], arrays["target_std"]
    targets = len(std_T)
    scale_2T = np.concatenate([std_T, np.ones(targets)])
    shift_2T = np.concatenate([mean_T, 2 * np.log(std_T)])
    given = {name: array for name, array in arrays.items() if name.startswith(("weight_", "bias_"))}
    given[f"weight_{last}"] = arrays[f"weight_{last}"] * scale_2T
    given[f"bias_{last}"] = arrays[f"bias_{last}"] * scale_2T + shift_2T
    for name in ("max_log_var", "min_log_var"):
        given[name] = arrays[name] + shift_2T[targets:]
    given |= {name: arrays[name] for name in ("input_mean", "input_std")}
    given = {name: array.astype(np.float32) for name, array in given.items()}
    return given | {"elites": np.array(model.elites)}


def largest_difference(peer: Peer, sizes: Mapping[str, Any], model: GaussianEnsemble | None = None) -> float:
    """Of the two sides' means, over members, 1,000 random rows and targets in raw units, for equal weights."""
    model = build(sizes) if model is None else model
    rows = random_transitions(sizes["obs"], sizes["action"], 1000)
    peer.build(
        "equal weights",
        "prediction",
        sizes=dict(sizes),
        weights=peer.arrays("equal-weights", **exported(model)),
        inputs=peer.arrays("equal-inputs", obs=rows.obs_BO, action=rows.action_BA),
    )
    theirs = peer.answer("equal weights")
    here = model.predict(torch.from_numpy(rows.obs_BO), torch.from_numpy(rows.action_BA))
    deviation = np.exp(0.5 * theirs["log_var"])
    assert np.allclose(here.target_std.numpy(), deviation, rtol=1e-3), "equal weights differ in the deviation"
    return float(np.abs(here.target_mean.numpy() - theirs["mean"]).max())
