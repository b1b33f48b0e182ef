"""Chat templates are programs: what they raise is a message, and none runs or grows without end."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

pytest.importorskip("torch")

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.trainer import serve, tokens
from ado_actuators.sfttrainer.core.trainer.errors import DataError

from .test_formats import HI, build, tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "template",
    [
        "{% set all = namespace(text='12345678') %}{% for a in range(40) %}{% set all.text = all.text * 2 %}{% endfor %}{{ all.text }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '12345678' * 99999 }}{% endfor %}{% endfor %}",
        "{{ 'a' | center(5000000000) }}",
    ],
)
def test_a_template_that_makes_endless_text_is_ended(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is limited, however it makes the text; afterwards the process may allocate as before."""
    monkeypatch.setattr(tokens, "TEMPLATE_LIMIT_BYTES", 2**26)
    before = resource.getrlimit(resource.RLIMIT_AS)
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": HI}) + "\n")
    made = tokenizer()
    made.chat_template = template
    with pytest.raises(
        DataError,
        match=r"Line 1 .*: the chat template fails on these messages: TemplateMemoryError: it needs more than 64 MiB",
    ):
        build(path, made)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_an_endless_template_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template is a program; the message names the line."""
    monkeypatch.setattr(tokens, "TEMPLATE_LIMIT_S", 0.5)
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": HI}) + "\n")
    made = tokenizer()
    made.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
    with pytest.raises(
        DataError,
        match=r"Line 1 .*: the chat template fails on these messages: TemplateTimeoutError: it did not end in",
    ):
        build(path, made)


@pytest.mark.parametrize("template", ["{{ 10 ** 10000000 }}", "{{ (10 ** 1000000000) % 7 }}"])
def test_an_endless_constant_is_ended(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jinja computes constants twice, first with all exceptions ignored; neither takes longer than the limit."""
    monkeypatch.setattr(tokens, "TEMPLATE_LIMIT_S", 0.5)
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": HI}) + "\n")
    made = tokenizer()
    made.chat_template = template
    with pytest.raises(DataError, match="TemplateTimeoutError: it did not end in"):
        build(path, made)


def test_work_that_cannot_be_interrupted_ends_the_trainer() -> None:
    """A long loop in C runs no signal handler; the kernel ends the process, and the failure names the template."""
    script = (
        "import ado_actuators.sfttrainer.core.trainer.tokens as tokens\n"
        "tokens.TEMPLATE_LIMIT_S, tokens.TEMPLATE_CPU_LIMIT_S = 0.1, 0.2\n"
        "class Endless:\n"
        "    def apply_chat_template(self, messages, **options):\n"
        "        sum(range(10**12))\n"
        "tokens.chat_ids(Endless(), [], None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    failure = failures.from_exit(ended.returncode, "", oom_killed=False)
    assert isinstance(failure, failures.BadInput)
    assert "The chat template did not end" in str(failure)


def test_what_a_template_raises_is_quoted_in_full(tmp_path: Path) -> None:
    """The line, the type and the whole text, also on its way to the user."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": HI}) + "\n")
    made = tokenizer()
    made.chat_template = "{{ raise_exception('roles must \"alternate\" between user and assistant. ' * 9) }}"
    with pytest.raises(DataError) as raised:
        build(path, made)
    text = ('roles must "alternate" between user and assistant. ' * 9).rstrip(". ")
    assert str(raised.value).startswith("Line 1 of data set ")
    assert str(raised.value).endswith(f": the chat template fails on these messages: TemplateError: {text}.")
    assert str(failures.from_message(serve._known_failure(raised.value))) == str(raised.value)


def test_a_template_that_marks_answers_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is under the limits of time and memory whenever it runs."""
    runs = []
    begin = jinja2.Template.new_context

    def counted(*args: Any, **options: Any) -> Any:
        runs.append(args)
        return begin(*args, **options)

    monkeypatch.setattr(jinja2.Template, "new_context", counted)
    made = tokenizer()
    made.chat_template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ids, mask = tokens.assistant_ids(made, HI, None)
    assert (len(runs), mask) == (1, [1] * len(ids))


def test_an_endless_template_that_marks_answers_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ends where nobody asks for the marks."""
    monkeypatch.setattr(tokens, "TEMPLATE_LIMIT_S", 0.5)
    made = tokenizer()
    made.chat_template = "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endgeneration %}"
    with pytest.raises(tokens.TemplateTimeoutError):
        tokens.assistant_ids(made, HI, 8)
