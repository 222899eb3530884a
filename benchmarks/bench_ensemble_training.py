"""Training a Gaussian ensemble, transitions per CPU second: ours and mbrl-lib's, taking turns, one thread each.

Seven members, 11 + 3 inputs, 12 targets (Hopper's, with the reward), bootstrap samples, Adam, no validation: 4x200 as
PETS and MBPO have it, at batch 256 and 32. A transition counts once, though every member learns from one. Then 16
ensembles: ours all at once, as one stack of 112 members; the peer's one after the other, which is all it can. Both
sides are called as their users call them (`GaussianEnsemble.fit`; iterators, normalizer and `ModelTrainer.train`).

"bound" is no more than the matrix products of forward and backward at the same shapes, on tensors that lie ready:
nobody who computes in float32 with this torch on this machine is faster. Before anything is timed, equal weights must
give equal predictions on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from draw import kept
from measure import Ratio, cpu_rates, fresh_peak_mib, seconds_table, turns
from peers.cost import Cost, cost_of
from peers.models import Columns, columns, largest_difference, random_transitions
from peers.worker import Peer, peer_peak_mib
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

OBS, ACTION, MEMBERS, EPOCHS, REPEATS = 11, 3, 7, 4, 5


@dataclass(frozen=True)
class Case:
    """One size of the work; ``models`` ensembles on ``rows`` transitions each."""

    hidden: tuple[int, ...]
    batch: int
    models: int
    rows: int

    @property
    def name(self) -> str:
        widths = f"{len(self.hidden)}x{self.hidden[0]}"
        return f"{f'{self.models} of ' if self.models > 1 else ''}{widths}, batch {self.batch}"

    @property
    def sizes(self) -> dict[str, object]:
        return {"obs": OBS, "action": ACTION, "members": MEMBERS, "elites": 5, "hidden": list(self.hidden)}


DEEP, SMALL = (200,) * 4, (32, 32)
SINGLE = [Case(DEEP, 256, 1, 2560), Case(DEEP, 32, 1, 1280)]
MANY = [Case(DEEP, 256, 16, 1536), Case(DEEP, 32, 16, 640), Case(SMALL, 32, 16, 640)]
TARGETS = {SINGLE[0]: 1.5, SINGLE[1]: 2.0, MANY[0]: 3.0, MANY[1]: 3.0, MANY[2]: 3.0}


def ours(case: Case) -> Callable[[], object]:
    """A fit of a few epochs more; the few rows held out only make sure that there is a held-out side."""
    settings = GaussianEnsembleSettings(
        members=MEMBERS * case.models,
        hidden=case.hidden,
        batch_size=case.batch,
        held_out=4 / case.rows,
        stopping="budget",
        max_epochs=EPOCHS,
        weight_decay=(1e-5,),
    )
    data = random_transitions(OBS, ACTION, case.rows)

    model = settings.build(obs_size=OBS, action_size=ACTION, learn_reward=True, learn_termination=False, seed=0)

    def run() -> object:
        fitted = model.fit(data, 0)
        assert fitted.held_out_rows <= 20, fitted
        assert fitted.updates == EPOCHS * -(-fitted.training_rows // case.batch), fitted
        return fitted

    return run


def bound(case: Case) -> Callable[[], object]:
    """The products of as many epochs: forward, gradients of weights, gradients of all inputs but the network's."""
    members, batch = MEMBERS * case.models, case.batch
    widths = list(pairwise((OBS + ACTION, *case.hidden, 2 * (OBS + 1))))
    weights = [torch.randn(members, *shape) for shape in widths]
    inputs = [torch.randn(members, batch, fan_in) for fan_in, _ in widths]
    outputs = [torch.empty(members, batch, fan_out) for _, fan_out in widths]
    weight_grads = [torch.empty_like(weight) for weight in weights]
    input_grads = [torch.empty_like(rows) for rows in inputs]

    def run() -> None:
        for _ in range(EPOCHS * (case.rows // batch)):
            for layer, weight in enumerate(weights):
                torch.bmm(inputs[layer], weight, out=outputs[layer])
                torch.bmm(inputs[layer].mT, outputs[layer], out=weight_grads[layer])
                if layer:
                    torch.bmm(outputs[layer], weight.mT, out=input_grads[layer])

    return run


def timed(*calls: Callable[[], object]) -> list[Callable[[], Cost]]:
    return [partial(cost_of, call) for call in calls]


def files(case: Case) -> dict[str, Columns]:
    return {"data": columns(random_transitions(OBS, ACTION, case.rows))}


def main() -> bool:
    torch.set_num_threads(1)
    cases = [*SINGLE, *MANY]
    subjects, work, claims = {}, {}, []
    with Peer() as peer:
        difference = largest_difference(peer, SINGLE[0].sizes)
        assert difference < 1e-5, f"equal weights differ by {difference} in the mean"
        for case in cases:
            told = {"sizes": case.sizes, "models": case.models, "batch": case.batch, "epochs": EPOCHS}
            data = peer.arrays(case.name, **files(case)["data"])
            peer.build(case.name, "training", data=data, **told)
            names = [f"{whose}, {case.name}" for whose in ("mbrl-lib", "ours", "bound")]
            subjects |= dict(zip(names, (partial(peer.run, case.name), *timed(ours(case), bound(case))), strict=True))
            work |= dict.fromkeys(names, EPOCHS * case.rows * case.models)
            claims.append(Ratio(names[1], names[0], TARGETS[case]))
        costs = turns(subjects, REPEATS)
        two_threads = {case.name: seconds_on_two(peer, case) for case in SINGLE}
    rates = cpu_rates(costs, work)
    peaks = {
        case.name: {
            "ours": round(fresh_peak_mib(ours, case)),
            "mbrl-lib": round(
                peer_peak_mib("training", files(case), sizes=case.sizes, models=case.models, batch=case.batch, epochs=1)
            ),
        }
        for case in cases
    }
    details = {
        "largest_difference_of_equal_weights": difference,
        "least_and_median_seconds": seconds_table(costs),
        "rows_of_a_call": {name: int(value) for name, value in work.items()},
        "most_that_float32_allows": {
            case.name: round(max(rates[f"bound, {case.name}"]) / max(rates[f"mbrl-lib, {case.name}"]), 2)
            for case in cases
        },
        "wall_s_with_two_threads": two_threads,
        "peak_mib_beyond_imports": peaks,
    }
    return kept("ensemble_training", unit="transitions per CPU second", samples=rates, claims=claims, details=details)


def seconds_on_two(peer: Peer, case: Case) -> dict[str, float]:
    """Least wall clock of three calls each; the machine has two cores, which others use as well."""
    call, found = ours(case), {"ours": [], "mbrl-lib": []}
    for _ in range(3):
        torch.set_num_threads(2)
        found["ours"].append(cost_of(call).wall_s)
        torch.set_num_threads(1)
        found["mbrl-lib"].append(peer.run(case.name, threads=2).wall_s)
    return {name: float(f"{min(each):.3g}") for name, each in found.items()}


if __name__ == "__main__":
    sys.exit(not main())
