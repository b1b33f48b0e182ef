"""Images of a job: the processor that converts them into tokens, and a data set of conversations about them.

Every data set is written as a parquet file with the columns ``image`` (bytes of an encoded image) and ``messages`` (a user message
with the image, an assistant message with the text). A training library makes token ids and pixel values from it with the processor.
Texts are truncated so that image and text together have at most ``model_max_length`` tokens.

``synthetic-image``: square images of random colours in the size of the model's vision tower, with texts of random letters; every
sample has ``model_max_length`` tokens.

Imports numpy, pyarrow and transformers, and Pillow where images are decoded.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import io
import itertools
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import transformers
from pyarrow import parquet

from ..protocol import data_files, supported
from ..protocol.data_files import LONGEST_NAME, SYNTHETIC_IMAGES, quoted, unusable
from ..protocol.messages import Job, JobWorkload
from . import byte_tokenizer, files
from .data import DataSet
from .errors import BadInput, DataError, Refused

# libraries iterate over a shorter data set repeatedly; more rows would only fill the disk
MOST_SYNTHETIC = 64
MOST_ROWS = 512
# letters per token of a synthetic text, before it is truncated; tokenizers make more tokens of random letters
LETTERS = 4
# width of synthetic images for towers that take any
USUAL_PIXELS = 224
_BATCH = 16
# in a message with the names of two columns
_LONGEST_COLUMNS = 40
_LONGEST_COLUMN = 30
_MESSAGE = pyarrow.struct(
    [
        ("role", pyarrow.string()),
        ("content", pyarrow.list_(pyarrow.struct([("type", pyarrow.string()), ("text", pyarrow.string())]))),
    ]
)
_SCHEMA = pyarrow.schema(
    [
        ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        ("messages", pyarrow.list_(_MESSAGE)),
    ]
)


# -- processors ------------------------------------------------------------------------------------------------


def processor(job: Job, config: Any) -> Any:
    """Return the processor of a job's model: the published one with pretrained weights, otherwise one built from the configuration.

    Args:
        job: the job.
        config: the model's configuration.

    Raises:
        BadInput: the published processor cannot be read.
        Refused: no processor can be built for this type of model.
    """
    if job.workload.weights == "pretrained":
        return _published(job)
    if config.model_type not in _BUILDERS:
        raise Refused(
            f"No image processor can be built for {config.model_type} models with random weights; "
            f"use {' or '.join(_BUILDERS)}, or weights pretrained."
        )
    return _BUILDERS[config.model_type](config, job.workload.model_max_length)


def _published(job: Job) -> Any:
    name = job.workload.model_name[-LONGEST_NAME:]
    try:
        loaded = transformers.AutoProcessor.from_pretrained(job.source, trust_remote_code=job.trust_remote_code)
    except Exception as error:  # the processor's files can make the libraries raise anything
        raise BadInput(f"The processor of model {name} cannot be read", error) from error
    if getattr(loaded, "chat_template", None) is None:
        raise BadInput(f"The processor of model {name} has no chat template, which image data need.")
    return loaded


def _llava_next(config: Any, longest: int) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    vision, token = config.vision_config, "<image>"
    size = {"height": vision.image_size, "width": vision.image_size}
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size=size, crop_size=size, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=_tokenizer(config, token, longest),
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        # CLIP's vision tower has a class token before the patches, SigLIP's does not
        num_additional_image_tokens=int(vision.model_type == "clip_vision_model"),
        chat_template=_chat_template(token),
        image_token=token,
    )


def _mllama(config: Any, longest: int) -> Any:
    from transformers import MllamaImageProcessor, MllamaProcessor

    vision, token = config.vision_config, "<|image|>"
    return MllamaProcessor(
        image_processor=MllamaImageProcessor(
            size={"height": vision.image_size, "width": vision.image_size}, max_image_tiles=vision.max_num_tiles
        ),
        tokenizer=_tokenizer(config, token, longest),
        chat_template=_chat_template(token),
    )


_BUILDERS = {"llava_next": _llava_next, "mllama": _mllama}


def _chat_template(image_token: str) -> str:
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image_token + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}<eos>"
    )


def _tokenizer(config: Any, image_token: str, longest: int) -> transformers.PreTrainedTokenizerFast:
    """Return a byte tokenizer with the model's image token and as many tokens as the model has embeddings.

    A library may resize the embeddings to the tokenizer's length, so any other length would change the model.
    """
    index = config.image_token_index
    if index < byte_tokenizer.SIZE:
        raise Refused(f"image_token_index {index} is the token of a byte; use at least {byte_tokenizer.SIZE}.")
    return byte_tokenizer.build(
        longest,
        size=config.get_text_config().vocab_size,
        image_token=byte_tokenizer.ImageToken(image_token, index),
    )


# -- data ------------------------------------------------------------------------------------------------------


def write(job: Job, processor: Any, config: Any, path: Path) -> int:
    """Write the data set of a job for a training library, in whole optimizer steps unless ``num_train_epochs`` is given.

    At most as many rows are read as ``max_steps`` steps can use, and at most ``MOST_ROWS`` or those of one step.

    Args:
        job: the job.
        processor: the model's processor.
        config: the model's configuration.
        path: the parquet file to write.

    Returns:
        Passes over the rows written that have as many rows as ``num_train_epochs`` passes over the file, rounded up; 1 without it.

    Raises:
        DataError: the file is missing or lacks a column, or a row has no text or no image that can be decoded.
    """
    rows = _rows(job.workload, _Truncation(processor, job.workload), _pixels(config.vision_config))
    count = 0
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while batch := list(itertools.islice(rows, _BATCH)):
            count += len(batch)
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=_SCHEMA))
    epochs = job.workload.num_train_epochs
    if not epochs or job.workload.dataset_id == SYNTHETIC_IMAGES:
        return epochs or 1
    return -(-epochs * files.count_rows(job.workload.dataset_id) // count)


def build(job: Job, processor: Any, config: Any) -> DataSet:
    """Return the data set of a job in memory, as TRL takes it: the columns ``image`` and ``messages``. ``write`` describes the arguments.

    Raises:
        BadInput: Pillow is not installed.
        DataError: as ``write``.
    """
    import datasets

    if importlib.util.find_spec("PIL") is None:
        raise BadInput(supported.lacks_package("dataset_image_field", "pillow"))
    directory = Path(job.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"images-{job.rank}.parquet"
    epochs = write(job, processor, config, path)
    rows = datasets.Dataset(datasets.table.InMemoryTable(parquet.read_table(path, memory_map=False)))
    return DataSet(rows.cast_column("image", datasets.Image()), [], distinct=len(rows), epochs=epochs)


def _rows(workload: JobWorkload, truncate: _Truncation, pixels: int) -> Iterator[dict[str, Any]]:
    step = workload.batch_size * workload.gradient_accumulation_steps
    if workload.dataset_id == SYNTHETIC_IMAGES:
        count = step * max(1, min(workload.max_steps, MOST_SYNTHETIC // step))
        return _synthetic(pixels, truncate, count, workload.seed)
    most = max(step, min(step * workload.max_steps, MOST_ROWS))
    rows = itertools.islice(_from_file(workload, truncate), most)
    return rows if workload.num_train_epochs else _in_whole_steps(rows, step)


def _in_whole_steps(rows: Iterator[dict[str, Any]], step: int) -> Iterator[dict[str, Any]]:
    """Yield the rows, and then the first ones again until the last optimizer step is full."""
    first: list[dict[str, Any]] = []
    count = 0
    for row in rows:
        if len(first) < step:
            first.append(row)
        count += 1
        yield row
    yield from itertools.islice(itertools.cycle(first), -count % step)


def _pixels(config: Any) -> int:
    """Return the width of a vision tower's images; some towers take any."""
    size = getattr(config, "image_size", None)
    return int(max(size) if isinstance(size, (list, tuple)) else size or USUAL_PIXELS)


