"""Every format of rows gives the tokens and labels that TRL's own SFTTrainer makes of the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

from tokenizers import Tokenizer, models, processors  # noqa: E402

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import byte_tokenizer, data, formats  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import DataError  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

LONGEST = 160
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% if style %}<{{ style }}>{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{% if 'thinking' in m %}({{ m['thinking'] }}){% endif %}"
    "{% if 'content' in m %}{{ m['content'] }}{% endif %}"
    "{% if 'tool_calls' in m %}<calls>{{ m['tool_calls'] | tojson }}</calls>{% endif %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CONFIG = transformers.LlamaConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    pad_token_id=0,
    eos_token_id=1,
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}
# a null in a file of JSON lines is a value
TOOL_WITH_NULL = {"type": "function", "function": {"name": "rain", "parameters": {"city": {"default": None}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
CALLING = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "thinking": "ask", "tool_calls": [CALL]},
    {"role": "tool", "content": "7 degrees"},
    {"role": "assistant", "content": "seven"},
]
FORMATS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "ab cd"}, {"text": "ends<eos>"}, {"text": "long " * 90}],
    "other-column": [{"story": "ab"}, {"story": "cde"}],
    "prompt-completion": [{"prompt": "what", "completion": " ever"}, {"prompt": "p" * 200, "completion": "c"}],
    "messages": [{"messages": HI}, {"messages": [*HI, *HI]}],
    "text-and-messages": [{"text": "no", "messages": HI}, {"text": "no", "messages": HI[:1]}],
    "calls": [{"messages": HI}, {"messages": CALLING}],
    "tools": [{"messages": CALLING, "tools": [TOOL]}, {"messages": HI, "tools": [TOOL, TOOL_WITH_NULL]}],
    "tools-json": [{"messages": HI, "tools": json.dumps([TOOL])}],
    "template-arguments": [{"messages": HI, "chat_template_kwargs": {"style": "short"}}],
    "conversational-prompt": [
        {"prompt": HI[:1], "completion": HI[1:], "tools": [TOOL]},
        {"prompt": CALLING[:3], "completion": CALLING[3:], "tools": []},
    ],
    "from-value": [{"conversations": [{"from": "user", "value": "hi"}, {"from": "gpt", "value": "hello"}]}],
    "messages-and-from-value": [{"messages": HI, "conversations": [{"from": "user", "value": "this"}]}],
    "role-and-from": [{"conversations": [{"from": "user", "value": "hi", "role": "assistant", "content": "other"}]}],
    "role-after-from": [{"conversations": [{"from": "user", "value": "hi"}, {"role": "gpt", "content": "yo"}]}],
    "role-and-from-in-messages": [
        {"messages": [{"from": "user", "value": "hi", "role": "assistant", "content": "other"}]}
    ],
    "text-and-completion": [
        {"prompt": "ab", "completion": "c", "text": "d"},
        {"prompt": "ab", "completion": "c", "text": "d<eos>"},
    ],
    "template-variables": [{"messages": HI, "chat_template_kwargs": {"style": "a", "tokenizer": 1, "most": 1}}],
    "from-value-beside-others": [{"conversations": [{"from": "user", "value": "hi", "weight": 1}], "text": "zz"}],
    "text-of-odd-characters": [
        {"text": "a\u0000b"},
        {"text": "\u202eabc\u200b"},
        {"text": "a<eos>b"},
        {"text": "a\r\nb"},
    ],
    "no-ids": [{"input_ids": [4, 5]}, {"input_ids": []}],
    "input-ids": [{"input_ids": [4, 5, 6, 7]}, {"input_ids": list(range(3, 290))}],
    "labels": [{"input_ids": [4, 5, 6, 7], "labels": [-100, -100, 6, 7]}],
    "masks": [{"input_ids": [4, 5, 6], "assistant_masks": [0, 1, 1], "completion_mask": [0, 0, 1]}],
}


def tokenizer(*, begins: bool = False) -> Any:
    """Return a byte tokenizer with a chat template; with ``begins`` one that starts each text with a special token."""
    made = byte_tokenizer.build(LONGEST)
    made.chat_template = TEMPLATE
    if begins:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
        )
    return made


def build(path: Path, made: Any, **change: Any) -> data.DataSet:
    """Build the data set of a file, each sample once."""
    values: dict[str, Any] = {
        "model_name": "m",
        "number_gpus": 0,
        "model_max_length": LONGEST,
        "batch_size": 1,
        "num_train_epochs": 1,
    }
    workload = JobWorkload(**Workload.model_construct(**values, dataset_id=str(path), **change).model_dump())
    return data.build(Job(id="test", workload=workload), made, CONFIG)


def prepared_by_trl(path: Path, made: Any, tmp_path: Path, text_field: str, **loss: Any) -> list[dict[str, Any]]:
    """Return the samples that TRL's trainer trains on."""
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    read = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = trl.SFTTrainer(
        model=transformers.LlamaForCausalLM(CONFIG),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"),
            max_length=LONGEST,
            use_cpu=True,
            bf16=False,
            report_to="none",
            dataset_text_field=text_field,
            num_train_epochs=1,
            **loss,
        ),
        train_dataset=read,
        processing_class=made,
    )
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]


