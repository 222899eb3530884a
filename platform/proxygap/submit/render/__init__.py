"""Cluster files as what tools read: `render` takes a cluster file to the files of the tool that makes it.

What is rendered holds no secret. Whatever a file's author could write stays a value: YAML is dumped from trees, and
every word of a script is quoted.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.settings import Cluster, KubeRay, Launcher, RayStart, Slurm, TrackerServer

__all__ = ["render"]


def render(made: Cluster | TrackerServer, source: str, job: Mapping[str, str] | None = None) -> dict[str, str]:
    """The files that make a cluster, or a tracking server, by their names.

    Args:
        made: the validated cluster file.
        source: its name, which the rendered files point back to.
        job: for KubeRay alone: the ``command``, ``name`` and ``text`` of an experiment that a RayJob brings.

    Raises:
        InvalidExperiment: for what the tool would refuse or misread, with field, value and remedy.
    """
    from proxygap.submit.render.kuberay import render_kuberay
    from proxygap.submit.render.launcher import render_launcher
    from proxygap.submit.render.mlflow import render_mlflow
    from proxygap.submit.render.ray_start import render_ray_start
    from proxygap.submit.render.slurm import render_slurm

    header = f"Made from {source} by `proxygap cluster render`: change that file, and render again."
    made_by = None if isinstance(made, TrackerServer) else made.made_by
    if job is not None and not isinstance(made_by, KubeRay):
        remedy = "Leave it out; `proxygap submit` and job.sh take the experiment's file themselves"
        raise InvalidExperiment("is for KubeRay alone", field="--job", remedy=remedy)
    if isinstance(made, TrackerServer):
        return render_mlflow(made, header)
    match made_by:
        case RayStart():
            return render_ray_start(made, made_by, header)
        case Launcher():
            return render_launcher(made, made_by, header)
        case KubeRay():
            return render_kuberay(made, made_by, header, job)
        case Slurm():
            return render_slurm(made, made_by, header)
    remedy = "Add made_by with its kind, or leave it: a cluster that is there needs no files"
    raise InvalidExperiment("is missing, so there is nothing to render", field="made_by", remedy=remedy)
