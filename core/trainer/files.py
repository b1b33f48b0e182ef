"""Reads the rows of a user's data set from a .jsonl or .parquet file, one at a time. Imports pyarrow.

Every error is a ``DataError`` that names the file and the line or row. Lines and rows are counted from 1, blank lines included.
Only regular files are read, and no row may need more memory than ``MOST_ROW_BYTES`` allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from ..protocol.data_files import LONGEST_NAME, irregular, quoted, unreadable
from .errors import DataError

# the position of a row, for messages, and the row
Row = tuple[str, dict[str, Any]]
# most bytes of a line, which is read as a whole
MOST_ROW_BYTES = 128 * 2**20
# blank lines in a row, whose number has no other limit
_MOST_BLANK_LINES = 100_000
# lines are counted in pieces of this size
_PIECE_BYTES = 2**20
# what a file can be that is named .jsonl, by its first bytes
_OTHER_KINDS = {
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "a parquet file; name it .parquet",
    b"version https://git-lfs": "a pointer of git-lfs; run git lfs pull",
}
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_ONE_EACH = "expected one JSON object on each line"
# most characters of a key in a message
_LONGEST_KEY = 40
# what a batch of parquet rows may unpack to, if each row is as large as all values that its row group stores
_MOST_BATCH_BYTES = 256 * 2**20
# A row group that unpacks to more than this, and to this many times its size in the file, holds no text or images
_MOST_UNPACKED_BYTES = 2**30
_MOST_UNPACKED_RATIO = 200


def listed(names: Sequence[str]) -> str:
    """Return the names of columns for a message, cut to ``LONGEST_NAME`` characters."""
    return ", ".join(names)[:LONGEST_NAME] or "none"


def check_regular(path: str) -> None:
    """Check that a path names a regular file, because opening a pipe or reading a device may never end.

    Raises:
        DataError: it is a directory, a pipe, a socket or a device.
    """
    if message := irregular(path):
        raise DataError(message)


def json_lines(path: str) -> Iterator[Row]:
    """Yield the JSON objects of a file with one object per line. Blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object in UTF-8, has a key twice, has more than
            ``MOST_ROW_BYTES`` bytes, or follows more than ``_MOST_BLANK_LINES`` blank ones.
    """
    check_regular(path)
    try:
        with Path(path).open("rb") as file:
            number = blank = 0
            while line := file.readline(MOST_ROW_BYTES + 1):
                number += 1
                blank = 0 if line.strip() else blank + 1
                if 0 < blank <= _MOST_BLANK_LINES and len(line) <= MOST_ROW_BYTES:
                    continue
                position = f"Line {number} of data set {quoted(path)}"
                if len(line) > MOST_ROW_BYTES:
                    raise DataError(f"{position} has more than {MOST_ROW_BYTES} bytes; expected one sample per line.")
                if blank:
                    raise DataError(f"{position} follows {_MOST_BLANK_LINES:,} blank lines; remove them.")
                yield position, _json_object(line, position)
    except OSError as error:
        raise DataError(unreadable(path, error.strerror)) from error


def _json_object(line: bytes, position: str) -> dict[str, Any]:
    try:
        row = _JSON.decode(line.decode("utf-8-sig"))
    except _RepeatedKeyError as error:
        raise DataError(f"{position} has the key {str(error)[:_LONGEST_KEY]!r} twice in one object.") from None
    except (ValueError, RecursionError) as error:  # ValueError includes UnicodeDecodeError
        raise DataError(f"{position} {_not_json(line, error)}.") from None
    if not isinstance(row, dict):
        raise DataError(f"{position} is not a JSON object; {_ONE_EACH}.")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise _RepeatedKeyError(name)
        made[name] = value
    return made


class _RepeatedKeyError(Exception):
    """An object of JSON has a key twice."""


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def _not_json(line: bytes, error: Exception) -> str:
    """Return what a line is instead of JSON."""
    for start, kind in _OTHER_KINDS.items():
        if line.startswith(start):
            return f"is not valid JSON: the file is {kind}"
    if not line.strip(b"\0\r\n"):
        return "is not valid JSON: it has zero bytes only; the file is damaged"
    if line.startswith(_WIDE_MARKS) or b"\0" in line[:4]:
        return "is not valid JSON: the file looks like UTF-16 or UTF-32; save it as UTF-8"
    if isinstance(error, UnicodeDecodeError):
        return f"is not valid JSON: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}; {_ONE_EACH}"
    if isinstance(error, RecursionError):
        return "is not valid JSON: its values are nested too deeply"
    return "is not valid JSON: it has a number of too many digits"


def parquet_rows(path: str, select: Callable[[list[str]], list[str]], *, batch_size: int = 256) -> Iterator[Row]:
    """Yield the rows of a parquet file as dictionaries.

    Args:
        path: the file.
        select: returns the columns to read, given the columns of the file; it may raise ``DataError``.
        batch_size: most rows that are in memory at a time.

    Raises:
        DataError: the file cannot be read, or unpacks to far more than its size.
    """
    check_regular(path)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = select(names)
            if twice := [name for name in columns if names.count(name) > 1]:
                raise DataError(f"Data set {quoted(path)} has the column {twice[0][:_LONGEST_KEY]!r} twice.")
            for group in range(file.metadata.num_row_groups):
                unpacked = _unpacked_bytes(file, group, columns, path)
                rows = max(1, min(batch_size, _MOST_BATCH_BYTES // max(1, unpacked)))
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"Row {number} of data set {quoted(path)}", row
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(unreadable(path, error.strerror)) from error
        raise DataError(
            f"Data set {quoted(path)} cannot be read as parquet after row {number}: "
            "it is another kind of file, cut short or damaged; write or download it again."
        ) from error


def _unpacked_bytes(file: pyarrow.parquet.ParquetFile, group: int, columns: list[str], path: str) -> int:
    """Return the bytes of the stored values of some columns in a row group, which no single value exceeds."""
    metadata = file.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
    unpacked: int = sum(chunk.total_uncompressed_size for chunk in chunks)
    packed = sum(chunk.total_compressed_size for chunk in chunks)
    if unpacked > _MOST_UNPACKED_BYTES and unpacked > _MOST_UNPACKED_RATIO * packed:
        raise DataError(
            f"Data set {quoted(path)} unpacks from {packed} to {unpacked} bytes in one row group; "
            f"expected at most {_MOST_UNPACKED_RATIO} times its size."
        )
    return unpacked


def _lines(file: IO[bytes]) -> int:
    """Return the number of lines that are not blank, in bounded memory: a line may be as long as the file."""
    count, blank = 0, True
    while piece := file.read(_PIECE_BYTES):
        *ended, last = piece.split(b"\n")
        for part in ended:
            count += not (blank and not part.strip())
            blank = True
        blank = blank and not last.strip()
    return count + (not blank)


def count_rows(path: str) -> int:
    """Return the number of rows of a .parquet file, or of lines that are not blank of any other file, without parsing them.

    Raises:
        DataError: the file cannot be read.
    """
    check_regular(path)
    try:
        if path.endswith(".parquet"):
            with pyarrow.parquet.ParquetFile(path) as file:
                rows: int = file.metadata.num_rows
                return rows
        with Path(path).open("rb") as file:
            return _lines(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"Data set {quoted(path)} cannot be read.") from error
