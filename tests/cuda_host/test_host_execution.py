"""The instrument before the measurement: the host execution must find the mistakes it claims to find."""

import shutil

import pytest
import torch
from kernel_host import Request, run

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FAULTS = {
    1: "without a barrier after another thread's (read|write)",  # whichever comes first in the schedule
    2: "without a barrier after another thread's (read|write)",
    3: "a thread ends while its warp waits",
    4: "lanes of a warp meet in different operations",
    5: "a copy to it is under way",
    6: "heap-buffer-overflow",
    7: "outside of shared memory",
    8: "misaligned access to global memory",
    9: "before the kernel in front has ended",
}


def request(fault: int, seed: int = 0) -> Request:
    words = {"kind": "fault", "fault": fault, "multiprocessors": 1, "shared_bytes": 49152, "seed": seed}
    return Request(words, [torch.arange(64, dtype=torch.float32)], {"data": ((64,), torch.float32)})


@pytest.mark.parametrize("seed", range(3))
def test_a_right_kernel_runs(seed: int) -> None:
    assert torch.equal(run(request(0, seed))["data"], torch.arange(64, dtype=torch.float32).roll(-1))


@pytest.mark.parametrize("fault", FAULTS)
def test_mistakes_are_found(fault: int) -> None:
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        run(request(fault))
