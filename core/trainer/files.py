"""Reads the rows of a user's data set from a .jsonl or .parquet file, one at a time. Imports pyarrow, and of the core only errors.

Every error is a ``DataError`` that names the file and the line or row. Lines and rows are counted from 1, blank lines included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from .errors import DataError

# the position of a row, for messages, and the row
Row = tuple[str, dict[str, Any]]
# most characters of a path, a name or a list of names in a message
LONGEST_NAME = 60


def exists(path: str) -> bool:
    """Return whether ``path`` exists; False also for a name that no file system can hold, for which ``Path.exists`` raises."""
    return os.path.exists(path)  # noqa: PTH110


def quoted(path: str) -> str:
    """Return ``path`` in quotes for a message. Of a long path only the end is shown, because it identifies the file better."""
    return repr(path if len(path) <= LONGEST_NAME else "..." + path[-LONGEST_NAME + 3 :])


def listed(names: Sequence[str]) -> str:
    """Return the names of columns for a message, cut to ``LONGEST_NAME`` characters."""
    return ", ".join(names)[:LONGEST_NAME] or "none"


def json_lines(path: str) -> Iterator[Row]:
    """Yield the JSON objects of a file with one object per line. Blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    position = f"Line {number} of data set {quoted(path)}"
                    yield position, _json_object(line, position)
    except OSError as error:
        raise DataError(f"Data set {quoted(path)} cannot be read: {error.strerror}.") from error


def _json_object(line: bytes, position: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # ValueError includes UnicodeDecodeError
        raise DataError(f"{position} is not valid JSON.") from None
    if not isinstance(row, dict):
        raise DataError(f"{position} is not a JSON object.")
    return row


def parquet_rows(path: str, select: Callable[[list[str]], list[str]], *, batch_size: int = 256) -> Iterator[Row]:
    """Yield the rows of a parquet file as dictionaries.

    Args:
        path: the file.
        select: returns the columns to read, given the columns of the file; it may raise ``DataError``.
        batch_size: rows that are in memory at a time.

    Raises:
        DataError: the file cannot be read.
    """
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = select(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=batch_size, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"Row {number} of data set {quoted(path)}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"Data set {quoted(path)} cannot be read as parquet after row {number}.") from error
