"""Shards computed by actors that may die; the same actors add up the results, in a tree of fixed shape."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import ray
from ray import exceptions

from cleanai_ray.errors import CleanAIError, ClusterError, DeviceError
from cleanai_ray.executors.base import ShardPool, ShardWork
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.object_store import references_of
from cleanai_ray.statistics.merging import MergeTree, Node
from cleanai_ray.storage.run_directory import RunDirectory

_LOG = logging.getLogger(__name__)
_MAX_ATTEMPTS = 3
_MAX_STARTS = 10
_LOOK_AT_CLUSTER_SECONDS = 5.0
_LOST = (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)


class ActorPool(ShardPool):
    """Actors, started when they are first needed and stopped at the end.

    An actor that dies, or whose GPU fails, is replaced, and another one takes over its task; a task is tried three
    times. Work goes on while the cluster has no room to start an actor. If the number of actors is not fixed, there is
    one for each of the cluster's GPUs, or for each core if the study computes on none, and their number grows with the
    cluster.

    Results stay in the object store, and the actors add them up in a tree of fixed shape: the driver sees references
    and, at the end, one value, whose bits do not depend on the number of actors or on which of them died. No shard
    counts twice.

    Args:
        start: Starts an actor and returns its handle; its argument is a number that no other actor of the pool has. An
            actor has the methods `ready()`, `compute(call, shard, name, inputs, *arguments)` and
            `add(call, *contents)`; the last two return the number of samples read and the result.
        num_actors: Number of actors; `GPU` or `CPU` for as many as the cluster has of these.
        run: The run directory, where the actors keep the results of shards.
        progress: Notified of every finished shard.
    """

    def __init__(
        self,
        start: Callable[[int], Any],
        num_actors: int | Literal["GPU", "CPU"],
        run: RunDirectory,
        progress: ProgressReporter,
    ) -> None:
        self._start = start
        self._num_actors = num_actors
        super().__init__(run, progress)
        self._started = 0
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []

    def __enter__(self) -> ActorPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in [*self._idle, *self._starting.values()]:
            ray.kill(actor)
        self._idle, self._starting = [], {}

    def sum_shards(self, work: ShardWork, *arguments: Any) -> bytes:
        """Have every shard computed, and return the sum of the results.

        Args:
            work: The pass.
            arguments: Further arguments of the actors' method; the values of shared ones are passed.

        Raises:
            CleanAIError: The error of a shard; a ClusterError if a shard failed too often.
        """
        with self.progress.shards(work.title, work.num_shards) as on_shard:
            session = _Pass(self, work, tuple(references_of(arguments)), on_shard)
            try:
                return session.run()
            finally:
                session.abandon()

    def fill_up(self, tasks: int, busy: int) -> None:
        """Start as many actors as there are tasks and room for.

        Args:
            tasks: Number of tasks that are waiting or in progress.
            busy: Number of actors that are working.
        """
        wanted = self._num_actors if isinstance(self._num_actors, int) else _num_places(self._num_actors)
        for _ in range(min(wanted, tasks) - len(self._idle) - len(self._starting) - busy):
            if self._started >= _MAX_STARTS * wanted:
                return
            actor = self._start(self._started)
            self._starting[actor.ready.remote()] = actor
            self._started += 1

    def take_idle(self) -> Any:
        """Return an idle actor, or None."""
        return self._idle.pop() if self._idle else None

    def give_back(self, actor: Any) -> None:
        """Take back an actor that is idle."""
        self._idle.append(actor)

    @property
    def starting(self) -> list[Any]:
        """References that become ready when an actor has started."""
        return list(self._starting)

    def has_started(self, reference: Any) -> None:
        """Make an actor that has started idle; log it if it died while it started."""
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except _LOST as error:
            _LOG.warning("an actor died while it started: %s", error)
            return
        self._idle.append(actor)


class _Pass:
    """One pass in progress: its waiting tasks, its busy actors and its results so far.

    A task is a node of the tree: at level 0 a shard to compute, above it a sum.
    """

    def __init__(
        self, pool: ActorPool, work: ShardWork, arguments: tuple[Any, ...], on_shard: Callable[..., None]
    ) -> None:
        self._pool = pool
        self._work = work
        self._arguments = arguments
        self._on_shard = on_shard
        self._tree = MergeTree(work.num_shards)
        self._todo = deque((0, shard) for shard in range(work.num_shards))
        self._attempts: Counter[Node] = Counter()
        self._done: set[int] = set()
        self._busy: dict[Any, tuple[Any, Node, Any]] = {}

    def run(self) -> bytes:
        while True:
            if self._tree.is_complete:
                try:
                    return ray.get(self._tree.value(self._tree.root))
                except _LOST as error:
                    self._retry(self._tree.root, error)
            self._pool.fill_up(len(self._todo) + len(self._busy), len(self._busy))
            self._assign()
            waiting = [*self._busy, *self._pool.starting]
            if not waiting:
                raise ClusterError(f"no process for the {self._work.title} could be started; see Ray's log")
            ready, _ = ray.wait(waiting, num_returns=1, timeout=_LOOK_AT_CLUSTER_SECONDS, fetch_local=False)
            for reference in ready:
                if reference in self._busy:
                    self._collect(reference)
                else:
                    self._pool.has_started(reference)

    def abandon(self) -> None:
        """Stop the actors that are still busy, after an error."""
        for actor, _, _ in self._busy.values():
            ray.kill(actor)
        self._busy = {}

    def _assign(self) -> None:
        """Give tasks to idle actors, sums first, so that few results are held."""
        while True:
            actor = self._pool.take_idle()
            if actor is None:
                return
            node = self._tree.take_ready() or (self._todo.popleft() if self._todo else None)
            if node is None:
                self._pool.give_back(actor)
                return
            work = self._work
            if node[0] == 0:
                call = actor.compute.options(num_returns=2)
                receipt, content = call.remote(work.call, node[1], work.file(node[1]), work.inputs, *self._arguments)
            else:
                call = actor.add.options(num_returns=2)
                contents = [self._tree.value(child) for child in self._tree.children(node)]
                receipt, content = call.remote(work.call, *contents)
            self._busy[receipt] = actor, node, content

    def _collect(self, receipt: Any) -> None:
        actor, node, content = self._busy.pop(receipt)
        try:
            num_samples = ray.get(receipt)
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, DeviceError):
                ray.kill(actor)
                self._retry(node, cause)
                return
            if isinstance(cause, CleanAIError):
                self._pool.give_back(actor)
                raise cause from None
            if not isinstance(error, _LOST) and not isinstance(cause, _LOST):
                raise
            if not isinstance(error, exceptions.RayActorError):
                self._pool.give_back(actor)
            self._retry(node, error)
            return
        self._pool.give_back(actor)
        self._tree.put(node, content)
        if node[0] == 0:
            self._done.add(node[1])
            self._on_shard(len(self._done), self._work.num_shards, num_samples)

    def _retry(self, node: Node, error: Exception) -> None:
        """Have a task done again after its process or its input was lost."""
        self._attempts[node] += 1
        if self._attempts[node] >= _MAX_ATTEMPTS:
            what = f"shard {node[1]}" if node[0] == 0 else "a sum of shards"
            reason = str(error).strip().splitlines()[-1]
            if isinstance(error, DeviceError):
                what_happened, says = "lost its GPU the last time", "torch"
            else:
                what_happened, says = "died each time, most often because memory ran out", "Ray"
            raise ClusterError(
                f"{what} of the {self._work.title} was tried {_MAX_ATTEMPTS} times, and its process {what_happened}; "
                f"finished shards are kept, and the same command resumes; {says} says: {reason}"
            )
        lost = self._tree.forget(node)
        self._done -= set(lost)
        self._todo.extendleft((0, shard) for shard in reversed(lost))


def _num_places(kind: str) -> int:
    """Return how many GPUs or cores the live cluster has; at least 1."""
    return max(1, int(ray.cluster_resources().get(kind, 0)))
