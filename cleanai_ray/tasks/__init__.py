"""What a network is for: its loss, its metric, and the tensors that pruning and repair look at."""

from cleanai_ray.tasks.base import Score, Scorer, Task, find_task

__all__ = ["Score", "Scorer", "Task", "find_task"]
