"""The formats of rows that TRL documents for supervised fine-tuning, as token ids and labels.

A row is read as TRL 1.16 reads it; the first format of this list that it has is taken:

- token ids: ``input_ids``, with ``labels``, or with ``assistant_masks`` of the tokens to train;
- ``prompt`` and ``completion``, both texts or both conversations: the prompt's tokens are not trained, except with
  ``completion_only_loss`` false;
- ``messages``, or ``conversations`` with from and value: a conversation; all its tokens are trained;
- text, in the column that ``dataset_text_field`` names.

With ``assistant_only_loss`` only conversations are read, and only the assistant's tokens of them are trained.

TRL prepares all rows of a file in one way and fails on others, so all rows have the columns of the first one.

Conversations may come with ``tools`` (a list, or its JSON) and ``chat_template_kwargs``. Their messages are rendered by the tokenizer's
chat template with all keys they have, such as tool_calls or thinking, except those that are null. Rows of parquet files are given to
``without_nulls`` before: such files store a null for each key that only other rows or messages have.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..protocol.data_files import kind, no_template
from ..protocol.messages import LONGEST_MESSAGE
from . import files, tokens
from .errors import DataError

# PyTorch's cross-entropy loss ignores this label
IGNORED = -100
_COLUMNS = (
    *("input_ids", "labels", "assistant_masks", "completion_mask", "prompt", "completion", "messages", "conversations"),
    *("tools", "chat_template_kwargs"),
    *("image", "images"),
)
_IMAGES = ("image", "images")
# arguments of apply_chat_template that do not choose the text of a conversation
_FIXED_OPTIONS = frozenset(
    {
        *("self", "conversation", "messages", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
_CONVERSATIONS = ("prompt", "completion", "messages", "conversations")
# columns without which a row has no sample
_STARTS = ("input_ids", "prompt", "messages", "conversations")
# most characters of a name in a message, and of a list that is cut
_SHOWN = 30
_FEW = 10
_RENAMED = {"from": "role", "value": "content"}
# names that templates and data sets have for the same thing
_REASONING = ("reasoning_content", "thinking", "reasoning")
# columns of rows with input_ids that choose the tokens to train
_CHOICES = ("labels", "assistant_masks")


def _not_unicode(position: str) -> str:
    return f"{position} contains text that is not valid Unicode."


def columns(names: Sequence[str], text_field: str) -> list[str]:
    """Return the columns of a file that ``Reader`` needs; empty if there is no sample in any of its formats."""
    if not any(name in names for name in (text_field, *_STARTS)):
        return []
    return [name for name in names if name in (text_field, *_COLUMNS)]


def expected(text_field: str) -> str:
    """Return for a message which columns a row needs."""
    return f"{text_field[:_SHOWN]}, prompt and completion, messages, conversations or input_ids"


class Reader:
    """Converts rows into token ids and labels.

    Args:
        tokenizer: the model's tokenizer.
        text_field: column with the text.
        most: most tokens of a sample; longer ones are cut. None: no limit.
        vocabulary: size of the model's vocabulary, which ids in the data must not exceed; None: not known.
        completion_only: whether a prompt's tokens are not trained; None: as TRL's default.
        assistant_only: whether only the assistant's tokens of conversations are trained.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_field: str,
        most: int | None,
        vocabulary: int | None,
        *,
        completion_only: bool | None = None,
        assistant_only: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._text_field = text_field
        self._most = most
        self._vocabulary = vocabulary
        self._completion_only = completion_only
        self._assistant_only = assistant_only
        # of the first row: the columns that decide how it is read, and whether its conversations have from and value
        self._columns: list[str] = []
        self._from_value = False

    def __call__(self, row: Mapping[str, Any], position: str) -> tuple[list[int], list[int]]:
        """Return token ids and labels of a row; a label of ``IGNORED`` excludes a token from the loss.

        Args:
            row: the row.
            position: what to call the row in a message.

        Raises:
            DataError: the row has none of the formats, or a value that does not fit.
        """
        given, row = row, {name: value for name, value in row.items() if value is not None}
        if image := next((name for name in _IMAGES if row.get(name)), None):
            raise DataError(
                f"{position} has {image}, but the model takes text only; leave this column out of the file."
            )
        self._check_columns(row, given, position)
        if self._assistant_only and not any(isinstance(row.get(name), list) for name in _CONVERSATIONS):
            raise DataError(f"{position} is no chat, which assistant_only_loss needs; it has {_listed(given)}.")
        if "input_ids" in row:
            return self._ids(row, position)
        if self._from_value:  # TRL then puts them into the place of messages
            row["messages"] = row.pop("conversations", None)
        row |= {
            name: _messages(row[name], renamed=self._from_value)
            for name in _CONVERSATIONS
            if isinstance(row.get(name), list)
        }
        try:
            found = self._prompt(row, position) if "prompt" in row else self._whole(row, position)
        except UnicodeError:  # raised by tokenizers for an unpaired surrogate, which JSON can contain
            raise DataError(_not_unicode(position)) from None
        if found is None:
            head = f"{position} needs valid {expected(self._text_field)}; it has "
            read = (self._text_field, *_CONVERSATIONS)
            odd = {name for name in read if not isinstance(given.get(name), str) or name in _CONVERSATIONS[2:]}
            names = [f"{name} ({kind(part)})" if name in odd else str(name) for name, part in given.items()]
            raise DataError(f"{head}{files.listed(sorted(names))[: max(_FEW, LONGEST_MESSAGE - len(head) - 1)]}.")
        highest = max(found[0], default=0)
        if self._vocabulary is not None and highest >= self._vocabulary:
            raise DataError(
                f"{position} has the token {highest} by the tokenizer, but the model has {self._vocabulary} tokens only."
            )
        return found

    def _check_columns(self, row: Mapping[str, Any], given: Mapping[str, Any], position: str) -> None:
        """Check that a row is read in the same way as the first one."""
        if wrong := next(
            (name for name in _CHOICES if name in given and not ("input_ids" in row and name in row)), None
        ):
            if "input_ids" in row:
                raise DataError(
                    f"{position} has {wrong} that are null; give a list of numbers in every row, or leave this column out."
                )
            raise DataError(
                f"{position} has {wrong} without input_ids; leave this column out, or give input_ids in every row."
            )
        names = _decisive(row, self._text_field)
        if not self._columns:
            self._columns = names
            self._from_value = _from_value(row.get("conversations"))
        elif names and names != self._columns:
            raise DataError(f"{position} has {_difference(names, self._columns)}; expected the same in all rows.")

    def _prompt(self, row: dict[str, Any], position: str) -> tuple[list[int], list[int]] | None:
        prompt, completion = row["prompt"], row.get("completion")
        trained: list[int] | None = None
        if isinstance(prompt, str) and isinstance(completion, str):
            before = self._text(prompt, position)
            # TRL ends the text in place of the completion where a row has both
            text = row.get(self._text_field)
            kept = isinstance(text, str) and self._ended(text) != text
            ids = self._text(prompt + (completion if kept else self._ended(completion)), position)
        elif isinstance(prompt, list) and isinstance(completion, list) and prompt:
            before = self._chat(row, prompt, position, add_generation_prompt=True)
            ids, trained = self._whole_chat(row, prompt + completion, position)
        else:
            return None
        labels = trained or ids
        if self._completion_only is False:
            return ids, labels
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False)))
        return ids, [IGNORED] * shared + labels[shared:]

    def _whole(self, row: dict[str, Any], position: str) -> tuple[list[int], list[int]] | None:
        messages = row.get("messages")
        text = row.get(self._text_field)
        if isinstance(messages, list):
            return self._whole_chat(row, messages, position)
        if isinstance(text, str):
            ids = self._text(self._ended(text), position)
            return ids, ids
        if isinstance(row.get("conversations"), list) and row["conversations"]:
            raise DataError(f"{position} has conversations without from and value; rename the column to messages.")
        return None

    def _whole_chat(self, row: Mapping[str, Any], messages: list[Any], position: str) -> tuple[list[int], list[int]]:
        """Return token ids and labels of a conversation."""
        if not self._assistant_only:
            ids = self._chat(row, messages, position)
            return ids, ids
        ids, mask = self._chat(row, messages, position, tokens.assistant_ids)
        if mask is None:
            raise DataError(
                f"{position} has no token of the assistant; assistant_only_loss needs a chat template that marks them with "
                "{% generation %}."
            )
        return ids, [one if bit else IGNORED for one, bit in zip(ids, mask, strict=True)]

    def _ended(self, text: str) -> str:
        end = self._tokenizer.eos_token
        return text if text.endswith(end) else text + end

    def _text(self, text: str, position: str) -> list[int]:
        try:
            return tokens.first_ids(self._tokenizer, text, self._most)
        except TypeError:  # what the tokenizers library makes of an unpaired surrogate
            if not any("\ud800" <= character <= "\udfff" for character in text):
                raise
            raise DataError(_not_unicode(position)) from None

    def _chat(
        self,
        row: Mapping[str, Any],
        messages: list[Any],
        position: str,
        tokenise: Callable[..., Any] = tokens.chat_ids,
        **options: Any,
    ) -> Any:
        if fault := _fault(messages):
            raise DataError(f"{position} needs messages that are objects with role and content; {fault}.")
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(no_template(position))
        options |= {"tools": _tools(row, position), **_template_options(row, position)}
        try:
            return tokenise(self._tokenizer, messages, self._most, **options)
        except Exception as error:  # a template is a program and can raise anything; the cause is this sample
            raise DataError(f"{position}: the chat template fails on these messages", error) from error

    def _ids(self, row: Mapping[str, Any], position: str) -> tuple[list[int], list[int]]:
        ids = self._numbers(row["input_ids"], "input_ids", position)
        length = len(row["input_ids"])
        if "labels" in row:
            labels = self._numbers(row["labels"], "labels", position)
            if len(row["labels"]) != length:
                raise DataError(f"{position} has {len(row['labels'])} labels for {length} input_ids; expected as many.")
            return ids, labels
        masks = [row[name] for name in self._masks(row)]
        if any(not isinstance(mask, list) or len(mask) != length for mask in masks):
            raise DataError(f"{position} needs a mask as long as its {length} input_ids.")
        # the ids end before the masks where they are cut
        return ids, [one if all(bits) else IGNORED for one, *bits in zip(ids, *masks, strict=False)]

    def _masks(self, row: Mapping[str, Any]) -> list[str]:
        only = self._completion_only
        # by default TRL trains a completion alone only if the data set has the columns prompt and completion
        only = "prompt" in row and "completion" in row if only is None else only
        names = ["completion_mask"] if only else []
        return [name for name in (*names, "assistant_masks") if name in row]

    def _numbers(self, values: Any, name: str, position: str) -> list[int]:
        """Return the first numbers of a list, as many as a sample has at most; others are not looked at."""
        values = values[: self._most] if isinstance(values, list) else values
        wrong = next((one for one in values if type(one) is not int), None) if isinstance(values, list) else values
        if wrong is not None or not isinstance(values, list) or None in values:
            shown = f"{kind(wrong)} {str(wrong)[:_FEW]}" if isinstance(wrong, (str, int, float)) else kind(wrong)
            raise DataError(f"{position} needs {name} that are a list of whole numbers; it has {shown}.")
        for one in values:
            if one == IGNORED and name == "labels":
                continue
            if one < 0 or (self._vocabulary is not None and one >= self._vocabulary):
                limit = "the size of the vocabulary" if self._vocabulary is None else self._vocabulary
                raise DataError(
                    f"{position} has {name} with the token {str(one)[:20]}; expected 0 or more, and less than {limit}."
                )
        return values


