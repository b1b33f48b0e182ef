"""Writes data sets of a given size: text as ``.jsonl``, images with captions as ``.parquet``.

Imports the standard library; for images also numpy, pillow and pyarrow.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

WORDS = (
    *("amber", "bridge", "candle", "delta", "ember", "forest", "garden", "harbor", "island", "jungle", "kettle"),
    *("lantern", "meadow", "north", "ocean", "pepper", "quartz", "river", "silver", "timber", "under", "violet"),
)


def write_text(path: Path, *, samples: int, words: int, seed: int = 42) -> None:
    """Write ``samples`` lines with a ``text`` of ``words`` words each; equal seeds give equal files.

    Raises:
        ValueError: a number is not positive, or the file is no ``.jsonl`` file.
    """
    _check_suffix(path, ".jsonl")
    _check(samples=samples, words=words)
    source = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(samples):
            file.write(json.dumps({"text": " ".join(source.choices(WORDS, k=words)) + "."}) + "\n")


def write_images(path: Path, *, samples: int, pixels: int, words: int = 12, seed: int = 42) -> None:
    """Write ``samples`` rows with ``image`` (PNG of ``pixels`` x ``pixels`` random colours) and ``caption``.

    The image column is a struct of ``bytes`` and ``path``, which the datasets library reads as an image.

    Raises:
        ValueError: a number is not positive, or the file is no ``.parquet`` file.
    """
    _check_suffix(path, ".parquet")
    _check(samples=samples, pixels=pixels, words=words)
    import pyarrow
    from pyarrow import parquet

    source = random.Random(seed)
    rows = [
        {
            "image": {"bytes": _png(pixels, source.randrange(2**32)), "path": f"{number}.png"},
            "caption": " ".join(source.choices(WORDS, k=words)) + ".",
        }
        for number in range(samples)
    ]
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("caption", pyarrow.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "caption": _STRING}}})},
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)


_STRING = {"dtype": "string", "_type": "Value"}


def _png(pixels: int, seed: int) -> bytes:
    import numpy
    from PIL import Image

    colours = numpy.random.default_rng(seed).integers(0, 256, size=(pixels, pixels, 3), dtype=numpy.uint8)
    buffer = io.BytesIO()
    # random colours do not compress: the fastest level is as small as the best
    Image.fromarray(colours).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _check_suffix(path: Path, expected: str) -> None:
    # data sets are read by their suffix
    if path.suffix != expected:
        raise ValueError(
            f"{str(path)!r:.100} does not end with {expected}; give a file that does, such as samples{expected}."
        )


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number} must be at least 1.")
