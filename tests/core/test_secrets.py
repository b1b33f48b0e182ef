"""Secrets of the environment stay out of messages, logs, metadata and reports, and nothing of a trainer is ever unpickled."""

from __future__ import annotations

import ast
import base64
import html
import json
import os
import re
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core import failures, redaction
from ado_actuators.sfttrainer.core.host import trainer_process as process
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.measurement.verdict import Verdict, refusal
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(180)]

SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "AWS_SECRET_ACCESS_KEY": "planted/AWS+secret",
    "WANDB_API_KEY": "planted-wandb-key",
    "MYSQL_PASSWORD": "planted-mysql-password",
    "PIP_EXTRA_INDEX_URL": "https://planted-user:planted-index-password@127.0.0.1:9/simple",
}
PLANTED = [*list(SECRETS.values())[:4], "planted-index-password"]
CORE = Path(__file__).parents[2] / "core"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant secrets in the environment."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def revealed(text: str) -> list[str]:
    """Return the secrets that a text reveals."""
    return [secret for secret in PLANTED if secret in text]


def test_names_tell_which_values_are_secret() -> None:
    """Values by the variable's name and logins of URLs; not switches, directories, or a tokenizer's settings."""
    environ = {**SECRETS, "TOKENIZERS_PARALLELISM": "false-or-so", "RAY_AUTH_TOKEN": "off", "PWD": "/some/directory"}
    found = redaction.secrets(environ)
    assert {*PLANTED, "planted-user:planted-index-password"} <= set(found)
    # the others are these again, quoted or encoded
    assert all(redaction.secrets({"ONE_TOKEN": secret}) for secret in PLANTED)
    assert not any(word in " ".join(found) for word in ("false", "directory"))


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD",
        "SSHPASS",
        "AWS_CREDENTIALS",
        "MY_TOKENS",
        "X_API_KEYS",
        "GITHUB_TOKEN_FILE",
        "db_pwd",
        "DB_PASSWORD2",
        "MINIO_SECRETKEY",
        "AWS_ACCESSKEY",
        "GITHUB_PAT",
        "DATABASE_AUTH",
        "SESSION_COOKIE",
        "SLACK_WEBHOOK_URL",
        "CI_JOB_JWT",
        "KUBECONFIG_DATA",
        "GPG_PASSPHRASE",
    ],
)
def test_a_name_may_run_its_words_together(name: str) -> None:
    """What a value is for is seen in the plural, and at the end of a word, too."""
    assert "planted-value" in redaction.secrets({name: "planted-value"})


