"""The data set of a job as token ids and labels: synthetic by name, or read from a file of the user. Trainer room.

Every data set leaves here in one form, so that every stack trains on the same tokens: columns ``input_ids`` and
``labels`` (-100 where no loss is wanted), cut to ``model_max_length`` unless packing is to cut them. It lives in
memory; nothing is cached on disk.

Synthetic data sets (ids uniform over the vocabulary, lengths and ids from the workload's seed, every token carries
loss), with L for ``model_max_length``:

- ``synthetic-fixed``: every sample has L tokens.
- ``synthetic-uniform``: whole numbers of tokens, uniform from 2 to L.
- ``synthetic-lognormal``: the natural logarithm of the length is normal with mean ln(L/4) and deviation 0.8, rounded,
  clipped to 2..L; 4 % of the samples are cut at L.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow

from ..protocol.messages import Job, JobWorkload
from .errors import BadInput, Refused

SYNTHETIC = ("synthetic-fixed", "synthetic-uniform", "synthetic-lognormal")
LOGNORMAL_DEVIATION = 0.8
# ids 0 to 2 are special tokens of the byte tokenizer and of many others
FIRST_ID = 3
# preparation stays below 0.3 s unless one step needs more: what is not enough for max_steps is gone through again
MOST_TOKENS = 2_000_000
MOST_SAMPLES = 20_000
# of the shortest synthetic data so many make a pack
SAMPLES_OF_A_PACK = 3
IGNORED = -100
_SHOWN = 60


class DataError(BadInput, ValueError):
    """The data set cannot be used; the text is one message that names file, line and what was expected."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Samples ready for a trainer.

    Attributes:
        dataset: columns ``input_ids`` and ``labels``, in memory.
        lengths: tokens of each sample.
        distinct: samples before they were repeated to fill whole optimizer steps, or packs of whole steps.
        dropped: samples left out because truncation left nothing that carries loss.
    """

    dataset: datasets.Dataset
    lengths: list[int]
    distinct: int
    dropped: int = 0


@dataclasses.dataclass(frozen=True)
class _Demand:
    """How much data a workload can use.

    Attributes:
        step: samples of one optimizer step.
        samples: samples of all steps; None: as many as there are.
        packs: packs to fill if samples are packed: of all steps, or of as many whole steps as are not too much; None otherwise.
        longest: tokens of a sample.
    """

    step: int
    samples: int | None
    packs: int | None
    longest: int


def build(job: Job, tokenizer: Any, model_config: Any) -> DataSet:
    """Return the data set of a job.

    Of a file only the beginning is read that ``max_steps`` steps can use, unless ``num_train_epochs`` asks for passes
    over all of it. Data too short for that is repeated to at most ``MOST_SAMPLES`` samples and about ``MOST_TOKENS``
    tokens, in whole optimizer steps; trainers then start over.

    Args:
        job: what to do.
        tokenizer: turns text into ids; unused for synthetic data.
        model_config: the model's configuration, for its vocabulary.

    Raises:
        DataError: unknown name, missing or unreadable file, malformed line, wrong columns, nothing to train on.
        Refused: samples of one token have nothing to predict.
    """
    workload = job.workload
    name, longest = workload.dataset_id, workload.model_max_length
    if longest < 2:
        raise Refused(f"model_max_length {longest} leaves no token to predict; use at least 2.")
    demand = _demand(workload)
    if name in SYNTHETIC:
        return _synthetic(name, demand, workload.seed, model_config.get_text_config().vocab_size)
    if name.startswith("synthetic") and not _exists(name):
        raise DataError(f"data set {_shown(name)} is unknown; synthetic ones are {', '.join(SYNTHETIC)}.")
    text_field = workload.dataset_text_field
    return _from_file(name, text_field, demand, tokenizer, repeat=not workload.num_train_epochs)


def _demand(workload: JobWorkload) -> _Demand:
    step = workload.batch_size * workload.gradient_accumulation_steps
    longest = workload.model_max_length
    samples = workload.max_steps * step
    if workload.packing:
        affordable = _affordable(step, longest, MOST_SAMPLES // SAMPLES_OF_A_PACK)
        return _Demand(step, None, min(samples, affordable), longest)
    return _Demand(step, samples, None, longest)


def _synthetic(name: str, demand: _Demand, seed: int, vocabulary: int) -> DataSet:
    random = numpy.random.default_rng(seed)
    longest = demand.longest
    if demand.packs is not None:
        lengths = _lengths(name, demand.packs, longest, random)
        while int(lengths.sum()) < demand.packs * longest:
            lengths = numpy.concatenate([lengths, _lengths(name, demand.packs, longest, random)])
        lengths = lengths[: _filling(lengths, demand)]
    else:
        assert demand.samples is not None
        lengths = _lengths(name, min(demand.samples, _affordable(demand.step, longest, MOST_SAMPLES)), longest, random)
    ids = random.integers(min(FIRST_ID, vocabulary - 1), vocabulary, size=int(lengths.sum()), dtype=numpy.int32)
    return DataSet(_dataset(lengths, ids, ids), lengths.tolist(), distinct=len(lengths))


def _affordable(step: int, longest: int, samples: int) -> int:
    """Return how many samples may be made: of whole steps, at least one."""
    return max(1, min(MOST_TOKENS // longest, samples) // step) * step


def _filling(lengths: numpy.ndarray, demand: _Demand) -> int:
    """Return how many samples of these lengths, gone through again and again, have the tokens of the packs.

    However they are packed they then make at least so many: what is longer than a pack is cut, and none is fuller than full.
    """
    assert demand.packs is not None
    wanted, usable = demand.packs * demand.longest, numpy.minimum(lengths, demand.longest)
    passes = -(-wanted // int(usable.sum()))
    return int(numpy.searchsorted(numpy.cumsum(numpy.resize(usable, passes * len(usable))), wanted)) + 1


def _lengths(name: str, count: int, longest: int, random: numpy.random.Generator) -> numpy.ndarray:
    if name == "synthetic-fixed":
        return numpy.full(count, longest, dtype=numpy.int64)
    if name == "synthetic-uniform":
        return random.integers(2, longest + 1, size=count)
    drawn = random.lognormal(numpy.log(longest / 4), LOGNORMAL_DEVIATION, size=count)
    return numpy.clip(numpy.rint(drawn), 2, longest).astype(numpy.int64)


def _from_file(path: str, text_field: str, demand: _Demand, tokenizer: Any, *, repeat: bool) -> DataSet:
    samples: list[tuple[list[int], list[int]]] = []
    dropped, tokens, seen = 0, 0, 0
    cut = None if demand.packs is not None else demand.longest
    for where, row in _rows(path, text_field):
        seen += 1
        try:
            ids, labels = _tokens(row, where, text_field, tokenizer)
        except (TypeError, UnicodeError):  # how tokenizers take an unpaired surrogate, which JSON can express
            raise DataError(f"{where} holds text that is not valid Unicode.") from None
        ids, labels = ids[:cut], labels[:cut]
        # the first label is never predicted
        if all(label == IGNORED for label in labels[1:]):
            dropped += 1
            continue
        samples.append((ids, labels))
        tokens += min(len(ids), demand.longest)
        if repeat and (
            len(samples) in (demand.samples, max(MOST_SAMPLES, demand.step))
            or (demand.packs is not None and tokens >= demand.packs * demand.longest)
        ):
            break
    if not seen:
        raise DataError(f"data set {_shown(path)} is empty.")
    if not samples:
        raise DataError(f"data set {_shown(path)} has no sample with a token to learn within {demand.longest} tokens.")
    lengths = numpy.array([len(ids) for ids, _ in samples], dtype=numpy.int64)
    flat_ids, flat_labels = (_flat(sample[column] for sample in samples) for column in (0, 1))
    if repeat:
        whole = demand.packs is None
        count = _whole_steps(len(samples), tokens, demand) if whole else _filling(lengths, demand)
        total = int(numpy.resize(lengths, count).sum())
        lengths, flat_ids, flat_labels = (
            numpy.resize(lengths, count),
            numpy.resize(flat_ids, total),
            numpy.resize(flat_labels, total),
        )
    return DataSet(_dataset(lengths, flat_ids, flat_labels), lengths.tolist(), len(samples), dropped)


def _whole_steps(distinct: int, tokens: int, demand: _Demand) -> int:
    """Return how many samples to make of ``distinct`` ones with ``tokens`` tokens: whole steps, not too many."""
    assert demand.samples is not None
    rounded_up = -(-distinct // demand.step) * demand.step
    affordable = min(MOST_SAMPLES, MOST_TOKENS * distinct // tokens) // demand.step * demand.step
    return min(demand.samples, max(rounded_up, affordable))


def _tokens(row: dict[str, Any], where: str, text_field: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return ids and labels of one sample; what a prompt says carries no loss."""
    if isinstance(row.get(text_field), str):
        ids = _with_end(tokenizer(row[text_field])["input_ids"], tokenizer)
        return ids, ids
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        if prompt and prompt[-1] == tokenizer.eos_token_id:
            prompt = prompt[:-1]
        completion = _with_end(tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer)
        return prompt + completion, [IGNORED] * len(prompt) + completion
    if isinstance(row.get("messages"), list):
        return _chat(row["messages"], where, tokenizer)
    found = ", ".join(sorted(map(str, row))) or "none"
    raise DataError(f"{where} needs {_columns(text_field)} of the right type; its columns: {found[:_SHOWN]}.")


