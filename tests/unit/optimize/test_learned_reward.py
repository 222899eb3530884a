"""Learned rewards inside stock RLlib: the Learner sees them, and RLlib's own episode return stays the outcome."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import EPISODE_RETURN_MEAN

from proxygap.base.errors import HostFailed, InvalidExperiment, NonFiniteValue
from proxygap.base.language import Items, ItemSpec, Preferences
from proxygap.fit.reward.settings import MlpReward
from proxygap.loops.session import ray_session
from proxygap.optimize.learned_reward import LearnedReward, learned_reward
from proxygap.serve.host import Reply
from proxygap.serve.reward import HostedReward, build_reward
from proxygap.serve.settings import Hosting

NAMESPACE = "learned-reward-test"


class LinearReward:
    """Member m scores a step with ``offset + m`` plus its first feature: an answer known beforehand.

    The first ``stale`` answers are those of a host that holds nothing yet, the next ``behind`` are of an old version.
    """

    def __init__(self, members: int = 1, offset: float = 0.0, stale: int = 0, behind: int = 0) -> None:
        self.members, self.offset, self.stale, self.behind, self.calls = members, offset, stale, behind, 0

    def answer(self, method: str, items: dict[str, np.ndarray[Any, Any]]) -> Reply:
        assert method == "score"
        self.calls += 1
        if self.calls <= self.stale:
            return Reply({}, "linear", None, stale=True)
        old = self.calls <= self.stale + self.behind
        first_B = items["feature"][:, :, 0].sum(axis=1) + (1000.0 if old else 0.0)
        scores_MB = np.stack([first_B + self.offset + member for member in range(self.members)])
        return Reply({"score": scores_MB.T}, "linear", 1 if old else 2)

    def asked(self) -> int:
        return self.calls


class Worst:
    """Settings of a judge that takes the smallest member score."""

    def build(self) -> Any:
        return lambda scores_MB, prompt_B, update=True: scores_MB.amin(dim=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    torch.set_num_threads(1)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import a test
    with ray_session():
        yield


def actor(name: str, **arguments: Any) -> Any:
    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
    return ray.remote(num_cpus=0)(LinearReward).options(**options).remote(**arguments)


def episode(obs: list[float], rewards: list[float], n_step: int | None = None) -> SingleAgentEpisode:
    made = SingleAgentEpisode(
        observations=[np.array([x], np.float32) for x in obs],
        actions=[np.array([9.0], np.float32) for _ in rewards],
        rewards=rewards,
        len_lookback_buffer=0,
        extra_model_outputs=None if n_step is None else {"n_step": [n_step] * len(rewards)},
    )
    return made.to_numpy()


def apply(connector: LearnedReward, episodes: list[Any], *, artificial: bool = False) -> None:
    shared = {"_added_loss_mask_for_valid_episode_ts": True} if artificial else {}
    connector(rl_module=None, batch={}, episodes=episodes, shared_data=shared)


def test_columns_get_the_judged_score_of_each_step() -> None:
    def score(items: Any) -> torch.Tensor:
        assert items["feature"].shape == (2, 1, 3)
        return torch.from_numpy(np.stack([items["feature"].sum(axis=(1, 2)), np.zeros(2)]))

    obs, action = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[0.5], [-0.5]], np.float32)
    judged = learned_reward(score, lambda scores_MB, prompt_B, update=True: scores_MB.mean(dim=0), obs, action)
    np.testing.assert_array_equal(judged, np.array([1.75, 3.25], np.float32))
    assert judged.dtype == np.float32


def test_a_reward_that_is_not_a_number_never_reaches_a_learner() -> None:
    with pytest.raises(NonFiniteValue, match="learned reward"):
        learned_reward(
            lambda items: torch.full((1, 2), math.nan),
            lambda scores_MB, prompt_B, update=True: scores_MB[0],
            np.zeros((2, 1), np.float32),
            np.zeros((2, 1), np.float32),
        )


@pytest.mark.ray
def test_all_real_steps_of_all_episodes_in_one_call(cluster: None) -> None:
    host = actor("one-call")
    connector = LearnedReward(actors=("one-call",), namespace=NAMESPACE, deadline_s=30.0)
    episodes = [episode([1.0, 2.0, 3.0], [7.0, 7.0]), episode([5.0, 6.0], [7.0])]
    apply(connector, episodes)
    assert [list(each.get_rewards()) for each in episodes] == [[1.0, 2.0], [5.0]]
    assert ray.get(host.asked.remote()) == 1


@pytest.mark.ray
def test_the_artificial_step_keeps_its_reward(cluster: None) -> None:
    actor("artificial")
    grown = episode([1.0, 2.0, 2.0], [7.0, 0.0])
    apply(LearnedReward(actors=("artificial",), namespace=NAMESPACE), [grown], artificial=True)
    assert list(grown.get_rewards()) == [1.0, 0.0]


@pytest.mark.ray
def test_members_on_several_actors_are_judged_together(cluster: None) -> None:
    for index in range(2):
        actor(f"shard-{index}", members=2, offset=10.0 * index)
    names = ("shard-0", "shard-1")
    means, worst = episode([1.0, 0.0], [7.0]), episode([1.0, 0.0], [7.0])
    apply(LearnedReward(actors=names, namespace=NAMESPACE), [means])
    apply(LearnedReward(actors=names, namespace=NAMESPACE, judge=Worst()), [worst])
    assert means.get_rewards()[0] == 1.0 + (0 + 1 + 10 + 11) / 4
    assert worst.get_rewards()[0] == 1.0


@pytest.mark.ray
def test_actions_are_scored_as_they_were_executed(cluster: None) -> None:
    seen = []

    def score(items: Any) -> torch.Tensor:
        seen.append(items["feature"])
        return torch.zeros(1, len(items["feature"]))

    for clip in (True, False):
        connector = LearnedReward(actors=("nobody",), clip_actions=clip)
        connector._score = score
        apply(connector, [episode([1.0, 2.0], [7.0])])
    assert [float(each[0, 0, 1]) for each in seen] == [1.0, 9.0]


@pytest.mark.ray
def test_an_absent_actor_is_an_error_and_no_reward_is_written(cluster: None) -> None:
    untouched = episode([1.0, 2.0], [7.0])
    connector = LearnedReward(actors=("nowhere",), namespace=NAMESPACE, deadline_s=0.5)
    with pytest.raises(HostFailed, match="nowhere"):
        apply(connector, [untouched])
    assert list(untouched.get_rewards()) == [7.0]


@pytest.mark.ray
def test_a_killed_actor_is_asked_again_when_it_is_back(cluster: None) -> None:
    options = {"name": "mortal", "namespace": NAMESPACE, "max_restarts": 1}
    host = ray.remote(num_cpus=0)(LinearReward).options(**options).remote(offset=0.5)
    connector = LearnedReward(actors=("mortal",), namespace=NAMESPACE, deadline_s=30.0)
    scored = episode([1.0, 2.0], [7.0])
    ray.get(host.asked.remote())
    ray.kill(host, no_restart=False)
    apply(connector, [scored])
    assert list(scored.get_rewards()) == [1.5]


@pytest.mark.ray
def test_a_host_that_holds_nothing_yet_is_waited_for(cluster: None) -> None:
    host = actor("empty", stale=2)
    scored = episode([1.0, 2.0], [7.0])
    apply(LearnedReward(actors=("empty",), namespace=NAMESPACE, deadline_s=30.0), [scored])
    assert list(scored.get_rewards()) == [1.0]
    assert ray.get(host.asked.remote()) == 3


@pytest.mark.ray
def test_a_host_that_stays_empty_is_an_error_and_no_reward_is_written(cluster: None) -> None:
    ray.get(actor("never", stale=10**6).asked.remote())
    untouched = episode([1.0, 2.0], [7.0])
    with pytest.raises(HostFailed, match=r"never.*no version loaded"):
        apply(LearnedReward(actors=("never",), namespace=NAMESPACE, deadline_s=5.0), [untouched])
    assert list(untouched.get_rewards()) == [7.0]


@pytest.mark.ray
def test_scores_of_two_versions_are_never_put_together(cluster: None) -> None:
    actor("slow", behind=2)
    actor("quick")
    scored = episode([1.0, 2.0], [7.0])
    apply(LearnedReward(actors=("slow", "quick"), namespace=NAMESPACE, deadline_s=30.0), [scored])
    assert list(scored.get_rewards()) == [1.0]
    ray.get(actor("left-behind", behind=10**6).asked.remote())
    untouched = episode([1.0, 2.0], [7.0])
    with pytest.raises(HostFailed, match=r"versions \[1, 2\]"):
        apply(LearnedReward(actors=("left-behind", "quick"), namespace=NAMESPACE, deadline_s=5.0), [untouched])
    assert list(untouched.get_rewards()) == [7.0]


def test_rows_of_several_steps_are_refused() -> None:
    with pytest.raises(InvalidExperiment, match="n_step"):
        apply(LearnedReward(actors=("nobody",)), [episode([1.0, 2.0], [7.0], n_step=3)])


class Truthful(gym.Env[Any, Any]):
    """Ten steps that pay exactly 1 each: the outcome of every episode is 10."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, config: Any = None) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.array([0.0, 0.5], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.array([self.steps / 10, 0.5], np.float32), 1.0, False, self.steps == 10, {}


