"""The data set of a job as token ids and labels, either synthetic or read from a user's file. Imports datasets, numpy and pyarrow.

Every data set has the same form, so that every stack trains on the same tokens: the columns ``input_ids`` and ``labels``, where the
label -100 excludes a token from the loss. Samples are truncated to ``model_max_length``, except where packing cuts them anywhere. The
data set is in memory; nothing is cached on disk.

Synthetic data sets draw token ids uniformly from the vocabulary. Lengths and ids depend only on the workload's seed. Every token has a
label, except the first ones of each sample that ``synthetic_prompt_share`` makes a prompt. With L for ``model_max_length``:

- ``synthetic-fixed``: every sample has L tokens.
- ``synthetic-uniform``: lengths are integers, uniform from 2 to L.
- ``synthetic-lognormal``: the natural logarithm of the length is normal with mean ln(L/4) and standard deviation 0.8; lengths are
  rounded and clipped to 2..L, which truncates 4 % of the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import datasets
import numpy
import pyarrow

from ..protocol.data_files import SYNTHETIC, empty, quoted, unusable
from ..protocol.messages import Job, JobWorkload
from . import files, formats
from .errors import DataError, Refused

LOGNORMAL_DEVIATION = 0.8
# ids 0 to 2 are special tokens of the byte tokenizer and of many others
FIRST_ID = 3
# These limits keep preparation below 0.3 s unless a single step needs more. Trainers iterate over a shorter data set repeatedly
MOST_TOKENS = 2_000_000
MOST_SAMPLES = 20_000
# samples per pack for the shortest synthetic data
SAMPLES_OF_A_PACK = 3


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Samples ready for a trainer.

    Attributes:
        dataset: columns ``input_ids`` and ``labels``, in memory.
        lengths: tokens of each sample.
        distinct: number of samples before they were repeated to fill whole optimizer steps, or the packs of whole steps.
        dropped: number of samples left out because no label remained after truncation.
        epochs: passes over ``dataset`` that have as many samples as ``num_train_epochs`` passes over the file, rounded up; 1 without
            ``num_train_epochs``.
    """

    dataset: datasets.Dataset
    lengths: list[int]
    distinct: int
    dropped: int = 0
    epochs: int = 1

    @property
    def notes(self) -> list[str]:
        """Remarks for the user."""
        if not self.dropped:
            return []
        read = self.dropped + self.distinct
        return [
            f"{self.dropped} of {read} samples that were read carry no trained token within model_max_length: left out."
        ]


@dataclasses.dataclass(frozen=True)
class _Demand:
    """How much data a workload can use.

    Attributes:
        step: samples per optimizer step.
        longest: most tokens per sample or pack.
        samples: without packing, samples of all steps.
        packs: with packing, packs of all steps, or of as many whole steps as the limits allow; None without packing.
        wraps: whether packing cuts samples anywhere; else it uses the first ``longest`` tokens of each only.
    """

    step: int
    longest: int
    samples: int
    packs: int | None
    wraps: bool = False

    @property
    def most_tokens(self) -> int:
        """Most tokens of a sample that are used."""
        return self.pack_tokens if self.wraps else self.longest

    @property
    def pack_tokens(self) -> int:
        """Tokens that fill all packs."""
        assert self.packs is not None
        return self.packs * self.longest


@dataclasses.dataclass
class _Samples:
    """Samples read from a file: token ids and labels of each.

    Attributes:
        ids: token ids of each sample.
        labels: labels of each sample.
        tokens: sum of the lengths.
        dropped: samples left out because no label remained after truncation.
        cut: whether truncation may have removed the labels of a sample that was left out.
        complete: False if reading stopped at the last sample that is needed.
    """

    ids: list[list[int]] = dataclasses.field(default_factory=list)
    labels: list[list[int]] = dataclasses.field(default_factory=list)
    tokens: int = 0
    dropped: int = 0
    cut: bool = False
    complete: bool = True

    def add(self, ids: list[int], labels: list[int], longest: int) -> None:
        """Add a sample, or count it as dropped if it has no label."""
        # the first label is never predicted
        if all(label == formats.IGNORED for label in labels[1:]):
            self.dropped += 1
            self.cut = self.cut or len(ids) >= longest
            return
        self.ids.append(ids)
        self.labels.append(labels)
        self.tokens += len(ids)

    def fill(self, demand: _Demand) -> bool:
        """Return whether no further sample is needed, or allowed by the limits."""
        if demand.packs is not None and self.tokens >= demand.pack_tokens:
            return True
        most = max(MOST_SAMPLES, demand.step)
        wanted = most if demand.packs is not None else min(most, demand.samples)
        return len(self.ids) >= wanted or self.dropped >= most


