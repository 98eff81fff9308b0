"""Numerical settings: set for a study, put back for the next, and part of the digests of what they change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_study as small
import torch

from cleanai_ray.config.numerics import NumericsSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.stages.fingerprints import calibration_key, dense_key, moments_key, trial_key
from cleanai_ray.stages.numerics import apply_numerics, describe_numerics, restore_numerics

DEFAULTS = {
    "matmul_precision": "highest",
    "tf32_in_convolutions": True,
    "deterministic": False,
    "cudnn_benchmark": False,
}
"""Those of torch."""


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    restore_numerics()


@pytest.mark.parametrize(
    ("asked", "changed"),
    [
        ({}, {}),
        ({"tf32": True}, {"matmul_precision": "high"}),
        ({"tf32": False}, {"tf32_in_convolutions": False}),
        ({"tf32": True, "matmul_precision": "highest"}, {}),
        ({"matmul_precision": "medium"}, {"matmul_precision": "medium"}),
        ({"deterministic": True}, {"deterministic": True}),
        ({"cudnn_benchmark": True}, {"cudnn_benchmark": True}),
    ],
)
def test_settings_are_those_of_the_study_and_then_those_of_torch(asked: Any, changed: Any) -> None:
    apply_numerics(NumericsSection(deterministic=True))
    apply_numerics(NumericsSection(**asked))
    assert describe_numerics() == {**DEFAULTS, **changed}
    assert torch.backends.cudnn.deterministic is asked.get("deterministic", False)
    restore_numerics()
    assert describe_numerics() == DEFAULTS


def test_cublas_gets_buffers_of_a_fixed_size_for_as_long_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    apply_numerics(NumericsSection(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    restore_numerics()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        ({"tf32": False, "matmul_precision": "high"}, ("numerics.tf32", "'high'", "allowed")),
        ({"deterministic": True, "cudnn_benchmark": True}, ("numerics.deterministic", "cudnn_benchmark", "allowed")),
        ({"matmul_precision": "low"}, ("numerics.matmul_precision", "'low'", "'highest' or 'high' or 'medium'")),
    ],
)
def test_what_contradicts_itself_is_refused(asked: Any, facts: tuple[str, ...]) -> None:
    with pytest.raises(StudyError) as found:
        parse_study({**small.SMALL, "numerics": asked})
    assert all(fact in str(found.value) for fact in facts)


def test_they_are_part_of_every_digest_unless_they_are_torchs_own() -> None:
    def keys(numerics: dict[str, Any]) -> list[str]:
        study = parse_study({**small.SMALL, "numerics": numerics})
        measures = [calibration_key(study, "weights"), moments_key(study, "weights")]
        return [dense_key(study), *measures, trial_key(study, study.trials()[0], "weights")]

    plain, changed = keys({}), keys({"matmul_precision": "medium"})
    assert keys({"matmul_precision": None, "deterministic": False}) == plain
    assert not set(plain) & set(changed)


def test_a_deterministic_study_gives_the_same_bits_twice(tmp_path: Path) -> None:
    settings = {**small.SMALL, "sweep": {"methods": ["taylor"], "ratios": [0.3]}, "numerics": {"deterministic": True}}
    settings |= {"evaluation": {"samples": 100, "latency": None}, "output": {"dir": "x", "save_models": "all"}}
    for name in ("one", "two"):
        failed, said = small.run(parse_study(settings), tmp_path / name)
        assert failed == 0, said
    for table in small.TABLES:
        assert small.timeless_table(tmp_path / "one", table) == small.timeless_table(tmp_path / "two", table), table
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("models/*/*.safetensors")]
    assert len(files) == 1
    for file in [*files, "cache/dense.safetensors", "cache/calibration.safetensors", "cache/moments.safetensors"]:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert describe_numerics() == DEFAULTS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_deterministic_study_gives_the_same_bits_twice_on_a_gpu(tmp_path: Path) -> None:
    settings = {**small.SMALL, "sweep": {"methods": ["taylor"], "ratios": [0.3]}, "numerics": {"deterministic": True}}
    settings |= {"evaluation": {"samples": 100, "latency": None}, "resources": {"gpus_per_trial": 1}}
    for name in ("one", "two"):
        failed, said = small.run(parse_study(settings), tmp_path / name)
        assert failed == 0, said
    for table in small.TABLES:
        assert small.timeless_table(tmp_path / "one", table) == small.timeless_table(tmp_path / "two", table), table
