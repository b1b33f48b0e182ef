"""A tokenizer with one token per byte of UTF-8, for models without a published tokenizer. Imports transformers and tokenizers."""

from __future__ import annotations

import dataclasses

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
# the special tokens, then one token for each byte
SIZE = len(SPECIAL_TOKENS) + 256


@dataclasses.dataclass(frozen=True)
class ImageToken:
    """The token that stands for an image, and its id, which is at least ``SIZE``."""

    text: str
    id: int


def build(
    max_length: int, *, size: int = SIZE, image_token: ImageToken | None = None
) -> transformers.PreTrainedTokenizerFast:
    """Return a byte tokenizer.

    Args:
        max_length: most tokens of a sample.
        size: least number of tokens; tokens that no text contains fill it up.
        image_token: a further special token, with ``<eos>`` as beginning of sequence; None: text only.
    """
    names = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    images: dict[str, list[str]] = {}
    if image_token is not None:
        size = max(size, image_token.id + 1)
        special["bos_token"] = "<eos>"
        images["additional_special_tokens"] = [image_token.text]
    names += [f"<{number}>" for number in range(len(names), size)]
    if image_token is not None:
        names[image_token.id] = image_token.text
    tokenizer = Tokenizer(
        models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, **special, **images
    )
