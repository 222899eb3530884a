"""Scripts that start Ray by hand: ``head.sh`` on one machine, ``worker-GROUP.sh`` on others.

Each stays in the foreground and ends its Ray when it is ended itself. The head makes a token where there is none; other
machines need a copy of it first, in a file that nobody else may read.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render.documents import comment
from proxygap.submit.render.nodes import HEAD, SAFE, checked, command, exports, path_word, ray_options, workers
from proxygap.submit.settings import Cluster, RayStart

_LOOPBACK = ("127.", "localhost", "::1")


def render_ray_start(cluster: Cluster, made_by: RayStart, header: str) -> dict[str, str]:
    """``head.sh``, and ``worker-GROUP.sh`` for each other group.

    Raises:
        InvalidExperiment: for other machines, where the head listens on loopback alone.
    """
    checked(cluster)
    away = workers(cluster)
    if away and made_by.host.startswith(_LOOPBACK):
        remedy = "Give the head's address in the network that the machines share"
        problem = "cannot be reached by other machines"
        raise InvalidExperiment(problem, field="made_by.host", value=made_by.host, remedy=remedy)
    scripts = {"head.sh": _script(header, cluster, _make_token(cluster), _head(cluster, made_by))}
    for name, group in away.items():
        words = ["ray", "start", "--block", f"--address={made_by.host}:{made_by.port}", *ray_options(group)]
        scripts[f"worker-{name}.sh"] = _script(header, cluster, _REFUSE, command(words))
    return scripts


def _script(header: str, cluster: Cluster, token: str, start: str) -> str:
    settings = {**SAFE, "RAY_JOB_STOP_WAIT_TIME_S": str(cluster.stop_wait_s), **cluster.env}
    where = f"token={path_word(cluster.token_file or '~/.ray/auth_token', 'token_file')}"
    lines = ["set -euo pipefail", *exports(settings), where, token.strip(), 'export RAY_AUTH_TOKEN_PATH="$token"']
    return "#!/bin/bash\n" + comment(header) + "\n".join([*lines, f"exec {start}"]) + "\n"


def _make_token(cluster: Cluster) -> str:
    return _REFUSE if cluster.token_file else _GENERATE


_GENERATE = r"""
if [ ! -s "$token" ]; then # as `ray get-auth-token --generate`, for its owner alone
  (umask 077 && mkdir -p "${token%/*}" && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$token")
fi
"""
_REFUSE = r"""
if [ ! -s "$token" ]; then
  echo "error: $token: no token of the cluster. Copy the head's here, for yourself alone (chmod 600)" >&2
  exit 12
fi
"""


def _head(cluster: Cluster, made_by: RayStart) -> str:
    dashboard = urlsplit(cluster.address).port or 8265
    words = ["ray", "start", "--head", "--block", f"--node-ip-address={made_by.host}", f"--port={made_by.port}"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    words += ["--dashboard-agent-listen-port=0"]  # any free one: where another Ray has the usual, no job would start
    group = cluster.groups.get(HEAD)  # without one, what the machine has
    return command([*words, *(ray_options(group) if group else [])])
