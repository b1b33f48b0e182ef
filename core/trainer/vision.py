"""Images of a job: the processor that turns them into tokens, and a data set of conversations about them. Trainer room.

Every data set leaves here as a parquet file with the columns ``image`` (bytes of an encoded image) and ``messages`` (a
user who shows the image, an assistant who says the text), from which a training library makes token ids and pixels
with the processor. Texts are cut so that image and text together have at most ``model_max_length`` tokens.

``synthetic-image``: square images of random colours, as large as the model's vision tower takes, with random letters
for texts; every sample has ``model_max_length`` tokens.
"""

from __future__ import annotations

import bisect
import functools
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

from ..protocol.messages import Job, JobWorkload
from .data import DataError
from .errors import BadInput, Refused
from .model import SPECIAL_TOKENS

SYNTHETIC = "synthetic-image"
# a library that starts over reads them again: more would only fill the disk
MOST_SYNTHETIC = 64
MOST_ROWS = 512
# letters of a synthetic text for each token: no tokenizer makes so few of random ones
LETTERS = 4
_FIRST_FREE = len(SPECIAL_TOKENS) + 256
_BATCH = 16
_SHOWN = 60
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
    """Return the processor of a job's model: the published one of pretrained weights, else one that is made here.

    Args:
        job: what to do.
        config: the model's configuration.

    Raises:
        BadInput: the published processor cannot be read.
        Refused: there is no way to make one for this type of model.
    """
    name = job.workload.model_name
    if job.workload.weights == "pretrained":
        try:
            loaded = transformers.AutoProcessor.from_pretrained(job.source, trust_remote_code=job.trust_remote_code)
        except Exception as error:  # whatever a processor's files make the libraries raise
            text = " ".join(str(error).split())[:_SHOWN]
            raise BadInput(f"the processor of model {name[-_SHOWN:]} cannot be read: {text}.") from error
        if getattr(loaded, "chat_template", None) is None:
            raise BadInput(f"the processor of model {name[-_SHOWN:]} has no chat template, which image data need.")
        return loaded
    if config.model_type not in _MAKERS:
        raise Refused(
            f"images for {config.model_type} models with random weights are not made; use {' or '.join(_MAKERS)}, "
            "or weights pretrained."
        )
    return _MAKERS[config.model_type](config, job.workload.model_max_length)


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
        # CLIP's tower puts a class token before the patches, SigLIP's doesn't
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


_MAKERS = {"llava_next": _llava_next, "mllama": _mllama}


def _chat_template(image_token: str) -> str:
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image_token + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}<eos>"
    )


