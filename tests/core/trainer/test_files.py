"""Files that are not data sets, or that unpack to far more than their size, are refused before they are read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from ado_actuators.sfttrainer.core.trainer import files  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import DataError  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(60)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_only_regular_files_are_read(tmp_path: Path, name: str) -> None:
    """Opening a pipe waits for a writer, and a device has no end."""
    read = files.json_lines if name == "d.jsonl" else lambda path: files.parquet_rows(path, list)
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe, socket or device; expected a regular file"):
        next(read(str(path)))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="expected a regular file"):
        next(read(str(path)))


def test_a_line_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer line is not read to its end."""
    monkeypatch.setattr(files, "MOST_ROW_BYTES", 20)
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "b" * 20 + '"}\n')
    rows = files.json_lines(str(path))
    assert next(rows)[1] == {"text": "a"}
    with pytest.raises(DataError, match=r"Line 2 of data set .* has more than 20 bytes"):
        next(rows)


def test_a_parquet_file_that_unpacks_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte that unpacks to megabytes, above the limit, is refused; other columns may be of any size."""
    path = tmp_path / "d.parquet"
    monkeypatch.setattr(files, "_MOST_UNPACKED_BYTES", 2**20)
    table = pyarrow.table({"text": ["\0" * 5 * 2**20], "title": ["a"]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    assert path.stat().st_size < 2**14
    with pytest.raises(
        DataError, match=r"unpacks from [0-9]+ to [0-9]+ bytes in one row group; expected at most 200 times"
    ):
        next(files.parquet_rows(str(path), lambda names: ["text"]))
    assert next(files.parquet_rows(str(path), lambda names: ["title"]))[1] == {"title": "a"}


def test_repeated_large_values_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that the file stores once for many rows is not unpacked for all of them at a time."""
    monkeypatch.setattr(files, "_MOST_BATCH_BYTES", 4_000)
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.table({"text": ["a" * 1_000] * 100}), path)
    opened = parquet.ParquetFile
    sizes: list[int] = []

    class Recording(opened):  # type: ignore[misc, valid-type]
        def iter_batches(self, batch_size: int, **options: object) -> object:
            sizes.append(batch_size)
            return super().iter_batches(batch_size=batch_size, **options)

    monkeypatch.setattr(parquet, "ParquetFile", Recording)
    assert sum(1 for _ in files.parquet_rows(str(path), list)) == 100
    assert max(sizes) <= 3


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_rows_are_counted_without_reading_them(tmp_path: Path, name: str) -> None:
    """Blank lines do not count as rows."""
    path = tmp_path / name
    if name == "d.jsonl":
        path.write_text('{"text": "a"}\n\n   \n{"text"\n')
    else:
        parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    assert files.count_rows(str(path)) == 2


def test_lines_are_counted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line may be as long as the file: it is never read as a whole, and blank lines may be divided as well."""
    monkeypatch.setattr(files, "_PIECE_BYTES", 4)
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"a" * 9 + b"\n      \r\n\n" + b" " * 7 + b"b\n" + b"\0" * 9)
    assert files.count_rows(str(path)) == 3
    read = []

    class Recording(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            read.append(size)
            return super().read(size)

    assert files._lines(Recording(b"x" * 20)) == 1
    assert set(read) == {4}


def test_a_repeated_key_is_found_among_many(tmp_path: Path) -> None:
    """Four hundred thousand keys, the last one twice, are read in one pass."""
    path = tmp_path / "d.jsonl"
    pairs = ",".join(f'"k{number}": 0' for number in range(400_000))
    path.write_text(f'{{{pairs}, "k399999": 1}}\n')
    with pytest.raises(DataError, match="k399999"):
        next(files.json_lines(str(path)))


def test_blank_lines_are_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few between rows are skipped; so many in a row are refused."""
    monkeypatch.setattr(files, "_MOST_BLANK_LINES", 3)
    path = tmp_path / "d.jsonl"
    path.write_text('\n\n{"text": "a"}\n\n \n\n{"text": "b"}\n')
    assert [row for _, row in files.json_lines(str(path))] == [{"text": "a"}, {"text": "b"}]
    path.write_text('{"text": "a"}\n' + 4 * "\n")
    with pytest.raises(DataError, match=r"Line 5 of .* follows 3 blank lines; remove them\."):
        list(files.json_lines(str(path)))