def trained(config: Any, iterations: int = 2) -> tuple[Any, list[dict[str, Any]]]:
    config.environment(Truthful).env_runners(num_env_runners=0, num_envs_per_env_runner=1)
    config.learners(num_learners=0).debugging(seed=0, log_level="ERROR")
    algorithm = config.build_algo()
    return algorithm, [algorithm.train() for _ in range(iterations)]


def connector_of(name: str) -> Any:
    return lambda obs_space, action_space: LearnedReward(
        obs_space, action_space, actors=(name,), namespace=NAMESPACE, deadline_s=30.0
    )


def learned(result: dict[str, Any], name: str) -> float:
    return float(result["learners"]["__all_modules__"][name])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env:UserWarning")
def test_stock_ppo_learns_from_it_and_reports_the_outcome(cluster: None) -> None:
    host = actor("ppo", offset=100.0)
    config = PPOConfig().training(
        train_batch_size_per_learner=40, minibatch_size=20, num_epochs=1, learner_connector=connector_of("ppo")
    )
    algorithm, results = trained(config)
    algorithm.stop()
    assert ray.get(host.asked.remote()) == 2, "one call per iteration"
    for result in results:
        assert result["env_runners"][EPISODE_RETURN_MEAN] == 10.0
        assert learned(result, "learned_reward_proxy_mean") == pytest.approx(100.45)
        assert learned(result, "learned_reward_outcome_mean") == 1.0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env:UserWarning")
