"""Writes data sets of wanted size: text as ``.jsonl``, images with captions as ``.parquet``.

Imports the standard library; for images numpy, pillow and pyarrow besides. From the command line::

    python -m ado_actuators.sfttrainer.core.commands.dataset text samples.jsonl --samples 1000 --words 200
    python -m ado_actuators.sfttrainer.core.commands.dataset image samples.parquet --samples 100 --pixels 224
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

WORDS = (
    *("amber", "bridge", "candle", "delta", "ember", "forest", "garden", "harbor", "island", "jungle", "kettle"),
    *("lantern", "meadow", "north", "ocean", "pepper", "quartz", "river", "silver", "timber", "under", "violet"),
)


def write_text(path: Path, *, samples: int, words: int, seed: int = 42) -> None:
    """Write ``samples`` lines with a ``text`` of ``words`` words each; equal seeds give equal files.

    Raises:
        ValueError: a number is not positive.
    """
    _check(samples=samples, words=words)
    source = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(samples):
            file.write(json.dumps({"text": " ".join(source.choices(WORDS, k=words)) + "."}) + "\n")


def write_images(path: Path, *, samples: int, pixels: int, words: int = 12, seed: int = 42) -> None:
    """Write ``samples`` rows with ``image`` (PNG of ``pixels`` x ``pixels`` random colours) and ``caption``.

    The image column is a struct of ``bytes`` and ``path``, which the datasets library reads as an image.

    Raises:
        ValueError: a number is not positive.
    """
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


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number} must be at least 1.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data set the command line asks for."""
    parser = argparse.ArgumentParser(prog="make_dataset", description="Write a data set of wanted size.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, suffix in (("text", ".jsonl"), ("image", ".parquet")):
        one = kinds.add_parser(kind, help=f"a {suffix} file")
        one.add_argument("path", type=Path, help=f"the {suffix} file to write")
        one.add_argument("--samples", type=int, default=1000)
        one.add_argument("--words", type=int, default=200 if kind == "text" else 12, help="words of a sample")
        one.add_argument("--seed", type=int, default=42)
        if kind == "image":
            one.add_argument("--pixels", type=int, default=224, help="width and height")
    options = parser.parse_args(arguments)
    try:
        if options.kind == "text":
            write_text(options.path, samples=options.samples, words=options.words, seed=options.seed)
        else:
            write_images(
                options.path, samples=options.samples, pixels=options.pixels, words=options.words, seed=options.seed
            )
    except ImportError:
        parser.error("images need numpy, pillow and pyarrow: pip install numpy pillow pyarrow")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
