"""What every loop over answers shares: reference policy, labels, proxies, judges, and both sides of the measurement.

The reference answers prompts; annotators compare its answers by their gold reward; reward models are fitted to the
labels and calibrated on the reference's answers; the judge turns member scores into the reward that is optimized. All
of that depends on the task, its labels, the proxy and the seed alone, so that variants of a study share it: it is kept
beside the runs, verified by hash, and made only once.

Where the task pays several rewards, each of them has a proxy. Either ``judge.combine`` makes one reward of the judged
ones, answer by answer, or they stay apart and are weighed by the optimizer; then the proxy reward that is measured is
their sum by the weights of the moment.

Shape legend: B answers, L prompt tokens, T answer tokens, M members, P prompts, K enumerable answers, R rewards that
are optimized apart, C rewards that the task pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.config import canonical_hash
from proxygap.base.errors import CheckpointRefused, StorageError
from proxygap.base.language import Answers, Float64
from proxygap.base.protocols import LanguageModel, State
from proxygap.base.seeds import derived_seed, generator
from proxygap.collect.labels.dataset import write_preferences
from proxygap.collect.tables import table_hash
from proxygap.fit.language.pretrain import pretrained
from proxygap.fit.language.states import load_module_state, module_state
from proxygap.loops.both_sides import BothSides
from proxygap.loops.one_reward import proxy_rewards
from proxygap.probe.answers import AnswerSample
from proxygap.probe.evaluator import AnswerEvaluator
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.provenance import file_hash
from proxygap.record.samples import write_samples
from proxygap.serve.language import build_language

if TYPE_CHECKING:
    import torch

    from proxygap.base.measurement import Measurement
    from proxygap.base.records import Int64
    from proxygap.experiment import Experiment


class PreferenceSide:
    """The reference, the labels, the proxies and the judges of one run.

    Args:
        experiment: a language experiment.
        seed: of the run.
        events: told what happens, for the journal.
    """

    def __init__(self, experiment: Experiment, seed: int, events: list[tuple[str, dict[str, Any]]]) -> None:
        self.experiment, self.seed, self.events = experiment, seed, events
        self.task = experiment.language_task(seed)
        self.policy_settings = experiment.language_model
        self.spec, self.prompt_PL = self.task.item_spec, self.task.prompt_tokens()
        self.prepared = False
        self.rewards = proxy_rewards(experiment, self.task, seed, self._tell)
        self._scored: list[tuple[Int64, list[torch.Tensor]]] = []
        self.served = build_language(
            self.policy_settings,
            experiment.serve.reference,
            spec=self.spec,
            end_token=self.task.end_token,
            prompts=len(self.prompt_PL),
            seed=seed,
            state=None,
            run_name=f"{experiment.folder_name}/seed-{seed}",
            on_event=self._tell,
        )
        self.both = BothSides(self)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the rewards that are optimized apart; empty where one is."""
        return self.experiment.components

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
            for reward in self.rewards:
                if self.fitted:
                    bought = reward.learn(self.answer)
                    cost = cost.tick(model_update=bought.model_update, label=bought.label)
                reward.model.calibrate(self.task.items(self.reference_answers))
            parts = {"reference": module_state(reference), **self._learned_parts()}
            store.save(parts, cost, self._shared_key())
            found = cost
        for reward in self.rewards:
            reward.set_baselines(self.reference_answers)
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
        for reward in self.rewards:
            reward.measure_unit(self.reference_sample)
        rows = max(1, 2048 // len(self.prompt_PL))
        self.reference_answers = self.answer(np.repeat(np.arange(len(self.prompt_PL)), rows), "calibrate/answers")

    def answer(self, prompt_B: Int64, purpose: str) -> Answers:
        """Answers of the reference, drawn with a seed of their own for ``purpose``."""
        seed = derived_seed(self.seed, purpose) % 2**31
        drawn = self.served.generate(self.prompt_PL[prompt_B], self.spec.max_tokens, seed=seed)
        return Answers(prompt_B, drawn.token_BT.numpy(), drawn.length_B.numpy(), drawn.log_prob_BT.numpy())

    def gold(self, answers: Answers) -> Float64:
        """Gold in standard deviations of the reference: the unit of annotators and of the report."""
        mean, std = self.evaluator.gold_unit
        return (self.task.gold(answers) - mean) / std

    def scores(self, answers: Answers) -> list[torch.Tensor]:
        """Of each reward that the task pays, every member's score of each answer, shape (M, B)."""
        return [reward.scores(answers) for reward in self.rewards]

    def judged(self, scores: Sequence[torch.Tensor], answers: Answers, *, update: bool) -> torch.Tensor:
        """What is optimized, shape (R, B): the components, or the one proxy reward.

        ``update`` lets judges with memory learn from these answers.
        """
        import torch

        judged_CB = torch.stack(
            [reward.judged(each, answers, update=update) for reward, each in zip(self.rewards, scores, strict=True)]
        )
        combine = self.experiment.judge.combine
        return judged_CB if combine is None else combine(judged_CB, self.task.components)[None]

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

    @property
    def reference_pool(self) -> AnswerSample:
        """More answers of the reference than an evaluation has, all with the same weight."""
        return self.pool_sample(self.reference_answers)

    def measure(
        self, sample: AnswerSample, policy: LanguageModel | None = None, weights: Mapping[str, float] | None = None
    ) -> tuple[Measurement, ...]:
        """Both sides, see `BothSides.measure`."""
        return self.both.measure(sample, policy, weights or {})

    def proxies(self, sample: AnswerSample, weights: Mapping[str, float] | None = None) -> tuple[Float64, Float64]:
        """The one proxy reward (B,) and its members' scores (M, B): of several rewards, both by these weights.

        Members are weighed like the rewards themselves, or combined as they are; without weights, all count alike.
        """
        return self._one(self._scores_of(sample), sample.answers, weights or {})

    def _one(
        self, scores: Sequence[torch.Tensor], answers: Answers, weights: Mapping[str, float]
    ) -> tuple[Float64, Float64]:
        judged_RB = _float64(self.judged(scores, answers, update=False))
        if not self.components:
            return judged_RB[0], self._combined_scores(scores)
        weight_R = np.array([weights.get(name, 1.0 / len(judged_RB)) for name in self.components])
        return weight_R @ judged_RB, np.tensordot(weight_R, np.stack([_float64(each) for each in scores]), axes=1)

    def apart(self, sample: AnswerSample) -> tuple[list[Float64], list[Float64]]:
        """Of each reward that the task pays, the judged reward (B,) and the members' scores (M, B)."""
        scores, answers = self._scores_of(sample), sample.answers
        pairs = zip(self.rewards, scores, strict=True)
        judged = [_float64(reward.judged(each, answers, update=False)) for reward, each in pairs]
        return judged, [_float64(each) for each in scores]

    def _combined_scores(self, scores: Sequence[torch.Tensor]) -> Float64:
        combine = self.experiment.judge.combine
        if combine is None:
            return _float64(scores[0])
        members = zip(*scores, strict=True)
        return np.stack([_float64(combine(_stacked(score_CB), self.task.components)) for score_CB in members])

    def _scores_of(self, sample: AnswerSample) -> list[torch.Tensor]:
        """Answers that are weighted again and again are scored once."""
        token_BT = sample.answers.token_BT
        found = next((scores for scored, scores in self._scored if scored is token_BT), None)
        if found is None:
            found = self.scores(sample.answers)
            self._scored = [*self._scored[:1], (token_BT, found)]  # the reference's own, and the newest
        return found

    def keep(
        self,
        folder: Path,
        provenance: Mapping[str, str],
        sample: AnswerSample,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """The labels, each with its annotator, and a page's worth of answers with what both sides say of them."""
        for reward in self.rewards:
            if reward.preferences is not None:
                suffix = f"-{reward.name}" if reward.name else ""
                write_preferences(folder / f"preferences{suffix}.parquet", reward.preferences, provenance)
        self._keep_samples(folder / "samples.parquet", sample, weights)

    def _keep_samples(self, path: Path, sample: AnswerSample, weights: Mapping[str, float] | None) -> None:
        rows = self._sampled_rows(sample)
        if len(rows) == 0:
            return
        answers = sample.answers[rows]
        judged_B, scores_MB = self._one(self.scores(answers), answers, weights or {})
        write_samples(
            path,
            texts=self.task.text(answers),
            proxy_B=judged_B,
            gold_B=sample.gold_B[rows],
            scores_MB=scores_MB,
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
        judges = {name: state for reward in self.rewards for name, state in reward.judge_parts().items()}
        archive = {"archive": self.both.archive.state()} if self.task.components else {}
        return {"reference": module_state(reference), **judges, **archive, **self._learned_parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        if "reference" not in parts:
            return
        self._use_reference(parts["reference"])
        for reward in self.rewards:
            reward.load_learned(parts)
            reward.load_judge(parts)
        if self.task.components:
            self.both.archive.load_state(parts["archive"])
        self.prepared = True

    def close(self) -> None:
        """Release the hosts."""
        for reward in self.rewards:
            reward.close()
        close: Any = getattr(self.served, "close", None)
        if close is not None:
            close()

    def _learned_parts(self) -> dict[str, State]:
        return {name: state for reward in self.rewards for name, state in reward.learned_parts().items()}

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
        for reward in self.rewards:
            reward.load_learned(found.parts)
        return found.clocks

    def _shared_key(self) -> str:
        made_of = self.experiment.model_dump(mode="json", include={"task", "labels", "proxy", "policy"})
        return canonical_hash({**made_of, "seed": self.seed, "files": self._foreign_files()})

    def _foreign_files(self) -> dict[str, str]:
        """SHA-256 of what the user brought: labels, and the weights of a model directory."""
        directory = getattr(self.policy_settings, "directory", None)
        found = sorted(Path(directory).glob("*.safetensors")) if directory else []
        labels = self.experiment.labels.file
        return {str(path): file_hash(path) for path in found} | ({labels: table_hash(labels)} if labels else {})

    def _shared_folder(self) -> Path:
        return Path(self.experiment.record.folder) / "shared" / self._shared_key()[:16]

    def _tell(self, kind: str, detail: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(detail)))


def _float64(values: torch.Tensor) -> Float64:
    return values.numpy().astype(np.float64)


def _stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(rows))
