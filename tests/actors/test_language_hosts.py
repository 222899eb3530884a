"""Copies of a language model on hosts give the numbers and the draws of the in-process twin, whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from proxygap.base.errors import CheckpointRefused, HostFailed, InfeasibleResources, InvalidDataset, NonFiniteValue
from proxygap.base.language import Generation, ItemSpec
from proxygap.base.protocols import State
from proxygap.fit.language.settings import TableLanguageModel, TinyTransformerLanguageModel
from proxygap.fit.language.states import module_state
from proxygap.serve.language import HostedLanguage, LocalLanguage, build_language
from proxygap.serve.settings import Hosting

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks", "one_thread")]

SPEC = ItemSpec(vocabulary=11, pad_token=0, prompt_length=3, max_tokens=6)
END = 1
SETTINGS = TinyTransformerLanguageModel(layers=2, width=32, heads=4)
BLOCK = 8
Model = LocalLanguage | HostedLanguage
Make = Callable[..., Model]


def weights(seed: int) -> State:
    """Weights far from each other, so that a mixed-up version shows."""
    module = SETTINGS.build(SPEC, end_token=END, prompts=5, seed=seed)
    state = module_state(module)
    return State({name: (3.0 * array).astype(array.dtype) for name, array in state.arrays.items()}, state.structure)


def rows(count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    prompt_BL = rng.integers(2, 11, size=(count, 3))
    prompt_BL[: count // 2, 0] = 0  # shorter prompts are padded on the left
    token_BT, length_B = rng.integers(2, 11, size=(count, 6)), rng.integers(1, 7, size=count)
    token_BT[np.arange(6) >= length_B[:, None]] = 0
    return prompt_BL, token_BT, length_B


@pytest.fixture
def make(events: Any) -> Iterator[Make]:
    models: list[Model] = []

    def build(hosts: int, state: State | None = None, run_name: str = "run", **options: Any) -> Model:
        hosting = Hosting(**{"hosts": hosts, "cpus": 1.0, "deadline_s": 120.0, **options})
        sizes: dict[str, Any] = {"spec": SPEC, "end_token": END, "prompts": 5, "seed": 3}
        model = build_language(
            SETTINGS, hosting, **sizes, state=state, run_name=run_name, on_event=events, block_rows=BLOCK
        )
        models.append(model)
        return model

    yield build
    for model in models:
        model.close()


def assert_same_draws(one: Generation, other: Generation) -> None:
    for name in ("token_BT", "length_B", "log_prob_BT"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def assert_twins(one: Model, other: Model, count: int = 37) -> None:
    """Bit for bit, whatever the number of hosts."""
    columns = rows(count)
    torch.testing.assert_close(one.log_probs(*columns), other.log_probs(*columns), rtol=0, atol=0)
    assert_same_draws(one.generate(columns[0], 6, seed=5), other.generate(columns[0], 6, seed=5))
    assert one.version == other.version
    ours, yours = one.state(), other.state()
    assert ours.structure == yours.structure
    assert sorted(ours.arrays) == sorted(yours.arrays)
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, yours.arrays[name])


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_hosts_equal_the_twin(make: Make, hosts: int) -> None:
    twin, hosted = make(0), make(hosts)
    assert isinstance(hosted, HostedLanguage)
    for count in (37, 8, 5, 0):  # blocks left over, one block, less than one, none
        assert_twins(twin, hosted, count)
    twin.load(weights(1))
    hosted.load(weights(1))
    assert twin.version == 1
    assert_twins(twin, hosted)


def test_log_probs_are_those_of_the_module_row_by_row(make: Make) -> None:
    hosted = make(2, weights(1))
    module = SETTINGS.build(SPEC, end_token=END, prompts=5, seed=0)
    module.load_state_dict({name: torch.tensor(array) for name, array in weights(1).arrays.items()})
    prompt_BL, token_BT, length_B = rows(19)
    answer_BT = hosted.log_probs(prompt_BL, token_BT, length_B)
    for row in range(19):
        prompt, token = (torch.tensor(column[row : row + 1]) for column in (prompt_BL, token_BT))
        expected = torch.log_softmax(module.continuation(prompt, token).logits_BTV[0], dim=-1)
        used = int(length_B[row])
        torch.testing.assert_close(
            answer_BT[row, :used], expected.gather(-1, token[0, :, None])[:used, 0].detach(), rtol=1e-4, atol=1e-5
        )
        assert not answer_BT[row, used:].any()


def test_drawn_answers_have_the_log_probs_of_their_model_and_depend_on_the_seed(make: Make) -> None:
    hosted = make(2, weights(1))
    prompt_BL = rows(40)[0]
    drawn, again, other = (hosted.generate(prompt_BL, 6, seed=seed) for seed in (1, 1, 2))
    assert_same_draws(drawn, again)
    assert not torch.equal(drawn.token_BT, other.token_BT)
    assert drawn.token_BT.shape == (40, 6)
    log_prob_BT = hosted.log_probs(prompt_BL, drawn.token_BT.numpy(), drawn.length_B.numpy())
    torch.testing.assert_close(drawn.log_prob_BT, log_prob_BT, rtol=1e-4, atol=1e-5)
    assert (drawn.token_BT[torch.arange(6) >= drawn.length_B[:, None]] == SPEC.pad_token).all()


def test_the_first_rows_are_drawn_alike_in_a_longer_call(make: Make) -> None:
    hosted, prompt_BL = make(2), rows(40)[0]
    whole, part = hosted.generate(prompt_BL, 6, seed=1), hosted.generate(prompt_BL[: 2 * BLOCK], 6, seed=1)
    torch.testing.assert_close(whole.token_BT[: 2 * BLOCK], part.token_BT, rtol=0, atol=0)


def test_a_table_draws_its_own_frequencies_on_hosts(events: Any) -> None:
    spec = ItemSpec(vocabulary=3, prompt_length=1, max_tokens=1)
    settings = TableLanguageModel(dtype="float64")
    share_K = np.array([0.6, 0.3, 0.1])
    table = settings.build(spec, end_token=None, prompts=1, seed=0)
    table.set_log_probs(np.log(share_K)[None])
    hosted = build_language(
        settings,
        Hosting(hosts=2),
        spec=spec,
        end_token=None,
        prompts=1,
        seed=0,
        state=module_state(table),
        run_name="run",
        on_event=events,
    )
    drawn = hosted.generate(np.zeros((4000, 1), np.int64), 1, seed=0)
    hosted.close()
    count_K = np.bincount(drawn.token_BT[:, 0].numpy(), minlength=3)
    assert (np.abs(count_K - 4000 * share_K) < 5 * np.sqrt(4000 * share_K * (1 - share_K))).all()
    expected = torch.tensor(np.log(share_K))[drawn.token_BT[:, 0]]
    torch.testing.assert_close(drawn.log_prob_BT[:, 0].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_second_pool_of_the_same_name_is_refused(make: Make) -> None:
    make(1)
    with pytest.raises(HostFailed, match=r"serve.reference = 'run/reference': another pool .*under another name"):
        make(1)


@pytest.mark.parametrize("method", ["log_probs", pytest.param("generate", marks=pytest.mark.long)])
def test_a_host_killed_at_work_changes_nothing(make: Make, events: Any, kill_at_work: Any, method: str) -> None:
    twin, hosted = make(0, weights(1)), make(2, weights(1))
    assert isinstance(hosted, HostedLanguage)
    columns = rows(8_000)

    def ask(model: Model) -> list[torch.Tensor]:
        if method == "log_probs":
            return [model.log_probs(*columns)]
        drawn = model.generate(columns[0], 6, seed=5)
        return [drawn.token_BT, drawn.length_B, drawn.log_prob_BT]

    expected = ask(twin)
    with kill_at_work(hosted, 1):
        answers = ask(hosted)
    for mine, theirs in zip(expected, answers, strict=True):
        assert torch.equal(mine, theirs)
    assert [(kind, detail["host"], detail["method"]) for kind, detail in events] == [
        ("host_restarted", "run/reference-1", method)
    ]


def test_a_host_killed_between_calls_answers_with_the_last_weights(make: Make, events: Any) -> None:
    twin, hosted = make(0, weights(1)), make(2, weights(1))
    assert isinstance(hosted, HostedLanguage)
    for model in (twin, hosted):
        model.load(weights(2))
    for health in hosted.health():
        os.kill(health.pid, signal.SIGKILL)
    assert_twins(twin, hosted)
    assert {detail["host"] for _, detail in events} == {"run/reference-0", "run/reference-1"}


def test_restarts_that_are_spent_end_in_one_clear_error(make: Make) -> None:
    hosted = make(1, max_restarts=0)
    assert isinstance(hosted, HostedLanguage)
    os.kill(hosted.health()[0].pid, signal.SIGKILL)
    with pytest.raises(HostFailed, match=r"serve.reference = 'run/reference-0': .*restarts are spent"):
        hosted.log_probs(*rows(4))


def test_a_deadline_holds(make: Make) -> None:
    slow = make(1, deadline_s=3.0)
    assert isinstance(slow, HostedLanguage)
    os.kill(slow.health()[0].pid, signal.SIGSTOP)  # hangs for good
    began = time.monotonic()
    with pytest.raises(HostFailed, match=r"run/reference-0 failed in log_probs") as caught:
        slow.log_probs(*rows(4))
    assert time.monotonic() - began < 8.0
    assert caught.value.field == "serve.reference"


@pytest.mark.parametrize("hosts", [0, 2])
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(make: Make, hosts: int) -> None:
    model = make(hosts, weights(1))
    before = model.log_probs(*rows(9))
    other = TinyTransformerLanguageModel(layers=1, width=32, heads=4).build(SPEC, end_token=END, prompts=5, seed=0)
    with pytest.raises(CheckpointRefused, match="weights"):
        model.load(module_state(other))
    assert model.version == 1
    torch.testing.assert_close(model.log_probs(*rows(9)), before, rtol=0, atol=0)
    model.load(weights(2))
    assert model.version == 2


@pytest.mark.parametrize("hosts", [0, 2])
def test_nan_weights_name_the_row_and_the_hosts_stay_usable(make: Make, events: Any, hosts: int) -> None:
    model = make(hosts, weights(1))
    before = model.log_probs(*rows(9))
    good = weights(1)
    bad = {name: np.full_like(array, np.nan) if array.ndim > 1 else array for name, array in good.arrays.items()}
    model.load(State(bad, good.structure))
    with pytest.raises(NonFiniteValue, match=r"token 0 of row 0 is NaN"):
        model.log_probs(*rows(9))
    model.load(good)
    torch.testing.assert_close(model.log_probs(*rows(9)), before, rtol=0, atol=0)
    assert not events


@pytest.mark.parametrize("hosts", [0, 2])
def test_rows_that_no_model_can_read_are_refused(make: Make, hosts: int) -> None:
    model = make(hosts)
    prompt_BL, token_BT, length_B = rows(9)
    beyond = token_BT.copy()
    beyond[4, 0] = 11
    with pytest.raises(InvalidDataset, match=r"token = 11: row 4 holds a token outside 0..10"):
        model.log_probs(prompt_BL, beyond, length_B)
    with pytest.raises(InvalidDataset, match=r"prompt_token = -1: row 0"):
        model.generate(prompt_BL * 0 - 1, 6, seed=0)
    for wrong in (0, 7):
        with pytest.raises(InvalidDataset, match=rf"length = {wrong}: row 2"):
            model.log_probs(prompt_BL, token_BT, np.where(np.arange(9) == 2, wrong, length_B))
    with pytest.raises(ValueError, match="9 prompts, 8 answers"):
        model.log_probs(prompt_BL, token_BT[:8], length_B[:8])


def test_infeasible_hosts_are_refused_with_the_arithmetic(make: Make) -> None:
    began = time.monotonic()
    with pytest.raises(InfeasibleResources, match=r"serve.reference.gpus = 1.0: .*GPU 1 .*lower serve.reference.hosts"):
        make(2, gpus=1.0)
    with pytest.raises(InfeasibleResources, match=r"serve.reference.cpus = 3.0: the hosts ask for CPU 6 together"):
        make(2, cpus=3.0)
    assert time.monotonic() - began < 5.0


def test_a_checkpoint_moves_between_any_number_of_hosts(make: Make) -> None:
    one, two, none = make(1, weights(1)), make(2, run_name="later"), make(0)
    state = one.state()
    for model in (two, none):
        model.load_state(state)
        assert_twins(model, one)
    state.arrays[next(iter(state.arrays))][...] = 0.0  # a copy: it changes no model
    assert_twins(two, one)


def test_the_hosts_share_the_work(make: Make) -> None:
    hosted = make(3)
    assert isinstance(hosted, HostedLanguage)
    before = [health.rows for health in hosted.health()]
    hosted.log_probs(*rows(5 * BLOCK))
    done = [health.rows - rows_ for health, rows_ in zip(hosted.health(), before, strict=True)]
    assert done == [2 * BLOCK, 2 * BLOCK, BLOCK]
