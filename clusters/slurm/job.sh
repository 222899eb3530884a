#!/bin/bash
# Made from slurm.yaml by `proxygap cluster render`: change that file, and render again.
#SBATCH --job-name=proxygap
#SBATCH --partition=gpu
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=65536M
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
if [ "$#" -lt 2 ]; then
  echo "usage: sbatch job.sh run|sweep FILE [SECTION.FIELD=VALUE]..." >&2
  exit 2
fi

# What every process of the job knows.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export MLFLOW_DISABLE_TELEMETRY=true
export OMP_NUM_THREADS=1
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
runs="$HOME"/proxygap/runs
mkdir -p "$runs"
job="$runs/.slurm-$SLURM_JOB_ID"
head_ip=${PROXYGAP_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)} # the script runs on the first node, the head
export PROXYGAP_JOB="$job" PROXYGAP_HEAD="$head_ip:6379"

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
  source "$HOME"/proxygap/.venv/bin/activate
  mkdir -p "$RAY_TMPDIR"
  case "$SLURM_NODEID" in
    0) options=(--num-cpus=16 --num-gpus=1 --labels=pool=policy) ;;
    1|2) options=(--num-cpus=16 --num-gpus=1 --labels=pool=reward) ;;
    3) options=(--num-cpus=16 --num-gpus=1 --labels=pool=dynamics) ;;
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
left=$((${SLURM_JOB_END_TIME:-0} - $(date +%s)))
if [ "$stopped" = 1 ] && [ "$code" != 0 ] && [ "$left" -le 360 ]; then
  scontrol requeue "$SLURM_JOB_ID" # the time was up, and what is left goes on from its checkpoint
fi
exit "$code"
