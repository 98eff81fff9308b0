"""Tasks, the purposes of networks: loss, score, and the tensors that pruning and repair read."""

from cleanai_ray.tasks.base import Score, Scorer, Task, find_task

__all__ = ["Score", "Scorer", "Task", "find_task"]