class _Truncation:
    """Truncates a text so that it has, together with its image, at most ``model_max_length`` tokens."""

    def __init__(self, processor: Any, workload: JobWorkload) -> None:
        self._processor = processor
        self.longest = workload.model_max_length
        self._image_tokens = functools.cache(self._count_image_tokens)

    def __call__(self, text: str, size: tuple[int, int], image: str) -> str:
        """Return the longest beginning of ``text`` that fits.

        Args:
            text: the text.
            size: width and height of the image, pixels.
            image: what to call the image in a message.

        Raises:
            DataError: the image leaves no token for text.
        """
        image_tokens = self._image_tokens(size)
        budget = self.longest - image_tokens
        if budget < 1:
            width, height = size
            raise DataError(
                f"{image} of {width}x{height} pixels has {image_tokens} tokens; "
                f"model_max_length {self.longest} leaves none for text; raise it."
            )
        return text[: bisect.bisect_right(range(len(text) + 1), budget, key=lambda n: self._count(text[:n])) - 1]

    def _count(self, text: str) -> int:
        return len(self._processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _count_image_tokens(self, size: tuple[int, int]) -> int:
        from PIL import Image

        empty = self._processor.apply_chat_template(_messages(""), tokenize=False)
        inputs = self._processor(text=[empty], images=[[Image.new("RGB", size)]], return_tensors="np")
        return int(inputs["input_ids"].shape[1])


def _messages(text: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "text": None}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]


