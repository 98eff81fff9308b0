"""Errors of the hardware are told apart, and memory that ran out halves the batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.batch_limit import BatchLimit, split_batch
from cleanai_ray.nn.faults import is_device_fault, is_out_of_memory
from cleanai_ray.nn.notices import collected_notices, notice


def wrapped(error: Exception) -> Exception:
    """Return an error of this package that was raised from another one."""
    try:
        try:
            raise error
        except Exception as cause:
            raise EvaluationError("a batch cannot be scored") from cause
    except EvaluationError as found:
        return found


def too_large() -> Exception:
    """Return what torch raises where the memory of this machine is too small."""
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**50)
    return found.value


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
FAULTS = [
    # Before 2.8, torch raised a RuntimeError here too.
    getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
]
NEITHER = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("CUDA error"), EvaluationError("none")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_ran_out_is_no_fault(error: Exception) -> None:
    for found in (error, wrapped(error)):
        assert (is_out_of_memory(found), is_device_fault(found)) == (True, False)


def test_torch_says_of_this_machine_too_that_memory_ran_out() -> None:
    assert is_out_of_memory(too_large())


@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_of_the_device_is_one_however_it_is_wrapped(error: Exception) -> None:
    for found in (error, wrapped(error)):
        assert (is_out_of_memory(found), is_device_fault(found)) == (False, True)


@pytest.mark.parametrize("error", NEITHER)
def test_other_errors_are_neither(error: Exception) -> None:
    assert (is_out_of_memory(error), is_device_fault(error)) == (False, False)


def counted(limit: BatchLimit, batches: list[Any], most: int, sizes: list[int]) -> Tensor:
    """Return the sum over all samples, on a device that holds a number of them at a time."""
    total = torch.zeros(3)
    for inputs, _ in limit.split(batches):
        sizes.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        total += inputs.sum(0)
    return total


def test_batches_are_halved_until_they_fit_and_the_sum_is_the_same() -> None:
    values = torch.arange(39.0).reshape(13, 3)
    batches = [(values[:8], None), (values[8:], None)]
    limit, sizes = BatchLimit(), []
    with collected_notices() as notices:
        found = limit.within_memory(lambda: counted(limit, batches, 3, sizes), "scoring")
    assert torch.equal(found, values.sum(0))
    # 8 and 4 are too many; then 8 samples in four pieces and 5 in three.
    assert sizes == [8, 4, 2, 2, 2, 2, 1, 2, 2]
    (text,) = notices
    assert text.startswith("memory ran out with larger batches: scoring ran on at most 2 samples at a time")
    assert limit.size == 2


def test_the_limit_stays_and_is_told_again_where_it_matters() -> None:
    limit, sizes = BatchLimit(), []
    limit.size = 4
    small, large = [(torch.zeros(3, 3), None)], [(torch.zeros(9, 3), None)]
    with collected_notices() as notices:
        limit.within_memory(lambda: counted(limit, small, 4, sizes), "scoring")
        assert notices == []
        limit.within_memory(lambda: counted(limit, large, 4, sizes), "calibration")
    assert sizes == [3, 3, 3, 3]
    assert len(notices) == 1


def test_a_single_sample_that_is_too_large_is_an_error_and_so_is_work_without_batches() -> None:
    limit, sizes = BatchLimit(), []
    with pytest.raises(torch.OutOfMemoryError):
        limit.within_memory(lambda: counted(limit, [(torch.zeros(4, 3), None)], 0, sizes), "scoring")
    assert sizes == [4, 2, 1]

    def plan() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        BatchLimit().within_memory(plan, "pruning")


def test_other_errors_are_not_tried_again() -> None:
    limit, calls = BatchLimit(), []

    def work() -> None:
        calls.append(next(iter(limit.split([(torch.zeros(4, 3), None)]))))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        limit.within_memory(work, "scoring")
    assert len(calls) == 1


def test_pieces_of_a_batch_keep_inputs_and_targets_together() -> None:
    inputs, targets = torch.arange(5), {"boxes": [10, 11, 12, 13, 14], "size": 7}
    assert [(list(one), other) for one, other in split_batch(inputs, targets, 2)] == [
        ([0, 1], {"boxes": [10, 11], "size": 7}),
        ([2, 3, 4], {"boxes": [12, 13, 14], "size": 7}),
    ]
    assert [target for _, target in split_batch(inputs, None, 5)] == [None] * 5


def test_notices_are_collected_once_and_by_the_innermost() -> None:
    def inner() -> Iterator[list[str]]:
        with collected_notices() as found:
            notice("a")
            notice("a")
            yield found

    with collected_notices() as outer:
        assert next(inner()) == ["a"]
    assert outer == []
    notice("nobody collects this")
