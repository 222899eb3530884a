"""Reinforcement learning of a language policy on RLlib: whole answers at a time, a proxy reward, a KL to the reference.

RLlib steps an environment per action, which for a language model is a forward pass per token. Here an environment
runner generates a whole batch with a key-value cache, the reward hosts score it at once, and one call of the Learner
does the updates of the iteration. Shape legend: B answers, L prompt tokens, T answer tokens, P prompts, R rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.language import Answers
from proxygap.base.protocols import LanguageModel, State
from proxygap.base.seeds import generator, generator_state, restore_generator
from proxygap.collect.answer_runner import AnswerRunner
from proxygap.fit.language.states import load_module_state, module_state
from proxygap.loops.preference_side import PreferenceSide
from proxygap.loops.rllib_loop import RllibLoop, set_up
from proxygap.loops.settings import LanguageRlLoop
from proxygap.optimize.language.learner import LanguageLearner
from proxygap.optimize.language.module import LanguageModule
from proxygap.optimize.language.settings import OnPolicy, TokenPpo
from proxygap.rllib import Algorithm, AlgorithmConfig, RLModuleSpec, learner_batch

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.base.records import Int64
    from proxygap.experiment import Experiment


class LanguageConfig(AlgorithmConfig):
    """An `AlgorithmConfig` that carries the experiment; `for_run` is the only way to fill it."""

    def __init__(self, algo_class: type[Any] | None = None) -> None:
        super().__init__(algo_class=algo_class or LanguageRl)
        self.experiment: Experiment | None = None
        self.run_seed = 0

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib asks for it whatever was set."""
        return self._rl_module_spec or RLModuleSpec(module_class=LanguageModule)

    def get_default_learner_class(self) -> type[LanguageLearner]:
        """The Learner."""
        return LanguageLearner

    @classmethod
    def for_run(cls, experiment: Experiment, seed: int) -> LanguageConfig:
        """The configuration of one run."""
        import gymnasium as gym

        optimizer = experiment.optimize
        assert isinstance(optimizer, OnPolicy)
        task = experiment.language_task(seed)
        spec, prompts = task.item_spec, len(task.prompt_tokens())
        spaces = {
            "observation_space": gym.spaces.Box(0, spec.vocabulary, (spec.prompt_length,), np.int64),
            "action_space": gym.spaces.MultiDiscrete([spec.vocabulary] * spec.max_tokens),
        }
        module = {
            "model": experiment.language_model,
            "spec": spec,
            "end_token": task.end_token,
            "prompts": prompts,
            "seed": seed,
            "value_head": optimizer.streams(len(experiment.components)) if isinstance(optimizer, TokenPpo) else 0,
        }
        config = cls()
        config.experiment, config.run_seed = experiment, seed
        weighing = {"components": experiment.components, "weighting": experiment.judge.weighting}
        runner = {"task": task, "seed": seed, "threads": 1, "temperature": optimizer.temperature}
        set_up(
            config,
            experiment,
            spaces=spaces,
            runner=(AnswerRunner, runner),
            module=(LanguageModule, module),
            learner=(LanguageLearner, {"settings": optimizer, "seed": seed, **weighing}),
        )
        return config


