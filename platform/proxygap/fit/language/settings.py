"""Settings of the language models and of their pretraining; importing them loads neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings
from proxygap.base.language import ItemSpec

if TYPE_CHECKING:
    from proxygap.fit.language.hugging_face import HuggingFaceModel
    from proxygap.fit.language.table import TableModel
    from proxygap.fit.language.transformer import TinyTransformer


class Pretraining(Settings):
    """Maximum likelihood on a task's demonstrations, with AdamW and a cosine schedule down to 0."""

    steps: NonNegativeInt = 600
    """Gradient steps; 0 leaves the weights as they are built or loaded."""
    batch_size: PositiveInt = 64
    """Answers per gradient step."""
    learning_rate: PositiveFloat = 3e-3
    """AdamW's first step size; too large forgets a loaded model, too small needs more steps."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decay; larger keeps the reference policy closer to uniform where demonstrations are few."""
    demonstrations: PositiveInt = 8192
    """Answers asked from the task, held-out ones included; fewer overfit."""
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the demonstrations that only measures the negative log-likelihood."""
    max_gradient_norm: PositiveFloat = 1.0
    """Gradients longer than this are scaled down to it."""


class TableLanguageModel(Settings):
    """One logit per prompt and answer, for tasks whose answers are one token: every policy can be represented."""

    kind: Literal["table"] = "table"
    pretrainable: ClassVar[bool] = False
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the logits; float64 makes comparisons with closed forms exact to 1e-12."""
    hidden_width: PositiveInt = 16
    """Width of the fixed random code of a prompt that value heads see as the hidden state; at least the number of
    prompts makes every value function of the prompt linear in it."""

    def build(
        self, spec: ItemSpec, *, end_token: int | None, prompts: int, seed: int, device: str = "cpu"
    ) -> TableModel:
        """A table of zeros (uniform answers), shape (prompts, ``spec.vocabulary``).

        Raises:
            InvalidExperiment: answers of more than one token, or a token that ends them.
        """
        from proxygap.fit.language.table import TableModel

        return TableModel(self, spec, end_token=end_token, prompts=prompts, seed=seed).to(device)


class TinyTransformerLanguageModel(Settings):
    """Our own causal transformer: pre-norm, learned positions, no biases, sized for a processor core."""

    kind: Literal["tiny_transformer"] = "tiny_transformer"
    pretrainable: ClassVar[bool] = True
    layers: PositiveInt = 2
    """Blocks of attention and feed-forward; time grows linearly."""
    width: PositiveInt = 64
    """Size of the residual stream; a multiple of ``heads``."""
    heads: PositiveInt = 4
    """Attention heads; more of them look at more places, each with fewer numbers."""
    feed_forward: PositiveInt = 4
    """Width of the feed-forward layer, in multiples of ``width``."""
    tied: bool = True
    """Whether the output layer reuses the token embedding: fewer parameters, slightly less freedom."""
    pretraining: Pretraining = Pretraining()
    """How the reference policy is fitted to demonstrations."""

    @property
    def plan(self) -> Pretraining:
        """How it is fitted to demonstrations."""
        return self.pretraining

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TinyTransformerLanguageModel:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}; change one of them")
        return self

    def build(
        self, spec: ItemSpec, *, end_token: int | None, prompts: int, seed: int, device: str = "cpu"
    ) -> TinyTransformer:
        """An untrained transformer for sequences of ``spec.prompt_length + spec.max_tokens``."""
        del prompts  # it reads the tokens
        from proxygap.fit.language.transformer import TinyTransformer

        return TinyTransformer(self, spec, end_token=end_token, seed=seed).to(device)


class HuggingFaceLanguageModel(Settings):
    """A causal language model of `transformers`: from a local directory, or a Llama with random weights."""

    kind: Literal["hugging_face"] = "hugging_face"
    pretrainable: ClassVar[bool] = True
    directory: str | None = None
    """A local folder with config.json and *.safetensors. Without one, a Llama of the sizes below is built."""
    layers: PositiveInt = 2
    """Decoder layers of the Llama built here."""
    width: PositiveInt = 64
    """Its hidden size; a multiple of ``heads``."""
    heads: PositiveInt = 4
    """Its attention heads (and key-value heads)."""
    intermediate: PositiveInt = 256
    """Width of its gated feed-forward layers."""
    tied: bool = True
    """Whether its output layer reuses the token embedding."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of the weights; log-probabilities are float32 at least."""
    pretraining: Pretraining | None = None
    """Fitting to demonstrations. Default: the usual one for random weights, none for a directory."""

    @property
    def plan(self) -> Pretraining:
        """How it is fitted to demonstrations, the default resolved."""
        if self.pretraining is None:
            return Pretraining() if self.directory is None else Pretraining(steps=0)
        return self.pretraining

    @model_validator(mode="after")
    def _heads_divide_width(self) -> HuggingFaceLanguageModel:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width = {self.width} is not an even multiple of heads = {self.heads}, which rotary positions need; "
                "change one of them"
            )
        return self

    def build(
        self, spec: ItemSpec, *, end_token: int | None, prompts: int, seed: int, device: str = "cpu"
    ) -> HuggingFaceModel:
        """The loaded model, or a Llama with random weights.

        Raises:
            InvalidExperiment: no usable model directory, or a vocabulary smaller than the task's.
            CheckpointRefused: weights that are truncated, missing, unexpected, or of another shape than the model's.
        """
        del prompts  # it reads the tokens
        from proxygap.fit.language.hugging_face import HuggingFaceModel

        return HuggingFaceModel(self, spec, end_token=end_token, seed=seed).to(device)


LanguageModelSettings = TableLanguageModel | TinyTransformerLanguageModel | HuggingFaceLanguageModel
"""Every kind of language model."""
