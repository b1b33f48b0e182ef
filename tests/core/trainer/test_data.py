"""Data sets of a job: synthetic ones, users' files, bad files, and the command that writes files."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

from ado_actuators.sfttrainer.__main__ import main  # noqa: E402
from ado_actuators.sfttrainer.core.commands import dataset  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.data_files import SYNTHETIC  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import byte_tokenizer, data  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import BadInput, DataError, Refused  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

WORKLOAD = {
    "model_name": "m",
    "number_gpus": 0,
    "model_max_length": 16,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
}
CONFIG = transformers.LlamaConfig(vocab_size=300)
END = 1


def build(tokenizer: Any = None, **change: Any) -> data.DataSet:
    """Build the data set of a changed workload."""
    workload = JobWorkload(**Workload.model_construct(**{**WORKLOAD, **change}).model_dump())
    return data.build(Job(id="test", workload=workload), tokenizer or byte_tokenizer.build(16), CONFIG)


def encode(text: str) -> list[int]:
    """Return the byte tokenizer's ids."""
    return list(byte_tokenizer.build(16)(text)["input_ids"])


def write(path: Path, *rows: object) -> str:
    """Write rows as JSON lines; strings are written unchanged."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_fixed_samples_have_the_wanted_length() -> None:
    """3 steps of 8 samples of 16 tokens; every token has a label, and none is a special token."""
    built = build()
    assert built.lengths == [16] * 24
    assert built.dataset.column_names == ["input_ids", "labels"]
    for sample in built.dataset:
        assert sample["labels"] == sample["input_ids"]
        assert min(sample["input_ids"]) >= 3
        assert max(sample["input_ids"]) < 300


@pytest.mark.parametrize("name", SYNTHETIC)
def test_equal_seeds_give_equal_data(name: str) -> None:
    """A measurement can be repeated; a different seed gives different data."""
    first, again, other = (build(dataset_id=name, seed=seed).dataset[:] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_uniform_lengths() -> None:
    """Lengths are between 2 and L; their mean is that of the distribution."""
    lengths = build(dataset_id="synthetic-uniform", model_max_length=64, max_steps=1000).lengths
    assert (min(lengths), max(lengths)) == (2, 64)
    assert numpy.mean(lengths) == pytest.approx(33, rel=0.02)


def test_lognormal_lengths() -> None:
    """The median is L/4, and the standard deviation of the logarithm 0.8, so that about 4 % are truncated to L."""
    lengths = build(dataset_id="synthetic-lognormal", model_max_length=1024, batch_size=8, max_steps=120).lengths
    assert numpy.median(lengths) == pytest.approx(256, rel=0.1)
    assert numpy.mean(numpy.array(lengths) == 1024) == pytest.approx(0.0416, abs=0.015)
    uncut = numpy.log(numpy.array(lengths)[numpy.array(lengths) < 1024])
    assert numpy.percentile(uncut, 50) - numpy.percentile(uncut, 16) == pytest.approx(0.8, rel=0.12)
    assert math.log(2) <= uncut.min()


@pytest.mark.parametrize(("length", "batch"), [(16, 4), (512, 16), (8192, 64), (131072, 1)])
def test_preparation_stays_short(length: int, batch: int) -> None:
    """For any number of steps, a data set of whole steps is made in a fraction of a second."""
    begin = time.process_time()
    built = build(model_max_length=length, batch_size=batch, gradient_accumulation_steps=1, max_steps=1_000_000)
    assert time.process_time() - begin < 3  # 0.1 s on a quiet machine
    assert len(built.lengths) % batch == 0
    assert sum(built.lengths) <= max(data.MOST_TOKENS, batch * length)
    assert len(built.lengths) <= data.MOST_SAMPLES


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize(("length", "batch", "accumulation"), [(16, 4, 2), (2048, 32, 1), (8192, 64, 4)])
def test_packs_are_enough_for_a_step(name: str, length: int, batch: int, accumulation: int, strategy: str) -> None:
    """Packed by TRL, documents of all lengths give at least as many packs as an optimizer step needs."""
    trl = pytest.importorskip("trl")
    change = {"model_max_length": length, "batch_size": batch, "gradient_accumulation_steps": accumulation}
    built = build(dataset_id=name, packing=True, max_steps=1_000_000, **change)
    packed = trl.pack_dataset(built.dataset, length, strategy)
    assert len(packed) >= batch * accumulation
    assert sum(built.lengths) < max(data.MOST_TOKENS, length * batch * accumulation) + length


def test_a_file_is_repeated_until_it_fills_the_packs(tmp_path: Path) -> None:
    """Three steps of eight packs of 16 tokens need 96 texts of four tokens, or 24 texts of which a pack has the beginning."""
    short = write(tmp_path / "short.jsonl", {"text": "abc"}, {"text": "def"})
    assert build(dataset_id=short, packing=True).lengths == [4] * 96
    long = write(tmp_path / "d.jsonl", {"text": "a" * 40})
    assert build(dataset_id=long, packing=True).lengths == [16] * 24
    assert build(dataset_id=long, packing=True, packing_strategy="wrapped").lengths == [41] * 10
    assert build(dataset_id=short, packing=True, num_train_epochs=1).lengths == [4] * 2


def test_a_sample_of_one_token_is_refused() -> None:
    """A sample of one token has no token to predict."""
    with pytest.raises(Refused, match="model_max_length 1"):
        build(model_max_length=1)


def test_text_is_tokenised_ended_and_repeated(tmp_path: Path) -> None:
    """Each text ends with the end token; two texts are repeated to three steps of eight samples."""
    built = build(dataset_id=write(tmp_path / "d.jsonl", {"text": "ab"}, {"text": "cde"}))
    assert built.dataset[0] == {"input_ids": [*encode("ab"), END], "labels": [*encode("ab"), END]}
    assert built.dataset[23]["input_ids"] == [*encode("cde"), END]
    assert (built.distinct, built.dropped, built.lengths) == (2, 0, [3, 4] * 12)


def test_with_epochs_the_whole_file_is_read_once(tmp_path: Path) -> None:
    """With ``num_train_epochs`` no sample is repeated or left out, if ``max_steps`` allows a pass."""
    path = write(tmp_path / "d.jsonl", *({"text": "a" * (1 + n % 5)} for n in range(50)))
    built = build(dataset_id=path, num_train_epochs=3, max_steps=100)
    assert built.lengths == [2 + n % 5 for n in range(50)]
    assert built.epochs == 3


def test_with_epochs_only_the_samples_of_the_steps_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps need 24 of a million rows; where the limits cut earlier, passes over the beginning have as many samples."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "ab"}\n' * 1_000_000)
    built = build(dataset_id=str(path), num_train_epochs=2)
    assert (built.distinct, built.epochs) == (24, -(-2_000_000 // 24))
    monkeypatch.setattr(data, "MOST_SAMPLES", 16)
    built = build(dataset_id=write(tmp_path / "e.jsonl", *[{"text": "ab"}] * 40), num_train_epochs=2, max_steps=1000)
    assert (built.distinct, built.epochs) == (16, 5)


def test_only_the_lines_that_the_steps_need_are_read(tmp_path: Path) -> None:
    """Three steps need 24 samples, so the malformed line 25 is not read."""
    path = write(tmp_path / "d.jsonl", *({"text": "ab"} for _ in range(24)), "{")
    assert build(dataset_id=path).distinct == 24
    assert build(dataset_id=path, num_train_epochs=1).distinct == 24
    with pytest.raises(DataError, match="Line 25"):
        build(dataset_id=path, num_train_epochs=1, max_steps=4)


def test_a_prompt_has_no_labels(tmp_path: Path) -> None:
    """Labels of the prompt are -100; the completion ends with the end token."""
    built = build(dataset_id=write(tmp_path / "d.jsonl", {"prompt": "ab", "completion": "cd"}))
    assert built.dataset[0] == {"input_ids": [*encode("abcd"), END], "labels": [-100, -100, *encode("cd"), END]}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_share_of_each_synthetic_sample_is_its_prompt(name: str) -> None:
    """Its first tokens have no label, at least one token has; completion_only_loss false gives them labels. The tokens are the same."""
    plain, built = build(dataset_id=name).dataset, build(dataset_id=name, synthetic_prompt_share=0.75).dataset
    assert plain["input_ids"][:] == built["input_ids"][:] == plain["labels"][:]
    for ids, labels in zip(built["input_ids"], built["labels"], strict=True):
        prompt = min(round(0.75 * len(ids)), len(ids) - 1)
        assert labels == [-100] * prompt + ids[prompt:]
    whole = build(dataset_id=name, synthetic_prompt_share=0.75, completion_only_loss=False).dataset
    assert whole["labels"][:] == plain["labels"][:]


def test_the_text_may_have_another_column(tmp_path: Path) -> None:
    """``dataset_text_field`` names the column; the message for a file without it lists the file's columns."""
    path = write(tmp_path / "d.jsonl", {"text": "no", "story": "yes"})
    assert build(dataset_id=path, dataset_text_field="story").lengths == [4] * 24
    with pytest.raises(DataError, match=r"Line 1 of data set .* needs valid tale, prompt and completion"):
        build(dataset_id=path, dataset_text_field="tale")


