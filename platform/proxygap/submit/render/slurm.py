"""A batch script for SLURM: ``ray symmetric-run`` starts Ray on every node and runs the experiment on the first.

SLURM sends SIGTERM to the script ``warn_s`` before the end of its time; the script hands it to the driver alone, which
stops at a checkpoint, and then queues the job again. Nodes are taken whole, since `ray symmetric-run` ends every Ray
of its user on a node. Directives: https://slurm.schedmd.com/sbatch.html.
"""

from __future__ import annotations

import re

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render.documents import comment
from proxygap.submit.render.nodes import SAFE, checked, command, exports, path_word, ray_options
from proxygap.submit.settings import Cluster, NodeGroup, Slurm

WAIT_S = 600
"""Seconds that nodes may take to come; Ray's own 30 are too few for a cold file system."""
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]*")
_PLACE = re.compile(r"@([A-Z_]+)@")
_SCRIPT = r"""#!/bin/bash
@HEADER@
@DIRECTIVES@
set -euo pipefail
if [ "$#" -lt 2 ]; then
  echo "usage: sbatch job.sh run|sweep FILE [SECTION.FIELD=VALUE]..." >&2
  exit 2
fi

# What every process of the job knows.
@ENVIRONMENT@
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=@WAIT@
runs=@FOLDER@
mkdir -p "$runs"
job="$runs/.slurm-$SLURM_JOB_ID"
head_ip=${PROXYGAP_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)} # the script runs on the first node, the head
export PROXYGAP_JOB="$job" PROXYGAP_HEAD="$head_ip:@PORT@"

# A token of this job alone, in a folder that nobody else may read.
(
  umask 077
  mkdir -p "$job"
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$job/token"
)
export RAY_AUTH_TOKEN_PATH="$job/token"
trap 'rm -rf "$job"' EXIT

# What every node does. The driver alone is told to stop: it writes its number down, and keeps it.
node() {
@ACTIVATE@
  mkdir -p "$RAY_TMPDIR"
  case "$SLURM_NODEID" in
@NODES@
  esac
  ray symmetric-run --address "$PROXYGAP_HEAD" --min-nodes "$SLURM_JOB_NUM_NODES" \
    "${options[@]}" --dashboard-host=127.0.0.1 -- \
    env RAY_ADDRESS="$PROXYGAP_HEAD" bash -c 'echo "$$" >"$PROXYGAP_JOB/driver"; exec "$@"' driver "$@"
  if [ "$SLURM_NODEID" = 0 ] && [ ! -s "$PROXYGAP_JOB/driver" ]; then
    echo "error: Ray did not start on the head, so nothing ran; see above" >&2 # symmetric-run calls that a success
    return 4
  fi
}

stopped=0 step=""
stop() {
  stopped=1
  if [ -s "$job/driver" ]; then
    kill -TERM "$(cat "$job/driver")" || true
  elif [ -n "$step" ]; then
    kill -TERM "$step" || true
  fi
}
trap stop TERM

srun --kill-on-bad-exit=0 bash -c "set -euo pipefail; $(declare -f node); node \"\$@\"" node \
  proxygap "$1" "$2" record.folder="$runs" "${@:3}" &
step=$!
code=0
while :; do
  if wait "$step"; then code=0; else code=$?; fi
  kill -0 "$step" 2>/dev/null || break # a signal ended the wait, not the step
done
@REQUEUE@
exit "$code"
"""
_REQUEUE = r"""
left=$((${SLURM_JOB_END_TIME:-0} - $(date +%s)))
if [ "$stopped" = 1 ] && [ "$code" != 0 ] && [ "$left" -le @NEAR@ ]; then
  scontrol requeue "$SLURM_JOB_ID" # the time was up, and what is left goes on from its checkpoint
fi
"""