def _row(encoded: bytes, text: str) -> dict[str, Any]:
    return {"image": {"bytes": encoded, "path": None}, "messages": _messages(text)}


def _synthetic(pixels: int, truncate: _Truncation, count: int, seed: int) -> Iterator[dict[str, Any]]:
    from PIL import Image

    random = numpy.random.default_rng(seed)
    alphabet = numpy.array(list(string.ascii_lowercase))
    for _ in range(count):
        colours = random.integers(0, 256, size=(pixels, pixels, 3), dtype=numpy.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).save(buffer, format="PNG", compress_level=1)
        letters = "".join(random.choice(alphabet, size=LETTERS * truncate.longest))
        yield _row(buffer.getvalue(), truncate(letters, (pixels, pixels), "A synthetic image"))


def _from_file(workload: JobWorkload, truncate: _Truncation) -> Iterator[dict[str, Any]]:
    path = workload.dataset_id
    if message := unusable(path, images=True):
        raise DataError(message)
    empty = True
    for position, row in files.parquet_rows(path, lambda names: _columns(names, workload), batch_size=_BATCH):
        empty = False
        yield _checked(row[workload.dataset_image_field], row[workload.dataset_text_field], position, truncate)
    if empty:
        raise DataError(data_files.empty(path))


def _columns(names: list[str], workload: JobWorkload) -> list[str]:
    columns = {
        "dataset_image_field": workload.dataset_image_field,
        "dataset_text_field": workload.dataset_text_field,
    }
    for field, column in columns.items():
        if column not in names:
            found = files.listed(names)[:_LONGEST_COLUMNS]
            raise DataError(
                f"{field}: data set {quoted(workload.dataset_id)} has no column {column[:_LONGEST_COLUMN]!r}; it has {found}."
            )
    return list(columns.values())


def _checked(image: Any, text: Any, position: str, truncate: _Truncation) -> dict[str, Any]:
    from PIL import Image

    encoded: Any = image.get("bytes") if isinstance(image, dict) else image
    try:
        with Image.open(io.BytesIO(encoded)) as decoded:
            decoded.load()
            size = decoded.size
    except Exception as error:  # Pillow's decoders raise many types of exceptions for broken files
        raise DataError(f"{position}: the image cannot be decoded; replace or remove the row.") from error
    if not isinstance(text, str) or not text:
        raise DataError(f"{position} has no text; add text, or remove the row.")
    return _row(encoded, truncate(text, size, f"{position}: the image"))
