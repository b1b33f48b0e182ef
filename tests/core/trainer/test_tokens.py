"""Only the beginning of a long text is tokenised, and gives the first tokens of the whole text, with every kind of tokenizer."""

from __future__ import annotations

import random
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

from ado_actuators.sfttrainer.core.trainer import tokens  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

WORDS = [
    "the",
    "of",
    "tokenisation",
    "naïve",
    "日本語",
    "a",
    "aa",
    "aaaa",
    "  ",
    "\n\n",
    "\t",
    "1234567",
    "émigré",
    "🙂",
    "...",
    "<eos>",
]
SPECIAL = ["<pad>", "<eos>", "<unk>"]
MOST = 50


def text(words: int, seed: int) -> str:
    """Return a text of words with and without spaces between them."""
    drawn = random.Random(seed)
    return "".join(drawn.choice(WORDS) + drawn.choice(["", " ", " ", " "]) for _ in range(words))


def _byte_level() -> Any:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )


def _one_word() -> Any:
    # like those of Llama 2: spaces are letters, and a text is one word
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Replace("▁", " ")
    return made, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL)


def _unigram() -> Any:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>")


def _word_piece() -> Any:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL)


@pytest.fixture(scope="module", params=[_byte_level, _one_word, _unigram, _word_piece])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Return a trained tokenizer that adds a token at both ends of a text."""
    made, trainer = request.param()
    made.train_from_iterator([text(40, seed) for seed in range(200)], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<unk> $A <eos>",
        special_tokens=[("<unk>", made.token_to_id("<unk>")), ("<eos>", made.token_to_id("<eos>"))],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


class Counting:
    """Counts the characters that a tokenizer gets."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def __call__(self, beginning: str, **options: Any) -> Any:
        """Tokenise."""
        self.characters += len(beginning)
        return self._tokenizer(beginning, **options)


@pytest.mark.parametrize("seed", range(8))
def test_the_beginning_has_the_first_tokens(tokenizer: Any, seed: int) -> None:
    """Equal to the first tokens of the whole text, although a small part of it was tokenised."""
    long = text(5_000, seed)
    counting = Counting(tokenizer)
    assert tokens.first_ids(counting, long, MOST) == tokenizer(long)["input_ids"][:MOST]
    assert counting.characters < len(long) / 2


@pytest.mark.parametrize(
    "long", ["a" * 30_000, " " * 30_000 + "the", "日本語" * 5_000, "<eos>" * 3_000, "a\u0301" * 9_000]
)
def test_texts_without_words(tokenizer: Any, long: str) -> None:
    """A text without a place to cut gives the same tokens, too."""
    assert tokens.first_ids(tokenizer, long, MOST) == tokenizer(long)["input_ids"][:MOST]


@pytest.mark.parametrize("words", [0, 1, 30, 200])
def test_short_texts_and_no_limit(tokenizer: Any, words: int) -> None:
    """A short text, or one without a limit, is tokenised as a whole."""
    short = text(words, 1)
    assert tokens.first_ids(tokenizer, short, MOST) == tokenizer(short)["input_ids"][:MOST]
    assert tokens.first_ids(tokenizer, short, None) == tokenizer(short)["input_ids"]
