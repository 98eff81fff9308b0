"""Second moments on actors, and the sensitivity analysis: the same bits however sharded, and of use in a study."""

from __future__ import annotations

import io

import polars as pl
import pytest
import small_study as small
import yaml
from rich.console import Console

from cleanai_ray import cli
from cleanai_ray.config.study import parse_study
from cleanai_ray.executors import sensitivity
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.measures import measure_shards
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.executor import connect
from cleanai_ray.executors.run_study import RunOptions
from cleanai_ray.executors.sensitivity import RATIOS_FILE, Sensitivity, analyse, describe
from cleanai_ray.importance.curves import GroupCurve, SensitivityCurves
from cleanai_ray.models import build_model
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.sensitivity.table import curve_rows
from cleanai_ray.stages import multiple
from cleanai_ray.stages.fingerprints import block_choice_key
from cleanai_ray.stages.planning import check_study
from cleanai_ray.stages.shard_measures import MOMENTS, ShardMeasurer, shards_of
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory


def study_of(**sections):
    sweep = {"methods": ["reconstruction", "magnitude"], "budgets": [{"macs": 0.5}], "modes": ["global"]}
    return parse_study({**small.SMALL, "sweep": sweep, "finetune": {"epochs": 0}, **sections})


@pytest.mark.ray
def test_second_moments_do_not_depend_on_the_number_of_actors(ray_session, tmp_path):
    study = study_of()
    workspace = check_study(study)
    weights = safetensors_bytes(build_model(study.model))
    # Of 200 calibration samples in shards of 64 every fifth is held back: 4, 9, ..., 59 of the first shard.
    assert [len(shard.positions) for shard in shards_of(workspace, MOMENTS)] == [52, 51, 51, 6]
    found = []
    for number in (1, 2):
        resources = study.resources.model_copy(update={"calibration_actors": number})
        changed = study.model_copy(update={"resources": resources})
        run, progress = RunDirectory(tmp_path / str(number)), ProgressReporter(Console(file=io.StringIO()))
        with connect(changed, run, None) as executor:
            context = RunContext(study=changed, workspace=workspace, run=run, executor=executor, progress=progress)
            dense = DenseWeights(content=executor.share(weights), digest="digest")
            statistics, moments = measure_shards(context, dense)
            _, again = measure_shards(context, DenseWeights(content=executor.share(b"none"), digest="digest"))
        assert statistics is None
        assert again.to_bytes() == moments.to_bytes()
        found.append(moments.to_bytes())
    measurer = ShardMeasurer(workspace, workspace.dense_model(weights), MOMENTS)
    alone = measurer.shard(0) + measurer.shard(1) + measurer.shard(2) + measurer.shard(3)
    assert found == [alone.moments.to_bytes()] * 2


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """The small study, run with reconstruction, and its sensitivity analysis in the same run directory."""
    folder = tmp_path_factory.mktemp("sensitivity")
    study = study_of()
    failed, said = small.run(study, folder, report=True)
    assert failed == 0, said
    heard = io.StringIO()
    progress = ProgressReporter(Console(file=heard, width=200, highlight=False))
    sweep = study.sweep.model_copy(update={"methods": ("magnitude",)})
    found = analyse(
        study.model_copy(update={"sweep": sweep}),
        check_study(study),
        RunDirectory(folder),
        RunOptions(executor="local"),
        progress,
    )
    return study, folder, found


def test_a_study_with_reconstruction_keeps_curves_and_writes_their_table(analysed):
    _, folder, found = analysed
    curves = SensitivityCurves.from_json((folder / "cache" / "curves.json").read_text())
    table = pl.read_parquet(folder / schemas.SENSITIVITY_FILE)
    assert table.columns == schemas.SENSITIVITY.names
    assert table.equals(found.table)
    for name, curve in curves.groups.items():
        rows = table.filter(pl.col("group") == name)
        assert rows["channel"].to_list() == list(curve.order)
        assert rows["removed"].to_list() == list(range(1, curve.num_channels))
        assert rows.filter(pl.col("divergence_measured").is_not_null())["removed"].to_list() == [
            n for n, _ in curve.probes
        ]
    for name in ("charts/sensitivity.svg", "report.pdf"):
        assert (folder / name).stat().st_size > 1000


def test_the_ratios_suggested_give_another_method_the_same_widths(analysed, tmp_path):
    study, folder, found = analysed
    keys = yaml.safe_load((folder / RATIOS_FILE).read_text())["macs=0.5"]
    assert keys == found.suggestions["macs=0.5"]
    sweep = {"methods": ["magnitude"], "ratios": [0.5]}
    bounds = {**small.SMALL["pruning"], **keys}
    narrowed = study_of(sweep=sweep, pruning=bounds, model=study.model.model_dump(), repair={"compensation": "none"})
    failed, said = small.run(narrowed, tmp_path)
    assert failed == 0, said
    widths = []
    for place, method in ((folder, "reconstruction"), (tmp_path, "magnitude")):
        layers = pl.read_parquet(place / schemas.LAYERS_FILE).filter(pl.col("trial_id").str.starts_with(method))
        widths.append(dict(zip(layers["layer"], layers["out_channels"], strict=True)))
    assert widths[0] == widths[1]


