"""What the loops share whose models are given their data: a room of models, and what was found of them so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement
from proxygap.base.protocols import State
from proxygap.loops.model_data import ModelData, room

if TYPE_CHECKING:
    from proxygap.experiment import Experiment


class GivenData(ABC):
    """A loop whose every step is measured. Its state is its clocks and its findings; subclasses add theirs.

    Args:
        experiment: the loop's.
        seed: of the run.
        at_once: models that the room holds.
    """

    def __init__(self, experiment: Experiment, seed: int, at_once: int) -> None:
        self.experiment, self.seed = experiment, seed
        self.clocks, self.learned, self.weights = Clocks(), dict[str, float](), dict[str, float]()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.population = room(experiment, seed, at_once, self.tell)
        self.found: dict[str, NDArray[Any]] = {}
        self._data: ModelData | None = None

    def tell(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Something happened."""
        self.events.append((kind, dict(detail)))

    @property
    def data(self) -> ModelData:
        """Made when it is first needed."""
        if self._data is None:
            self._data = self.make_data()
        return self._data

    @abstractmethod
    def make_data(self) -> ModelData:
        """What models are fitted to and scored on."""

    @abstractmethod
    def train(self) -> None:
        """One step."""

    @property
    def measure_due(self) -> bool:
        """Always."""
        return True

    @abstractmethod
    def measure(self) -> tuple[Measurement, ...]:
        """Both sides of this step."""

    def note(self, places: Sequence[int], size: int, found: Mapping[str, NDArray[Any]]) -> None:
        """Keep what was found, by its name, in ``places`` of ``size``; -1 or NaN stand where nothing was found yet."""
        for name, values in found.items():
            if name not in self.found:
                empty = -1 if np.issubdtype(values.dtype, np.integer) else np.nan
                self.found[name] = np.full((size, *values.shape[1:]), empty, values.dtype)
            self.found[name][list(places)] = values

    def keep(self, folder: Path, provenance: Mapping[str, str]) -> None:  # noqa: B027 - it is an answer
        """Nothing beside the measurements: the data is kept where it was made."""

    def parts(self) -> dict[str, State]:
        """The complete state."""
        found = {name: value.copy() for name, value in self.found.items()}
        return {"loop": State({}, {"clocks": self.clocks.as_dict()}), "found": State(found, {})}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        self.clocks = Clocks(**parts["loop"].structure["clocks"])
        self.found = {name: np.array(value) for name, value in parts["found"].arrays.items()}

    def stop(self) -> None:
        """Release the hosts."""
        self.population.close()