def build(job: Job, tokenizer: Any, model_config: Any) -> DataSet:
    """Return the data set of a job.

    Only as much of a file is read as ``max_steps`` steps can use, at most ``MOST_SAMPLES`` samples or one step. With
    ``num_train_epochs`` a file within these limits is used as it is; of a longer file only the beginning is used, and trainers repeat it
    until they have trained on as many samples as the passes over the whole file have. Without it, a short file is repeated in whole
    optimizer steps, up to ``MOST_SAMPLES`` samples and about ``MOST_TOKENS`` tokens; trainers iterate over the result repeatedly.

    Args:
        job: the job.
        tokenizer: converts text into token ids; not used for synthetic data.
        model_config: the model's configuration, for the size of its vocabulary.

    Raises:
        DataError: the name is unknown, the file is missing, unreadable or empty, a row is malformed, or no sample has a label.
        Refused: ``model_max_length`` is 1, so that a sample has no token to predict.
    """
    workload = job.workload
    name, longest = workload.dataset_id, workload.model_max_length
    if longest < 2:
        raise Refused(f"model_max_length {longest} leaves no token to predict; use at least 2.")
    if name in SYNTHETIC:
        made = _synthetic(workload, model_config.get_text_config().vocab_size)
        return dataclasses.replace(made, epochs=workload.num_train_epochs or 1)
    vocabulary = model_config.get_text_config().vocab_size if model_config is not None else None
    return _from_file(workload, tokenizer, vocabulary)