def _tokenizer(config: Any, image_token: str, longest: int) -> Any:
    """Return a byte tokenizer with the model's image token and as many tokens as the model has embeddings.

    A library may resize the embeddings to the tokenizer's length, so any other length would change the model.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary, image = config.get_text_config().vocab_size, config.image_token_index
    if image < _FIRST_FREE:
        raise Refused(f"image_token_index {image} is taken by a byte of the text; use at least {_FIRST_FREE}.")
    named = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    filled = [*named, *(f"<{number}>" for number in range(len(named), max(vocabulary, image + 1)))]
    filled[image] = image_token
    bytewise = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(filled)}, merges=[], unk_token="<unk>"))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=[image_token],
        model_max_length=longest,
    )


# -- data ------------------------------------------------------------------------------------------------------


def write(job: Job, maker: Any, config: Any, path: Path) -> None:
    """Write the data set of a job for a training library, in whole optimizer steps unless ``num_train_epochs`` is given.

    Args:
        job: what to do.
        maker: the model's processor.
        config: the model's configuration.
        path: the parquet file to write.

    Raises:
        DataError: missing file, wrong columns, a row without text or without an image that can be decoded.
    """
    workload = job.workload
    step = workload.batch_size * workload.gradient_accumulation_steps
    cut = _Cutter(maker, workload)
    if workload.dataset_id == SYNTHETIC:
        count = step * max(1, min(workload.max_steps, MOST_SYNTHETIC // step))
        rows = _synthetic(config.vision_config.image_size, cut, count, workload.seed)
    elif workload.num_train_epochs:
        rows = _from_file(workload, cut, None)
    else:
        rows = _in_whole_steps(_from_file(workload, cut, max(step, min(step * workload.max_steps, MOST_ROWS))), step)
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        while some := list(itertools.islice(rows, _BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=_SCHEMA))


def _in_whole_steps(rows: Iterator[dict[str, Any]], step: int) -> Iterator[dict[str, Any]]:
    """Give the rows, and the first ones again until the last optimizer step is full."""
    first: list[dict[str, Any]] = []
    count = 0
    for row in rows:
        if len(first) < step:
            first.append(row)
        count += 1
        yield row
    yield from itertools.islice(itertools.cycle(first), -count % step)


class _Cutter:
    """Cuts a text so that it has, with its image, at most ``model_max_length`` tokens."""

    def __init__(self, maker: Any, workload: JobWorkload) -> None:
        self._maker = maker
        self.longest = workload.model_max_length
        self._taken = functools.cache(self._count)

    def __call__(self, text: str, size: tuple[int, int], where: str) -> str:
        """Return the longest beginning of ``text`` that fits beside an image of this width and height."""
        taken = self._taken(size)
        budget = self.longest - taken
        if budget < 1:
            width, height = size
            raise DataError(
                f"{where}, {width}x{height}, takes {taken} tokens: model_max_length {self.longest} leaves none for text."
            )
        return text[: bisect.bisect_right(range(len(text) + 1), budget, key=lambda n: self._tokens(text[:n])) - 1]

    def _tokens(self, text: str) -> int:
        return len(self._maker.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _count(self, size: tuple[int, int]) -> int:
        from PIL import Image

        empty = self._maker.apply_chat_template(_messages(""), tokenize=False)
        made = self._maker(text=[empty], images=[[Image.new("RGB", size)]], return_tensors="np")
        return int(made["input_ids"].shape[1])


def _messages(text: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "text": None}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]


def _row(encoded: bytes, text: str) -> dict[str, Any]:
    return {"image": {"bytes": encoded, "path": None}, "messages": _messages(text)}


def _synthetic(pixels: int, cut: _Cutter, count: int, seed: int) -> Iterator[dict[str, Any]]:
    from PIL import Image

    random = numpy.random.default_rng(seed)
    alphabet = numpy.array(list(string.ascii_lowercase))
    for _ in range(count):
        colours = random.integers(0, 256, size=(pixels, pixels, 3), dtype=numpy.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).save(buffer, format="PNG", compress_level=1)
        letters = "".join(random.choice(alphabet, size=LETTERS * cut.longest))
        yield _row(buffer.getvalue(), cut(letters, (pixels, pixels), "a synthetic image"))


def _from_file(workload: JobWorkload, cut: _Cutter, most: int | None) -> Iterator[dict[str, Any]]:
    path = workload.dataset_id
    fields = workload.dataset_image_field, workload.dataset_text_field
    shown = repr(path if len(path) <= _SHOWN else "..." + path[-_SHOWN + 3 :])
    if not path.endswith(".parquet"):
        raise DataError(f"data set {shown} is no .parquet file, which dataset_image_field needs; or use {SYNTHETIC}.")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for field, column in zip(("dataset_image_field", "dataset_text_field"), fields, strict=True):
                if column not in (names := file.schema_arrow.names):
                    found = ", ".join(names)[:40] or "none"
                    raise DataError(f"{field}: data set {shown} has no column {column[:30]!r}; it has {found}.")
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(fields)):
                for row in batch.to_pylist():
                    if number == most:
                        return
                    number += 1
                    yield _checked(row[fields[0]], row[fields[1]], f"row {number} of data set {shown}", cut)
    except FileNotFoundError:
        raise DataError(f"data set {shown} does not exist; give a .parquet file, or {SYNTHETIC}.") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"data set {shown} cannot be read as parquet after row {number}.") from error
    if not number:
        raise DataError(f"data set {shown} is empty.")


def _checked(image: Any, text: Any, where: str, cut: _Cutter) -> dict[str, Any]:
    from PIL import Image

    encoded: Any = image.get("bytes") if isinstance(image, dict) else image
    try:
        with Image.open(io.BytesIO(encoded)) as decoded:
            decoded.load()
            size = decoded.size
    except Exception as error:  # decoders raise what they like at broken files
        raise DataError(f"the image in {where} cannot be decoded.") from error
    if not isinstance(text, str) or not text:
        raise DataError(f"{where} has no text.")
    return _row(encoded, cut(text, size, f"the image in {where}"))
