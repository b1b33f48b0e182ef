"""The first token ids of texts and conversations, in bounded time. Imports the standard library only.

A text much longer than a sample is not tokenised as a whole: a line of 24 MB took minutes. Its beginning is tokenised instead. Where it
is cut can change the tokens near the cut only, so a second, longer beginning must give the same ids.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# characters per token at first; fewer are rare, and more only repeat the loop
_CHARACTERS = 8
# tokens before the cut that are not trusted, such as the special tokens at the end of every text
_MARGIN = 64
# what a chat template may take for one conversation, s; it is a program, and may run endlessly
TEMPLATE_LIMIT_S = 30.0


class TemplateTimeoutError(Exception):
    """A chat template did not end in ``TEMPLATE_LIMIT_S``."""


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


def chat_ids(tokenizer: Any, messages: list[Any], most: int | None, **options: Any) -> list[int]:
    """Return the first ``most`` token ids of a conversation.

    Args:
        tokenizer: the tokenizer, with a chat template.
        messages: the conversation.
        most: most ids to return; None: all.
        options: arguments of ``apply_chat_template``, such as ``tools``.

    Raises:
        TemplateTimeoutError: the template does not end.
        Exception: the template fails; it is a program and can raise anything.
    """
    with _time_limit(TEMPLATE_LIMIT_S):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    # as apply_chat_template tokenises: the template writes the special tokens itself
    return first_ids(tokenizer, text, most, add_special_tokens=False)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TemplateTimeoutError`` in the block after some time; without effect in another thread than the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TemplateTimeoutError(f"it did not end in {seconds:.0f} s")

    former = signal.signal(signal.SIGALRM, stop)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, former)
