"""`repair: null` and `finetune: null` switch these off; of other sections, null is a mistake."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft7Validator

from cleanai_ray.config.json_schema import study_schema
from cleanai_ray.config.study import load_study, parse_study
from cleanai_ray.config.switched_off import SWITCHED_OFF
from cleanai_ray.errors import StudyError

STUDY: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits"},
    "sweep": {"methods": ["wanda"], "ratios": [0.5]},
}


def test_null_is_none_of_it(tmp_path) -> None:
    study = parse_study({**STUDY, "repair": None, "finetune": None})
    assert not study.repair.is_on
    assert not study.fine_tunes
    assert study == parse_study({**STUDY, **SWITCHED_OFF})
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    assert load_study(str(tmp_path / "study.yaml"), ["repair=null", "finetune=null"]) == study


@pytest.mark.parametrize("key", ["evaluation", "output", "pruning", *SWITCHED_OFF])
def test_editors_and_studies_agree_on_what_may_be_null(key: str) -> None:
    document = {**STUDY, key: None}
    is_allowed = key in SWITCHED_OFF
    assert Draft7Validator(study_schema()).is_valid(document) == is_allowed
    if not is_allowed:
        with pytest.raises(StudyError, match=f"{key} is null"):
            parse_study(document)
