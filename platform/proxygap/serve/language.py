"""A frozen language model behind one interface, in this process or copied to hosts: log-probabilities and answers.

Shape legend: B rows, L prompt tokens, T answer tokens.

Rows are worked on in blocks of a fixed number, counted from the first row of a call, and hosts are dealt whole blocks.
So every block has the same shape, and the same generator, wherever it runs: numbers and draws do not depend on the
number of hosts.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from proxygap.base.language import Generation, ItemSpec
from proxygap.base.protocols import Arrays, State, Stateful
from proxygap.base.records import Int64
from proxygap.serve.host import Health, HostRecipe
from proxygap.serve.local_language import BLOCK_ROWS, LocalLanguage, build_copy, check_rows, finite, versioned
from proxygap.serve.packing import packed
from proxygap.serve.settings import Hosting

if TYPE_CHECKING:
    from proxygap.fit.language.settings import LanguageModelSettings
    from proxygap.serve.client import OnEvent


class ServedLanguage(Stateful, Protocol):
    """A frozen language model that answers for one version of its weights."""

    @property
    def version(self) -> int:
        """How many times weights were loaded; 0 as its settings build it."""
        ...

    def load(self, weights: State) -> None:
        """Take over the weights of a module of the same settings, as `module_state` gives them: the next version.

        Raises:
            CheckpointRefused: they do not fit the module; then the old version still answers.
        """
        ...

    def log_probs(self, prompt_token_BL: Int64, token_BT: Int64, length_B: Int64) -> torch.Tensor:
        """Log-probability of each answer token in nats at temperature 1, 0 beyond the lengths; shape (B, T), on CPU.

        Raises:
            InvalidDataset: a token beyond the vocabulary, or a length beyond the tokens; names column and row.
            NonFiniteValue: the model's answer is NaN or infinite; names the row.
        """
        ...

    def generate(self, prompt_token_BL: Int64, max_tokens: int, *, seed: int, temperature: float = 1.0) -> Generation:
        """Sample one answer per row, ``max_tokens`` wide, on CPU.

        The draws depend on ``seed``, the weights, the rows and their order alone. Errors are those of `log_probs`.
        """
        ...

    def close(self) -> None:
        """Give back what the model holds."""
        ...


def build_language(
    settings: LanguageModelSettings,
    hosting: Hosting,
    *,
    spec: ItemSpec,
    end_token: int | None,
    prompts: int,
    seed: int,
    state: State | None,
    run_name: str,
    on_event: OnEvent,
    role: str = "reference",
    block_rows: int = BLOCK_ROWS,
) -> LocalLanguage | HostedLanguage:
    """The model in this process for ``hosting.hosts == 0`` (starts no Ray), else copied to hosts, with equal numbers.

    Args:
        settings: what each host builds its copy from.
        hosting: resources and limits of each host.
        spec: sizes of the task's items.
        end_token: the token that ends an answer, if there is one.
        prompts: rows of the task's prompt table.
        seed: of the weights that are not loaded.
        state: weights of the module (`module_state`), loaded as version 1; None keeps what the settings build.
        run_name: hosts are named ``{run_name}/{role}-{index}``.
        on_event: told ``host_restarted`` with its details.
        role: what the model is to the run; also the field of `Serve` that an error names.
        block_rows: see `BLOCK_ROWS`; draws depend on it.
    """
    sizes: dict[str, Any] = {"end_token": end_token, "prompts": prompts, "seed": seed}
    model: LocalLanguage | HostedLanguage
    if hosting.hosts == 0:
        model = LocalLanguage(settings.build(spec, **sizes), spec, block_rows=block_rows)
    else:
        recipe = HostRecipe(
            f"{build_copy.__module__}:{build_copy.__name__}",
            {"settings": packed(settings), "spec": asdict(spec), "block_rows": block_rows, **sizes},
        )
        model = HostedLanguage(
            recipe, hosting, spec, name=f"{run_name}/{role}", option=f"serve.{role}", on_event=on_event
        )
    if state is not None:
        model.load(state)
    return model


class HostedLanguage:
    """Copies of a frozen language model on hosts; see `ServedLanguage`. Close it to give its resources back.

    Raises:
        InfeasibleResources: the cluster cannot hold the hosts.
        HostFailed: a host did not start, or did not answer within its deadline and restarts.
    """

    def __init__(
        self, recipe: HostRecipe, hosting: Hosting, spec: ItemSpec, *, name: str, option: str, on_event: OnEvent
    ) -> None:
        from proxygap.serve.pool import HostPool

        self._recipe, self._spec, self._hosts = recipe, spec, hosting.hosts
        self._block_rows = int(recipe.arguments["block_rows"])
        self._pool = HostPool([recipe] * hosting.hosts, hosting, name, on_event, option=option)

    @property
    def version(self) -> int:
        """How many times weights were loaded."""
        return self._pool.version

    def load(self, weights: State) -> None:
        """Take over weights on every host, or on none; see `ServedLanguage.load`."""
        self.load_state(versioned(weights, self.version + 1))

    def log_probs(self, prompt_token_BL: Int64, token_BT: Int64, length_B: Int64) -> torch.Tensor:
        """See `ServedLanguage.log_probs`."""
        check_rows(self._spec, prompt_token_BL, token_BT, length_B)
        columns = {"prompt_token": prompt_token_BL, "token": token_BT, "length": length_B}
        asked: list[Arrays | None] = [
            None if rows is None else {name: column[rows] for name, column in columns.items()}
            for rows in self._shares(len(length_B))
        ]
        return finite(_joined(self._pool.call_all("log_probs", asked), "log_prob"))

    def generate(self, prompt_token_BL: Int64, max_tokens: int, *, seed: int, temperature: float = 1.0) -> Generation:
        """See `ServedLanguage.generate`."""
        check_rows(self._spec, prompt_token_BL)
        asked: list[Arrays | None] = [
            None
            if rows is None
            else {"prompt_token": prompt_token_BL[rows], "first_block": np.asarray(rows.start // self._block_rows)}
            for rows in self._shares(len(prompt_token_BL))
        ]
        options = {"max_tokens": max_tokens, "seed": seed, "temperature": temperature}
        answers = self._pool.call_all("generate", asked, options)
        log_prob_BT = finite(_joined(answers, "log_prob"))
        return Generation(_joined(answers, "token"), _joined(answers, "length"), log_prob_BT)

    def state(self) -> State:
        """Weights and version, equal to those of the in-process twin."""
        states = self._pool.states()
        return self._recipe.build().state() if states is None else states[0]

    def load_state(self, state: State) -> None:
        """Become the model that ``state`` was taken from. Raises CheckpointRefused for weights that do not fit."""
        self._pool.load_all(int(state.structure["version"]), [state] * self._hosts)

    def health(self) -> list[Health]:
        """What each host says about itself."""
        return self._pool.health()

    def close(self) -> None:
        """End the hosts and free their resources."""
        self._pool.close()

    def _shares(self, rows: int) -> list[slice | None]:
        """Whole blocks for each host, as evenly as can be; nothing for hosts beyond the blocks, but the first."""
        blocks = -(-rows // self._block_rows)
        borders = [min(self._block_rows * -(-blocks * host // self._hosts), rows) for host in range(self._hosts + 1)]
        shares = [slice(start, stop) for start, stop in pairwise(borders)]
        return [share if share.stop > share.start or not index else None for index, share in enumerate(shares)]


def _joined(answers: list[Arrays], name: str) -> torch.Tensor:
    """One column of all hosts' answers, in the order of the rows."""
    return torch.from_numpy(np.concatenate([answer[name] for answer in answers if answer]))


def _keeps_the_protocol(local: LocalLanguage, hosted: HostedLanguage) -> tuple[ServedLanguage, ServedLanguage]:
    """Checked by mypy: hosts and in-process twin are interchangeable."""
    return local, hosted
