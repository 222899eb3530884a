"""What can be refused before launch but needs the task, its data or its models themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxygap.base.errors import InvalidExperiment
from proxygap.probe.catalog import FRONT_OUTCOMES

if TYPE_CHECKING:
    from proxygap.experiment import DatasetPart, Experiment

SEVERAL_REWARDS = frozenset({"ppo", "rloo", "grpo", "token_ppo", "reinforce"})
"""Optimizers that take several rewards apart."""


def check(experiment: Experiment) -> None:
    """Look at everything that an experiment names.

    Raises:
        InvalidExperiment: an unknown task, a package or a model directory that is not there, parts that do not fit.
        InvalidDataset: a file of labels, or of episodes, that cannot be used.
        CheckpointRefused: a model directory with weights that are missing or do not fit.
    """
    experiment.task.check()
    _check_actions(experiment)
    _check_rewards(experiment)
    _check_front(experiment)
    _check_model(experiment)
    if experiment.labels.file is not None:
        _check_labels(experiment, experiment.labels.file)
    for section, dataset in experiment.datasets.items():
        _check_dataset(experiment, section, dataset)
    if getattr(experiment.policy, "directory", None) is not None:
        task, seed = experiment.language_task(experiment.seeds[0]), experiment.seeds[0]
        prompts = len(task.prompt_tokens())
        experiment.language_model.build(task.item_spec, end_token=task.end_token, prompts=prompts, seed=seed)


def _check_actions(experiment: Experiment) -> None:
    task: Any = experiment.task
    field, chosen = _who_acts(experiment)
    if experiment.loop.family == "control" and task.discrete and chosen != "ppo":
        raise InvalidExperiment(
            f"the task is a choice among {task.action_size} actions, and {chosen} acts with real numbers",
            field=field,
            value=chosen,
            remedy="Use a loop with the optimizer ppo (loop.kind: ppo or preference_control)",
        )


def _who_acts(experiment: Experiment) -> tuple[str, str]:
    """The field that decides who acts in a control task, and what it says: the optimizer, or a loop without one."""
    if experiment.optimize is not None:
        return "optimize.kind", experiment.optimize.kind
    return "loop.kind", experiment.loop.kind


def _check_model(experiment: Experiment) -> None:
    """What a dynamics model is fitted by, and how far a planner looks, must go with task and loop."""
    loop, task = experiment.loop, experiment.control_task
    if "dynamics" not in loop.hosted:
        return
    loss, plans = experiment.dynamics.loss.kind, not loop.optimizers
    if loss == "expert_distance" and experiment.expert is None:
        raise InvalidExperiment(
            "weighs transitions by how far an expert is, and there is none",
            field="fit.loss.kind",
            value=loss,
            remedy="Add the section expert (`proxygap list dataset`), or choose another loss",
        )
    asked = experiment.objective
    if asked.startswith("expert_") and experiment.expert is None and not hasattr(loop, "score_on"):
        raise InvalidExperiment(
            "is measured on transitions of an expert, and there is none",
            field="probe.objective",
            value=asked,
            remedy="Add the section expert (`proxygap list dataset`), or choose held_out_log_likelihood",
        )
    if loss == "value_gradient" and plans:
        from proxygap.loops.values import QuadraticValue

        QuadraticValue.of(task)
    if plans and experiment.plan.planner.horizon > task.max_episode_steps:
        raise InvalidExperiment(
            f"plans beyond the end of an episode of {task.name}, which has {task.max_episode_steps} steps",
            field="plan.planner.horizon",
            value=experiment.plan.planner.horizon,
            remedy=f"Lower it to {task.max_episode_steps} or less",
        )


def _check_rewards(experiment: Experiment) -> None:
    """Several rewards need an optimizer that takes them apart, and a weighting that knows their names."""
    judge, loop, task = experiment.judge, experiment.loop, experiment.task
    names: tuple[str, ...] = tuple(task.components)
    if not names:
        for field, given in (("combine", judge.combine), ("weighting", judge.weighting)):
            if given is not None and given != type(judge).model_fields[field].default:
                raise InvalidExperiment(
                    f"the task {task.name} pays one reward, so there is nothing to weigh",
                    field=f"judge.{field}",
                    value=given.kind,
                    remedy="Remove it, or choose a task with components (`proxygap list task`)",
                )
        return
    optimizer = experiment.optimize.kind if experiment.optimize else ""
    field, chosen = _who_acts(experiment)
    if (optimizer or loop.family == "control") and chosen not in SEVERAL_REWARDS:
        raise InvalidExperiment(
            f"the task pays {len(names)} rewards ({', '.join(names)}), and {chosen} replays one",
            field=field,
            value=chosen,
            remedy=f"Choose one of {', '.join(sorted(SEVERAL_REWARDS))}, and a loop that takes it",
        )
    if judge.combine is not None:
        judge.combine.check_names(names)
        return
    judge.weighting.init(names, 0)
    if not optimizer and judge.weighting.kind != "fixed":
        raise InvalidExperiment(
            f"loop {loop.kind!r} has no updates between which weights could move",
            field="judge.weighting.kind",
            value=judge.weighting.kind,
            remedy="Use the weighting fixed, or the loop language_rl",
        )


def _check_front(experiment: Experiment) -> None:
    """Outcomes of a front need several rewards, a reference point, and some of them the true front."""
    task: Any = experiment.task
    wanted = [name for name in experiment.outcomes if name in FRONT_OUTCOMES]
    if not wanted:
        return
    if not task.components:
        raise InvalidExperiment(
            f"the task {task.name} pays one reward, so it has no front",
            field="outcomes",
            value=wanted[0],
            remedy="Choose another outcome, or a task with components (`proxygap list task`)",
        )
    whole = experiment.language_task(experiment.seeds[0]) if experiment.loop.family == "language" else task
    if "igd_plus" in wanted and whole.front() is None:
        raise InvalidExperiment(
            f"the front of {task.name} is not known", field="outcomes", value="igd_plus", remedy="Use hypervolume"
        )
    if "hypervolume" in wanted and whole.reference_point() is None:
        settable = "reference" in type(task).model_fields
        values = f"Set it to a value for each of {', '.join(task.components)} that every useful policy exceeds"
        raise InvalidExperiment(
            f"the hypervolume of {task.name} needs a reference point, and none is agreed on",
            field="task.reference" if settable else "outcomes",
            remedy=values if settable else "Choose another outcome: more of a component is not better in this task",
        )
    from proxygap.probe.pareto import check_reference

    if (reference := whole.reference_point()) is not None:
        check_reference(reference, task.components, whole.front())


def _check_dataset(experiment: Experiment, section: str, dataset: DatasetPart) -> None:
    """A teacher's experiment must be sound as well, and a file must be there."""
    teacher = getattr(dataset, "teacher", None)
    if teacher is not None and teacher.kind == "loop":
        teacher.look(experiment, f"{section}.teacher")
    if dataset.kind == "file":
        from proxygap.loops.datasets import check_file

        check_file(experiment, dataset)


def _check_labels(experiment: Experiment, file: str) -> None:
    from proxygap.collect.labels.dataset import read_preferences

    if experiment.loop.family == "control":
        remedy = "Remove it: annotators are asked about segments of this run"
        raise InvalidExperiment("labels of segments are not read from files", field="labels.file", remedy=remedy)
    if experiment.task.components:
        remedy = "Remove it: annotators are asked about each component"
        raise InvalidExperiment(
            "labels of several components are not read from files", field="labels.file", remedy=remedy
        )
    task, repeats = experiment.language_task(experiment.seeds[0]), experiment.labels.repeats
    prompts = task.prompt_tokens()
    read_preferences(file, task.item_spec, prompts=prompts, on_duplicate=repeats, on_contradiction=repeats)
