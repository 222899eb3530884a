"""Errors that a user meets: each names the field, the value and the remedy, and ends the command with its own code.

One root, one class per cause. The exit code is part of the interface: scripts and cluster launchers branch on it.
"""

from __future__ import annotations

from typing import ClassVar


class ProxyGapError(Exception):
    """Root of every error that ProxyGap raises on purpose.

    Args:
        problem: what is wrong, in one sentence.
        field: the dotted field (or file, or host) at fault, when there is one.
        value: the offending value, shown with ``repr``.
        remedy: what to do about it, in one sentence.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, field: str = "", value: object = None, remedy: str = "") -> None:
        self.problem, self.field, self.value, self.remedy = problem, field, value, remedy
        super().__init__(problem, field, value, remedy)

    def __str__(self) -> str:
        """One line: ``field = value: problem. remedy``."""
        place = self.field and (f"{self.field}: " if self.value is None else f"{self.field} = {self.value!r}: ")
        return f"{place}{self.problem}{'. ' + self.remedy if self.remedy else ''}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when the error crosses a Ray actor."""
        return _rebuild, (type(self), self.problem, self.field, self.value, self.remedy)


def _rebuild(kind: type[ProxyGapError], problem: str, field: str, value: object, remedy: str) -> ProxyGapError:
    return kind(problem, field=field, value=value, remedy=remedy)


class InvalidExperiment(ProxyGapError):
    """An experiment file, or an override of it, does not validate."""

    exit_code = 3


class InfeasibleResources(ProxyGapError):
    """The cluster can never satisfy a request for resources."""

    exit_code = 4


class CheckpointRefused(ProxyGapError):
    """A checkpoint is truncated, altered, or written by an incompatible version."""

    exit_code = 5


class TrackerUnavailable(ProxyGapError):
    """The MLflow tracking server cannot be reached by a command that needs it."""

    exit_code = 6


class HostFailed(ProxyGapError):
    """A model host did not answer within its deadline and its restarts."""

    exit_code = 7


class RunFailed(ProxyGapError):
    """One or more seeds of an experiment failed; their rows are in the report."""

    exit_code = 8


class StorageError(ProxyGapError):
    """A run folder, journal, or dataset cannot be read or written."""

    exit_code = 9


class InvalidDataset(ProxyGapError):
    """A dataset file does not match its schema or its hash."""

    exit_code = 10


class NonFiniteValue(ProxyGapError):
    """A model, an environment or a learner produced NaN or infinity."""

    exit_code = 11


class SubmissionFailed(ProxyGapError):
    """A cluster does not take, or does not know, a job: unreachable, another version, wrong token, no such job."""

    exit_code = 12


class Superseded(ProxyGapError):
    """A newer attempt has taken over the run; what this one would still write is refused."""

    exit_code = 13


class Interrupted(ProxyGapError):
    """The run was asked to stop (SIGINT or SIGTERM); its state is checkpointed."""

    exit_code = 130
