"""Settings of the reward models; importing them loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings
from proxygap.fit.reward.losses import BradleyTerry, RewardLoss

if TYPE_CHECKING:
    from proxygap.base.language import ItemSpec
    from proxygap.base.protocols import LanguageTask, RewardModel
    from proxygap.fit.reward.ensemble import RewardEnsemble
    from proxygap.fit.reward.networks import Network


class RewardTraining(Settings):
    """How every member is fitted: Adam on mini-batches of pairs."""

    epochs: PositiveInt = 5
    """Passes over the training pairs in one fit; more of them fit noise too, see ``patience``."""
    batch_size: PositiveInt = 32
    """Pairs per member and gradient step."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW, Loshchilov and Hutter 2019); larger keeps scores smaller and smoother."""
    max_gradient_norm: PositiveFloat | None = 1.0
    """Each member's gradient is scaled down to this Euclidean norm; None: never."""
    bootstrap: bool = False
    """Whether each member draws its own sample of the pairs with replacement in every fit."""
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of pairs that is never trained on, by the pair's row number: a pair stays on its side in every refit."""
    held_out_limit: PositiveInt = 5000
    """Most held-out pairs used for a score (the newest)."""
    patience: PositiveInt | None = None
    """Epochs without a lower held-out loss after which a member stops and takes back its best weights; None: never."""


class MlpReward(Settings):
    """MLP on the features of each step, summed over the steps of a segment (Christiano et al. 2017, section 2.2.3)."""

    hostable: ClassVar[bool] = True
    kind: Literal["mlp_reward"] = "mlp_reward"
    members: PositiveInt = 5
    """Networks in the ensemble; more of them cost linearly and measure disagreement better."""
    hidden: tuple[PositiveInt, ...] = Field(default=(64, 64), min_length=1)
    """Widths of the hidden layers."""
    diversity: Literal["fine_tune", "pretrain"] = "fine_tune"
    """Whether members start from one trunk (all layers but the last) or each from its own (Eisenstein et al. 2023)."""
    frozen_layers: NonNegativeInt = 0
    """Hidden layers, from the first, that stay as they start: random features, the stand-in for a pretrained trunk."""
    loss: RewardLoss = BradleyTerry()
    """What a member minimizes."""
    training: RewardTraining = RewardTraining()
    """How it is minimized."""
    threads: PositiveInt = 1
    """Torch threads of a host; in process, the loop's own threads are used."""

    @model_validator(mode="after")
    def _some_layer_learns(self) -> MlpReward:
        if self.frozen_layers > len(self.hidden):
            raise ValueError(f"frozen_layers = {self.frozen_layers} exceeds the {len(self.hidden)} hidden layers")
        return self

    def build(
        self, spec: ItemSpec, *, seed: int, member_ids: tuple[int, ...] | None = None, device: str = "cpu"
    ) -> RewardEnsemble:
        """The ensemble itself, or the shard of it that holds ``member_ids``.

        Raises:
            InvalidExperiment: the task's items have no features.
        """
        from proxygap.fit.reward.ensemble import RewardEnsemble
        from proxygap.fit.reward.mlp import MlpNetwork

        network = MlpNetwork(spec, self.hidden, self.frozen_layers)
        return RewardEnsemble(self, network, seed=seed, member_ids=member_ids, device=device)