def test_chat_goes_through_the_template(tmp_path: Path) -> None:
    """Messages are rendered with the tokenizer's chat template."""
    tokenizer = byte_tokenizer.build(64)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    rows = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    built = build(tokenizer, dataset_id=write(tmp_path / "d.jsonl", rows))
    assert built.dataset[0]["input_ids"] == encode("u:hi;a:yo;")


def test_long_samples_are_cut(tmp_path: Path) -> None:
    """At most model_max_length tokens remain; of packs cut anywhere a sample is as long as all together at most."""
    path = write(tmp_path / "d.jsonl", {"text": "a" * 40})
    assert set(build(dataset_id=path).lengths) == {16}
    wrapped = {"packing": True, "packing_strategy": "wrapped"}
    assert set(build(dataset_id=path, packing=True).lengths) == {16}
    assert set(build(dataset_id=path, **wrapped).lengths) == {41}
    long = write(tmp_path / "e.jsonl", {"text": "a" * 10_000})
    assert set(build(dataset_id=long, **wrapped).lengths) == {3 * 8 * 16}


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_a_long_line_is_not_repeated_for_each_pack(tmp_path: Path, strategy: str) -> None:
    """The data are at most as long as the limit, or all packs and the longest sample; packs of TRL are enough for a step."""
    trl = pytest.importorskip("trl")
    path = write(tmp_path / "d.jsonl", {"text": "a" * 100_000}, {"text": "b"})
    built = build(dataset_id=path, packing=True, packing_strategy=strategy, max_steps=800)
    assert sum(built.lengths) <= 800 * 8 * 16 + 100_000
    assert len(trl.pack_dataset(built.dataset, 16, strategy)) >= 800 * 8


