"""The plain half of a host: versions, request ids, batches and splits, without Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import HostFailed, InfeasibleResources, NonFiniteValue
from proxygap.base.protocols import State
from proxygap.serve.actor import HostActor
from proxygap.serve.host import (
    REMEMBERED_UPDATES,
    HostedShell,
    HostRecipe,
    Reply,
    Request,
    row_count,
    split_rows,
)
from proxygap.testing.hosted import affine_recipe


def x(*values: float) -> dict[str, Any]:
    return {"x_BF": np.array(values)[:, None]}


def y(reply: Reply) -> list[float]:
    return [float(value) for value in reply.arrays["y_BF"][:, 0]]


@pytest.fixture
def shell() -> HostedShell:
    made = HostedShell(affine_recipe(2.0, shift=1.0))
    made.load(0, None)
    return made


def test_a_shell_answers_for_nothing_before_it_has_loaded() -> None:
    shell = HostedShell(affine_recipe(2.0))
    assert shell.run([Request("a", "apply", 0)], [x(1.0)])[0].stale


def test_a_batch_gives_each_request_its_own_rows(shell: HostedShell) -> None:
    requests = [Request(name, "apply", 0) for name in "abc"]
    replies = shell.run(requests, [x(1.0, 2.0), x(), x(3.0)])
    assert [y(reply) for reply in replies] == [[3.0, 5.0], [], [7.0]]
    assert (shell.requests, shell.batches, shell.rows) == (3, 1, 3)


def test_an_update_is_remembered_by_its_id_and_only_for_a_while(shell: HostedShell) -> None:
    for version in range(REMEMBERED_UPDATES + 1):
        request = Request(f"update-{version}", "fit", version, next_version=version + 1)
        assert int(shell.run([request], [x(1.0)])[0].arrays["fits"]) == version + 1
    repeated = shell.run([Request("update-1", "fit", 1, next_version=2)], [x(1.0)])[0]
    assert int(repeated.arrays["fits"]) == 2
    assert repeated.state is not None
    assert float(repeated.state.arrays["factor"]) == 4.0  # as it was then, not as it is now
    assert shell.run([Request("update-0", "fit", 0, next_version=1)], [x(1.0)])[0].stale


def test_an_update_that_fails_leaves_no_version_to_answer_for(shell: HostedShell) -> None:
    with pytest.raises(NonFiniteValue):
        shell.run([Request("a", "checked", 0, next_version=1)], [x(float("nan"))])
    assert shell.version is None
    shell.load(0, State({"factor": np.array(5.0), "shift": np.array(0.0)}, {"fits": 0}))
    assert y(shell.run([Request("b", "apply", 0)], [x(1.0)])[0]) == [5.0]


def test_loading_nothing_goes_back_to_the_recipe(shell: HostedShell) -> None:
    shell.run([Request("a", "fit", 0, next_version=1)], [x(9.0)])
    shell.load(0, None)
    assert y(shell.run([Request("b", "apply", 0)], [x(1.0)])[0]) == [3.0]


def test_rows_are_split_as_they_were_joined() -> None:
    parts = split_rows({"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}, [2, 0, 3])
    assert [part["a"].tolist() for part in parts] == [[0, 1], [], [2, 3, 4]]
    assert parts[2]["b"].tolist() == [[4, 5], [6, 7], [8, 9]]
    with pytest.raises(ValueError, match="must have 4 rows first"):
        split_rows({"a": np.arange(5)}, [2, 2])
    assert (row_count({}), row_count({"a": np.asarray(1.0)}), row_count({"a": np.ones((3, 2))})) == (0, 0, 3)


@pytest.mark.parametrize("factory", ["nowhere.at_all:Affine", "proxygap.testing.hosted:Missing", "no colon"])
def test_a_factory_that_cannot_be_imported_is_named(factory: str) -> None:
    with pytest.raises(HostFailed, match="factory cannot be imported") as caught:
        HostRecipe(factory, {}).build()
    assert caught.value.value == factory


@pytest.mark.parametrize(
    ("seen", "built", "there", "device"),
    [
        (True, True, 1, "cuda"),
        (False, False, 0, "cpu"),  # a number that the node was started with
        (False, True, 0, r"torch sees none .* 0 GPUs on its node.*nvidia-smi"),
        (False, True, 1, r"torch sees none .* 1 GPUs on its node.*nvidia-smi"),
        (False, False, 1, r"gpus = 0.5: .*a build of torch for CUDA.*set gpus to 0"),
    ],
)
def test_a_host_with_gpus_builds_on_one_or_says_why_not(
    seen: bool, built: bool, there: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen)
    monkeypatch.setattr("torch.version.cuda", "13.0" if built else None)
    monkeypatch.setattr("proxygap.serve.placement.local_gpus", lambda: there)
    shell = HostedShell(affine_recipe(1.0), gpus=0.5)
    if device in ("cuda", "cpu"):
        shell.load(0, None)
        assert shell._model.device == shell.device == device  # type: ignore[union-attr]
    else:
        with pytest.raises(InfeasibleResources, match=device):
            shell.load(0, None)
        assert shell.version is None


def test_a_host_without_gpus_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    shell = HostedShell(affine_recipe(1.0))
    shell.load(0, None)
    assert shell.device == "cpu"


def test_a_request_for_no_version_is_answered_by_whatever_is_loaded(shell: HostedShell) -> None:
    def asked() -> Reply:
        return shell.run([Request("any", "apply", None)], [x(1.0)])[0]

    assert (y(asked()), asked().loaded_version) == ([3.0], 0)
    shell.run([Request("update", "fit", 0, next_version=1)], [x(9.0)])
    assert (y(asked()), asked().loaded_version) == ([12.0], 1)
    with pytest.raises(NonFiniteValue):
        shell.run([Request("failed", "checked", 1, next_version=2)], [x(float("nan"))])
    assert asked().stale
    assert not asked().arrays


def test_answers_wait_in_the_queue_and_share_batches_but_never_for_a_version() -> None:
    async def ask() -> tuple[list[Reply], list[Reply], int]:
        actor = HostActor(affine_recipe(2.0), "name", 0.0, 100)
        empty = await asyncio.gather(*(actor.answer("apply", x(value)) for value in (1.0, 2.0)))
        await actor.load(3, None)
        before = shell_of(actor).batches
        loaded = await asyncio.gather(
            *(actor.answer("apply", x(value)) for value in (1.0, 2.0)), actor.call(Request("c", "apply", 3), x(4.0))
        )
        return empty, loaded, shell_of(actor).batches - before

    empty, loaded, batches = asyncio.run(ask())
    assert [(reply.stale, reply.arrays, reply.loaded_version) for reply in empty] == [(True, {}, None)] * 2
    assert [(y(reply), reply.loaded_version) for reply in loaded] == [([2.0], 3), ([4.0], 3), ([8.0], 3)]
    assert batches == 2  # both answers together; the request for a version by itself


def shell_of(actor: HostActor) -> HostedShell:
    shell = actor._tenants.shell("")
    assert shell is not None
    return shell


async def _ask(actor: HostActor, asked: list[tuple[Request, dict[str, Any]]]) -> list[Reply | BaseException]:
    await actor.load(0, None)
    return await asyncio.gather(*(actor.call(*each) for each in asked), return_exceptions=True)


def actor_answers(asked: list[tuple[Request, dict[str, Any]]], max_batch: int = 100) -> tuple[list[Any], HostedShell]:
    actor = HostActor(affine_recipe(2.0), "name", 0.0, max_batch)
    return asyncio.run(_ask(actor, asked)), shell_of(actor)


def test_requests_that_wait_run_together() -> None:
    asked = [(Request(str(value), "apply", 0), x(value)) for value in range(10)]
    answers, shell = actor_answers(asked)
    assert [y(answer) for answer in answers] == [[2.0 * value] for value in range(10)]
    assert shell.batches == 1


def test_a_batch_holds_no_more_rows_than_allowed_and_no_row_is_lost() -> None:
    asked = [(Request(str(value), "apply", 0), x(value, value)) for value in range(5)]
    answers, shell = actor_answers(asked, max_batch=4)
    assert [y(answer) for answer in answers] == [[2.0 * value] * 2 for value in range(5)]
    assert shell.batches == 3


def test_only_equal_requests_share_a_batch() -> None:
    asked = [
        (Request("a", "apply", 0), x(1.0)),
        (Request("b", "checked", 0), x(1.0)),
        (Request("c", "apply", 0, {"other": 1}), x(1.0)),
        (Request("d", "apply", 0), {"x_BF": np.ones((1, 2))}),
        (Request("e", "apply", 5), x(1.0)),
    ]
    answers, shell = actor_answers(asked)
    assert [answer.stale for answer in answers] == [False] * 4 + [True]
    assert shell.batches == 4


def test_requests_behind_an_update_see_its_result() -> None:
    asked = [
        (Request("a", "apply", 0), x(1.0)),
        (Request("b", "fit", 0, next_version=1), x(3.0)),
        (Request("c", "apply", 1), x(1.0)),
    ]
    (before, _, after), _ = actor_answers(asked)
    assert (y(before), y(after)) == ([2.0], [5.0])


def test_a_faulty_request_fails_alone() -> None:
    asked = [(Request(str(value), "checked", 0), x(value)) for value in (1.0, float("nan"), 3.0)]
    (one, two, three), _ = actor_answers(asked)
    assert (y(one), y(three)) == ([2.0], [6.0])
    assert isinstance(two, NonFiniteValue)