def _decisive(row: Mapping[str, Any], text_field: str) -> list[str]:
    """Return the columns that decide how a row is read, with their kinds where there is a choice; empty for no format."""
    if "input_ids" in row:
        return [name for name in ("input_ids", *_CHOICES) if name in row]
    options = [name for name in ("chat_template_kwargs",) if name in row]
    if "prompt" in row:
        columns = ("prompt", "completion", text_field)
        return [f"{name} ({kind(row[name])})" for name in columns if name in row] + options
    return next(([name, *options] for name in ("messages", "conversations", text_field) if name in row), [])


def _difference(names: list[str], first: list[str]) -> str:
    """Return for a message how the columns of a row differ from those of the first row."""
    added = next((name for name in names if name not in first), None)
    missing = next((name for name in first if name not in names), None)
    return f"{(added or f'no {missing}')[:_SHOWN]}, where the first row has {(missing or f'no {added}')[:_SHOWN]}"


def _fault(messages: list[Any]) -> str | None:
    """Return what is wrong with a conversation; None if all its messages are objects with a role."""
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return f"message {number} is: {kind(message)}"
        if "role" not in message:
            hint = "; from and value: conversations only" if "from" in message else ""
            return f"message {number} has no role{hint}"
    return None if messages else "it has none"


def _listed(row: Mapping[str, Any]) -> str:
    return files.listed(sorted(str(name) for name in row))[:_SHOWN]


