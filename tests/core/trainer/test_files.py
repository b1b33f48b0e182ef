"""Files that are not data sets, or that unpack to far more than their size, are refused before they are read."""

from __future__ import annotations

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