def render_slurm(cluster: Cluster, made_by: Slurm, header: str) -> dict[str, str]:
    """``job.sh``: ``sbatch job.sh run FILE [SECTION.FIELD=VALUE]...``, from a folder that all nodes see.

    Raises:
        InvalidExperiment: for nodes that differ in more than their labels and resources, or come and go.
    """
    checked(cluster)
    _check_time(cluster, made_by)
    environment = {**SAFE, "OMP_NUM_THREADS": "1"}
    for name, value in (("PROXYGAP_STORAGE", cluster.storage), ("MLFLOW_TRACKING_URI", cluster.tracking_uri)):
        environment |= {} if value is None else {name: value}
    places = {
        "HEADER": comment(header).rstrip(),
        "DIRECTIVES": "\n".join(f"#SBATCH {one}" for one in _directives(cluster, made_by)),
        "ENVIRONMENT": "\n".join(exports({**environment, **cluster.env})),
        "WAIT": str(WAIT_S),
        "FOLDER": path_word(cluster.folder, "folder"),
        "PORT": str(made_by.port),
        "ACTIVATE": f"  source {path_word(made_by.activate, 'made_by.activate')}" if made_by.activate else "  :",
        "NODES": _options_by_node(cluster),
        "REQUEUE": _REQUEUE.strip().replace("@NEAR@", str(made_by.warn_s + 60)) if made_by.requeue else "",
    }
    return {"job.sh": _PLACE.sub(lambda found: places[found[1]], _SCRIPT).replace("\n\nexit", "\nexit")}


def _check_time(cluster: Cluster, made_by: Slurm) -> None:
    if made_by.warn_s < cluster.stop_wait_s:
        raise InvalidExperiment(
            f"is less than stop_wait_s = {cluster.stop_wait_s}, the time that a run has to reach a checkpoint",
            field="made_by.warn_s",
            value=made_by.warn_s,
            remedy="Raise it",
        )


def _directives(cluster: Cluster, made_by: Slurm) -> list[str]:
    one = _alike(cluster)
    sites = {"partition": one.machine or made_by.partition, "account": made_by.account}
    for field, name in sites.items():
        if name is not None and not _SITE_NAME.fullmatch(name):
            remedy = "Use letters, digits, dash, dot and underscore"
            raise InvalidExperiment("is no name in SLURM", field=f"made_by.{field}", value=name[:60], remedy=remedy)
    nodes = sum(group.least for group in cluster.groups.values())
    options = [f"--job-name={cluster.name}", *(f"--{field}={name}" for field, name in sites.items() if name)]
    options += [f"--nodes={nodes}", "--ntasks-per-node=1", "--exclusive", f"--cpus-per-task={one.cpus}"]
    options += [f"--gpus-per-node={one.gpus}"] if one.gpus else []
    options += [f"--mem={int(one.memory_gib * 1024)}M", f"--time={made_by.time}", f"--signal=B:TERM@{made_by.warn_s}"]
    options += ["--requeue" if made_by.requeue else "--no-requeue", "--open-mode=append", "--output=%x-%j.out"]
    return options


def _alike(cluster: Cluster) -> NodeGroup:
    """The head's group, where all others have the same machines. Raises `InvalidExperiment` otherwise."""
    first = cluster.groups["head"]
    for name, group in cluster.groups.items():
        if group.least != group.most or group.least < 1:
            remedy = "Set least = most: a batch job's nodes neither come nor go"
            raise InvalidExperiment("has nodes that come and go", field=f"groups.{name}", remedy=remedy)
        for field in ("cpus", "gpus", "memory_gib", "machine"):
            if getattr(group, field) != getattr(first, field):
                raise InvalidExperiment(
                    f"differs from groups.head.{field} = {getattr(first, field)!r}; nodes of a batch job are alike",
                    field=f"groups.{name}.{field}",
                    value=getattr(group, field),
                    remedy="Make them equal, or submit to a Ray cluster that runs on other partitions",
                )
    return first


def _options_by_node(cluster: Cluster) -> str:
    """Cases over the number of a node in the job: groups of equal machines may differ in labels and resources."""
    lines, first = [], 0
    for name, group in sorted(cluster.groups.items(), key=lambda item: item[0] != "head"):
        numbers = "|".join(str(number) for number in range(first, first + group.least))
        lines.append(f"    {numbers}) options=({command(ray_options(group), f'groups.{name}')}) ;;")
        first += group.least
    return "\n".join(lines)