def _from_value(messages: Any) -> bool:
    """Whether the first message is written with from and value."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and "from" in first and "value" in first


def _messages(values: list[Any], *, renamed: bool) -> list[Any]:
    """Return messages without keys of null, ``renamed`` from from and value to role and content, with all names of reasoning.

    The datasets library stores messages of mixed types as JSON.
    """
    return [_message(value, renamed=renamed) for value in values]


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except (ValueError, RecursionError):
        return value


def _message(value: Any, *, renamed: bool) -> Any:
    value = _decoded(value)
    if not isinstance(value, dict):
        return value
    message = {key: part for key, part in value.items() if part is not None}
    # as in TRL, from and value replace role and content that the message has too
    for old, new in _RENAMED.items():
        if renamed and old in message:
            message[new] = message.pop(old)
    # as transformers 5.24; releases such as 4.55 leave them apart, and would give other tokens
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the keys that have null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [without_nulls(part) for part in value]
    return value


def _tools(row: Mapping[str, Any], position: str) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise DataError(f"{position} has tools that are not valid JSON; expected a list of tools.") from None
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{position} has tools that are not a list.")
    decoded = [_decoded(tool) for tool in tools or ()]
    for number, tool in enumerate(decoded, start=1):
        if not isinstance(tool, dict):
            raise DataError(f"{position} has tools of which number {number} is not an object but: {kind(tool)}.")
    return None if tools is None else decoded


def _template_options(row: Mapping[str, Any], position: str) -> dict[str, Any]:
    options = row.get("chat_template_kwargs", {})
    if not isinstance(options, dict):
        raise DataError(f"{position} has chat_template_kwargs that are not an object but: {kind(options)}.")
    if fixed := sorted(_FIXED_OPTIONS & options.keys()):
        raise DataError(
            f"{position} has chat_template_kwargs with {fixed[0]}, which is not a variable of a chat template."
        )
    return options
