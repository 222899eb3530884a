"""Model-free soft actor-critic: the baseline in the same frame (Haarnoja et al. 2018, 1812.05905, algorithm 1)."""

from __future__ import annotations

from proxygap.loops.off_policy import OffPolicy


class Sac(OffPolicy):
    """Collect, then improve on what was collected."""

    def training_step(self) -> None:
        """One RLlib iteration."""
        for _ in range(self.samples_of_iteration()):
            self.collect()
            if self.warm:
                self.improve(self.real_batches)
        self.clocks = self.clocks.tick(iteration=1)
