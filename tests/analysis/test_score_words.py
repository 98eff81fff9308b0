"""Reports in the words of another score than accuracy."""

from __future__ import annotations

import pytest

from cleanai_ray.analysis.intervals import interval_of
from cleanai_ray.analysis.score_words import compared_text, dense_text, score_text, words_of
from cleanai_ray.report.blocks import Callout, Chapter, Code, Column, Document, KeyNumber, KeyNumbers, Table
from cleanai_ray.report.words import chart_in_words, in_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Accuracy against MACs", "mIoU against MACs"),
        ("Most accurate first", "Best first"),
        ("the most accurate trial by top-1 accuracy", "the best trial by mIoU"),
        ("top-1, %", "mIoU, %"),
        ("mean accuracies of 20 images", "mean mIoU of 20 images"),
        ("see accuracy_macs.svg", "see accuracy_macs.svg"),
    ],
)
def test_accuracy_is_called_by_the_name_of_the_score(text: str, expected: str) -> None:
    assert words_of("mIoU").write(text) == expected
    assert words_of("accuracy").write(text) == text
    assert words_of(None).write(text) == text


def test_no_interval_by_counting_is_promised() -> None:
    text = "8 trials, the best first, accuracy with half the width of its 95 % interval (Wilson); against dense"
    assert words_of("mAP").write(text) == "8 trials, the best first, mAP; against dense"


def test_samples_are_called_what_they_are() -> None:
    assert words_of("perplexity").write("Images decide; one image, 2 images") == "Texts decide; one text, 2 texts"


def test_a_score_in_a_sentence() -> None:
    assert score_text({"accuracy": 0.931, "metric": "accuracy"}) == "93.1 % top-1"
    assert score_text({"accuracy": 0.5, "metric": "mIoU", "score": 0.5}) == "mIoU 50.0 %"
    found = score_text({"accuracy": 0.125, "metric": "perplexity", "score": 8.0})
    assert found == "perplexity 8 (token probability 12.5 %)"


def test_what_is_compared_is_never_a_bare_percentage_of_something_else() -> None:
    language = {"accuracy": 0.125, "accuracy_dense": 0.2, "metric": "perplexity", "score": 8.0, "score_dense": 5.0}
    assert compared_text(language) == "token probability 12.5 %"
    assert compared_text(language, 0.1) == "token probability 10.0 %"
    assert dense_text(language) == "perplexity 5 (token probability 20.0 %)"
    assert dense_text({**language, "score_dense": None}) == "perplexity 5 (token probability 20.0 %)"  # 1 / 0.2
    other = {**language, "metric": "RMSE", "score_dense": None}  # nothing says what it was
    assert dense_text(other) == "R\N{SUPERSCRIPT TWO} 20.0 %"
    masks = {"accuracy": 0.5, "accuracy_dense": 0.6, "metric": "mIoU", "score": 0.5, "score_dense": 0.6}
    assert (compared_text(masks), dense_text(masks)) == ("50.0 %", "60.0 %")


def test_a_metric_of_the_users_own_is_called_by_its_name() -> None:
    words = words_of("wer (lower is better)")
    assert (words.name, words.compared, words.is_inverted) == ("wer", "1 / (1 + wer)", True)
    assert "A low wer is good" in words.explained
    found = score_text({"accuracy": 0.25, "metric": "wer (lower is better)", "score": 3.0})
    assert found == "wer 3 (1 / (1 + wer) 25.0 %)"
    assert words_of("f1").write("top-1 accuracy, cross-entropy (nats)") == "f1, loss of the task"
    assert words_of("macro AP").loss == "binary cross-entropy (nats)"


def test_only_a_share_of_right_answers_has_an_interval_by_counting() -> None:
    trial = {"accuracy": 0.5, "num_evaluated": 100}
    assert interval_of({**trial, "metric": "accuracy"}) == interval_of(trial) is not None
    assert interval_of({**trial, "metric": "mIoU"}) is None


def test_a_document_keeps_its_shape_and_its_code() -> None:
    table = Table((Column("top-1, %", 0.5, True),), (("accuracy",),), highlighted=(0,))
    blocks = (
        Callout("Accuracy", "accurate"),
        KeyNumbers((KeyNumber("top-1 accuracy", "5 %"),)),
        table,
        Code("accuracy"),
    )
    document = Document("name", "Which accuracy?", "1", blocks, (Chapter("Accuracy", blocks),))
    found = in_words(document, words_of("mAP"))
    assert found.question == "Which mAP?"
    assert found.chapters[0].title == "mAP"
    assert found.cover[1].numbers[0].label == "mAP"
    assert found.cover[2].columns[0] == Column("mAP, %", 0.5, True)
    assert found.cover[2].highlighted == (0,)
    assert found.cover[3] == Code("accuracy")


def test_a_chart_keeps_the_names_of_its_fields() -> None:
    chart = {
        "title": {"text": "Accuracy", "subtitle": ["top-1 of images"]},
        "encoding": {"y": {"field": "accuracy", "title": "accuracy"}, "text": {"field": "accuracy"}},
        "data": {"values": [{"accuracy": 1, "text": "accuracy 1"}]},
    }
    found = chart_in_words(chart, words_of("perplexity"))
    assert found["title"] == {"text": "Token probability", "subtitle": ["token probability of texts"]}
    assert found["encoding"] == {
        "y": {"field": "accuracy", "title": "token probability"},
        "text": {"field": "accuracy"},
    }
    assert found["data"]["values"] == [{"accuracy": 1, "text": "token probability 1"}]
