"""Scoring, selection and cutting, in one or several steps: from a dense model to a plan and a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.base import ScoringContext, create_method, give_gradients, price_groups, score_groups
from cleanai_ray.nn.complexity import Complexity, measure_complexity
from cleanai_ray.nn.consumers import add_biases
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.modes import restore_flags
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.allocation import Allocation
from cleanai_ray.pruning.block_removal import left_of, without_blocks
from cleanai_ray.pruning.cost import CostModel, both_costs, budget_limit, missed_budget
from cleanai_ray.pruning.equal_widths import equal_groups, told_kept
from cleanai_ray.pruning.granularity import granularity_for_time, granularity_of
from cleanai_ray.pruning.history import earlier_plans
from cleanai_ray.pruning.layer_ratios import ratios_left
from cleanai_ray.pruning.layer_rows import layer_rows
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.plan import BlockPlan, PruningPlan
from cleanai_ray.pruning.plan_parts import group_plan, identify
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.refusals import collapsed, nothing_removed, with_notes
from cleanai_ray.pruning.selection import SelectionRequest, Selector
from cleanai_ray.statistics import ActivationStatistics


class Pruner:
    """Prunes one model in one way: by `run`, or by `take_step` for each step, `adopt` in between, and `finish`.

    Args:
        model: The dense model; it is copied, and left as it is.
        example_inputs: One input batch, or a tuple that holds just it.
        trial: Method, mode, ratio or budget, steps and seed.
        bounds: Bounds on what may be removed.
        ignored_layers: Further module names that keep their width.
        measured: What was measured on the dense model; by default nothing, which is enough for methods that read
            weights alone.
        blocks: Whole blocks to remove first. Measurements are then those of the model without them (`bare`).

    Attributes:
        bare: The dense model without the blocks, its attention in separate layers.

    Raises:
        PruningError: When a measurement is missing, the ratio is too large, or the model has nothing to prune.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        trial: Trial,
        *,
        bounds: PruningSection | None = None,
        ignored_layers: Sequence[str] = (),
        measured: Measurements | None = None,
        blocks: Sequence[BlockPlan] = (),
    ) -> None:
        self._dense = open_attention(model)
        self._blocks, self._earlier = tuple(blocks), earlier_plans(model)
        self.bare = without_blocks(self._dense, self._blocks)
        self._trial = trial
        self._measured = measured or Measurements()
        self._by_time = trial.budget is not None and trial.budget.resource == "latency"
        granularity = granularity_for_time if self._by_time else granularity_of
        self._granularity = granularity(bounds or PruningSection(), trial.quantization, self._measured.multiple)
        self._bounds = (bounds or PruningSection()).resolved(trial.quantization, self._measured.multiple)
        self._method = create_method(trial.method, dict(trial.options))
        curves = self._measured.curves
        self._warnings = list(curves.notes) if curves is not None and self._method.needs_curves else []
        self._by_price = False
        self._allocation: Allocation | None = None
        self._measured.require(self._method, trial)
        if trial.ratio is not None and trial.ratio > self._bounds.max_ratio:
            raise PruningError(f"ratio is {trial.ratio:g}; allowed: at most max_ratio, {self._bounds.max_ratio:g}")
        self._ignored_layers = tuple(dict.fromkeys([*self._bounds.ignored_layers, *ignored_layers]))
        self._ignored = left_of(self._dense, self._ignored_layers, self._blocks)
        self._graph = ChannelGraph(self.bare, example_inputs, self._ignored, check=self._bounds.check)
        self._dense_groups = {group.name: group for group in self._graph.groups}
        self._warnings += self._graph.notes
        if not self._dense_groups:
            why = self._graph.notes or ("all of them reach the output or are ignored",)
            raise PruningError(with_notes("the model has no prunable group of layers", why, ": "))
        self._equal = equal_groups(self._graph, self._dense, self._bounds.equal_widths)
        if self._measured.statistics is not None:
            give_gradients(self._graph, self._method, self._measured.statistics)
        self._dense_cost = measure_complexity(self._dense if blocks else self._graph.model, self._graph.example_inputs)

    def run(self) -> PruneResult:
        """Prune, and return the plan and the smaller model.

        Raises:
            PruningError: When nothing would be removed, a budget cannot be met, or scores are missing.
        """
        for step in range(1, self._trial.steps + 1):
            self.take_step(step)
        return self.finish()

    def present(self) -> PruneResult:
        """Return the result of the steps so far; its model is a copy."""
        return self._result(copied(self._graph.model))

    def finish(self) -> PruneResult:
        """Return the result of all steps; no step can follow.

        Raises:
            PruningError: When nothing was removed.
        """
        graph, trial = self._graph, self._trial
        if not self._blocks and not any(self._gone().values()):
            raise PruningError(with_notes(nothing_removed(trial, self._bounds), graph.notes))
        return self._result(graph.model)

    def branch(self) -> Pruner:
        """Return an independent pruner that has taken the same steps, and can go on with others.

        Both read the dense model and what was measured on it, which neither changes. Each has its own smaller model,
        with its weights and gradients, and its own dependency graph and warnings.
        """
        other = copy.copy(self)
        other._warnings = list(self._warnings)
        other._graph = self._graph.rebuild(self.bare)
        other.adopt(self._graph.model)
        for own, same in zip(self._graph.model.parameters(), other._graph.model.parameters(), strict=True):
            same.grad = None if own.grad is None else own.grad.clone()
        return other

    def adopt(self, model: nn.Module) -> None:
        """Take over the weights of the model of `present` after repair or training.

        Biases that repair added are taken over as well. Gradients that scores read stay those of the dense model.

        Args:
            model: The model; it is left as it is.
        """
        own, state = self._graph.model, model.state_dict()
        add_biases(own, sorted(state))
        own.load_state_dict(state, strict=True)
        for parameter in own.parameters():
            parameter.requires_grad_(True)
        if self._method.needs_gradients or self._method.needs_squared_gradients:
            for parameter in own.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def take_step(self, step: int) -> bool:
        """Remove the channels that must be gone after a step, counted from 1, and return whether there were any.

        A group without those channels of which the model would not run, or be wrong, keeps its width, with a warning,
        and the channels of the others are chosen anew.

        Raises:
            PruningError: When a budget cannot be met, or scores are missing.
        """
        graph, dense = self._graph, self._dense_cost
        context = ScoringContext(
            graph=graph,
            statistics=self._present_statistics(step),
            coverage_metric=self._trial.coverage_metric,
            observe=self._measured.observe,
            seed=self._trial.scoring_seed,
            curves=self._measured.curves,
        )
        scores = score_groups(self._method, context)
        prices = price_groups(self._method, context)
        self._by_price = self._by_time or (prices is not None and self._trial.budget is not None)
        widths = {name: group.num_channels for name, group in self._dense_groups.items()}
        selector = Selector(graph.groups, scores, widths, self._request(step, dense), prices)
        removed = selector.channels(self._counts(selector))
        if not removed:
            why = ": the blocks that were removed meet the budget" if self._blocks and self._trial.budget else ""
            self._warnings.append(f"step {step} of {self._trial.steps} removed nothing{why}")
            return False
        if kept := graph.try_to_remove(removed):
            self._warnings += kept
            return self.take_step(step)
        if step == self._trial.steps and (self._trial.mode != "local" or prices is not None or self._by_time):
            for name in selector.capped_groups(removed):
                self._warnings.append(collapsed(name, graph.kept_channels[name].size, widths[name], self._bounds))
        return True

    def _counts(self, selector: Selector) -> dict[str, int]:
        """Return the units that each group loses, after the search for them if the method asks for one."""
        cost = self._cost()
        try:
            counts = selector.counts(cost)
        except PruningError as error:
            raise PruningError(with_notes(str(error), self._graph.notes)) from error
        if not self._method.search:
            return counts
        assert cost is not None
        assert self._measured.allocate is not None
        problem = selector.allocation_problem(counts, cost, self._method.search)
        self._allocation = self._measured.allocate(problem)
        return dict(self._allocation.counts)

    def _result(self, model: nn.Module) -> PruneResult:
        graph, dense = self._graph, self._dense_cost
        pruned = measure_complexity(model, graph.example_inputs)
        plan = self._plan(dense, pruned)
        restore_flags(model, self.bare)
        return PruneResult(
            model=model,
            plan=plan,
            layers=layer_rows(self._dense_groups, dense, pruned, graph.kept("out")),
            kept_inputs=graph.kept("in"),
            kept_outputs=graph.kept("out"),
        )

    def _present_statistics(self, step: int) -> ActivationStatistics | None:
        measured = self._measured
        if measured.statistics is None or step == 1:
            return measured.statistics
        if self._method.remeasures:
            assert measured.remeasure is not None
            return measured.remeasure(self._graph.model)
        return measured.statistics.select(self._graph.kept("in"), self._graph.kept("out"))

    def _request(self, step: int, dense: Complexity) -> SelectionRequest:
        """Return the amount that must be gone after a step: the width that is kept shrinks geometrically."""
        share, ratio = step / self._trial.steps, self._trial.ratio
        bounds, budget = self._bounds, self._trial.budget
        ratios = ratios_left(bounds.layer_ratios, [*self._dense_groups.values()], self._graph.groups)
        return SelectionRequest(
            mode=self._trial.mode,
            ratio=None if ratio is None else 1 - (1 - ratio) ** share,
            limit=self._limit(dense, share),
            unit=" ms" if self._by_time else " MB" if budget is not None and budget.is_absolute else "",
            layer_ratios={name: 1 - (1 - value) ** share for name, value in ratios.items()},
            equal=self._equal,
            max_ratio=bounds.max_ratio,
            min_channels=bounds.min_channels,
            granularity=self._granularity,
            by_time=self._by_time,
            must_remove=step == self._trial.steps and not any(self._gone().values()),
        )

    def _limit(self, dense: Complexity, share: float) -> float | None:
        budget, latency = self._trial.budget, self._measured.latency
        if budget is None:
            return None
        if self._by_time and latency is not None:
            return latency.dense_ms * budget.limit**share
        return budget_limit(budget, dense, share)

    def _cost(self) -> Callable[[Mapping[str, int]], float] | None:
        if self._trial.budget is None:
            return None
        if self._by_time and self._measured.latency is not None:
            return self._measured.latency.after(self._gone())
        model, resource = CostModel(self._graph), self._trial.budget.resource
        return lambda removed: model.estimate(removed)[resource]

    def _gone(self) -> dict[str, int]:
        """Return the channels that each group of the dense model has lost."""
        kept = self._graph.kept_channels
        return {name: group.num_channels - len(kept[name]) for name, group in self._dense_groups.items()}

    def _plan(self, dense: Complexity, pruned: Complexity) -> PruningPlan:
        kept, budget = self._graph.kept_channels, self._trial.budget
        met = self._blocks and not any(self._gone().values())  # Without any of the blocks, the model might be larger.
        missed = None if budget is None or met or self._by_time else missed_budget(budget, dense, pruned)
        plan = PruningPlan(
            model=identify(self._dense, self._graph.example_inputs, ties=self._graph.ties),
            groups=tuple(group_plan(group, kept[name]) for name, group in self._dense_groups.items()),
            request=self._trial.request
            | ({"by_price": True} if self._by_price else {})
            | {"bounds": self._told_bounds()},
            warnings=(*self._warnings, *told_kept(self._equal, self._graph.groups), *([missed] if missed else [])),
            blocks=self._blocks,
            earlier=self._earlier,
        )
        achieved = {"channel_ratio": plan.channel_ratio, **both_costs(dense, pruned)}
        if self._allocation is not None:
            found = self._allocation
            achieved["search"] = {"kl_start": found.start_score, "kl": found.score, "candidates": found.num_candidates}
        if self._by_time and self._measured.latency is not None:
            latency = self._measured.latency
            achieved["latency"] = {"predicted_ratio": latency.predict(self._gone()) / latency.dense_ms}
        return replace(plan, achieved=achieved)

    def _told_bounds(self) -> dict[str, Any]:
        """Return the bounds as a plan tells them, with the granularity that widths were cut to."""
        told, granularity = self._bounds.described(), self._granularity
        told["ignored_layers"] = list(self._ignored_layers)
        if granularity is not None:
            told |= {"round_to": granularity.multiple}
            told |= {"least_steps": granularity.least_steps} if granularity.least_steps else {}
        return told