class TinyNetwork(Settings):
    """A small causal transformer of our own: all members in one stack, the last layer at the last token only."""

    kind: Literal["tiny_transformer"] = "tiny_transformer"
    layers: PositiveInt = 1
    """Blocks of attention and MLP."""
    width: int = Field(default=32, gt=0, multiple_of=32)
    """Size of the residual stream; a multiple of 32."""
    heads: PositiveInt = 4
    """Attention heads; they must divide the width."""
    feedforward: int = Field(default=128, gt=0, multiple_of=32)
    """Hidden width of a block's MLP; a multiple of 32."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TinyNetwork:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


class HuggingFaceNetwork(Settings):
    """A transformer of the `transformers` package with a scalar head: a local directory, or a fresh Llama."""

    kind: Literal["hugging_face"] = "hugging_face"
    folder: str | None = None
    """Directory with ``config.json`` and safetensors weights; None builds a fresh Llama of the sizes below."""
    layers: PositiveInt = 2
    """Blocks of a fresh Llama."""
    width: PositiveInt = 64
    """Hidden size of a fresh Llama."""
    heads: PositiveInt = 4
    """Attention heads of a fresh Llama; they must divide the width."""
    feedforward: PositiveInt = 256
    """MLP width of a fresh Llama."""


class TransformerReward(Settings):
    """Causal transformer over prompt and answer with a scalar head on the answer's last token."""

    hostable: ClassVar[bool] = True
    kind: Literal["transformer_reward"] = "transformer_reward"
    members: PositiveInt = 5
    """Networks in the ensemble; more of them cost linearly and measure disagreement better."""
    network: Annotated[TinyNetwork | HuggingFaceNetwork, Field(discriminator="kind")] = TinyNetwork()
    """The trunk."""
    diversity: Literal["fine_tune", "pretrain"] = "fine_tune"
    """Whether members start from one trunk (all but the head) or each from its own (Eisenstein et al. 2023)."""
    pretrain_steps: NonNegativeInt = 0
    """Next-token updates of the trunk on the items of the first fit, before it; 0 starts from random weights."""
    loss: RewardLoss = BradleyTerry()
    """What a member minimizes."""
    training: RewardTraining = RewardTraining()
    """How it is minimized."""
    threads: PositiveInt = 1
    """Torch threads of a host; in process, the loop's own threads are used."""

    @model_validator(mode="after")
    def _pretrains_here(self) -> TransformerReward:
        if self.pretrain_steps and self.network.kind == "hugging_face":
            raise ValueError("pretrain_steps works with network tiny_transformer; give hugging_face a trained folder")
        if self.diversity == "pretrain" and isinstance(self.network, HuggingFaceNetwork) and self.network.folder:
            raise ValueError("one folder holds one trunk; diversity pretrain needs a trunk per member")
        return self

    def build(
        self, spec: ItemSpec, *, seed: int, member_ids: tuple[int, ...] | None = None, device: str = "cpu"
    ) -> RewardEnsemble:
        """The ensemble itself, or the shard of it that holds ``member_ids``.

        Raises:
            InvalidExperiment: the task's items have no tokens, or the folder holds no usable model.
        """
        from proxygap.fit.reward.ensemble import RewardEnsemble

        if isinstance(self.network, TinyNetwork):
            from proxygap.fit.reward.transformer import TinyTransformer

            network: Network = TinyTransformer(spec, self.network)
        else:
            from proxygap.fit.reward.hugging_face import HuggingFaceTrunk

            network = HuggingFaceTrunk(spec, self.network)
        return RewardEnsemble(self, network, seed=seed, member_ids=member_ids, device=device)


class CorrelatedProxies(Settings):
    """Given, never fitted: every member is gold plus an error, a part of which all members share.

    r_i = z-score(gold + deviation * (sqrt(shared) e_0 + sqrt(1 - shared) e_i)) under the reference policy, with
    independent errors e of mean 0 and variance 1 per prompt and answer. Needs a task that can be enumerated.
    """

    hostable: ClassVar[bool] = False
    kind: Literal["correlated_proxies"] = "correlated_proxies"
    members: PositiveInt = 5
    """Proxies; each has its own error e_i."""
    shared: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the error's variance that all members have in common; at 1 all members are one."""
    error: Literal["student_t", "gaussian"] = "student_t"
    """Tails of the errors: Student t with 3 degrees of freedom (heavy), or normal."""
    deviation: PositiveFloat = 1.0
    """Standard deviation of a member's error, in standard deviations of gold."""

    def given(self, task: LanguageTask, seed: int) -> RewardModel:
        """The proxies of one seed.

        Raises:
            InvalidExperiment: the task cannot be enumerated.
        """
        from proxygap.fit.reward.given import correlated_proxies

        return correlated_proxies(self, task, seed)


class Gold(Settings):
    """Gold itself as the one member: the upper bound of what optimizing a reward can give."""

    hostable: ClassVar[bool] = False
    kind: Literal["gold"] = "gold"

    @property
    def members(self) -> int:
        """One."""
        return 1

    def given(self, task: LanguageTask, seed: int) -> RewardModel:
        """The task's gold reward as a reward model; the seed changes nothing."""
        from proxygap.fit.reward.given import gold_reward

        del seed
        return gold_reward(task)