@pytest.mark.parametrize("kind", FORMATS)
def test_json_lines_give_the_tokens_of_trl(tmp_path: Path, kind: str) -> None:
    """Same file, same tokens, same labels, same samples left out."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FORMATS[kind]))
    field = "story" if kind == "other-column" else "text"
    for begins in (False, True):
        built = build(path, tokenizer(begins=begins), dataset_text_field=field)
        assert list(built.dataset) == prepared_by_trl(path, tokenizer(begins=begins), tmp_path, field)


# a template that marks the assistant's tokens, their end included
MARKED = TEMPLATE.replace("{% if 'content' in m %}{{ m['content'] }}{% endif %}", "{{ m['content'] }}").replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}!{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}",
)
LONG = [HI[0], {"role": "assistant", "content": "l" * 200}, *HI]


@pytest.mark.parametrize(
    ("kind", "loss", "whole"),
    [
        ("prompt-completion", {"completion_only_loss": True}, False),
        ("prompt-completion", {"completion_only_loss": False}, True),
        ("conversational-prompt", {"completion_only_loss": False}, True),
        ("masks", {"completion_only_loss": True}, False),
        ("masks", {"completion_only_loss": False}, False),
        ("text", {"completion_only_loss": True}, True),
        ("messages", {"assistant_only_loss": True}, False),
        ("long", {"assistant_only_loss": True}, False),
        ("huge", {"assistant_only_loss": True}, False),
        ("answered", {"assistant_only_loss": True}, False),
        ("answered", {"assistant_only_loss": True, "completion_only_loss": False}, False),
    ],
    ids=str,
)
def test_the_tokens_that_carry_loss_are_those_of_trl(
    tmp_path: Path, kind: str, loss: dict[str, Any], whole: bool
) -> None:
    """With completion_only_loss and assistant_only_loss; a sample whose answer lies behind the cut is left out."""
    more = {
        "long": [{"messages": LONG}, {"messages": [{"role": "user", "content": "u" * 200}, HI[1]]}],
        # an answer in the prompt, which only completion_only_loss takes out
        "answered": [{"prompt": [*HI, HI[0]], "completion": HI[1:]}],
        # only a beginning of it is tokenised
        "huge": [{"messages": [*HI, HI[0], {"role": "assistant", "content": "é🙂a " * 9000}]}],
    }
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in {**FORMATS, **more}[kind]))
    made, same = tokenizer(), tokenizer()
    made.chat_template = same.chat_template = MARKED
    built = list(build(path, made, **loss).dataset)
    assert built == prepared_by_trl(path, same, tmp_path, "text", **loss)
    assert all(row["labels"] == row["input_ids"] for row in built) == whole


def test_a_chat_without_marked_answers_is_refused(tmp_path: Path) -> None:
    """The template has no marks, or the row is no chat."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": HI}) + "\n")
    with pytest.raises(
        DataError, match=r"^Line 1 .* has no token of the assistant; assistant_only_loss needs a chat temp"
    ):
        build(path, tokenizer(), assistant_only_loss=True)
    path.write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(DataError, match=r"^Line 1 .* is no chat, which assistant_only_loss needs; it has text\.$"):
        build(path, tokenizer(), assistant_only_loss=True)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "tools"])