def _demand(workload: JobWorkload) -> _Demand:
    step = workload.batch_size * workload.gradient_accumulation_steps
    longest = workload.model_max_length
    samples = workload.max_steps * step
    packs = None
    if workload.packing:
        packs = min(samples, _affordable(step, longest, MOST_SAMPLES // SAMPLES_OF_A_PACK))
    return _Demand(step, longest, samples, packs, wraps=packs is not None and workload.packing_strategy == "wrapped")


def _affordable(step: int, longest: int, samples: int) -> int:
    """Return how many samples of ``longest`` tokens the limits allow: whole optimizer steps, at least one."""
    return max(1, min(MOST_TOKENS // longest, samples) // step) * step


# -- synthetic data --------------------------------------------------------------------------------------------


def _synthetic(workload: JobWorkload, vocabulary: int) -> DataSet:
    name, demand = workload.dataset_id, _demand(workload)
    random = numpy.random.default_rng(workload.seed)
    if demand.packs is None:
        count = min(demand.samples, _affordable(demand.step, demand.longest, MOST_SAMPLES))
        lengths = _lengths(name, count, demand.longest, random)
    else:
        lengths = _lengths_for_packs(name, demand, random)
    ids = random.integers(min(FIRST_ID, vocabulary - 1), vocabulary, size=int(lengths.sum()), dtype=numpy.int32)
    share = 0.0 if workload.completion_only_loss is False else workload.synthetic_prompt_share
    labels = _without_prompts(ids, lengths, share) if share else ids
    return DataSet(_dataset(lengths, ids, labels), lengths.tolist(), distinct=len(lengths))


def _without_prompts(ids: numpy.ndarray, lengths: numpy.ndarray, share: float) -> numpy.ndarray:
    """Return ids with -100 in place of each sample's prompt: its first tokens, rounded, at most all but one."""
    prompts = numpy.minimum(numpy.rint(share * lengths).astype(numpy.int64), lengths - 1)
    position = numpy.arange(len(ids)) - numpy.repeat(numpy.cumsum(lengths) - lengths, lengths)
    return numpy.where(position < numpy.repeat(prompts, lengths), formats.IGNORED, ids).astype(ids.dtype)


def _lengths_for_packs(name: str, demand: _Demand, random: numpy.random.Generator) -> numpy.ndarray:
    assert demand.packs is not None
    lengths = _lengths(name, demand.packs, demand.longest, random)
    while int(lengths.sum()) < demand.pack_tokens:
        lengths = numpy.concatenate([lengths, _lengths(name, demand.packs, demand.longest, random)])
    return lengths[: _samples_for_packs(lengths, demand)]


def _lengths(name: str, count: int, longest: int, random: numpy.random.Generator) -> numpy.ndarray:
    if name == "synthetic-fixed":
        return numpy.full(count, longest, dtype=numpy.int64)
    if name == "synthetic-uniform":
        return random.integers(2, longest + 1, size=count)
    drawn = random.lognormal(numpy.log(longest / 4), LOGNORMAL_DEVIATION, size=count)
    return numpy.clip(numpy.rint(drawn), 2, longest).astype(numpy.int64)


# -- repetition ------------------------------------------------------------------------------------------------


def _samples_for_packs(lengths: numpy.ndarray, demand: _Demand) -> int:
    """Return how many samples, taken in order and repeatedly, have as many tokens as all packs.

    They make at least that many packs, because no pack holds more than its size, and no sample is longer than what is used of it.
    """
    passes = -(-demand.pack_tokens // int(lengths.sum()))
    cumulative = numpy.cumsum(numpy.resize(lengths, passes * len(lengths)))
    return int(numpy.searchsorted(cumulative, demand.pack_tokens)) + 1


def _samples_for_steps(distinct: int, tokens: int, demand: _Demand) -> int:
    """Return how many samples to make of ``distinct`` ones with ``tokens`` tokens: whole steps, within the limits if possible."""
    rounded_up = -(-distinct // demand.step) * demand.step
    affordable = min(MOST_SAMPLES, MOST_TOKENS * distinct // tokens) // demand.step * demand.step
    return min(demand.samples, max(rounded_up, affordable))


# -- files -----------------------------------------------------------------------------------------------------


def _from_file(workload: JobWorkload, tokenizer: Any, vocabulary: int | None) -> DataSet:
    demand = _demand(workload)
    samples = _read(workload, demand, tokenizer, vocabulary)
    lengths = numpy.array([len(ids) for ids in samples.ids], dtype=numpy.int64)
    ids, labels = _flat(samples.ids), _flat(samples.labels)
    epochs = 1
    if workload.num_train_epochs:
        epochs = _epochs(workload, samples)
    else:
        packed = demand.packs is not None
        count = (
            _samples_for_packs(lengths, demand)
            if packed
            else _samples_for_steps(len(samples.ids), samples.tokens, demand)
        )
        lengths = numpy.resize(lengths, count)
        total = int(lengths.sum())
        ids, labels = numpy.resize(ids, total), numpy.resize(labels, total)
    return DataSet(_dataset(lengths, ids, labels), lengths.tolist(), len(samples.ids), samples.dropped, epochs)


def _epochs(workload: JobWorkload, samples: _Samples) -> int:
    """Return how many passes over the samples read have as many samples as the requested passes over the file."""
    if samples.complete:
        return workload.num_train_epochs
    read = len(samples.ids) + samples.dropped
    return -(-workload.num_train_epochs * files.count_rows(workload.dataset_id) // read)


def _read(workload: JobWorkload, demand: _Demand, tokenizer: Any, vocabulary: int | None) -> _Samples:
    """Read and tokenise as many samples of a file as the workload can use."""
    path = workload.dataset_id
    only = workload.completion_only_loss
    reader = formats.Reader(
        tokenizer,
        workload.dataset_text_field,
        demand.most_tokens,
        vocabulary,
        completion_only=None if only == "auto" else only,
        assistant_only=workload.assistant_only_loss,
    )
    samples = _Samples()
    for position, row in _rows(path, workload.dataset_text_field):
        try:
            ids, labels = reader(row, position)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # whatever a tokenizer raises, the cause is this row
            raise DataError(f"{position} cannot be tokenised", error) from error
        samples.add(ids, labels, demand.longest)
        if samples.fill(demand):
            samples.complete = False
            break
    if samples.ids:
        return samples
    if samples.dropped and not samples.cut:
        raise DataError(
            f"Data set {quoted(path)} has no token to train: "
            "every sample has one token or none, or no label other than -100."
        )
    if samples.dropped:
        raise DataError(
            f"Data set {quoted(path)} has no sample with a label within {demand.longest} tokens; raise model_max_length."
        )
    raise DataError(empty(path))


def _rows(path: str, text_field: str) -> Iterator[files.Row]:
    if message := unusable(path, images=False):
        raise DataError(message)
    if path.endswith(".jsonl"):
        return files.json_lines(path)
    rows = files.parquet_rows(path, lambda names: _usable_columns(names, path, text_field))
    return ((position, {name: formats.without_nulls(value) for name, value in row.items()}) for position, row in rows)


def _usable_columns(names: list[str], path: str, text_field: str) -> list[str]:
    usable = formats.columns(names, text_field)
    if not usable:
        raise DataError(f"Data set {quoted(path)} needs {formats.expected(text_field)}; it has {files.listed(names)}.")
    return usable


# -- arrays ----------------------------------------------------------------------------------------------------


def _flat(lists: Iterable[list[int]]) -> numpy.ndarray:
    return numpy.fromiter(chain.from_iterable(lists), dtype=numpy.int32)


def _dataset(lengths: numpy.ndarray, ids: numpy.ndarray, labels: numpy.ndarray) -> datasets.Dataset:
    """Return a data set of lists from flat arrays, without creating a Python object for each token."""
    offsets = pyarrow.array(numpy.concatenate(([0], numpy.cumsum(lengths))).astype(numpy.int32))
    columns = {
        name: pyarrow.ListArray.from_arrays(offsets, pyarrow.array(flat))
        for name, flat in (("input_ids", ids), ("labels", labels))
    }
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(columns)))
