"""Risk: rivals that cannot be told apart from the chosen trial."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.comparisons import ALPHA, holm
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import between
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS
from cleanai_ray.storage.image_schemas import TEST


@RISKS.register("uncertain_winner")
class UncertainWinner(Check):
    """Trials of other methods, at the same ratio or budget, that McNemar's test does not tell from the chosen one."""

    position = 150
    looks_for = "rivals that cannot be told apart from the best trial"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that counts them, names their methods and says what difference could be told."""
        best = study.best
        if best is None:
            return
        others = study.ok.filter((pl.col("method") != best["method"]) & (pl.col("amount") == best["amount"]))
        role = TEST if study.choice.has_test_images else None
        found = [between(study, best["trial_id"], name, role) for name in others["trial_id"]]
        known = [pair for pair in found if pair is not None]
        if len(known) < len(found):
            sentence = (
                "Single images were not kept, so it is not known which trials of other methods differ from the best."
            )
            yield Risk("info", "uncertainty", sentence)
            return
        corrected = holm([pair.p_value for pair in known])
        together = [place for place, value in enumerate(corrected) if value is None or value >= ALPHA]
        if together:
            methods = ", ".join(sorted({str(others["method"][place]) for place in together}))
            least = max(known[place].detectable for place in together)
            sentence = (
                f"{len(together)} of {plural(len(known), 'trial')} of other methods at {best['amount']} ({methods}) "
                f"cannot be told apart from the best, image by image (McNemar, Holm): "
                f"{plural(known[0].num_images, 'image')} "
                f"{'shows' if known[0].num_images == 1 else 'show'} differences from {least:.2f} points on."
            )
            yield Risk("info", "uncertainty", sentence)