def test_parquet_gives_the_tokens_of_json_lines(tmp_path: Path, kind: str) -> None:
    """The nulls that Arrow adds for keys of other rows or messages do not count as keys; TRL does the same for those of messages."""
    rows = FORMATS[kind]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "d.parquet"))
    field = "story" if kind == "other-column" else "text"
    built = build(tmp_path / "d.parquet", tokenizer(), dataset_text_field=field)
    assert list(built.dataset) == list(build(tmp_path / "d.jsonl", tokenizer(), dataset_text_field=field).dataset)


def test_samples_left_out_are_noted(tmp_path: Path) -> None:
    """A prompt that fills the length leaves no trained token; the result says so."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FORMATS["prompt-completion"]))
    assert build(path, tokenizer()).notes == [
        "1 of 2 samples that were read carry no trained token within model_max_length: left out."
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input_ids": [4, 300]}, "Line 1 of data set .* has input_ids with the token 300; expected 0 or more, and less than 300"),
        ({"input_ids": [4, -1]}, "the token -1"),
        ({"input_ids": [4, 5], "labels": [4]}, "has 1 labels for 2 input_ids"),
        ({"input_ids": "4 5"}, "needs input_ids that are a list of whole numbers"),
        ({"input_ids": [4, 5], "assistant_masks": [1]}, "needs a mask as long as its 2 input_ids"),
        ({"prompt": "a", "completion": HI}, r"needs valid text, prompt and completion, .*; it has completion \(list\), prompt\."),
        ({"messages": []}, "needs messages that are objects with role and content"),
        ({"messages": ["hi"]}, "needs messages that are objects with role and content; message 1 is: text"),
        ({"messages": [*HI, {"content": "x"}]}, "message 3 has no role"),
        ({"messages": HI, "tools": ["weather"]}, "has tools of which number 1 is not an object but: text"),
        ({"messages": HI, "chat_template_kwargs": {"max_length": 3}}, "kwargs with max_length, which is not a variable of a chat"),
        ({"messages": HI, "images": ["a.png"]}, "has images, but the model takes text only"),
        ({"image": "a.png", "text": "a"}, "has image, but the model takes text only"),
        ({"text": float("nan")}, r"it has text \(number\)"),
        ({"text": None, "score": 1}, r"it has score, text \(null\)"),
        ({"input_ids": [4, float("nan")]}, "a list of whole numbers; it has number nan"),
        ({"input_ids": [4, None]}, "a list of whole numbers; it has null"),
        ({"messages": json.dumps(HI)}, r"it has messages \(text\)"),
        ({"input_ids": None, "labels": [4]}, "has labels without input_ids"),
        ({"input_ids": []}, "has no token to train: "),
        ({"input_ids": [4, 5], "labels": []}, "has 0 labels for 2 input_ids"),
        ({"input_ids": [4, 5], "labels": [-100, -100]}, "no label other than -100"),
        ({"text": ""}, "every sample has one token or none"),
        ({"messages": HI, "tools": "{"}, "has tools that are not valid JSON"),
        ({"messages": HI, "chat_template_kwargs": "short"}, "has chat_template_kwargs that are not an object"),
        ({"input_ids": [4, 5], "labels": None}, "has labels that are null; give a list of numbers in every row"),
        ({"text": "a", "labels": [4, 5]}, "has labels without input_ids; leave this column out"),
        ({"messages": [{"from": "user", "value": "hi"}]}, "message 1 has no role; from and value: conversations only"),
        ({"conversations": HI}, "has conversations without from and value; rename the column to messages"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_message(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    """The message names the line and what was expected."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=expected) as raised:
        build(path, tokenizer())
    assert len(str(raised.value)) <= 200


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"input_ids": [4, 5], "labels": [4, 5]}, {"input_ids": [6, 7], "labels": None}, "has labels that are null"),
        (
            {"input_ids": [4, 5], "labels": [4, 5]},
            {"input_ids": [6, 7]},
            "has no labels, where the first row has labels",
        ),
        (
            {"input_ids": [4, 5]},
            {"input_ids": [6, 7], "assistant_masks": [0, 1]},
            "where the first row has no assistant_masks",
        ),
        (
            {"text": "abc"},
            {"messages": HI},
            "has messages, where the first row has text; expected the same in all rows",
        ),
        ({"prompt": "a", "completion": "b"}, {"text": "abc"}, r"has text, where the first row has prompt \(text\)"),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": HI[:1], "completion": HI[1:]},
            r"has prompt \(list\), where the first row has",
        ),
        ({"messages": HI, "chat_template_kwargs": {"style": "a"}}, {"messages": HI}, "has no chat_template_kwargs"),
    ],
)
def test_rows_of_several_formats_are_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], expected: str
) -> None:
    """TRL prepares all rows of a file in one way, and fails on the second of these."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(DataError, match=rf"^Line 2 of .* {expected}"):
        build(path, tokenizer())


def test_null_labels_of_a_parquet_file_are_refused(tmp_path: Path) -> None:
    """A null is what a column has where a row has no value."""
    path = tmp_path / "d.parquet"
    datasets.Dataset.from_list([{"input_ids": [4, 5], "labels": [4, 5]}, {"input_ids": [6, 7]}]).to_parquet(str(path))
    with pytest.raises(DataError, match=r"^Row 2 of .* has labels that are null"):
        build(path, tokenizer())


def test_a_token_that_the_model_lacks_is_one_message(tmp_path: Path) -> None:
    """A tokenizer of few tokens can give high ids; on a GPU such an id would look like a broken kernel."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "ab"}\n{"text": "a"}\n')
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "ab": 700}, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="<eos>",
    )
    with pytest.raises(
        DataError, match=r"^Line 1 .* has the token 700 by the tokenizer, but the model has 300 tokens only\.$"
    ):
        build(path, made)