def test_the_table_has_a_row_per_group_and_names_the_files(analysed):
    _, folder, found = analysed
    headings, rows, lines = describe(found, RunDirectory(folder))
    assert headings[:3] == ["group", "channels", "KL at 10%"]
    assert [row[0] for row in rows] == found.table["group"].unique(maintain_order=True).to_list()
    assert all(name in lines[-1] for name in ("sensitivity.parquet", "layer_ratios.yaml", "charts/sensitivity.svg"))


def test_an_amount_that_cannot_be_shared_out_is_named_and_the_others_are(analysed):
    study, folder, _ = analysed
    budgets = parse_study(
        study.model_dump(mode="json")
        | {"sweep": {"methods": ["magnitude"], "budgets": [{"latency": 0.5}, {"macs": 0.001}, {"params": 0.5}]}}
    )
    progress = ProgressReporter(Console(file=io.StringIO()))
    found = analyse(budgets, check_study(budgets), RunDirectory(folder), RunOptions(executor="local"), progress)
    assert list(found.suggestions) == ["params=0.5"]
    assert all(word in found.refused["latency=0.5"] for word in ("latency=0.5", "profile"))
    assert "the budget cannot be met" in found.refused["macs=0.001"]
    lines = describe(found, RunDirectory(folder))[2]
    assert f"# macs=0.001: {found.refused['macs=0.001']}" in lines


def test_blocks_are_chosen_by_the_study_itself_for_the_multiple_that_was_measured(analysed, monkeypatch):
    """Not by the reconstruction that the analysis measures, whose choice would take the place of the study's."""
    given, folder, _ = analysed
    run, chosen = RunDirectory(folder), given.model_dump(mode="json")
    chosen["sweep"]["methods"], chosen["pruning"]["remove_blocks"] = ["magnitude"], "auto"
    chosen["pruning"]["round_to"], chosen["evaluation"]["target"] = "auto", {"backend": "torch"}
    study = parse_study(chosen)
    run.write_json(multiple.FILE, {"multiple": 4})
    run.mark(multiple.FILE, multiple.multiple_key(study))
    asked = []

    class Stopped(Exception):
        pass

    def stop(context, dense, chooser):
        asked.append((context.study, chooser))
        raise Stopped

    monkeypatch.setattr(sensitivity, "measure_dense", stop)
    with pytest.raises(Stopped):
        analyse(
            study, check_study(study), run, RunOptions(executor="local"), ProgressReporter(Console(file=io.StringIO()))
        )
    ((measured, chooser),) = asked
    assert measured.sweep.methods == ("reconstruction",)
    assert (measured.multiple, chooser.multiple) == (4, 4)
    budget = study.sweep.budgets[0]
    expected = multiple.with_multiple(study, 4)
    assert block_choice_key(chooser, "weights", budget) == block_choice_key(expected, "weights", budget)
    assert block_choice_key(chooser, "weights", budget) != block_choice_key(measured, "weights", budget)


def test_the_command_prints_the_table_and_the_ratios(analysed, tmp_path, capsys):
    study, folder, _ = analysed
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert cli.main(["sensitivity", str(path), "--out", str(folder), "--executor", "local"]) == 0
    printed = capsys.readouterr().out
    assert "# macs=0.5" in printed
    assert "layer_ratios:" in printed


def test_groups_that_could_not_be_measured_are_marked_and_the_reason_is_printed_once(tmp_path):
    def curve(name, **fields):
        return GroupCurve(
            name=name,
            num_channels=4,
            num_blocks=1,
            order=(2, 0, 1),
            errors=(0.1, 0.2, 0.4),
            probes=((1, 0.1), (2, 0.3)),
            **fields,
        )

    curves = SensitivityCurves(groups={"a": curve("a"), "b": curve("b", estimated="out of memory")})
    table = pl.DataFrame(pl.from_arrow(schemas.to_table(curve_rows(curves), schemas.SENSITIVITY)))
    found = Sensitivity(table=table, suggestions={}, refused={})
    _, rows, lines = describe(found, RunDirectory(tmp_path))
    assert [row[0] for row in rows] == ["a", "b *"]
    assert rows[0][1:] == rows[1][1:]
    assert [line for line in lines if line.startswith("*")] == [
        "*: b could not be measured, and is estimated from its neighbours: out of memory."
    ]