class LanguageRl(RllibLoop, Algorithm):
    """Answer -> score -> judge -> improve."""

    def setup(self, config: LanguageConfig) -> None:
        """Build RLlib's groups, then the preference side and the order of prompts."""
        super().setup(config)
        assert config.experiment is not None
        assert isinstance(config.experiment.loop, LanguageRlLoop)
        assert isinstance(config.experiment.optimize, OnPolicy)
        self.experiment, self.run_seed = config.experiment, config.run_seed
        self.optimizer, self.settings = config.experiment.optimize, config.experiment.loop
        self.clocks, self.learned, self.weights = Clocks(), dict[str, float](), dict[str, float]()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.side = PreferenceSide(self.experiment, self.run_seed, self.events)
        self.prompt_rng = generator(self.run_seed, "collect/prompts")
        self.waiting_P: Int64 = np.zeros(0, np.int64)
        self.policy_kl = 0.0
        self.connect()

    def training_step(self) -> None:
        """One RLlib iteration: a batch of answers and the updates on it."""
        if not self.side.prepared:
            self._start_from_reference()
        groups, size = self.optimizer.prompts_per_iteration, self.optimizer.answers_per_prompt
        answers = self.answer(np.repeat(self.next_prompts(groups), size))
        self.clocks = self.clocks.tick(iteration=1, real_step=len(answers))
        if self.settings.kl_stop is None or self.policy_kl < self.settings.kl_stop:
            self.improve(answers, np.repeat(np.arange(groups), size))

    def _start_from_reference(self) -> None:
        cost = self.side.prepare()
        self.clocks = self.clocks.tick(model_update=cost.model_update, label=cost.label)
        reference: Any = self.side.reference
        weights = module_state(reference)
        self.ask_learner(lambda learner: load_module_state(learner.networks.model, weights))

    def next_prompts(self, count: int) -> Int64:
        """The next prompts: each of the task's once, in random order, before any comes again."""
        while len(self.waiting_P) < count:
            order = self.prompt_rng.permutation(len(self.side.prompt_PL))
            self.waiting_P = np.concatenate([self.waiting_P, order])
        chosen, self.waiting_P = self.waiting_P[:count], self.waiting_P[count:]
        return chosen

    def answer(self, prompt_B: Int64) -> Answers:
        """One answer of the policy to each prompt."""
        self.bring_weights()
        return self._answer_remotely(prompt_B) if self.runner is None else self.runner.sample(prompt_B=prompt_B)

    def _answer_remotely(self, prompt_B: Int64) -> Answers:
        """Split over the runners; all are asked again when one of them died."""
        wanted = len(prompt_B)
        shares = [{"prompt_B": share} for share in np.array_split(prompt_B, self.config.num_env_runners)]
        parts: list[Answers] = self.ask_runners(
            shares, lambda found: sum(map(len, found)) == wanted, wanted, together=True
        )
        return Answers.concatenate(parts)

    def improve(self, answers: Answers, group_B: Int64) -> None:
        """Judge the answers, and do this iteration's updates on them."""
        side = self.side
        columns: dict[str, np.ndarray[Any, Any]] = {
            "prompt_token": side.prompt_PL[answers.prompt_B],
            "token": answers.token_BT,
            "length": answers.length_B,
            "log_prob": answers.log_prob_BT,
            "group": group_B,
            **self._rewards(answers),
        }
        if self.optimizer.needs_reference:
            columns["reference_log_prob"] = side.reference_log_probs(answers).numpy()
        batch = learner_batch(columns, len(answers))
        self.learned = dict(self.learner_group.update(batch=batch)[0])
        told = [name for name in self.learned if name.startswith("weight/")]
        self.weights = {name.removeprefix("weight/"): self.learned.pop(name) for name in told}
        self.clocks = self.clocks.tick(policy_update=self.optimizer.updates_per_iteration)

    def _rewards(self, answers: Answers) -> dict[str, np.ndarray[Any, Any]]:
        """What the answers are worth, as the Learner takes it; and their gold, at its price, if the weighting asks."""
        side = self.side
        judged_RB = side.judged(side.scores(answers), answers, update=True).numpy().astype(np.float32)
        if not side.components:
            return {"proxy_reward": judged_RB[0]}
        if not self.experiment.judge.weighting.needs_outcome:
            return {"component_reward": judged_RB.T}
        self.clocks = self.clocks.tick(label=len(answers))
        return {"component_reward": judged_RB.T, "gold": side.gold(answers)}

    def policy(self) -> LanguageModel:
        """The policy with its newest weights, in this process."""
        if self.learner is not None:
            model: LanguageModel = self.learner.networks.model
            return model
        copy: Any = self.side.new_policy()
        load_module_state(copy, self.ask_learner(lambda learner: module_state(learner.networks.model)))
        return copy  # type: ignore[no-any-return]

    def measure(self) -> tuple[Measurement, ...]:
        """Both sides of the policy of this moment."""
        policy = self.policy()
        sample = self.side.evaluator.evaluate(policy)
        self.policy_kl = sample.kl
        return self.side.measure(sample, policy, self.weights)

    def keep(self, folder: Path, provenance: Mapping[str, str]) -> None:
        """Labels, sample answers, and the policy as safetensors."""
        self.side.keep(folder, provenance, self.side.evaluator.evaluate(self.policy()), self.weights)

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        structure = {
            "clocks": self.clocks.as_dict(),
            "prompt_rng": generator_state(self.prompt_rng),
            "policy_kl": self.policy_kl,
            "weights": dict(self.weights),
        }
        return {
            "loop": State({"waiting_P": self.waiting_P.copy()}, structure),
            **self.group_parts(),
            **self.side.parts(),
        }

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`, bit for bit when everything runs in this process."""
        loop = parts["loop"]
        self.clocks = Clocks(**loop.structure["clocks"])
        restore_generator(self.prompt_rng, loop.structure["prompt_rng"])
        self.waiting_P, self.policy_kl = np.array(loop.arrays["waiting_P"]), float(loop.structure["policy_kl"])
        self.weights = dict(loop.structure["weights"])
        self.load_group_parts(parts)
        self.side.load_parts(parts)

    def cleanup(self) -> None:
        """Release the hosts before RLlib releases its own actors."""
        self.side.close()
        super().cleanup()
