from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from cleanai_ray import errors
from cleanai_ray.storage import schemas
from cleanai_ray.storage.schemas import RESULTS, coverage_schema, to_table

SCHEMAS = {
    "results": schemas.RESULTS,
    "layers": schemas.LAYERS,
    "history": schemas.HISTORY,
    "latency": schemas.LATENCY,
    "classes": schemas.CLASSES,
    "coverage": coverage_schema(["normalized_mean", "frequency"]),
}
PROMISED = """
    trial_id status error method coverage_metric ratio mode steps seed requested_budget accuracy_dense
    accuracy_pruned accuracy_repaired accuracy_finetuned accuracy top5 loss params params_dense macs macs_dense
    size_bytes latency_ms_b1_p50 latency_ms_b1_p90 throughput channel_ratio_achieved seconds_total seconds_prune
    seconds_repair seconds_finetune epochs_run node device
"""


def test_the_promised_columns_are_there() -> None:
    assert set(PROMISED.split()) <= set(RESULTS.names)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_has_one_name_and_a_sentence(name: str) -> None:
    schema = SCHEMAS[name]
    assert len(set(schema.names)) == len(schema.names)
    for field in schema:
        description = field.metadata[b"description"].decode()
        assert description.endswith("."), f"{name}.{field.name}: {description}"
        assert len(description.split()) > 1, f"{name}.{field.name}: {description}"


def test_a_coverage_table_has_a_column_for_every_metric_of_the_study_in_its_order() -> None:
    schema = coverage_schema(["zeta", "alpha"])
    assert schema.names[-2:] == ["zeta", "alpha"]
    assert schema.names[:4] == ["layer", "layer_index", "side", "channel"]
    assert schema.field("zeta").type == pa.float64()


def test_columns_come_in_the_order_of_the_schema_whatever_the_order_of_the_rows() -> None:
    table = to_table([{"accuracy": 0.5, "trial_id": "a"}, {"trial_id": "b", "accuracy": 0.25}], RESULTS)
    assert table.schema.equals(RESULTS, check_metadata=True)
    assert table["trial_id"].to_pylist() == ["a", "b"]
    assert table["accuracy"].to_pylist() == [0.5, 0.25]


def test_what_a_row_lacks_is_null() -> None:
    table = to_table([{"trial_id": "a"}, {"trial_id": "b", "warnings": ["collapsed"]}], RESULTS)
    assert table["warnings"].to_pylist() == [None, ["collapsed"]]
    for name in set(RESULTS.names) - {"trial_id", "warnings"}:
        assert table[name].null_count == 2, name


def test_no_rows_make_an_empty_table_with_every_column() -> None:
    table = to_table(iter([]), RESULTS)
    assert table.num_rows == 0
    assert table.schema.equals(RESULTS, check_metadata=True)


def test_a_column_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="no such column: acuracy, zzz"):
        to_table([{"trial_id": "a"}, {"zzz": 1, "acuracy": 0.5}], RESULTS)


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_table([{"accuracy": "high"}], RESULTS)


def test_rows_are_not_changed() -> None:
    row = {"trial_id": "a"}
    to_table([row], RESULTS)
    assert row == {"trial_id": "a"}


ERRORS = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_way_between_processes(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("layer 'conv1' has 0 channels; allowed: at least 1")))
    assert type(copy) is kind
    assert str(copy) == "layer 'conv1' has 0 channels; allowed: at least 1"
    assert isinstance(copy, errors.CleanAIError)
