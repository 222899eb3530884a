"""Each optimizer reaches the optimum of the KL-regularized reward where that optimum can be written down."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from proxygap.base.language import ItemSpec
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.settings import TableLanguageModel
from proxygap.optimize.language.learner import LanguageLearner
from proxygap.optimize.language.module import LanguageModule
from proxygap.optimize.language.settings import Grpo, Kl, LanguageOptimizer, Reinforce, Rloo, TokenPpo
from proxygap.optimize.tilt import regularized_reward, tilted
from proxygap.rllib import DEFAULT_MODULE_ID, RLModuleSpec, SACConfig, learner_batch

P, K, G, BETA = 4, 8, 64, 0.5
SHARED: dict[str, Any] = {"prompts_per_iteration": P, "answers_per_prompt": G, "learning_rate": 0.05, "grad_clip": None}
IN_REWARD, IN_LOSS = Kl(coefficient=BETA), Kl(place="loss", estimator="k2", coefficient=BETA)


class Data:
    """What a LearnerGroup hands to a Learner."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def solve_refs(self) -> None:
        """Nothing is remote here."""


def truth() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return log_softmax(rng.standard_normal((P, K)), axis=-1), rng.standard_normal((P, K))


def learner(settings: LanguageOptimizer, dtype: Any) -> LanguageLearner:
    space = gym.spaces.Discrete(1)
    options = {
        "model": TableLanguageModel(dtype=dtype),
        "spec": ItemSpec(vocabulary=K, prompt_length=1, max_tokens=1),
        "end_token": None,
        "prompts": P,
        "seed": 0,
        "value_head": isinstance(settings, TokenPpo),
    }
    module = RLModuleSpec(
        module_class=LanguageModule, observation_space=space, action_space=space, model_config=options
    )
    config = SACConfig().environment(observation_space=space, action_space=space).rl_module(rl_module_spec=module)
    config.learners(learner_config_dict={"settings": settings, "seed": 0})
    made = LanguageLearner(
        config=config, module_spec=config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: (space, space)})
    )
    made.build()
    made.networks.model.set_log_probs(truth()[0])
    return made


def iterate(subject: LanguageLearner, draws: torch.Generator) -> None:
    log_reference, reward = truth()
    prompt = np.repeat(np.arange(P), G)
    drawn = subject.networks.model.generate(torch.from_numpy(prompt)[:, None], 1, generator=draws)
    token = drawn.token_BT.numpy()
    columns = {
        "prompt_token": prompt[:, None],
        "token": token,
        "length": drawn.length_B.numpy(),
        "log_prob": drawn.log_prob_BT.numpy(),
        "reference_log_prob": log_reference[prompt, token[:, 0]][:, None].astype(np.float32),
        "proxy_reward": reward[prompt, token[:, 0]].astype(np.float32),
        "group": prompt,
    }
    subject.update(training_data=Data(learner_batch(columns, len(prompt))))


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        (TokenPpo(kl=IN_REWARD, epochs=2, minibatch=P * G // 2, value_coefficient=0.5, **SHARED), "float64"),
        (Grpo(kl=IN_LOSS, divide_by_std=False, **SHARED), "float32"),
        (Grpo(kl=IN_REWARD, divide_by_std=True, **SHARED), "float32"),
        (Rloo(kl=IN_REWARD, **SHARED), "float64"),
        (Reinforce(kl=IN_REWARD, **SHARED), "float32"),
    ],
    ids=["token_ppo", "dr_grpo-k2-loss", "grpo-k1-reward", "rloo", "reinforce"],
)
def test_the_optimum_of_the_regularized_reward_is_reached(settings: LanguageOptimizer, dtype: str) -> None:
    subject, draws = learner(settings, dtype), torch_generator(0, "test/draws")
    log_reference, reward = truth()
    log_best = tilted(log_reference, reward, BETA)
    assert 0.5 * np.abs(np.exp(log_reference) - np.exp(log_best)).sum(axis=1).min() > 0.2  # there is a way to go
    policies = []
    for iteration in range(300):
        iterate(subject, draws)
        if iteration >= 200:  # the last iterates scatter around the optimum; their mean is what the gradient says
            policies.append(subject.networks.model.logits_PV.detach().softmax(dim=-1).numpy())
    policy = np.mean(policies, axis=0).astype(float)
    distance = 0.5 * np.abs(policy - np.exp(log_best)).sum(axis=1)
    assert distance.max() < 0.05, distance
    lost = regularized_reward(log_best, log_reference, reward, BETA) - regularized_reward(
        np.log(policy), log_reference, reward, BETA
    )
    assert 0.0 <= lost < 0.01