@pytest.mark.parametrize(
    "value",
    [
        "planted/9+x=Kp.7w&Rt~2m'N\"v",
        "planted\"de\\fgh'12345",
        "-----BEGIN KEY-----\nplanted-line-1\nplanted-line-2\n",
        "plänted-wörd-1234",
    ],
    # pytest names the running test in the environment
    ids=["characters of URLs", "quotes", "lines", "letters"],
)
def test_a_secret_is_hidden_however_it_is_quoted(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, line by line, and as an exception or a record quotes it."""
    monkeypatch.setenv("MY_API_KEY", value)
    quoted = [value, repr(value), json.dumps(value), str(dict(os.environ)), *value.splitlines()]
    in_url = [
        quote(value, safe) for quote in (urllib.parse.quote, urllib.parse.quote_plus) for safe in ("", "/", "!*'()")
    ]
    in_url += [re.sub("%..", lambda found: found.group().lower(), text) for text in in_url]
    in_url += [urllib.parse.quote(text, "") for text in in_url[:6]] + [html.escape(value)]
    assert [text for text in map(redaction.hide, quoted + in_url) if "plant" in text or "nted" in text] == []


@pytest.mark.parametrize("before", ["", "a", "me:", "user:", "four", "five5"])
def test_a_secret_is_hidden_in_base64(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stands in what is encoded, as in the header of basic authentication; the decoded rest has nothing of it."""
    monkeypatch.setenv("MY_PASSWORD", "planted-password?>")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(f"{before}planted-password?>".encode()).decode()
        hidden = redaction.hide(f"header {encoded}")
        assert hidden.startswith("header ")
        assert "***" in hidden
        assert len(hidden) <= len("header ***") + len(before) * 4 // 3 + 4


@pytest.mark.parametrize("before", ["", "a", "me:", "user:", "four", "five5"])
def test_a_secret_is_hidden_in_other_encodings(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hexadecimal digits, base32, lines of base64, and base64 of UTF-16."""
    secret = "planted-" + "0123456789" * 8
    monkeypatch.setenv("MY_PASSWORD", secret)
    data, wide = f"{before}{secret}".encode(), f"{before}{secret}".encode("utf-16-le")
    for text in (data.hex(), data.hex().upper(), base64.b32encode(data).decode(), base64.b64encode(wide).decode()):
        hidden = redaction.hide(f"log {text} end")
        assert hidden.startswith("log ")
        assert "***" in hidden
        assert len(hidden) < len("log *** end") + 4 * (len(before) + 2)
    for encoded in (base64.encodebytes(secret.encode()).decode(), base64.encodebytes(secret.encode() * 2).decode()):
        assert len(redaction.hide(encoded).replace("***", "").strip()) < 76


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("hf_" + "aB3" * 11, "***"),
        ("token ghp_" + "aB3d" * 9 + ".", "token ***."),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "***"),
        ("glpat-" + "x" * 20, "***"),
        ("nvapi-" + "x" * 30 + " dckr_pat_" + "y" * 27 + " r8_" + "z" * 37, "*** *** ***"),
        ("Authorization: Bearer abcdefghijklmnopqrstuv==", "Authorization: Bearer ***"),
        ("get https://bob:pw@host/simple", "get https://***@host/simple"),
        ("https://h/f?X-Amz-Signature=abc&x=1", "https://h/f?X-Amz-Signature=***&x=1"),
        ("https://h/f?a=1&sig=q%2Fw&token=t", "https://h/f?a=1&sig=***&token=***"),
        ("https://host/model?revision=main&keyboard=us", "https://host/model?revision=main&keyboard=us"),
        (
            "ssh://git@host/x and sk-learn, task-specific-adapters",
            "ssh://git@host/x and sk-learn, task-specific-adapters",
        ),
        ("tcp://127.0.0.1:6379 me@host", "tcp://127.0.0.1:6379 me@host"),
        ("psql bob:pa55word@db.example.org/x", "psql bob:***@db.example.org/x"),
        ("password=pa55word, passwd: 'pa55word', API_KEY=pa55word", "password=***, passwd: '***', API_KEY=***"),
        ("Authorization: Bearer abc.def.ghi", "Authorization: Bearer ***"),
        ("Cookie: a=b; c=d", "Cookie: ***"),
        ("{'Set-Cookie': 'a=b; c=d', 'x': 1}", "{'Set-Cookie': '***', 'x': 1}"),
        ("12:30:45 me@example.org step 3: loss=2.1", "12:30:45 me@example.org step 3: loss=2.1"),
        (
            "pad_token=0 eos_token: </s> key: value num_key_value_heads=8",
            "pad_token=0 eos_token: </s> key: value num_key_value_heads=8",
        ),
    ],
)
def test_what_has_the_form_of_a_secret_is_hidden(text: str, hidden: str) -> None:
    """Also where no variable holds it, in a message and in a log, in pieces of any size; other text stays."""
    assert redaction.hide(text) == hidden
    kept = redaction.Filter()
    assert b"".join([*(kept.feed(bytes([byte])) for byte in text.encode()), kept.end()]).decode() == hidden


def test_what_comes_behind_bearer_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the word before it and without, and a login whose password has an at sign."""
    monkeypatch.setenv("AUTHORIZATION", "Bearer planted-token")
    monkeypatch.setenv("DATABASE_URL", "postgres://bob:planted@word@host/db")
    assert redaction.hide("planted-token, postgres://bob:planted@word@host/db") == "***, postgres://***@host/db"


@pytest.mark.parametrize("name", ["KEYBOARD_LAYOUT", "COMPASS_MODE", "PASSENGERS", "MONKEY", "TOKENIZERS_PARALLELISM"])
def test_a_name_that_only_sounds_so_is_none(name: str) -> None:
    """Other words that hold the same letters name no secret."""
    assert redaction.secrets({name: "planted-value"}) == []


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("kind", ["exception", "import", "bad_input", "refused"])
def test_a_failure_that_quotes_the_environment(
    kind: Literal["exception", "import", "bad_input", "refused"],
) -> None:
    """A trainer's message may hold the whole environment: the message holds no secret of it."""
    for secret in PLANTED:
        text = f"bad {secret!r} in environment"
        failure = failures.from_message({"event": "failure", "kind": kind, "type": "ValueError", "text": text})
        verdict = refusal(failure, "sfttrainer", "finetune_full_benchmark")
        assert revealed(f"{failure} {verdict.message} {json.dumps(verdict.metadata)}") == []
    text = str(dict(os.environ))
    whole = failures.from_message({"event": "failure", "kind": kind, "type": "KeyError", "text": text})
    assert revealed(str(whole)) == []


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("piece", [1, 7, 65536])
def test_a_log_holds_no_secret(piece: int, tmp_path: Path) -> None:
    """Whatever the pieces a trainer's output comes in, what is around a secret stays and the secret goes."""
    text = "".join(f"{name}={value}\n" for name, value in SECRETS.items()) + "the end, hf_Pla"
    writer = process.LogWriter(tmp_path / "log")
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream:
        for start in range(0, len(text), piece):
            os.write(write, text[start : start + piece].encode())
        os.close(write)
        writer.pump(stream)
    for kept in ((tmp_path / "log").read_text(), writer.tail()):
        assert revealed(kept) == []
        assert kept.startswith("HF_TOKEN=***\nAWS_SECRET_ACCESS_KEY=***\n")
        assert kept.endswith("the end, hf_Pla")


def test_a_secret_that_begins_a_longer_one_hides_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the text is cut into pieces, the longer one is taken out as a whole, and so is the shorter by itself."""
    monkeypatch.setenv("FIRST_TOKEN", "planted-one")
    monkeypatch.setenv("SECOND_TOKEN", "planted-one-and-more")
    text = b"a planted-one-and-more b planted-one c planted-one-an"
    for cut in range(len(text)):
        kept = redaction.Filter()
        told_bytes = kept.feed(text[:cut]) + kept.feed(text[cut:]) + kept.end()
        assert told_bytes == b"a *** b *** c ***-an", cut


def test_a_log_that_is_cut_loses_its_middle_only(tmp_path: Path) -> None:
    """Beginning and end are whole, in their order, and nothing is repeated."""
    filler = b"x" * (process.LOG_HEAD_BYTES - 30_000)
    writer = process.LogWriter(tmp_path / "log")
    read, write = os.pipe()
    thread = threading.Thread(target=writer.pump, args=(os.fdopen(read, "rb"),))
    thread.start()
    for piece in (filler, b"MIDDLE" + b"y" * 65_530, b"z" * 400):
        with os.fdopen(os.dup(write), "wb") as stream:
            stream.write(piece)
        time.sleep(0.3)
    os.close(write)
    thread.join()
    head, _, tail = (tmp_path / "log").read_bytes().partition(b"\n... 0 bytes left out ...\n")
    assert head == filler
    assert tail == b"MIDDLE" + b"y" * 65_530 + b"z" * 400


def test_the_end_of_a_long_log_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are removed from the last bytes too, wherever the output is cut, and the middle costs nothing."""
    secret = "planted-token-" + "0123456789" * 20
    monkeypatch.setenv("MY_TOKEN", secret)
    monkeypatch.setattr(process, "LOG_HEAD_BYTES", 1000)
    monkeypatch.setattr(process, "LOG_TAIL_BYTES", 300)
    monkeypatch.setattr(redaction, "LONGEST_LINE_BYTES", 100)
    for shift in range(0, 230, 7):
        writer = process.LogWriter(tmp_path / f"log{shift}")
        read, write = os.pipe()
        os.write(write, (f"{secret} " * 20 + "y" * shift + "\nthe end").encode())
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            writer.pump(stream)
        for kept in ((tmp_path / f"log{shift}").read_text(), writer.tail()):
            assert "0123" not in kept
            assert kept.endswith("the end")


@pytest.mark.usefixtures("planted")
def test_a_report_tells_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Page and pictures of failures that quoted secrets, made by a process that has them in its environment."""
    requests = yaml.safe_load((Path(__file__).parents[1] / "recordings" / "operation.yaml").read_text())
    (failed,) = (one for one in requests if one["status"] == "Failed")
    for index, secret in enumerate(PLANTED):
        failure = failures.from_message(
            {"event": "failure", "kind": "exception", "type": "ValueError", "text": f"bad {secret!r} in {index}"}
        )
        verdict = refusal(failure, "sfttrainer", "finetune_full_benchmark")
        result = {"uid": str(index), "reason": verdict.message, "metadata": verdict.metadata}
        requests.append({**failed, "measurements": [{**failed["measurements"][0], **result}]})
    (tmp_path / "trace.yaml").write_text(yaml.safe_dump(requests))
    assert main(["report", str(tmp_path / "trace.yaml"), "-o", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert [f"in {index}." in page for index in range(len(PLANTED))] == [True] * len(PLANTED)
    pictures = "".join(path.read_text(errors="replace") for path in (tmp_path / "report").glob("*.png"))
    assert revealed(page + pictures + capsys.readouterr().out) == []


def everything(state: Path, verdict: Verdict) -> str:
    """Return all that a measurement has written down."""
    files = [path.read_text(errors="replace") for path in state.rglob("*") if path.is_file()]
    report = verdict.report.text() if verdict.report else ""
    return "\n".join([*files, report, verdict.message, json.dumps(verdict.metadata), json.dumps(verdict.properties)])


@pytest.mark.usefixtures("planted")
def test_a_measurement_tells_no_secret(tmp_path: Path) -> None:
    """A real one and one that fails with a secret in its exception: logs, metadata and reports hold none."""
    workload: dict[str, Any] = {
        "model_name": "tiny-llama-5m",
        "model_max_length": 16,
        "batch_size": 1,
        "number_gpus": 0,
    }
    progress_lines: list[str] = []
    with Local(
        SFTTrainer.plugin(), SFTTrainerParameters(), tmp_path, lambda one: progress_lines.append(str(one))
    ) as local:
        for change in ({"max_steps": 4}, {"dataset_id": f"{SECRETS['MYSQL_PASSWORD']}.jsonl"}):
            plan = make_plan("sfttrainer", "finetune_full_benchmark", {**workload, **change})
            verdict = local.measure(plan)
            # the second one's own workload names the file, as its user wrote it
            verdict.metadata.pop("workload")
            verdict.metadata.pop("command")
            assert revealed(everything(tmp_path, verdict)) == []
    assert revealed("".join(progress_lines)) == []


def test_nothing_of_a_trainer_is_unpickled() -> None:
    """The channel is JSON; no module of the core imports pickle or its kin, or loads a file with torch."""
    names = set()
    for path in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                # pickle only by its attributes, below: the error class does not mean that something is loaded
                names |= {
                    alias.name.partition(".")[0]
                    for alias in node.names
                    if (alias.name, alias.asname) != ("pickle", None)
                }
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                names |= set() if node.attr == "UnpicklingError" else {"pickle"}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "yaml.load", "eval", "exec"):
                # the one yaml.load names a safe loader
                names |= {ast.unparse(node.func)} if "Loader=loader" not in ast.unparse(node) else set()
    assert "json" in names
    assert not names & {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "marshal",
        "shelve",
        "torch.load",
        "yaml.load",
        "eval",
        "exec",
    }


def test_no_shell_is_ever_used() -> None:
    """Commands are lists of words: names with shell characters stay names."""
    for path in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "subprocess.getoutput")
                assert not [word for word in node.keywords if word.arg == "shell"]
