"""Logits kept by sample: found again whatever the order, in a file too, and missing where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleanai_ray.errors import ArtifactError
from cleanai_ray.evaluation.kept_logits import KeptLogits, LogitsKeeper

CPU = torch.device("cpu")


def row(number: int) -> list[float]:
    return [number / 2, -number, 7.0]


def kept(*batches: list[int], room: int = 20) -> KeptLogits:
    keeper = LogitsKeeper(room)
    for numbers in batches:
        logits = torch.tensor([row(number) for number in numbers])
        keeper.add(torch.tensor(numbers), logits)
        logits.zero_()
    return keeper.result()


def test_each_sample_has_its_own_row_in_whatever_order_it_came() -> None:
    for found in (kept([9, 2], [30, 4, 5]), KeptLogits.from_bytes(kept([9, 2], [30, 4, 5]).to_bytes())):
        assert found.numbers.tolist() == [2, 4, 5, 9, 30]
        assert found.values.dtype == np.float32
        assert found.num_classes == 3
        asked = [30, 2, 9, 2]
        assert found.rows(torch.tensor(asked), CPU).tolist() == [row(number) for number in asked]


def test_samples_that_the_model_gets_right() -> None:
    keeper = LogitsKeeper(4)
    # Sample n has the logits n / 2, -n and 7: class 0 wins from 15 on, class 2 below.
    keeper.add(torch.tensor([20, 4]), torch.tensor([row(20), row(4)]), torch.tensor([2, 2]))
    keeper.add(torch.tensor([16]), torch.tensor([row(16)]), torch.tensor([0]))
    for found in (keeper.result(), KeptLogits.from_bytes(keeper.result().to_bytes())):
        assert found.labels is not None
        assert found.labels.tolist() == [2, 0, 2]
        assert found.correct is not None
        assert found.correct.tolist() == [True, True, False]
    assert kept([9, 2]).correct is None


def test_samples_that_are_not_there_are_told_from_those_that_are() -> None:
    found = kept([9, 2], [4])
    asked = torch.tensor([1, 2, 3, 4, 9, 10])
    assert found.places_of(asked)[1].tolist() == [False, True, False, True, True, False]
    with pytest.raises(KeyError, match="no logits of sample 3"):
        found.rows(torch.tensor([2, 3]), CPU)
    assert kept().places_of(asked)[1].tolist() == [False] * 6


def test_rows_can_be_changed_without_changing_what_is_kept() -> None:
    """Arrays that come from an object store must not be written to; nor may a caller see another one's changes."""
    found = kept([0, 1])
    found.values.flags.writeable = False
    found.rows(torch.tensor([0, 1]), CPU).zero_()
    assert found.rows(torch.tensor([1]), CPU).tolist() == [row(1)]


def test_another_file_is_refused_in_a_sentence() -> None:
    for content in (b"", b"12345678901234567890", torch_file()):
        with pytest.raises(ArtifactError, match=rf"a file of {len(content)} bytes holds no logits"):
            KeptLogits.from_bytes(content)


def torch_file() -> bytes:
    from safetensors.torch import save

    return save({"weight": torch.zeros(2)})
