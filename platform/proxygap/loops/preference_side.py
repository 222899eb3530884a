"""What every loop over answers shares: reference policy, labels, proxy, judge, and both sides of the measurement.

The reference answers prompts; annotators compare its answers by their gold reward; reward models are fitted to the
labels and calibrated on the reference's answers; the judge turns member scores into the reward that is optimized. All
of that depends on the task, its labels, the proxy and the seed alone, so that variants of a study share it: it is kept
beside the runs, verified by hash, and made only once.

Shape legend: B answers, L prompt tokens, T answer tokens, M members, N pairs, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.config import canonical_hash
from proxygap.base.errors import CheckpointRefused, StorageError
from proxygap.base.language import Answers, Float64, Preferences
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.protocols import LanguageModel, RewardModel, State
from proxygap.base.seeds import derived_seed, generator
from proxygap.collect.labels.dataset import read_preferences, write_preferences
from proxygap.fit.language.pretrain import pretrained
from proxygap.fit.language.states import load_module_state, module_state
from proxygap.loops.proxy_quality import ProxyQuality, RankingFollower
from proxygap.probe.answer_measurements import answer_outcomes, proxy_gap, proxy_objectives, style_measurements
from proxygap.probe.answers import AnswerSample
from proxygap.probe.evaluator import AnswerEvaluator
from proxygap.probe.kl import kl_to_optimum
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.provenance import file_hash
from proxygap.record.samples import write_samples
from proxygap.serve.language import build_language
from proxygap.serve.reward import build_reward

if TYPE_CHECKING:
    import torch

    from proxygap.base.records import Int64
    from proxygap.experiment import Experiment


UNPENALIZED_BETA = 0.1
"""Coefficient of the KL that the idealized ranking accuracy is stated for, where training has none."""


class PreferenceSide:
    """The reference, the labels, the proxy and the judge of one run.

    Args:
        experiment: a language experiment.
        seed: of the run.
        events: told what happens, for the journal.
    """

    def __init__(self, experiment: Experiment, seed: int, events: list[tuple[str, dict[str, Any]]]) -> None:
        assert experiment.proxy is not None, "the experiment was validated"
        self.experiment, self.seed, self.events = experiment, seed, events
        self.task = experiment.language_task(seed)
        self.policy_settings = experiment.language_model
        self.spec, self.prompt_PL = self.task.item_spec, self.task.prompt_tokens()
        self.judge = experiment.judge.build()
        self.preferences: Preferences | None = None
        self.prepared = False
        self.quality: ProxyQuality | None = None
        self.follower: RankingFollower | None = None
        self._scored: list[tuple[Int64, torch.Tensor]] = []
        name = f"{experiment.folder_name}/seed-{seed}"
        self.reward: RewardModel = build_reward(
            experiment.proxy,
            experiment.serve.reward,
            spec=self.spec,
            task=self.task,
            seed=seed,
            run_name=name,
            on_event=self._tell,
        )
        self.served = build_language(
            self.policy_settings,
            experiment.serve.reference,
            spec=self.spec,
            end_token=self.task.end_token,
            prompts=len(self.prompt_PL),
            seed=seed,
            state=None,
            run_name=name,
            on_event=self._tell,
        )

    @property
    def fitted(self) -> bool:
        """Whether the proxy is a model that learns from labels."""
        return bool(self.experiment.proxy and self.experiment.proxy.hostable)

    def new_policy(self) -> LanguageModel:
        """A language model of the experiment's kind, with weights of its own."""
        model: LanguageModel = self.policy_settings.build(
            self.spec, end_token=self.task.end_token, prompts=len(self.prompt_PL), seed=self.seed
        )
        return model

    def prepare(self) -> Clocks:
        """Make or find reference, labels, proxy and baselines. Returns what that cost, in clocks."""
        store = CheckpointStore(self._shared_folder(), keep=1)
        found = self._load_shared(store)
        if found is None:
            reference, cost = self._make_reference(), Clocks()
            if self.fitted:
                cost = self._learn_reward()
            self.reward.calibrate(self.task.items(self.reference_answers))
            parts = {"reference": module_state(reference), **self._learned_parts()}
            store.save(parts, cost, self._shared_key())
            found = cost
        self._set_baselines()
        self.prepared = True
        return found

    def _make_reference(self) -> torch.nn.Module:
        reference: Any = pretrained(self.policy_settings, self.task, self.seed)
        self._use_reference(module_state(reference))
        return reference  # type: ignore[no-any-return]

    def _use_reference(self, weights: State) -> None:
        """Serve the reference, draw its answers, and set up the ruler that measures against it."""
        model: Any = self.new_policy()
        load_module_state(model, weights)
        self.reference: LanguageModel = model.eval().requires_grad_(False)
        self.served.load(weights)
        probe = self.experiment.probe
        self.evaluator = AnswerEvaluator(self.task, self.reference, self.seed, probe.answers)
        self.reference_sample = self.evaluator.reference_sample()
        rows = max(1, 2048 // len(self.prompt_PL))
        self.reference_answers = self.answer(np.repeat(np.arange(len(self.prompt_PL)), rows), "calibrate/answers")

    def answer(self, prompt_B: Int64, purpose: str) -> Answers:
        """Answers of the reference, drawn with a seed of their own for ``purpose``."""
        seed = derived_seed(self.seed, purpose) % 2**31
        drawn = self.served.generate(self.prompt_PL[prompt_B], self.spec.max_tokens, seed=seed)
        return Answers(prompt_B, drawn.token_BT.numpy(), drawn.length_B.numpy(), drawn.log_prob_BT.numpy())

    def _learn_reward(self) -> Clocks:
        """Buy labels on pairs of the reference's answers, and fit every member to them."""
        self.preferences = self._buy_labels()
        report = self.reward.fit(self.preferences)
        self._tell("fitted", asdict(report))
        return Clocks(model_update=report.updates, label=len(self.preferences))

    def _buy_labels(self) -> Preferences:
        labels = self.experiment.labels
        if labels.file is not None:
            repeats: Any = {"on_duplicate": labels.repeats, "on_contradiction": labels.repeats}
            return read_preferences(labels.file, self.spec, prompts=self.prompt_PL, **repeats)
        prompt_N = generator(self.seed, "labels/prompts").integers(len(self.prompt_PL), size=labels.pairs)
        both = self.answer(np.repeat(prompt_N, 2), "labels/answers")
        halves = both[np.arange(0, len(both), 2)], both[np.arange(1, len(both), 2)]
        golds = [self.gold(half)[:, None] for half in halves]
        styles: dict[str, Float64] = {}
        if labels.biased:
            first, second = (self.task.styles(half)["length"] for half in halves)
            styles = {"first_style_N": first, "second_style_N": second}
        items = [self.task.items(half) for half in halves]
        labeled: Preferences = labels.labeler(self.seed).label(items[0], items[1], golds[0], golds[1], **styles)
        return labeled

    def gold(self, answers: Answers) -> Float64:
        """Gold in standard deviations of the reference: the unit of annotators and of the report."""
        mean, std = self.evaluator.gold_unit
        return (self.task.gold(answers) - mean) / std

    def _set_baselines(self) -> None:
        if self.judge.needs_reference:
            answers = self.reference_answers
            self.judge.reference(self.scores(answers), answers.prompt_B)

    def scores(self, answers: Answers) -> torch.Tensor:
        """Every member's score of each answer, shape (M, B)."""
        return self.reward.score(self.task.items(answers))

    def judged(self, scores_MB: torch.Tensor, answers: Answers, *, update: bool) -> torch.Tensor:
        """The proxy reward of each answer, shape (B,); ``update`` lets a judge with memory learn from it."""
        judged_B: torch.Tensor = self.judge(scores_MB, answers.prompt_B, update=update)
        return judged_B

    def reference_log_probs(self, answers: Answers) -> torch.Tensor:
        """Log-probability of each token under the reference, nats, shape (B, T)."""
        return self.served.log_probs(self.prompt_PL[answers.prompt_B], answers.token_BT, answers.length_B)

    def table_sample(self, weight_PK: Float64) -> AnswerSample:
        """All answers that there are, by their probability, each row of which sums to 1."""
        return self.reference_sample.weighted(weight_PK.ravel() / len(weight_PK))

    def pool_sample(self, pool: Answers) -> AnswerSample:
        """Answers of the reference, all with the same weight."""
        log_prob_B = pool.log_prob_BT.sum(axis=1, dtype=np.float64)
        even_B, raw_gold_B = np.full(len(pool), 1.0 / len(pool)), self.task.gold(pool)
        return AnswerSample(pool, even_B, self.gold(pool), raw_gold_B, log_prob_B, log_prob_B, 0.0, "k1")

    def measure(self, sample: AnswerSample, policy: LanguageModel | None = None) -> tuple[Measurement, ...]:
        """Both sides on the same weighted answers, and how they part there and on the reference's answers.

        With the ``policy`` itself, also how it ranks the labeled pairs.
        """
        home = self.reference_sample
        home_proxies, proxies = self.proxies(home), self.proxies(sample)
        if self.quality is None:
            plenty = home if self.evaluator.exact else self.pool_sample(self.reference_answers)
            judged_B, scores_MB = self.proxies(plenty)
            self.quality = ProxyQuality(self.seed, plenty, scores_MB, judged_B)
        abroad = self.quality.abroad(sample, proxies[0])
        return (
            *answer_outcomes(self.experiment.outcomes, sample, home),
            *proxy_objectives(sample, *proxies),
            *style_measurements(self.task, sample),
            *proxy_gap(sample, *proxies, home, *home_proxies),
            *self.quality.at_home,
            Measurement("reward_accuracy_on_policy", abroad, Side.OBJECTIVE, "", Direction.HIGHER),
            *self._of_training(policy, sample, proxies[0]),
        )

    @property
    def penalty(self) -> float:
        """Coefficient of the KL in the reward that training starts with; 0 where there is none."""
        kl: Any = getattr(self.experiment.optimize, "kl", None)
        return float(kl.coefficient) if kl is not None and kl.place == "reward" else 0.0

    def _of_training(
        self, policy: LanguageModel | None, sample: AnswerSample, judged_B: Float64
    ) -> tuple[Measurement, ...]:
        """How far training is from its own optimum, and how the policy ranks the labeled pairs."""
        if policy is None:
            return ()
        exact = self.evaluator.exact and self.penalty > 0
        return (*([kl_to_optimum(sample, judged_B, self.penalty)] if exact else []), *self._ranking(policy))

    def _ranking(self, policy: LanguageModel) -> tuple[Measurement, ...]:
        if self.preferences is None:
            return ()
        if self.follower is None:
            beta, flip = self.penalty or UNPENALIZED_BETA, self.experiment.labels.flip
            self.follower = RankingFollower(self.preferences, self.reference, self.prompt_PL, beta, flip)
        return self.follower.measure(policy)

    def proxies(self, sample: AnswerSample) -> tuple[Float64, Float64]:
        """Judged rewards (B,) and member scores (M, B). Answers that are weighted again and again are scored once."""
        token_BT = sample.answers.token_BT
        scores_MB = next((scores for scored, scores in self._scored if scored is token_BT), None)
        if scores_MB is None:
            scores_MB = self.scores(sample.answers)
            self._scored = [*self._scored[:1], (token_BT, scores_MB)]  # the reference's own, and the newest
        judged_B = self.judged(scores_MB, sample.answers, update=False)
        return judged_B.numpy().astype(np.float64), scores_MB.numpy().astype(np.float64)

    def keep(self, folder: Path, provenance: Mapping[str, str], sample: AnswerSample) -> None:
        """The labels, each with its annotator, and a page's worth of answers with what both sides say of them."""
        if self.preferences is not None:
            write_preferences(folder / "preferences.parquet", self.preferences, provenance)
        self._keep_samples(folder / "samples.parquet", sample)

    def _keep_samples(self, path: Path, sample: AnswerSample) -> None:
        rows = self._sampled_rows(sample)
        if len(rows) == 0:
            return
        answers, scores_MB = sample.answers[rows], self.scores(sample.answers[rows])
        judged_B = self.judged(scores_MB, answers, update=False)
        write_samples(
            path,
            texts=self.task.text(answers),
            proxy_B=judged_B.numpy(),
            gold_B=sample.gold_B[rows],
            scores_MB=scores_MB.numpy(),
            styles=self.task.styles(answers),
        )

    def _sampled_rows(self, sample: AnswerSample) -> Int64:
        """Rows drawn by their weight, so that the page shows what the policy answers."""
        wanted = self.experiment.probe.sample_answers
        rng = generator(self.seed, "probe/sample_page")
        return (
            np.unique(rng.choice(len(sample.answers), size=wanted, p=sample.weight_B)) if wanted else np.zeros(0, int)
        )

    def parts(self) -> dict[str, State]:
        """The complete state."""
        if not self.prepared:
            return {}
        reference: Any = self.reference
        return {"reference": module_state(reference), "judge": self.judge.state(), **self._learned_parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        if "reference" not in parts:
            return
        self._use_reference(parts["reference"])
        self._load_learned(parts)
        self.judge.load_state(parts["judge"])
        self.prepared = True

    def close(self) -> None:
        """Release the hosts."""
        for model in (self.reward, self.served):
            close: Any = getattr(model, "close", None)
            if close is not None:
                close()

    def _learned_parts(self) -> dict[str, State]:
        labels = State({}, {}) if self.preferences is None else preferences_state(self.preferences)
        return {"reward": self.reward.state(), "labels": labels}

    def _load_learned(self, parts: Mapping[str, State]) -> None:
        self.reward.load_state(parts["reward"])
        self.preferences = preferences_of(parts["labels"]) if parts["labels"].arrays else None

    def _load_shared(self, store: CheckpointStore) -> Clocks | None:
        """What an earlier run with the same reference, labels and proxy has made, if it is whole."""
        try:
            found = store.load_newest(self._shared_key())
        except (CheckpointRefused, StorageError) as error:
            self._tell("shared_state_refused", {"reason": str(error)[:500]})
            return None
        if found is None:
            return None
        self._use_reference(found.parts["reference"])
        self._load_learned(found.parts)
        return found.clocks

    def _shared_key(self) -> str:
        made_of = self.experiment.model_dump(mode="json", include={"task", "labels", "proxy", "policy"})
        return canonical_hash({**made_of, "seed": self.seed, "files": self._foreign_files()})

    def _foreign_files(self) -> dict[str, str]:
        """SHA-256 of what the user brought: labels, and the weights of a model directory."""
        directory = getattr(self.policy_settings, "directory", None)
        found = sorted(Path(directory).glob("*.safetensors")) if directory else []
        found += [Path(self.experiment.labels.file)] if self.experiment.labels.file else []
        return {str(path): file_hash(path) for path in found}

    def _shared_folder(self) -> Path:
        return Path(self.experiment.record.folder) / "shared" / self._shared_key()[:16]

    def _tell(self, kind: str, detail: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(detail)))


def preferences_state(preferences: Preferences) -> State:
    """Labels as a state."""
    arrays = {f"chosen/{name}": np.asarray(column) for name, column in preferences.chosen.items()}
    arrays |= {f"rejected/{name}": np.asarray(column) for name, column in preferences.rejected.items()}
    plain = ("tie_N", "strength_N", "annotator_N", "chosen_rating_N", "rejected_rating_N")
    return State(arrays | {name: getattr(preferences, name) for name in plain}, {})


def preferences_of(state: State) -> Preferences:
    """Labels out of a `preferences_state`."""
    sides: dict[str, dict[str, Any]] = {"chosen": {}, "rejected": {}}
    plain = {}
    for key, array in state.arrays.items():
        side, slash, name = key.partition("/")
        if slash:
            sides[side][name] = array
        else:
            plain[key] = array
    return Preferences(sides["chosen"], sides["rejected"], **plain)
