"""The first token ids of texts and conversations, in bounded time. Imports the standard library only, and runs on Linux only.

A text much longer than a sample is not tokenised as a whole: a line of 24 MB took minutes. Its beginning is tokenised instead. A cut
changes only the tokens near it, so the ids are accepted if a second, longer beginning gives the same ones.
"""

from __future__ import annotations

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

# longest text of a conversation whose assistant's tokens are wanted, characters; more than a million tokens
MOST_MASKED_CHARACTERS = 2**22


class ConversationTooLongError(Exception):
    """The text of a conversation has more than ``MOST_MASKED_CHARACTERS``."""


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

    def ids(characters: int | None) -> list[int]:
        return list(tokenizer(text[:characters], verbose=False, **options)["input_ids"])

    if most is None:
        return ids(None)
    characters = _CHARACTERS * (most + _MARGIN)
    while 2 * characters < len(text):
        beginning = ids(characters)
        if len(beginning) >= most + _MARGIN and beginning[:most] == ids(characters + characters // 4)[:most]:
            return beginning[:most]
        characters *= 2
    return ids(None)[:most]


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
    # as apply_chat_template tokenises: the template writes the special tokens itself
    return first_ids(tokenizer, _rendered(tokenizer, messages, options), most, add_special_tokens=False)


def _rendered(tokenizer: Any, messages: list[Any], options: dict[str, Any]) -> str:
    """Return the text that the chat template makes of a conversation; ``chat_ids`` describes the errors."""
    try:
        with _time_limit(TEMPLATE_LIMIT_S), _memory_limit(TEMPLATE_LIMIT_BYTES):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except MemoryError:
        raise TemplateMemoryError(f"it needs more than {TEMPLATE_LIMIT_BYTES >> 20} MiB") from None


def assistant_ids(
    tokenizer: Any, messages: list[Any], most: int | None, /, **options: Any
) -> tuple[list[int], list[int] | None]:
    """Return the first ``most`` token ids of a conversation, and a mask that has 1 for each token of the assistant.

    The mask is None if the template marks no token of this conversation as the assistant's.

    Args:
        tokenizer: a tokenizer that knows which characters a token has, with a chat template.
        messages: the conversation.
        most: most ids to return; None: all.
        options: arguments of ``apply_chat_template``, such as ``tools``.

    Raises:
        ConversationTooLongError: the text has more than ``MOST_MASKED_CHARACTERS``; it is tokenised as a whole.
        TemplateTimeoutError: the template does not end.
        TemplateMemoryError: the template makes too long a text, or other large values.
        Exception: the template fails; it is a program and can raise anything.
    """
    length = len(_rendered(tokenizer, messages, options))
    if length > MOST_MASKED_CHARACTERS:
        raise ConversationTooLongError(f"{length} characters, more than {MOST_MASKED_CHARACTERS}")
    made = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    mask = list(made["assistant_masks"])
    return list(made["input_ids"])[:most], mask[:most] if 1 in mask else None


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
