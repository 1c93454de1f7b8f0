"""The demo's texts."""

from __future__ import annotations

from pathlib import Path

from embedded.text import clean, ensure_texts


def test_texts_are_disjoint_and_long_enough(tmp_path: Path) -> None:
    texts = ensure_texts(tmp_path / "text")
    calibration = texts.calibration.read_text(encoding="utf-8").split("\n\n")
    evaluation = texts.evaluation.read_text(encoding="utf-8").split("\n\n")
    assert not set(calibration) & set(evaluation)
    assert sum(map(len, calibration)) > 100_000
    assert sum(map(len, evaluation)) > 40_000


def test_clean_joins_lines_and_drops_marks() -> None:
    article = "## Head\n\np.772:0\n\nA divi-\nded word, two\nlines.\n\n~~ 12;;; 4:: %%\n"
    assert clean(article) == ["A divided word, two lines."]
