"""A frozen language model in this process: what each host holds, and the twin of all hosts together.

Shape legend: B rows, L prompt tokens, T answer tokens, U answer tokens in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import InvalidDataset, NonFiniteValue
from proxygap.base.language import Generation, ItemSpec, token_log_probs
from proxygap.base.protocols import Arrays, HostedModel, LanguageModel, State
from proxygap.base.records import Int64
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.states import load_module_state, module_state
from proxygap.serve.packing import unpacked

if TYPE_CHECKING:
    from proxygap.fit.language.settings import LanguageModelSettings

BLOCK_ROWS = 64
"""Rows worked on together: fewer keep more hosts busy with one batch, more use a device better."""


def build_copy(
    *, settings: Mapping[str, Any], spec: Mapping[str, int], block_rows: int, device: str, **sizes: Any
) -> LocalLanguage:
    """The factory that a host calls: the whole model, from JSON-able arguments."""
    item_spec = ItemSpec(**spec)
    module = cast("LanguageModelSettings", unpacked(settings)).build(item_spec, device=device, **sizes)
    return LocalLanguage(module, item_spec, block_rows=block_rows, device=device)


class LocalLanguage:
    """A frozen language model; see `ServedLanguage`. The module passes into its hands: eval mode, no gradients.

    Args:
        module: on ``device``.
        spec: sizes of the task's items.
        block_rows: rows worked on together.
        device: where the module lives.
    """

    def __init__(
        self, module: LanguageModel, spec: ItemSpec, *, block_rows: int = BLOCK_ROWS, device: str = "cpu"
    ) -> None:
        self._model, self._spec, self._block_rows, self._device = module, spec, block_rows, torch.device(device)
        self._module = cast("torch.nn.Module", module).eval().requires_grad_(requires_grad=False)
        self._version = 0

    @property
    def version(self) -> int:
        """How many times weights were loaded."""
        return self._version

    def load(self, weights: State) -> None:
        """Take over weights; see `ServedLanguage.load`."""
        load_module_state(self._module, weights)
        self._version += 1

    def log_probs(self, prompt_token_BL: Int64, token_BT: Int64, length_B: Int64) -> torch.Tensor:
        """See `ServedLanguage.log_probs`."""
        check_rows(self._spec, prompt_token_BL, token_BT, length_B)
        return finite(self._log_probs(prompt_token_BL, token_BT, length_B))

    def generate(self, prompt_token_BL: Int64, max_tokens: int, *, seed: int, temperature: float = 1.0) -> Generation:
        """See `ServedLanguage.generate`."""
        check_rows(self._spec, prompt_token_BL)
        drawn = self._generate(prompt_token_BL, 0, max_tokens=max_tokens, seed=seed, temperature=temperature)
        finite(drawn.log_prob_BT)
        return drawn

    def call(self, method: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Arrays:
        """``log_probs`` or ``generate`` for a part of a caller's rows; the caller checks rows and answer.

        ``log_probs`` takes prompt_token, token, length; ``generate`` prompt_token, first_block (the number of the
        first row's block in the whole call) and the options max_tokens, seed, temperature.

        Raises:
            KeyError: another method.
        """
        if method == "log_probs":
            return {"log_prob": self._log_probs(arrays["prompt_token"], arrays["token"], arrays["length"]).numpy()}
        if method != "generate":
            raise KeyError(f"no method {method!r}; there are log_probs and generate")
        drawn = self._generate(arrays["prompt_token"], int(arrays["first_block"]), **options)
        columns = {"token": drawn.token_BT, "length": drawn.length_B, "log_prob": drawn.log_prob_BT}
        return {name: column.numpy() for name, column in columns.items()}

    def batchable(self, method: str) -> bool:
        """Rows of ``log_probs`` are independent of each other; those of ``generate`` share a generator."""
        return method == "log_probs"

    def state(self) -> State:
        """Weights and version."""
        return versioned(module_state(self._module), self._version)

    def load_state(self, state: State) -> None:
        """Become the model that ``state`` was taken from. Raises CheckpointRefused for weights that do not fit."""
        load_module_state(self._module, state)
        self._version = int(state.structure["version"])

    def close(self) -> None:
        """Nothing is held."""

    def _blocks(self, rows: int) -> list[slice]:
        """At least one, so that no rows give an answer of the right shape."""
        return [slice(start, min(start + self._block_rows, rows)) for start in range(0, max(rows, 1), self._block_rows)]

    def _log_probs(self, prompt_token_BL: Int64, token_BT: Int64, length_B: Int64) -> torch.Tensor:
        columns = prompt_token_BL, token_BT, length_B
        blocks = [[column[rows] for column in columns] for rows in self._blocks(len(length_B))]
        return torch.cat([self._block_log_probs(*block) for block in blocks])

    def _block_log_probs(self, prompt_token_BL: Int64, token_BT: Int64, length_B: Int64) -> torch.Tensor:
        """Columns that are padding for every row of the block are not computed."""
        used, columns = int(length_B.max(initial=0)), token_BT.shape[1]
        if used == 0:
            return torch.zeros(len(length_B), columns)
        prompt, token_BU, length = (self._tensor(each) for each in (prompt_token_BL, token_BT[:, :used], length_B))
        with torch.no_grad():
            log_prob_BU = token_log_probs(self._model.continuation(prompt, token_BU).logits_BTV, token_BU, length)
        return torch.nn.functional.pad(log_prob_BU.cpu(), (0, columns - used))

    def _generate(
        self, prompt_token_BL: Int64, first_block: int, *, max_tokens: int, seed: int, temperature: float
    ) -> Generation:
        parts = [
            self._block_answers(prompt_token_BL[rows], first_block + number, max_tokens, seed, temperature)
            for number, rows in enumerate(self._blocks(len(prompt_token_BL)))
        ]
        token, length, log_prob = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("token_BT", "length_B", "log_prob_BT")
        )
        return Generation(token, length, log_prob)

    def _block_answers(
        self, prompt_token_BL: Int64, block: int, max_tokens: int, seed: int, temperature: float
    ) -> Generation:
        if len(prompt_token_BL) == 0:
            nothing = torch.zeros(0, max_tokens, dtype=torch.int64)
            return Generation(nothing, nothing[:, 0], nothing.float())
        generator = torch_generator(seed, f"generation/block/{block}", str(self._device))
        with torch.no_grad():
            prompt_BL = self._tensor(prompt_token_BL)
            drawn = self._model.generate(prompt_BL, max_tokens, generator=generator, temperature=temperature)
        missing = max_tokens - drawn.token_BT.shape[1]
        token_BT = torch.nn.functional.pad(drawn.token_BT, (0, missing), value=self._spec.pad_token)
        log_prob_BT = torch.nn.functional.pad(drawn.log_prob_BT, (0, missing))
        return Generation(token_BT.cpu(), drawn.length_B.cpu(), log_prob_BT.cpu())

    def _tensor(self, column: Int64) -> torch.Tensor:
        return torch.from_numpy(np.array(column, np.int64)).to(self._device)


def check_rows(
    spec: ItemSpec, prompt_token_BL: Int64, token_BT: Int64 | None = None, length_B: Int64 | None = None
) -> None:
    """Refuse what would index beyond a table, before a device sees it. Raises InvalidDataset or ValueError."""
    _check_tokens("prompt_token", prompt_token_BL, spec.vocabulary)
    if token_BT is None or length_B is None:
        return
    _check_tokens("token", token_BT, spec.vocabulary)
    if not len(prompt_token_BL) == len(token_BT) == len(length_B):
        raise ValueError(f"{len(prompt_token_BL)} prompts, {len(token_BT)} answers and {len(length_B)} lengths")
    wrong = np.flatnonzero((length_B < 1) | (length_B > token_BT.shape[1]))
    if len(wrong):
        raise InvalidDataset(
            f"row {wrong[0]} has an answer of no tokens, or of more than the {token_BT.shape[1]} given",
            field="length",
            value=int(length_B[wrong[0]]),
            remedy="Give every answer at least one token (its end token counts)",
        )


def _check_tokens(name: str, token: Int64, vocabulary: int) -> None:
    wrong = np.argwhere((token < 0) | (token >= vocabulary))
    if len(wrong):
        raise InvalidDataset(
            f"row {wrong[0][0]} holds a token outside 0..{vocabulary - 1}",
            field=name,
            value=int(token[tuple(wrong[0])]),
            remedy="Use one vocabulary for the answers and the model",
        )


def finite(log_prob_BT: torch.Tensor) -> torch.Tensor:
    """The same log-probabilities. Raises NonFiniteValue, naming row and token."""
    if not bool(log_prob_BT.isfinite().all()):
        row, place = (~log_prob_BT.isfinite()).nonzero()[0].tolist()
        raise NonFiniteValue(
            f"the language model's log-probability of token {place} of row {row} is NaN or infinite",
            field="log_prob",
            value=float(log_prob_BT[row, place]),
            remedy="Check the weights that were loaded; an answer that the model rules out has none",
        )
    return log_prob_BT


def versioned(weights: State, version: int) -> State:
    """The weights of a module as the state of a served model."""
    return State(weights.arrays, {**weights.structure, "version": version})


def _keeps_the_protocol(model: LocalLanguage) -> HostedModel:
    """Checked by mypy: a host can hold it."""
    return model
