"""Which torch device a host runs its model on."""

from __future__ import annotations

from proxygap.base.errors import InfeasibleResources


def device_for(gpus: float) -> str:
    """``cuda`` for a host with GPUs, ``cpu`` for one without.

    A GPU may be a mere number that a node was started with, for tests of placement. Only where torch is a build for
    CPUs and the machine has no GPU is it taken for one, and the model runs on the CPU; its pool then reports
    ``host_on_cpu``. A GPU that is there, or a torch that was built for one, is never exchanged for a CPU.

    Args:
        gpus: reserved for the host.

    Raises:
        InfeasibleResources: GPUs are reserved and torch sees none.
    """
    if gpus <= 0:
        return "cpu"
    import torch

    from proxygap.serve.placement import local_gpus

    if torch.cuda.is_available():
        return "cuda"
    built, there = bool(torch.version.cuda or torch.version.hip), local_gpus()
    if not built and not there:
        return "cpu"
    if there and not built:
        remedy = "install a build of torch for CUDA on every node with GPUs"
    else:
        remedy = "look at nvidia-smi there: driver, device plugin or container runtime hide the GPU"
    raise InfeasibleResources(
        f"the host was given a GPU and torch sees none (torch {torch.__version__}, {there} GPUs on its node)",
        field="gpus",
        value=gpus,
        remedy=f"On the node of the host, {remedy}; or set gpus to 0 to run it on CPUs",
    )