def _chat(messages: list[Any], where: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where} has messages, but the model's tokenizer has no chat template; use text, or an instruct model."
        )
    try:
        ids = list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
    except Exception as error:  # templates are programs: whatever they raise is about this sample
        raise DataError(
            f"{where}: the chat template cannot take these messages: {' '.join(str(error).split())[:_SHOWN]}."
        ) from error
    return ids, ids


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return list(ids) if ids and ids[-1] == end else [*ids, end]


def _columns(text_field: str) -> str:
    return f"{text_field}, prompt and completion, or messages"


def _rows(path: str, text_field: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Give the rows of a file one by one, each with the words that say where it stands."""
    if not _exists(path):
        raise DataError(
            f"data set {_shown(path)} does not exist; give {', '.join(SYNTHETIC)}, or a .jsonl or .parquet file."
        )
    if path.endswith(".jsonl"):
        return _json_lines(path, text_field)
    if path.endswith(".parquet"):
        return _parquet(path, text_field)
    raise DataError(f"data set {_shown(path)} is neither a .jsonl nor a .parquet file.")


def _json_lines(path: str, text_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"line {number} of data set {_shown(path)}"
                    yield where, _json_row(line, where, text_field)
    except OSError as error:
        raise DataError(f"data set {_shown(path)} cannot be read: {error.strerror}.") from error


def _json_row(line: bytes, where: str, text_field: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise DataError(f"{where} is not valid JSON.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is no JSON object with {_columns(text_field)}.")
    return row


def _parquet(path: str, text_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            usable = (text_field, "prompt", "completion", "messages")
            wanted = [name for name in usable if name in file.schema_arrow.names]
            if not wanted:
                found = ", ".join(file.schema_arrow.names)[:_SHOWN] or "none"
                raise DataError(f"data set {_shown(path)} needs columns {_columns(text_field)}; it has {found}.")
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of data set {_shown(path)}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"data set {_shown(path)} cannot be read as parquet after row {number}.") from error


def _flat(lists: Iterable[list[int]]) -> numpy.ndarray:
    return numpy.fromiter(chain.from_iterable(lists), dtype=numpy.int32)


def _dataset(lengths: numpy.ndarray, ids: numpy.ndarray, labels: numpy.ndarray) -> datasets.Dataset:
    """Return a data set of lists made from flat arrays, without a Python object for each token."""
    offsets = pyarrow.array(numpy.concatenate(([0], numpy.cumsum(lengths))).astype(numpy.int32))
    columns = {
        name: pyarrow.ListArray.from_arrays(offsets, pyarrow.array(flat))
        for name, flat in (("input_ids", ids), ("labels", labels))
    }
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(columns)))


def _exists(path: str) -> bool:
    # unlike Path.exists this takes names no file system could hold, such as overlong ones, for absent
    return os.path.exists(path)  # noqa: PTH110


def _shown(path: str) -> str:
    # the end of a path says more than its beginning
    return repr(path if len(path) <= _SHOWN else "..." + path[-_SHOWN + 3 :])