def test_an_error_of_the_tokenizer_is_not_taken_for_bad_text(tmp_path: Path) -> None:
    """Its type and text are in the message; only an unpaired surrogate is not valid Unicode."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "ab"}\n')
    made = tokenizer()
    made.model_max_length = "x"
    with pytest.raises(DataError, match=r"^Line 1 .* cannot be tokenised: TypeError: "):
        build(path, made)


def test_only_the_beginning_of_token_ids_is_looked_at() -> None:
    """As of a text: what is cut takes no time, and is not checked."""
    read = formats.Reader(None, "text", 4, 300)
    ids = [5] * 4
    assert read({"input_ids": [*ids, "x"], "labels": [*ids, None]}, "Line 1") == (ids, ids)
    read = formats.Reader(None, "text", 4, 300)
    assert read({"input_ids": [*ids, 9], "assistant_masks": [0, 1, 1, 0, 1]}, "Line 1") == (ids, [-100, 5, 5, -100])


class Recorder:
    """A tokenizer that keeps the messages which its chat template would get."""

    eos_token = "<eos>"
    chat_template = "any"

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
        """Keep the messages."""
        self.messages += messages
        return "text"

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """Return two tokens."""
        return {"input_ids": [4, 5]}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_has_all_its_names(name: str) -> None:
    """As in transformers 5.24, whichever release trains: both actuators train on the same tokens."""
    made = Recorder()
    read = formats.Reader(made, "text", 8, 300)
    read({"messages": [{"role": "assistant", "content": "a", name: "b"}, {"role": "user", "content": "c"}]}, "Line 1")
    assert made.messages[0] == {
        "role": "assistant",
        "content": "a",
        "thinking": "b",
        "reasoning_content": "b",
        name: "b",
    }
    assert made.messages[1] == {"role": "user", "content": "c"}
