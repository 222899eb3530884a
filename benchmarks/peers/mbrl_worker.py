"""mbrl-lib at work: runs in its own environment, takes one JSON command per line and answers with one JSON line.

``build`` makes a subject under a name, ``run`` calls it and answers what that took, ``answer`` calls it and writes the
arrays that it gives, ``peak`` answers the memory of this process. Calls are the package's own public ones, as its
training scripts make them; `peers.worker` is the other side.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import hydra.utils
import numpy as np

_instantiate = hydra.utils.instantiate
# mbrl 0.2.0 was written for hydra 1.0, which did not build nested configurations by itself.
hydra.utils.instantiate = lambda config, *args, **given: _instantiate(config, *args, **{"_recursive_": False} | given)

import gymnasium as gym  # noqa: E402
import mbrl.models as mm  # noqa: E402
import mbrl.planning as mp  # noqa: E402
import mbrl.util.common as mc  # noqa: E402
import torch  # noqa: E402
from cost import cost_of, peak_mib  # noqa: E402
from mbrl.env import termination_fns  # noqa: E402
from mbrl.util.replay_buffer import ReplayBuffer  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

Sizes = dict[str, Any]
"""obs, action, members, elites, hidden: sizes of an ensemble."""


class _SpacesOnly(gym.Env):
    """All that `ModelEnv` reads of an environment."""

    def __init__(self, sizes: Sizes) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (sizes["obs"],), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (sizes["action"],), np.float32)


def ensemble(sizes: Sizes) -> mm.OneDTransitionRewardModel:
    """A fresh Gaussian ensemble that learns the reward."""
    inputs, targets, hidden = sizes["obs"] + sizes["action"], sizes["obs"] + 1, sizes["hidden"]
    net = mm.GaussianMLP(
        inputs,
        targets,
        "cpu",
        num_layers=len(hidden),
        ensemble_size=sizes["members"],
        hid_size=hidden[0],
        propagation_method="random_model",
        learn_logvar_bounds=False,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    return mm.OneDTransitionRewardModel(
        net,
        target_is_delta=True,
        normalize=True,
        normalize_double_precision=True,
        learned_rewards=True,
        num_elites=sizes["elites"],
    )


def loaded(sizes: Sizes, weights: str, *, elites_only: bool = True) -> mm.OneDTransitionRewardModel:
    """The ensemble with weights (M, in, out), biases (M, 1, out), bounds (M, 1, T) and the normalizer of the inputs.

    The package has one pair of bounds for all; a pair per member broadcasts, if it is for those that will be asked.
    """
    model, arrays = ensemble(sizes), np.load(weights)
    net, elites = model.model, arrays["elites"].tolist()
    layers = [part[0] for part in net.hidden_layers] + [net.mean_and_logvar]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(torch.from_numpy(arrays[f"weight_{number}"]))
            layer.bias.copy_(torch.from_numpy(arrays[f"bias_{number}"]))
    asked = elites if elites_only else slice(None)
    net.max_logvar, net.min_logvar = (
        torch.nn.Parameter(torch.from_numpy(arrays[f"{which}_log_var"][asked])) for which in ("max", "min")
    )
    for name in ("mean", "std"):
        setattr(model.input_normalizer, name, torch.from_numpy(arrays[f"input_{name}"]).double().reshape(1, -1))
    model.set_elite(elites)
    return model


def training(sizes: Sizes, data: str, models: int, batch: int, epochs: int) -> Callable[[], dict[str, Any]]:
    """Train ensembles further, one after the other, on bootstrap samples of one data set, without validation."""
    arrays = np.load(data)
    rows = len(arrays["obs"])
    buffer = ReplayBuffer(
        rows,
        (sizes["obs"],),
        (sizes["action"],),
        obs_type=np.double,
        action_type=np.double,
        reward_type=np.double,
        rng=np.random.default_rng(0),
    )
    ended = np.zeros(rows, bool)
    buffer.add_batch(arrays["obs"], arrays["action"], arrays["next_obs"], arrays["reward"], ended, ended)

    ensembles = [ensemble(sizes) for _ in range(models)]
    trainers = [mm.ModelTrainer(model, optim_lr=1e-3, weight_decay=1e-5) for model in ensembles]

    def run() -> dict[str, Any]:
        for model, trainer in zip(ensembles, trainers, strict=True):
            batches, _ = mc.get_basic_buffer_iterators(buffer, batch, 0.0, ensemble_size=sizes["members"])
            model.update_normalizer(buffer.get_all())
            trainer.train(batches, None, num_epochs=epochs, evaluate=False, silent=True)
        return {}

    return run


def imagination(sizes: Sizes, weights: str, inputs: str, times: int) -> Callable[[], dict[str, Any]]:
    """One stochastic step from every row, arrays in and arrays out, as its MBPO calls it; so many times."""
    arrays = np.load(inputs)
    generator = torch.Generator().manual_seed(0)
    env = mm.ModelEnv(_SpacesOnly(sizes), loaded(sizes, weights), termination_fns.hopper, None, generator=generator)

    def run() -> dict[str, Any]:
        for _ in range(times):
            state = env.reset(arrays["obs"], return_as_np=True)
            next_obs, reward, _, _ = env.step(arrays["action"], state, sample=True)
        return {"next_obs": next_obs, "reward": reward}

    return run


def prediction(sizes: Sizes, weights: str, inputs: str) -> Callable[[], dict[str, Any]]:
    """Mean and log-variance of every member."""
    arrays = np.load(inputs)
    model = loaded(sizes, weights, elites_only=False)

    def run() -> dict[str, Any]:
        with torch.no_grad():
            rows = torch.from_numpy(np.concatenate([arrays["obs"], arrays["action"]], axis=1)).float()
            normalized = model.input_normalizer.normalize(rows).float()
            mean, log_var = model.model(normalized, use_propagation=False)
        return {"mean": mean.numpy(), "log_var": log_var.numpy()}

    return run


_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "cem": {"_target_": "mbrl.planning.CEMOptimizer", "return_mean_elites": True, "clipped_normal": False},
    "icem": {
        "_target_": "mbrl.planning.ICEMOptimizer",
        "return_mean_elites": True,
        "population_decay_factor": 1.25,
        "colored_noise_exponent": 2.0,
        "keep_elite_frac": 0.3,
        "population_size_module": None,
    },
}


def planning(
    sizes: Sizes, weights: str, inputs: str, optimizer: str, candidates: int, horizon: int, rounds: int, particles: int
) -> Callable[[], dict[str, Any]]:
    """One plan from each of the given states: one after the other, because its planners take one state."""
    states = np.load(inputs)["obs"]
    env = mm.ModelEnv(
        _SpacesOnly(sizes),
        loaded(sizes, weights),
        termination_fns.no_termination,
        None,
        generator=torch.Generator().manual_seed(0),
    )
    search = {
        "num_iterations": rounds,
        "elite_ratio": 0.1,
        "population_size": candidates,
        "alpha": 0.1,
        "lower_bound": "???",
        "upper_bound": "???",
        "device": "cpu",
    }
    actions = sizes["action"]
    config = {
        "_target_": "mbrl.planning.TrajectoryOptimizerAgent",
        "action_lb": [-1.0] * actions,
        "action_ub": [1.0] * actions,
        "planning_horizon": horizon,
        "optimizer_cfg": OmegaConf.create(search | _OPTIMIZERS[optimizer]),
        "replan_freq": 1,
        "verbose": False,
    }
    agent = mp.create_trajectory_optim_agent_for_model(env, OmegaConf.create(config), num_particles=particles)

    def run() -> dict[str, Any]:
        plans = []
        for state in states:
            agent.reset()
            plans.append(agent.plan(state))
        return {"sequence": np.stack(plans)}

    return run


_KINDS: dict[str, Callable[..., Callable[[], dict[str, Any]]]] = {
    "training": training,
    "imagination": imagination,
    "prediction": prediction,
    "planning": planning,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the package prints does not mix with the answers
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    subjects: dict[str, Callable[[], dict[str, Any]]] = {}
    imported = peak_mib()
    for line in sys.stdin:
        command = json.loads(line)
        given: dict[str, Any] = {}
        if command["do"] == "build":
            torch.manual_seed(0)
            subjects[command["name"]] = _KINDS[command["kind"]](**command["with"])
        elif command["do"] == "run":
            torch.set_num_threads(command["threads"])
            given = asdict(cost_of(subjects[command["name"]]))
        elif command["do"] == "answer":
            np.savez(command["file"], **subjects[command["name"]]())
        elif command["do"] == "peak":
            given = {"mib": peak_mib() - imported}
        answers.write(json.dumps(given) + "\n")


if __name__ == "__main__":
    main()
