"""CUDA graphs: a forward pass is recorded once and replayed, and events on the device time the replay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cleanai_ray.evaluation.targets.base import Run, TargetBackend
from cleanai_ray.registry import TARGETS

_NUM_WARM = 3


class GraphTarget(TargetBackend):
    """A back end whose runs are replays of a CUDA graph. The device times them, so launches do not count."""

    device_types = ("cuda",)

    def milliseconds(self, run: Run) -> float:
        """Replay a graph once between two events, and return the milliseconds between them."""
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end))

    def record(self, forward: Callable[[], object]) -> Run:
        """Run a function some times, record it as a graph, and return the replay.

        The function runs on a stream of its own first: libraries choose their algorithms then, which cannot be
        recorded.
        """
        with torch.cuda.device(self.device), torch.inference_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_NUM_WARM):
                    forward()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = forward()

        def replay() -> object:
            graph.replay()
            return forward, output  # the graph reads and writes their memory, so both are kept

        return replay


@TARGETS.register("cuda_graph")
class CudaGraphTarget(GraphTarget):
    """Torch's operations as a CUDA graph, replayed: the time of the work without that of the launches."""

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return the replay of the model's recorded forward pass."""
        moved, batch = self._moved(model, example)
        return self.record(lambda: moved(batch))
