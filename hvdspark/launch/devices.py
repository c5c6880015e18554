"""Which GPU a rank may see. Pure: decides the rank's `CUDA_VISIBLE_DEVICES` before anything can initialise CUDA."""

from __future__ import annotations

from collections.abc import Sequence

from hvdspark.errors import ClusterError, ConfigurationError

DEVICES = ("auto", "cpu", "cuda")


def check_device(device: str) -> str:
    if device not in DEVICES:
        raise ConfigurationError("unknown device", value=device, where="device", hint=f"one of {', '.join(DEVICES)}")
    return device


def visible_devices(assigned: Sequence[str], existing: str | None) -> list[str]:
    """GPU addresses that Spark assigned to a task, as names that CUDA understands in this executor.

    Args:
        assigned: `TaskContext.resources()["gpu"].addresses`: indexes, UUIDs or MIG ids.
        existing: `CUDA_VISIBLE_DEVICES` of the executor, or None when it is not set.

    An executor that already sees only some GPUs (Kubernetes, YARN with isolation) counts its own from 0, so an
    index is looked up in `existing` (the rule of Spark's TorchDistributor). UUIDs and MIG ids pass unchanged.

    Raises:
        ClusterError: an address is neither an index into `existing` nor one of its entries.
    """
    if existing is None:
        return list(assigned)
    owned = [name.strip() for name in existing.split(",") if name.strip()]
    names = []
    for address in assigned:
        if address.isdigit() and int(address) < len(owned):
            names.append(owned[int(address)])
        elif address in owned or not address.isdigit():
            names.append(address)
        else:
            raise ClusterError(
                "Spark assigned a GPU that this executor cannot see",
                value=address,
                where=f"CUDA_VISIBLE_DEVICES={existing}",
                hint="let the discovery script print only the GPUs the executor may use",
            )
    return names


def cuda_environment(device: str, assigned: Sequence[str], existing: str | None) -> dict[str, str]:
    """The variables to set in the rank's environment.

    With "cpu" the rank sees no GPU at all. Otherwise it sees what Spark assigned; where Spark does not schedule
    GPUs (local mode) what the executor sees is left as it is, and the rank picks by its local rank.
    """
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if not assigned:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible_devices(assigned, existing))}


def choose_device(device: str, scheduled: bool, cuda_available: bool) -> str:
    """ "cpu" or "cuda" for this rank.

    Args:
        device: what the user asked for.
        scheduled: Spark assigned a GPU to the task, or runs in local mode, where it does not schedule any.
        cuda_available: `torch.cuda.is_available()` inside the rank.

    Raises:
        ClusterError: "cuda" was asked for and there is none for this rank.
    """
    if device == "cuda" and not (scheduled and cuda_available):
        raise ClusterError(
            "no GPU for this rank",
            value="CUDA is not available to torch" if scheduled else "Spark assigned no GPU to the task",
            where="device='cuda'",
            hint="set spark.task.resource.gpu.amount and spark.executor.resource.gpu.*, and install a CUDA build of "
            "torch; or use device='auto'",
        )
    return "cuda" if device != "cpu" and scheduled and cuda_available else "cpu"
