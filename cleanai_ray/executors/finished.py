"""What a study that has nothing left to compute needs: neither an executor nor a new report."""

from __future__ import annotations

from typing import Any

from cleanai_ray import __version__
from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.chosen_model import chosen_row
from cleanai_ray.executors.run_record import RECORD_FILE
from cleanai_ray.executors.timed_alone import timing_name
from cleanai_ray.executors.writer import UNBEATEN
from cleanai_ray.stages.completed import completed_records, model_folder
from cleanai_ray.stages.fingerprints import alone_key, profile_key, trial_key
from cleanai_ray.stages.multiple import known_multiple
from cleanai_ray.stages.planning import cached_dense
from cleanai_ray.stages.tables import ALWAYS_WRITTEN
from cleanai_ray.storage import schemas
from cleanai_ray.storage.image_schemas import CORRECT_FILE, IMAGES_FILE
from cleanai_ray.storage.run_directory import PLAN_FILE, RunDirectory
from cleanai_ray.storage.status import read_status

_REPORT = "report.html"  # the last part of the report that is written
_REPORTS = (_REPORT, "report.pdf")


def report_key(study: Study, run: RunDirectory, dense_digest: str) -> str:
    """Return the digest of everything that a study's report depends on."""
    document = study.model_dump(mode="json", exclude={"output", "resources", "tracking"})
    trials = [trial_key(study, trial, dense_digest) for trial in study.trials()]
    has_profile = run.is_complete(schemas.PROFILE_FILE, profile_key(study))
    return digest(["report/1", __version__, document, trials, has_profile])


def mark_report(study: Study, run: RunDirectory, dense_digest: str) -> None:
    """Note that the report is made of the results as they stand."""
    if run.exists(_REPORT):
        study = known_multiple(study, run)
        run.mark(_REPORT, report_key(study, run, dense_digest))


def finished_rows(study: Study, run: RunDirectory, *, needs_report: bool) -> list[dict[str, Any]] | None:
    """Return the rows of results.parquet if every trial of a study succeeded and, if needed, its report is made.

    None where something is left to be done.
    """
    study = known_multiple(study, run)
    dense = cached_dense(study, run)
    if dense is None or not _ended(study, run):
        return None
    if needs_report and not (
        all(map(run.exists, _REPORTS)) and run.is_complete(_REPORT, report_key(study, run, dense))
    ):
        return None
    records = completed_records(study, run, dense)
    if len(records) < len(study.trials()):
        return None
    if study.evaluation.target is not None and not all(
        run.is_complete(timing_name(trial.trial_id), alone_key(study, trial, dense, records[trial.trial_id]))
        for trial in study.trials()
    ):
        return None
    rows: list[dict[str, Any]] = run.read_table(schemas.RESULTS_FILE).to_pylist()
    chosen = chosen_row(study, rows) if study.output.save_models in UNBEATEN else None
    if chosen is not None and not run.exists(f"{model_folder(chosen['trial_id'])}/{PLAN_FILE}"):
        return None
    return rows


def _ended(study: Study, run: RunDirectory) -> bool:
    left_out = () if study.task.is_classification else (IMAGES_FILE, CORRECT_FILE)  # which other tasks do not have
    try:
        return (
            read_status(run).state == "finished"
            and run.read_json(RECORD_FILE).get("version") == __version__  # another may write other columns
            and all(run.exists(name) for name in ALWAYS_WRITTEN if name not in left_out)
        )
    except ArtifactError:
        return False