def test_samples_without_loss_after_the_cut_are_dropped(tmp_path: Path) -> None:
    """A prompt as long as the sample leaves no label."""
    long = {"prompt": "a" * 16, "completion": "b"}
    built = build(dataset_id=write(tmp_path / "d.jsonl", long, {"prompt": "a", "completion": "b"}))
    assert (built.dropped, built.distinct) == (1, 1)
    with pytest.raises(DataError, match="no sample with a label within 16 tokens"):
        build(dataset_id=write(tmp_path / "e.jsonl", long))


def test_parquet_equals_json_lines(tmp_path: Path) -> None:
    """The same rows give the same data set."""
    rows = [{"prompt": "ab", "completion": "c"}, {"prompt": "d", "completion": "ef"}]
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "extra": 1} for row in rows]), tmp_path / "d.parquet")
    first = build(dataset_id=str(tmp_path / "d.parquet"))
    assert first.dataset[:] == build(dataset_id=write(tmp_path / "d.jsonl", *rows)).dataset[:]


def test_blank_lines_count_but_are_no_samples(tmp_path: Path) -> None:
    """Line numbers in messages are those that an editor shows."""
    with pytest.raises(
        DataError, match=r"^Line 4 of data set .*d\.jsonl' is not valid JSON: .* at character \d+; .*\.$"
    ):
        build(dataset_id=write(tmp_path / "d.jsonl", {"text": "a"}, "", {"text": "b"}, '{"text": '))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("d.jsonl", b"", "is empty"),
        ("d.jsonl", b"\n\n", "is empty"),
        ("d.jsonl", b'["text"]\n', "Line 1"),
        ("d.jsonl", b'{"text": 5}\n', "Line 1"),
        ("d.jsonl", b'{"words": "a"}\n', "it has words"),
        ("d.jsonl", b'{"prompt": "a"}\n', "it has prompt"),
        ("d.jsonl", b'{"text": "\xff"}\n', "Line 1"),
        ("d.jsonl", b"[" * 100_000 + b"\n", "Line 1"),
        ("d.jsonl", b'{"messages": [{"role": "user", "content": "hi"}]}\n', "no chat template"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "b\n', "Line 2"),
        ("d.jsonl", b'[\n{"text": "a"}\n]\n', "expected one JSON object on each line"),
        ("d.jsonl", b'["text"]\n', "expected one JSON object on each line"),
        ("d.jsonl", b'{"text": "\xff"}\n', "byte 11 is not UTF-8; save the file as UTF-8"),
        ("d.jsonl", '{"text": "a"}\n'.encode("utf-16"), "looks like UTF-16"),
        ("d.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "looks like UTF-16"),
        ("d.jsonl", '{"text": "a"}\n'.encode("utf-32-le"), "looks like UTF-16 or UTF-32"),
        ("d.jsonl", gzip.compress(b'{"text": "a"}\n', mtime=0), "the file is compressed with gzip; unpack it"),
        ("d.jsonl", b'{"text": "a"}\n\0\0\0\0\0\0', "zero bytes only; the file is damaged"),
        ("d.jsonl", b"PAR1\x15\x04", "the file is a parquet file; name it .parquet"),
        ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("d.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"),
        ("d.jsonl", b'{"text": "a", "x": ' + b"9" * 5000 + b"}\n", "a number of too many digits"),
        ("d.jsonl", b'{"text": "a", "text": "b"}\n', "has the key 'text' twice in one object"),
        (
            "d.parquet",
            b"no parquet",
            "cannot be read as parquet after row 0: it is another kind of file, cut short or damaged",
        ),
        ("d.csv", b"text\na\n", "neither a .jsonl nor a .parquet"),
    ],
)
def test_a_bad_file_is_one_message(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    """The message names the file, and the line or what was expected. The failure is bad input, not an exception of the trainer."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        build(dataset_id=str(tmp_path / name))
    message = str(raised.value)
    assert expected in message
    assert name in message
    assert len(message) <= 200
    assert "\n" not in message
    assert isinstance(raised.value, BadInput)
    assert isinstance(raised.value, ValueError)


def test_parquet_with_other_columns(tmp_path: Path) -> None:
    """The message lists the file's columns."""
    parquet.write_table(pyarrow.table({"words": ["a"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="it has words"):
        build(dataset_id=str(tmp_path / "d.parquet"))


def test_a_parquet_column_that_exists_twice(tmp_path: Path) -> None:
    """Which of both is meant is not known; TRL refuses it too."""
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet' has the column 'text' twice\.$"):
        build(dataset_id=str(tmp_path / "d.parquet"))


def test_a_byte_order_mark_and_other_line_ends_are_no_text(tmp_path: Path) -> None:
    """Editors on Windows write both."""
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "ab"}\r\n{"text": "cd"}\r\n\r\n')
    assert build(dataset_id=str(tmp_path / "d.jsonl"), num_train_epochs=1).lengths == [3, 3]


def test_an_empty_parquet_file(tmp_path: Path) -> None:
    """A file with columns but no rows is an empty data set."""
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="is empty"):
        build(dataset_id=str(tmp_path / "d.parquet"))


def test_a_directory_is_not_a_data_set(tmp_path: Path) -> None:
    """The message has the reason of the operating system."""
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        build(dataset_id=str(tmp_path / "d.jsonl"))


@pytest.mark.parametrize("name", ["synthetic-gauss", "/no/such/file.jsonl"])
def test_unknown_data_names_the_choices(name: str) -> None:
    """The message lists the synthetic data sets."""
    with pytest.raises(DataError) as raised:
        build(dataset_id=name)
    assert name in str(raised.value)
    assert "synthetic-lognormal" in str(raised.value)
    assert len(str(raised.value)) <= 200


def test_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set is in memory; no file is created."""
    assert build(dataset_id=write(tmp_path / "d.jsonl", {"text": "ab"})).dataset.cache_files == []


def test_the_tool_writes_text(tmp_path: Path) -> None:
    """The file has the given number of samples and words, is equal for equal seeds, and can be read by the trainer."""
    first, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert main(["dataset", "text", str(first), "--samples", "5", "--words", "7"]) == 0
    dataset.write_text(again, samples=5, words=7)
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [len(row["text"].split()) for row in rows] == [7] * 5
    assert first.read_bytes() == again.read_bytes()
    assert build(dataset_id=str(first), num_train_epochs=1).distinct == 5


def test_the_tool_writes_images(tmp_path: Path) -> None:
    """The file has images of the given size with captions, and the datasets library reads them as images."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    path = tmp_path / "images.parquet"
    assert main(["dataset", "image", str(path), "--samples", "3", "--pixels", "8", "--words", "4"]) == 0
    read = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert read.column_names == ["image", "caption"]
    assert [sample["image"].size for sample in read] == [(8, 8)] * 3
    assert [len(sample["caption"].split()) for sample in read] == [4] * 3


@pytest.mark.parametrize(("kind", "suffix"), [("text", ".jsonl"), ("image", ".parquet")])
def test_the_tool_rejects_another_suffix(
    kind: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer reads data sets by their suffix; nothing is written."""
    path = tmp_path / "x.csv"
    assert main(["dataset", kind, str(path)]) == 2
    expected = f"does not end with {suffix}; give a file that does, such as samples{suffix}.\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not path.exists()


def test_the_tool_rejects_zero_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is one line."""
    assert main(["dataset", "text", str(tmp_path / "a.jsonl"), "--samples", "0"]) == 2
    assert capsys.readouterr().err == "samples 0 must be at least 1.\n"