def test_stock_sac_learns_from_it_and_its_replay_keeps_the_outcome(cluster: None) -> None:
    actor("sac", offset=100.0)
    config = SACConfig().training(
        train_batch_size_per_learner=8,
        num_steps_sampled_before_learning_starts=20,
        learner_connector=connector_of("sac"),
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 1000},
    )
    config.reporting(min_sample_timesteps_per_iteration=40, min_time_s_per_iteration=0)
    algorithm, results = trained(config)
    kept = [float(r) for each in algorithm.local_replay_buffer.episodes for r in each.get_rewards()]
    algorithm.stop()
    assert results[-1]["env_runners"][EPISODE_RETURN_MEAN] == 10.0
    assert 100.0 <= learned(results[-1], "learned_reward_proxy_mean") <= 100.9
    assert learned(results[-1], "learned_reward_outcome_mean") == 1.0
    assert set(kept) == {1.0}


HOSTED = MlpReward(members=3, hidden=(8,))
PPO = {"train_batch_size_per_learner": 40, "minibatch_size": 20, "num_epochs": 1}


def comparisons(count: int = 40) -> Preferences:
    """Segments of five steps; the one with the larger first features is preferred."""
    rng = np.random.default_rng(0)
    chosen, rejected = (rng.normal(size=(count, 5, 3)).astype(np.float32) for _ in range(2))
    chosen[:, :, 0] += 1.0
    nothing, ones = np.full(count, np.nan, np.float32), np.ones(count, np.float32)
    items = ({"feature": chosen}, {"feature": rejected})
    return Preferences(*items, np.zeros(count, np.bool_), ones, np.zeros(count, np.int64), nothing, nothing)


def steps(count: int = 64) -> Items:
    return {"feature": np.random.default_rng(1).normal(size=(count, 1, 3)).astype(np.float32)}


