"""The first token ids of texts and conversations, in bounded time. Imports transformers, and runs on Linux only.

A text much longer than a sample is not tokenised as a whole: a line of 24 MB took minutes. Its beginning is tokenised instead. A cut
changes only the tokens near it, so the ids are accepted if a second, longer beginning gives the same ones.
"""

from __future__ import annotations

import bisect
import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# assumed at first; few texts have more characters per token, and for these the loop takes a longer beginning
_CHARACTERS = 8
# tokens before the cut that are not trusted, such as the special tokens at the end of every text
_MARGIN = 64
# what a chat template may take for one conversation, s; it is a program, and may run endlessly
TEMPLATE_LIMIT_S = 30.0
# what it may take of CPU time where Python cannot interrupt it, s
TEMPLATE_CPU_LIMIT_S = 60.0
# address space that it may take in addition, bytes; a row has at most 128 MiB
TEMPLATE_LIMIT_BYTES = 2**30


class TemplateTimeoutError(Exception):
    """A chat template did not end in ``TEMPLATE_LIMIT_S``."""


class _TimeoutInBlock(BaseException):
    """Raised instead of ``TemplateTimeoutError`` while a template runs: Jinja ignores an ``Exception`` when it evaluates constants."""


class TemplateMemoryError(Exception):
    """A chat template needs more than ``TEMPLATE_LIMIT_BYTES``."""


def first_ids(tokenizer: Any, text: str, most: int | None, **options: Any) -> list[int]:
    """Return the first ``most`` token ids of a text, or all of them for None.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        most: most ids to return.
        options: arguments for the tokenizer.
    """
    return list(_encoded(tokenizer, text, most, **options)["input_ids"])[:most]


def _encoded(tokenizer: Any, text: str, most: int | None, **options: Any) -> Any:
    """Return what the tokenizer makes of a text, or of a beginning of it that has the same first ``most`` token ids."""

    def encoded(characters: int | None) -> Any:
        return tokenizer(text[:characters], verbose=False, **options)

    if most is None:
        return encoded(None)
    characters = _CHARACTERS * (most + _MARGIN)
    while 2 * characters < len(text):
        found = encoded(characters)
        beginning, longer = found["input_ids"], encoded(characters + characters // 4)["input_ids"]
        if len(beginning) >= most + _MARGIN and list(beginning[:most]) == list(longer[:most]):
            return found
        characters *= 2
    return encoded(None)


def chat_ids(tokenizer: Any, messages: list[Any], most: int | None, /, **options: Any) -> list[int]:
    """Return the first ``most`` token ids of a conversation.

    Args:
        tokenizer: the tokenizer, with a chat template.
        messages: the conversation.
        most: most ids to return; None: all.
        options: arguments of ``apply_chat_template``, such as ``tools``.

    Raises:
        TemplateTimeoutError: the template does not end.
        TemplateMemoryError: the template makes too long a text, or other large values.
        Exception: the template fails; it is a program and can raise anything.
    """
    with _template_limits():
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    # as apply_chat_template tokenises: the template writes the special tokens itself
    return first_ids(tokenizer, text, most, add_special_tokens=False)


def assistant_ids(
    tokenizer: Any, messages: list[Any], most: int | None, /, **options: Any
) -> tuple[list[int], list[int] | None]:
    """Return the first ``most`` token ids of a conversation, and a mask that has 1 for each token of the assistant.

    A token is the assistant's if any of its characters is. The mask is None if the template marks nothing of this conversation as the
    assistant's.

    Args:
        tokenizer: a tokenizer that knows which characters a token has, with a chat template.
        messages: the conversation.
        most: most ids to return; None: all.
        options: arguments of ``apply_chat_template``, such as ``tools``.

    Raises:
        TemplateTimeoutError: the template does not end.
        TemplateMemoryError: the template makes too long a text, or other large values.
        Exception: the template fails; it is a program and can raise anything.
    """
    text, spans = _marked(tokenizer, messages, **options)
    made = _encoded(tokenizer, text, most, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(made["input_ids"])[:most]
    if not any(end > begin for begin, end in spans):
        return ids, None
    return ids, [int(_overlaps(spans, *offset)) for offset in made["offset_mapping"][: len(ids)]]


def _overlaps(spans: list[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether the characters from ``begin`` to before ``end`` have one of the spans, which are in order and apart."""
    at = bisect.bisect_right(spans, begin, key=lambda span: span[1])
    return at < len(spans) and end > spans[at][0]


def _marked(
    tokenizer: Any,
    messages: list[Any],
    *,
    tools: list[Any] | None = None,
    chat_template: str | None = None,
    continue_final_message: bool = False,
    **options: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text that the chat template makes of a conversation, and the characters of it that it marks as the assistant's."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if continue_final_message:
        raise ValueError("continue_final_message is not possible with assistant_only_loss")
    with _template_limits():
        texts, spans = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=tokenizer.get_chat_template(chat_template, tools),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **options},
        )
    return str(texts[0]), [(begin, end) for begin, end in spans[0]]


@contextlib.contextmanager
def _template_limits() -> Iterator[None]:
    """Limit time and memory of a chat template in the block; ``chat_ids`` describes the errors."""
    try:
        with _time_limit(TEMPLATE_LIMIT_S), _memory_limit(TEMPLATE_LIMIT_BYTES):
            yield
    except MemoryError:
        raise TemplateMemoryError(f"it needs more than {TEMPLATE_LIMIT_BYTES >> 20} MiB") from None


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TemplateTimeoutError`` in the block after some time; without effect in another thread than the main one.

    Python's signal handlers wait for the end of a function in C, such as the sum of a long list. ``SIGPROF`` has no handler: the kernel
    ends the process, and ``failures.from_exit`` explains it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TimeoutInBlock

    former = signal.signal(signal.SIGALRM, stop)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_PROF, TEMPLATE_CPU_LIMIT_S)
    try:
        yield
    except _TimeoutInBlock:
        raise TemplateTimeoutError(f"it did not end in {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, former)


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Let allocations in the block fail with ``MemoryError`` once this process has this many bytes of address space more than now.

    The limit concerns all threads; a trainer that prepares data has none that allocate much.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [one for one in (_address_space() + more, soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Return the size of this process's address space in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
