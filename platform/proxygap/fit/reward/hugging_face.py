"""A transformer of the `transformers` package as the trunk of a reward model: one module per member, one head each.

Shape legend: M members, R rows (items), S columns of a sequence (prompt then answer), D hidden size, P floats of one
member's parameters.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Items, ItemSpec
from proxygap.fit.reward.items import token_columns
from proxygap.fit.reward.networks import Columns, Initial, Layout, Leaf
from proxygap.fit.reward.settings import HuggingFaceNetwork

_INITIAL_STD = 0.02
"""Deviation of fresh matrices (Llama's ``initializer_range``)."""


class HuggingFaceTrunk:
    """The package's base model (no language head), and a linear head without bias on the last real token's state.

    Parameters of the modules are views of the stack, so the optimizer sees one tensor. Members run one after the other.
    A folder must hold ``config.json`` and safetensors; nothing is unpickled and nothing is downloaded.

    Raises:
        InvalidExperiment: items without tokens, a folder that is missing or holds no safetensors, or a model of
            another vocabulary.
    """

    frozen: frozenset[str] = frozenset()
    head = frozenset({"head"})
    normalized = 0

    def __init__(self, spec: ItemSpec, settings: HuggingFaceNetwork) -> None:
        if spec.vocabulary == 0:
            raise InvalidExperiment(
                "the task's items have no tokens", field="fit.kind", value="transformer_reward", remedy="use mlp_reward"
            )
        self._spec, self._settings = spec, settings
        self._template, self._width = self._built()
        self._loaded = {name: value.detach().clone() for name, value in self._template.named_parameters()}
        for path in self._loaded:  # a copy of the template then costs its buffers only
            _replace(self._template, path, torch.nn.Parameter(torch.empty(0)))
        shapes = {name: tuple(value.shape) for name, value in self._loaded.items()}
        self.layout = Layout(shapes | {"head": (1, self._width)})

    def _built(self) -> tuple[torch.nn.Module, int]:
        """A module in evaluation mode (no dropout), with the folder's weights where there is one, and its width."""
        from transformers import AutoModel, LlamaConfig, LlamaModel

        if self._settings.folder is not None:
            _check_folder(Path(self._settings.folder))
            loaded = AutoModel.from_pretrained(
                self._settings.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
            if loaded.config.vocab_size < self._spec.vocabulary:
                raise InvalidExperiment(
                    f"the model knows {loaded.config.vocab_size} tokens, the task has {self._spec.vocabulary}",
                    field="network.folder",
                    value=self._settings.folder,
                    remedy="use a model of the task's tokenizer",
                )
            return loaded.eval(), int(loaded.config.hidden_size)
        config = LlamaConfig(
            vocab_size=self._spec.vocabulary,
            hidden_size=self._settings.width,
            intermediate_size=self._settings.feedforward,
            num_hidden_layers=self._settings.layers,
            num_attention_heads=self._settings.heads,
            num_key_value_heads=self._settings.heads,
            max_position_embeddings=self._spec.prompt_length + self._spec.max_tokens,
            pad_token_id=None,  # a padding index would freeze that token's embedding
            use_cache=False,
        )
        with torch.random.fork_rng(devices=[]):  # its draws are overwritten by `initial`
            fresh: torch.nn.Module = LlamaModel(config).eval()
        return fresh, self._settings.width

    def widest(self, rows: int) -> int:
        """Without bound: modules run one by one, so a member's gradient is best taken right after its scores."""
        return rows << 40

    def initial(self, rng: np.random.Generator) -> Initial:
        """Weights of one member: the folder's, or normal matrices and the module's own vectors; a fresh head."""
        fresh: Initial = {}
        for name, shape in self.layout.shapes.items():
            if name == "head":
                fresh[name] = (rng.normal(size=shape) / np.sqrt(self._width)).astype(np.float32)
            elif self._settings.folder is None and len(shape) > 1:
                fresh[name] = (_INITIAL_STD * rng.normal(size=shape)).astype(np.float32)
            else:
                fresh[name] = self._loaded[name].numpy().copy()
        return fresh

    def columns(self, items: Items) -> dict[str, torch.Tensor]:
        """``token`` (B, S), ``last`` (B,), ``first`` (B,): see `token_columns`."""
        return token_columns(items, self._spec)

    def bind(self, flat_MP: torch.Tensor, grad_MP: torch.Tensor | None = None) -> _ModuleScorer:
        """Scores by these weights: every member's module takes views of its row of the stack."""
        modules: list[torch.nn.Module] = []
        heads: list[torch.nn.Parameter] = []
        leaves: list[Leaf] = []
        stacked = self.layout.stacked(flat_MP)
        grads = {} if grad_MP is None else self.layout.stacked(grad_MP)
        for place in range(len(flat_MP)):
            module = copy.deepcopy(self._template).to(flat_MP.device)
            for path in self.layout.shapes:
                parameter = torch.nn.Parameter(stacked[path][place].detach(), requires_grad=grad_MP is not None)
                if grad_MP is not None:
                    leaves.append(Leaf(parameter, grads[path][place]))
                if path == "head":
                    heads.append(parameter)
                else:
                    _replace(module, path, parameter)
            modules.append(module)
        return _ModuleScorer(modules, heads, leaves)


class _ModuleScorer:
    """`HuggingFaceTrunk` bound to weights."""

    def __init__(self, modules: list[torch.nn.Module], heads: list[torch.nn.Parameter], leaves: list[Leaf]) -> None:
        self._modules, self._heads, self.leaves = modules, heads, leaves

    def __call__(self, columns: Columns) -> torch.Tensor:
        """Raw scores (M, R) of token (M, R, S), last (M, R), first (M, R)."""
        rows = torch.arange(columns["token"].shape[1], device=columns["token"].device)
        padded = bool(columns["first"].any())
        scores = []
        for place, (module, head) in enumerate(zip(self._modules, self._heads, strict=True)):
            token_RS, first_R = columns["token"][place], columns["first"][place]
            extra = {}
            if padded:
                column_S = torch.arange(token_RS.shape[1], device=token_RS.device)
                extra["attention_mask"] = (column_S >= first_R[:, None]).long()
                extra["position_ids"] = (column_S - first_R[:, None]).clamp(min=0)
            state_RSD = module(input_ids=token_RS, use_cache=False, **extra).last_hidden_state
            scores.append((state_RSD[rows, columns["last"][place]] @ head.T)[:, 0])
        return torch.stack(scores)


def _replace(module: torch.nn.Module, path: str, parameter: torch.nn.Parameter) -> None:
    owner, _, name = path.rpartition(".")
    module.get_submodule(owner).register_parameter(name, parameter)


def _check_folder(folder: Path) -> None:
    """Raises InvalidExperiment, naming what is missing."""
    for there, problem in (
        (folder.is_dir(), "there is no such model directory"),
        ((folder / "config.json").is_file(), "the model directory has no config.json"),
        (any(folder.glob("*.safetensors")), "the model directory has no safetensors weights"),
    ):
        if not there:
            raise InvalidExperiment(
                problem,
                field="network.folder",
                value=str(folder),
                remedy="save the model with save_pretrained(folder, safe_serialization=True)",
            )
