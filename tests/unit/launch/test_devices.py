"""Which GPU a rank sees and uses."""

from __future__ import annotations

import pytest

from hvdspark.errors import ClusterError, ConfigurationError
from hvdspark.launch.devices import check_device, choose_device, cuda_environment, visible_devices


@pytest.mark.parametrize(
    ("assigned", "existing", "expected"),
    [
        (["0"], None, ["0"]),
        (["3", "1"], None, ["3", "1"]),
        (["0"], "4,5", ["4"]),
        (["1"], "4,5", ["5"]),
        (["5"], "4,5", ["5"]),  # a discovery script that prints physical indexes
        (["GPU-8c1f"], "GPU-77aa,GPU-8c1f", ["GPU-8c1f"]),
        (["1"], "GPU-77aa,GPU-8c1f", ["GPU-8c1f"]),
        (["MIG-GPU-1/7/0"], "0,1", ["MIG-GPU-1/7/0"]),
        (["1"], " 6 , 7 ", ["7"]),
    ],
)
def test_addresses_are_mapped_through_what_the_executor_sees(
    assigned: list[str], existing: str | None, expected: list[str]
) -> None:
    assert visible_devices(assigned, existing) == expected


def test_an_address_the_executor_cannot_see_is_an_error() -> None:
    with pytest.raises(ClusterError, match="cannot see: '7'.*CUDA_VISIBLE_DEVICES=0,1.*Hint"):
        visible_devices(["7"], "0,1")


def test_environment() -> None:
    assert cuda_environment("cpu", ["1"], "4,5") == {"CUDA_VISIBLE_DEVICES": ""}
    assert cuda_environment("auto", ["1"], "4,5") == {"CUDA_VISIBLE_DEVICES": "5"}
    assert cuda_environment("cuda", ["1"], None) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert cuda_environment("auto", [], "4,5") == {}


@pytest.mark.parametrize(
    ("device", "scheduled", "available", "expected"),
    [
        ("auto", True, True, "cuda"),
        ("auto", True, False, "cpu"),
        ("auto", False, True, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, True, "cuda"),
    ],
)
def test_choice(device: str, scheduled: bool, available: bool, expected: str) -> None:
    assert choose_device(device, scheduled, available) == expected


@pytest.mark.parametrize(("scheduled", "available"), [(True, False), (False, True)])
def test_cuda_insists(scheduled: bool, available: bool) -> None:
    with pytest.raises(ClusterError, match=r"no GPU.*Hint: set spark\.task\.resource\.gpu\.amount"):
        choose_device("cuda", scheduled, available)


def test_unknown_device() -> None:
    with pytest.raises(ConfigurationError, match="'tpu'.*auto, cpu, cuda"):
        check_device("tpu")