class Fitted:
    """A fitted ensemble on two hosts and its twin in this process."""

    def __init__(self, run_name: str) -> None:
        self.names = tuple(f"{run_name}/reward-{index}" for index in range(2))
        self.events: list[tuple[str, Any]] = []
        built = [
            build_reward(
                HOSTED,
                Hosting(hosts=hosts, cpus=0.1),
                spec=ItemSpec(features=3),
                task=None,
                seed=0,
                run_name=run_name,
                on_event=lambda *event: self.events.append(event),
            )
            for hosts in (2, 0)
        ]
        for model in built:
            model.fit(comparisons())
            model.calibrate(steps())
        assert isinstance(built[0], HostedReward)
        self.hosts, self.twin = built[0], built[1]

    def kill(self, host: int) -> None:
        """Kill a host's process, and wait until Ray has started another."""
        os.kill(self.hosts.health()[host].pid, signal.SIGKILL)
        until = time.monotonic() + 90.0
        while time.monotonic() < until:
            with contextlib.suppress(RayActorError, GetTimeoutError):
                health = ray.get(ray.get_actor(self.names[host]).health.remote(), timeout=10.0)
                assert health.version is None
                return
            time.sleep(0.1)
        raise TimeoutError(self.names[host])


@pytest.fixture
def fitted(cluster: None, request: pytest.FixtureRequest) -> Iterator[Fitted]:
    made = Fitted(request.node.name)
    yield made
    made.hosts.close()


class Watched(LearnedReward):
    """Notes what the Learner sees: the steps that were scored, and the rewards that the episodes have afterwards."""

    seen: list[tuple[Any, Any, Any]]

    def __call__(self, *, episodes: list[Any], shared_data: Any = None, **rest: Any) -> Any:
        batch = super().__call__(episodes=episodes, shared_data=shared_data, **rest)
        for each in episodes:
            count = len(each) - 1  # without the artificial step
            obs, action = each.get_observations(slice(0, count)), each.get_actions(slice(0, count))
            type(self).seen.append((obs, np.clip(action, -1.0, 1.0), each.get_rewards(slice(0, count))))
        return batch


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env:UserWarning")
def test_stock_ppo_learns_from_our_hosts_what_the_twin_computes(fitted: Fitted) -> None:
    Watched.seen, names = [], fitted.names
    config = PPOConfig().training(
        **PPO, learner_connector=lambda obs, action: Watched(obs, action, actors=names, deadline_s=90.0)
    )
    algorithm, results = trained(config, iterations=1)
    fitted.kill(1)
    reload = threading.Timer(1.0, lambda: fitted.hosts.score(steps(1)))  # the pool loads the newcomer when next asked
    reload.start()
    results.append(algorithm.train())
    reload.join()
    algorithm.stop()
    assert [kind for kind, _ in fitted.events] == ["host_restarted"]
    assert sum(len(rewards) for _, _, rewards in Watched.seen) == 80
    for obs, action, rewards in Watched.seen:
        feature = np.concatenate([obs, action], axis=1, dtype=np.float32)[:, None]
        expected = fitted.twin.score({"feature": feature}).mean(dim=0).numpy()
        np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)  # rows of all episodes ran together
    for result in results:
        assert result["env_runners"][EPISODE_RETURN_MEAN] == 10.0
        assert learned(result, "learned_reward_proxy_mean") != 1.0


@pytest.mark.ray
@pytest.mark.slow
def test_a_restarted_host_gives_no_reward_before_its_pool_has_loaded_it(fitted: Fitted) -> None:
    untouched = SingleAgentEpisode(
        observations=[np.zeros(2, np.float32)] * 2,
        actions=[np.zeros(1, np.float32)],
        rewards=[7.0],
        len_lookback_buffer=0,
    ).to_numpy()
    fitted.kill(0)
    with pytest.raises(HostFailed, match=r"reward-0.*no version loaded"):
        apply(LearnedReward(actors=fitted.names, deadline_s=3.0), [untouched])
    assert list(untouched.get_rewards()) == [7.0]
    fitted.hosts.score(steps(1))
    apply(LearnedReward(actors=fitted.names, deadline_s=30.0), [untouched])
    expected = fitted.twin.score({"feature": np.zeros((1, 1, 3), np.float32)}).mean()
    np.testing.assert_allclose(untouched.get_rewards()[0], expected, rtol=1e-5)
