"""docs/data.md: each row on the page can be used, and the tokens that carry loss are those that the page says."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import byte_tokenizer, data  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import DataError  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.formats import IGNORED  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = pytest.mark.torch

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
BLOCKS = [block.splitlines() for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
# a template that marks the assistant's answers, as instruct models have
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eos>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer() -> Any:
    """Return a byte tokenizer with a chat template."""
    made = byte_tokenizer.build(200)
    made.chat_template = TEMPLATE
    return made


def read(rows: list[str], directory: Path, **loss: Any) -> list[str]:
    """Return the text that carries loss in each row of a file, after the first token, which nothing predicts."""
    path = directory / "rows.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    values = {"model_name": "m", "number_gpus": 0, "model_max_length": 200, "batch_size": 1, "num_train_epochs": 1}
    workload = JobWorkload(**Workload.model_construct(**values, dataset_id=str(path), **loss).model_dump())  # type: ignore[arg-type]
    config = transformers.LlamaConfig(vocab_size=300)
    made = tokenizer()
    built = data.build(Job(id="t", workload=workload), made, config)
    return [made.decode([label for label in row["labels"] if label != IGNORED]) for row in built.dataset]


def test_the_rows_of_the_page(tmp_path: Path) -> None:
    """Nine rows in four blocks: ids, prompts, chats, text."""
    # all rows of a file have one format
    ids, prompts, chats, texts = ([read([row], tmp_path)[0] for row in block] for block in BLOCKS)
    hello = tokenizer().decode([108, 108, 111])
    assert ids[:2] == [hello, hello]
    assert len(ids[2]) == 5
    assert prompts == [" Paris.<eos>", "Hello<eos>"]
    assert chats == ["[user]Hi<eos>[assistant]Hello<eos>"] * 2 + ["[user]Rain?<eos>"]
    assert texts == ["Rain falls on the hills.<eos>"]


def test_a_file_has_one_format(tmp_path: Path) -> None:
    """As the page says, for every pair of blocks that follow each other."""
    for first, second in itertools.pairwise(BLOCKS):
        with pytest.raises(DataError, match="expected the same in all rows"):
            read([first[0], second[0]], tmp_path)


def test_properties_of_the_page_choose_the_tokens_with_loss(tmp_path: Path) -> None:
    """Only the assistant's tokens of a chat with several answers; prompts, too, where completion_only_loss is false."""
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")]
    chat = json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert read([chat], tmp_path, assistant_only_loss=True) == ["Hello<eos>See you<eos>"]
    assert read(BLOCKS[1][:1], tmp_path, completion_only_loss=False) == ["The capital of France is Paris.<eos>"]
