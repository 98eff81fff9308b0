"""Images that models get right, packed and by role: bits, roles that stay, and accuracies that add up."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cleanai_ray.config.study import parse_study
from cleanai_ray.evaluation.hits import Hits, HitsKeeper
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.stages.evidence import assign_image_roles, correct_row, decoded, image_rows
from cleanai_ray.stages.fingerprints import dense_key, trial_key
from cleanai_ray.stages.tables import write_image_tables
from cleanai_ray.storage.image_schemas import CORRECT, IMAGES, pack, roles_of_images, unpack
from cleanai_ray.storage.run_directory import RunDirectory

LABELS = np.array([0, 1, 1, 0])
LOGITS = np.array([[2, 1], [2, 1], [1, 2], [2, 1]], dtype=np.float32)  # right, wrong, right, right


def dense(numbers: list[int]) -> KeptLogits:
    chosen = slice(0, len(numbers))
    return KeptLogits(numbers=np.array(numbers), values=LOGITS[chosen], labels=LABELS[chosen])


def test_a_bit_an_image_the_first_in_the_highest_bit() -> None:
    bits = np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    assert pack(bits) == b"\xb0\x80"
    assert unpack(b"\xb0\x80", 9).tolist() == bits.tolist()
    assert len(pack(np.ones(2000, dtype=bool))) == 250
    with pytest.raises(ValueError, match="1 bytes hold 8 bits; needed: 9"):
        unpack(b"\xb0", 9)


def test_an_image_keeps_its_role_when_more_are_scored() -> None:
    few, many = roles_of_images(range(0, 1000, 7), 0.5), roles_of_images(range(10_000), 0.5)
    assert few.tolist() == many[::7][: len(few)].tolist()
    assert not roles_of_images(range(100), 0.0).any()
    # 10,000 draws: five standard deviations are 250 images.
    assert abs(int(many.sum()) - 5000) < 250
    assert abs(int(roles_of_images(range(10_000), 0.2).sum()) - 2000) < 200
    assert roles_of_images([], 0.5).tolist() == []


def test_hits_of_two_processes_add_up_in_the_order_of_images() -> None:
    keeper = HitsKeeper()
    keeper.add(torch.tensor([7, 3]), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([1, 1]))
    both = keeper.result() + Hits(numbers=np.array([5]), correct=np.array([True]))
    assert both.numbers.tolist() == [3, 5, 7]
    assert both.correct.tolist() == [False, True, True]
    correct, scored = both.on(np.array([3, 4, 5, 9]))
    assert correct.tolist() == [False, False, True, False]
    assert scored.tolist() == [True, False, True, False]
    assert HitsKeeper().result().on(np.array([1]))[1].tolist() == [False]


def test_an_image_that_a_trial_could_not_read_counts_for_neither_model() -> None:
    numbers = [0, 1, 2, 3]
    decides = roles_of_images(numbers, 0.5)
    assert decides.tolist() == [np.random.default_rng([3]).random(4)[number] < 0.5 for number in numbers]
    record = {
        "row": {"trial_id": "a"},
        "hits": [
            correct_row("a", dense(numbers), Hits(numbers=np.array([0, 1, 3]), correct=np.array([False, True, True])))
        ],
    }
    assert decoded(record["hits"][0])["scored"] == b"\xd0"
    for share in (0.5, 0.3, 0.8):
        assign_image_roles([record], dense(numbers), share)
        decides = roles_of_images(numbers, share)
        for role, part in (("validation", decides), ("test", ~decides)):
            own = [index for index in (0, 1, 3) if part[index]]
            right, right_dense = {0: 0, 1: 1, 3: 1}, {0: 1, 1: 0, 3: 1}
            row = record["row"]
            if decides[[0, 1, 3]].all() or not decides[[0, 1, 3]].any():
                assert row[f"accuracy_{role}"] is None
                continue
            assert row[f"num_{role}"] == len(own)
            assert row[f"accuracy_{role}"] == sum(right[index] for index in own) / len(own)
            assert row[f"accuracy_{role}_dense"] == sum(right_dense[index] for index in own) / len(own)


def test_no_image_is_set_aside_where_all_decide() -> None:
    numbers = [0, 1, 2, 3]
    hits = Hits(numbers=np.array(numbers), correct=np.array([True] * 4))
    record = {"row": {}, "hits": [correct_row("a", dense(numbers), hits)]}
    assign_image_roles([record], dense(numbers), 0.0)
    assert record["row"]["accuracy_test"] is None
    assert record["row"]["accuracy_validation"] is None
    older = {"row": {"accuracy": 0.5}}
    assign_image_roles([older], dense(numbers), 0.5)
    assert older["row"] == {"accuracy": 0.5}


def test_the_tables_say_which_model_gets_which_image_right(tmp_path) -> None:
    numbers, run = [2, 5, 7], RunDirectory(str(tmp_path))
    hits = Hits(numbers=np.array([2, 5, 7]), correct=np.array([True, True, False]))
    records = [{"hits": [correct_row("a", dense(numbers), hits)]}, {}]
    write_image_tables(run, records, image_rows(dense(numbers), "test", 0.5))
    images, correct = (pq.read_table(tmp_path / name) for name in ("images.parquet", "correct.parquet"))
    assert images.schema.equals(IMAGES)
    assert correct.schema.equals(CORRECT)
    assert images["number"].to_pylist() == numbers
    assert images["label"].to_pylist() == [0, 1, 1]
    assert images["correct_dense"].to_pylist() == [True, False, True]
    assert set(images["split"].to_pylist()) == {"test"}
    assert correct.to_pylist() == [{"trial_id": "a", "num_images": 3, "correct": b"\xc0", "scored": None}]
    write_image_tables(RunDirectory(str(tmp_path / "old")), records, [])
    assert not (tmp_path / "old" / "images.parquet").exists()


def test_the_share_of_images_that_decide_changes_no_result() -> None:
    def found(share: float) -> list[str]:
        study = parse_study(
            {
                "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
                "data": {"name": "digits"},
                "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
                "evaluation": {"validation_share": share},
            }
        )
        return [dense_key(study), trial_key(study, study.trials()[0], "weights")]

    assert found(0.5) == found(0.2)
