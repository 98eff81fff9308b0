"""A running study, as its driver sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.study import Study
from cleanai_ray.executors.base import Executor
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.shared import Shared
from cleanai_ray.stages.blocks import BareWeights
from cleanai_ray.stages.dense_measures import measures_folder
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseWeights:
    """The dense weights of a study.

    Attributes:
        content: Content of the safetensors file, shared with the workers; with the blocks that a study removes before
            it measures, if it removes any.
        digest: Digest of the content.
    """

    content: Shared[bytes] | Shared[BareWeights]
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """Everything that the steps of a run share.

    Attributes:
        study: The study; with one draw of the calibration samples if `of_draw` made the context.
        workspace: The study, opened in this process.
        run: The run directory.
        executor: Runs the work.
        progress: Notified of the study's progress.
        folder: The folder of the run directory that keeps the measurements of the dense model.
    """

    study: Study
    workspace: Workspace
    run: RunDirectory
    executor: Executor
    progress: ProgressReporter
    folder: str = "cache"

    def of_draw(self, draw: CalibrationDraw) -> RunContext:
        """Return the context of one draw of the calibration samples, as if the study had no other."""
        device = str(self.workspace.device)
        return replace(
            self,
            study=self.study.of_draw(draw),
            workspace=open_workspace(self.study.model_dump_json(), device, draw),
            folder=measures_folder(self.study, draw),
        )

    def of_study(self, study: Study) -> RunContext:
        """Return the context of the same study with what was found out about its machines."""
        if study == self.study:
            return self
        workspace = open_workspace(study.model_dump_json(), str(self.workspace.device))
        return replace(self, study=study, workspace=workspace)

    def cached(self, name: str, key: str, compute: Callable[[], bytes], needs: tuple[str, ...] = ()) -> bytes:
        """Return the content of a file of the run directory; if it is not complete, compute, write and mark it first.

        Args:
            name: The file.
            key: Digest of everything that its content depends on.
            compute: Returns the content.
            needs: Further files that `compute` writes; the file is complete only if they exist, too.
        """
        if self.run.is_complete(name, key) and all(self.run.exists(other) for other in needs):
            return self.run.read_bytes(name)
        content = compute()
        self.run.write_bytes(name, content)
        self.run.mark(name, key)
        return content
