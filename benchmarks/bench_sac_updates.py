"""SAC gradient updates per second: ours, bare RLlib's, and plain torch's, interleaved in one run on one thread.

Shapes of HalfCheetah-v5 (observation 17, action 6), batch 256, two hidden layers of 256 (of 64: where what is around
the arithmetic weighs most). Bare RLlib has the networks of its default SAC. Ours and RLlib's go through their
LearnerGroup; plain torch is the shortest correct loop with `torch.nn.Linear` and foreach Adam.
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from measure import Ratio, interleaved, report
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.optimize.settings import SacSettings
from proxygap.rllib import learner_batch

OBS, ACTION, BATCH, UPDATES = 17, 6, 256, 20


def rows(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.standard_normal((count, OBS), dtype=np.float32),
        "action": rng.uniform(-1, 1, (count, ACTION)).astype(np.float32),
        "next_obs": rng.standard_normal((count, OBS), dtype=np.float32),
        "proxy_reward": rng.standard_normal(count, dtype=np.float32),
        "terminated": np.zeros(count, bool),
    }


def spaces() -> dict[str, gym.Space]:
    return {
        "observation_space": gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32),
        "action_space": gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32),
    }


def ours(width: int) -> Callable[[], object]:
    config = SACConfig().environment(**spaces())
    spec = RLModuleSpec(
        module_class=SacModule,
        **spaces(),
        model_config={"hidden": (width, width), "initial_temperature": 1.0, "seed": 0},
    )
    config.learners(learner_class=SacLearner, num_learners=0)
    config.training(learner_config_dict={"settings": SacSettings(), "seed": 0})
    group = config.build_learner_group(
        rl_module_spec=config.copy()
        .rl_module(rl_module_spec=spec)
        .get_multi_rl_module_spec(spaces={"default_policy": tuple(spaces().values())})
    )
    data = rows(UPDATES * BATCH)
    return lambda: group.update(batch=learner_batch(data, UPDATES * BATCH))


def bare_rllib() -> Callable[[], object]:
    config = SACConfig().environment(**spaces())
    config.training(actor_lr=3e-4, critic_lr=3e-4, alpha_lr=3e-4, train_batch_size_per_learner=BATCH)
    config.learners(num_learners=0)
    group = config.build_learner_group(spaces={"default_policy": tuple(spaces().values())})
    data = rows(BATCH)
    batch = {
        "obs": data["obs"],
        "new_obs": data["next_obs"],
        "actions": data["action"],
        "rewards": data["proxy_reward"],
        "terminateds": data["terminated"],
        "truncateds": data["terminated"],
        "weights": np.ones(BATCH, np.float32),
        "n_step": np.ones(BATCH, np.float32),
    }

    def run() -> None:
        for _ in range(UPDATES):
            group.update(batch=learner_batch(batch, BATCH), timesteps={"num_env_steps_sampled_lifetime": 1})

    return run


def mlp(inputs: int, width: int, outputs: int) -> torch.nn.Sequential:
    sizes = [(inputs, width), (width, width), (width, outputs)]
    layers = itertools.chain.from_iterable((torch.nn.Linear(*size), torch.nn.ReLU()) for size in sizes)
    return torch.nn.Sequential(*list(layers)[:-1])


def plain_torch(width: int) -> Callable[[], object]:
    actor = mlp(OBS, width, 2 * ACTION)
    q1, q2 = mlp(OBS + ACTION, width, 1), mlp(OBS + ACTION, width, 1)
    t1, t2 = copy.deepcopy(q1), copy.deepcopy(q2)
    log_alpha = torch.zeros((), requires_grad=True)
    critic_params = [*q1.parameters(), *q2.parameters()]
    target_params = [*t1.parameters(), *t2.parameters()]
    critic_adam = torch.optim.Adam(critic_params, lr=3e-4, foreach=True)
    actor_adam = torch.optim.Adam(actor.parameters(), lr=3e-4, foreach=True)
    alpha_adam = torch.optim.Adam([log_alpha], lr=3e-4)
    data = {name: torch.from_numpy(column) for name, column in rows(BATCH).items()}

    def sample(obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = actor(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        raw = normal.rsample()
        log_prob = normal.log_prob(raw) - 2 * (math.log(2) - raw - torch.nn.functional.softplus(-2 * raw))
        return raw.tanh(), log_prob.sum(-1)

    def q(nets: tuple, obs: torch.Tensor, action: torch.Tensor) -> list[torch.Tensor]:
        x = torch.cat((obs, action), -1)
        return [net(x).squeeze(-1) for net in nets]

    def update() -> None:
        with torch.no_grad():
            action, log_prob = sample(data["next_obs"])
            soft = torch.min(*q((t1, t2), data["next_obs"], action)) - log_alpha.exp() * log_prob
            target = data["proxy_reward"] + 0.99 * (~data["terminated"]) * soft
        critic_loss = sum(((value - target) ** 2).mean() for value in q((q1, q2), data["obs"], data["action"]))
        critic_adam.zero_grad()
        critic_loss.backward()
        critic_adam.step()
        action, log_prob = sample(data["obs"])
        actor_loss = (log_alpha.exp().detach() * log_prob - torch.min(*q((q1, q2), data["obs"], action))).mean()
        actor_adam.zero_grad()
        actor_loss.backward()
        actor_adam.step()
        alpha_loss = -(log_alpha * (log_prob.detach() - ACTION)).mean()
        alpha_adam.zero_grad()
        alpha_loss.backward()
        alpha_adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(target_params, critic_params, 0.005)

    def run() -> None:
        for _ in range(UPDATES):
            update()

    return run


def main() -> bool:
    torch.set_num_threads(1)
    subjects = {
        "ours": ours(256),
        "bare_rllib": bare_rllib(),
        "plain_torch": plain_torch(256),
        "ours, 2x64": ours(64),
        "plain_torch, 2x64": plain_torch(64),
    }
    times = interleaved(subjects, repeats=7)
    claims = [
        Ratio("ours", "bare_rllib", at_least=5.0),
        Ratio("ours", "plain_torch", at_least=0.85),
        Ratio("ours, 2x64", "plain_torch, 2x64", at_least=0.85),
    ]
    rates = {name: [UPDATES / t for t in each] for name, each in times.items()}
    return report("sac_updates", unit="updates/s", samples=rates, claims=claims)


if __name__ == "__main__":
    sys.exit(not main())
