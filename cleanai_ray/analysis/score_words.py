"""The score of a study's task in words: reports are written of accuracy, and say the task's own name of it.

The `accuracy` columns of every table hold a score for which high is good, from 0 to 1: the score itself where it is of
that kind (accuracy, mIoU, mAP), else a falling function of it. Reports compare trials by it, and give the score in its
own units (the columns `score`) beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cleanai_ray.analysis.numbers import percent

if TYPE_CHECKING:
    from cleanai_ray.analysis.frames import StudyFrames

ACCURACY = "accuracy"


@dataclass(frozen=True)
class ScoreWords:
    """The words for the score of a task.

    Attributes:
        name: The score, as the task names it.
        compared: What the `accuracy` columns hold.
        sample: One scored sample.
        explained: A sentence on what is compared, where that is not the score itself; else "".
        loss: The loss that models are trained by.
        of_class: The score of one class, where it has a name of its own.
    """

    name: str
    compared: str
    sample: str = "image"
    explained: str = ""
    loss: str = "cross-entropy (nats)"
    of_class: str = ""

    @property
    def is_inverted(self) -> bool:
        """True where a low score is good, so that something else is compared."""
        return self.name != self.compared

    def write(self, text: str) -> str:
        """Return a text that was written of accuracy, in the words of this score."""
        if self.name == ACCURACY:
            return text
        text = text.replace("cross-entropy (nats)", self.loss)
        for counted, instead in _COUNTED.items():
            text = text.replace(counted, instead)
        text = _OF_CLASS.sub(self.of_class or "SCORE", text).replace("SCORE", self.compared)
        for pattern, words in _PATTERNS:
            text = re.sub(pattern, partial(self._cased, words), text)
        if self.sample != "image":
            text = re.sub(r"\bimages\b", f"{self.sample}s", text)
            text = re.sub(r"\bimage\b", self.sample, text)
            text = re.sub(r"\bImages\b", f"{self.sample.capitalize()}s", text)
        return text

    def _cased(self, words: str, replaced: re.Match[str]) -> str:
        """Return words with the name of the score, with a capital where the replaced words begin with one."""
        found = words.replace("SCORE", self.compared)
        return found.capitalize() if replaced[0][0].isupper() and found.islower() else found


_COUNTED = {
    " with half the width of its 95 % interval (Wilson)": "",
    "yes where McNemar's test tells the two from each other, image by image (p < 0.05, not corrected)": "not tested, "
    "since single answers were not kept",
}
"""What is said of intervals and tests that count right answers, and what is said instead."""

_OF_CLASS = re.compile(r"\b(?:[Tt]op-1 )?[Aa]ccuracy(?= of the class\b|, class by class\b)")

_PATTERNS = (
    (r"\b[Tt]op-1 accurac(y|ies)", "SCORE"),
    (r"\b[Tt]op-1\b", "SCORE"),
    (r"\b[Mm]ost accurate\b", "best"),
    (r"\bmore accurate\b", "better"),
    (r"\bless accurate\b", "worse"),
    (r"\baccurate\b", "good"),
    (r"\b[Aa]ccurac(y|ies)\b", "SCORE"),
)

_KNOWN = {
    "perplexity": ScoreWords(
        "perplexity",
        "token probability",
        "text",
        "A low perplexity is good. What is compared, in the charts too, is the token probability: the geometric mean "
        "of the probabilities that the model gives to the tokens, which is 1 / perplexity.",
    ),
    "RMSE": ScoreWords(
        "RMSE",
        "R\N{SUPERSCRIPT TWO}",
        "row",
        "A low RMSE is good; it is in standard deviations of the target in the training data. What is compared, in the "
        "charts too, is R\N{SUPERSCRIPT TWO}: the share of the targets' variance that the predictions explain.",
        "mean squared error",
    ),
    "mAP": ScoreWords("mAP", "mAP", loss="loss of boxes and classes"),
    "macro AP": ScoreWords("macro AP", "macro AP", loss="binary cross-entropy (nats)"),
    "mIoU": ScoreWords("mIoU", "mIoU", of_class="IoU"),
}

LOW_IS_GOOD = " (lower is better)"
"""What the column `metric` says after the name of a user's own metric of which a low value is good."""


def words_of(metric: str | None) -> ScoreWords:
    """Return the words for a metric, a value of the column `metric`; None is accuracy."""
    name = metric or ACCURACY
    if name in _KNOWN:
        return _KNOWN[name]
    loss = ScoreWords.loss if name == ACCURACY else "loss of the task"
    if not name.endswith(LOW_IS_GOOD):
        return ScoreWords(name, name, loss=loss)
    plain = name.removesuffix(LOW_IS_GOOD)
    compared = f"1 / (1 + {plain})"
    told = f"A low {plain} is good. What is compared, in the charts too, is {compared}, which is 1 where it is 0."
    return ScoreWords(plain, compared, explained=told, loss=loss)


def words_of_study(study: StudyFrames) -> ScoreWords:
    """Return the words for the score of a study."""
    found = study.results["metric"].drop_nulls().to_list() if "metric" in study.results.columns else []
    return words_of(found[0] if found else None)


def is_counted(trial: Mapping[str, Any]) -> bool:
    """Return whether a trial's score is a share of right answers, so that counting errors gives its interval."""
    return trial.get("metric") in (None, ACCURACY)


def score_text(trial: Mapping[str, Any]) -> str:
    """Return the score of a trial with its name, for a sentence: `93.1 % top-1`, or `perplexity 7.31 (...)`."""
    if is_counted(trial):
        return f"{percent(trial['accuracy'])} top-1"
    return _both(words_of(trial.get("metric")), trial.get("score"), trial["accuracy"])


def compared_text(trial: Mapping[str, Any], accuracy: float | None = None) -> str:
    """Return what trials are compared by, in per cent: `93.1 %`, or with its name where that is not the score itself.

    Args:
        trial: A trial, whose `metric` says what its score is.
        accuracy: The value; by default the trial's `accuracy`.
    """
    words, value = words_of(trial.get("metric")), percent(trial["accuracy"] if accuracy is None else accuracy)
    return f"{words.compared} {value}" if words.is_inverted else value


def dense_text(trial: Mapping[str, Any]) -> str:
    """Return the score of the dense model on the images of a trial: `93.1 %`, or `perplexity 7.31 (...)`."""
    words, dense = words_of(trial.get("metric")), trial["accuracy_dense"]
    return _both(words, dense_score(trial), dense) if words.is_inverted else percent(dense)


def _both(words: ScoreWords, score: float | None, accuracy: float | None) -> str:
    """Return the score in its own units with what is compared; the one alone where both are the same."""
    compared = f"{words.compared} {percent(accuracy)}"
    return f"{words.name} {score_number(score)} ({compared})" if words.is_inverted and score is not None else compared


def score_number(value: float | None) -> str:
    """Write a score in its own units."""
    return "\N{EN DASH}" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def dense_score(trial: Mapping[str, Any]) -> float | None:
    """Return the dense model's score in its own units, on the samples that a trial is reported on; None: not known."""
    if trial.get("score_dense") is None and trial.get("metric") == "perplexity" and trial.get("accuracy_dense"):
        return 1.0 / float(trial["accuracy_dense"])
    known = trial.get("score_dense")
    return None if known is None else float(known)
