"""Any input either becomes a plan with exactly its values or is rejected with one short message."""

from __future__ import annotations

import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.actuator import catalog
from ado_actuators.sfttrainer.core.commands import arguments
from ado_actuators.sfttrainer.core.measurement.plan import Plan, make_plan
from ado_actuators.sfttrainer.core.measurement.verdict import refusal
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
from ado_actuators.sfttrainer.core.trainer import byte_tokenizer, data
from ado_actuators.sfttrainer.core.trainer.errors import BadInput
from ado_actuators.sfttrainer.core.workload.fields import Workload
from ado_actuators.sfttrainer.core.workload.validation import parse

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(240)]

GOOD = {"model_name": "tiny-llama-5m", "model_max_length": 32, "batch_size": 4, "number_gpus": 0}
ADVERSARIAL = [
    "", " ", "\0", "a\nb", "\x1b[31mred", "\ud800", "٤", "ﬁ", "🙂" * 300, "x" * 5000, "../../etc/passwd", "/", "~", "~nobody/x",
    "~" + "x" * 300, "a b/c d", ".", "..", "$(touch /tmp/pwned)", "`id`", "; rm -rf /", "&& true", "| cat", "-rf", "--help", "a=b",
    "org/../x", "org/name", "org/name/more", "%s%n", "{0}", "NaN", "nan", "inf", "-0", "1e400", "1_000", "0x10", " 4 ", "4.0", "true",
    "None", "null", "[]", "{}", "!!python/object/apply:os.system ['id']", "synthetic-", "synthetic-fixed\0", "hf_abcdefghijklmnop",
    "https://user:secret@host/x", "\u202e", "a" * 4096, "/" + "d/" * 2000, "C:\\x", "file:///etc/passwd", "con", "CUDA out of memory",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.0, 0.5, 4.0, 1e-300, 1e308, math.inf, -math.inf, math.nan,
]  # fmt: skip
leaf = st.one_of(
    st.sampled_from(ADVERSARIAL),
    st.sampled_from(NUMBERS),
    st.text(max_size=40),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(max_size=8),
)
anything = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def likely(name: str) -> st.SearchStrategy[Any]:
    """Return valid values of a property, so that rules across properties are reached."""
    field = Workload.model_fields[name]
    domain = catalog.domain(name, field)
    if "values" in domain:
        return st.sampled_from(domain["values"])
    low, high = domain["domainRange"]
    return st.integers(low, min(high, low + 8)) if "interval" in domain else st.floats(low, high)


names = [name for name in Workload.model_fields if name != "method"]
changes = st.lists(
    st.one_of(
        st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), likely(name))),
        st.tuples(st.sampled_from(names), anything),
        st.tuples(st.text(max_size=20) | st.sampled_from(ADVERSARIAL), anything),
    ),
    max_size=6,
).map(dict)
entities = st.builds(
    lambda change, absent: {name: value for name, value in {**GOOD, **change}.items() if name not in absent},
    changes,
    st.one_of(st.just(set()), st.just(set()), st.sets(st.sampled_from(names), max_size=2)),
)
thorough = settings(
    max_examples=2000, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
quick = settings(thorough, max_examples=300)


def check_message(message: str) -> None:
    """Fail unless this is one printable line of at most 200 characters."""
    assert 0 < len(message) <= 200
    assert "\n" not in message
    assert message.isprintable(), message
    assert "Traceback" not in message
    message.encode("utf-8")


def means(planned: Any, asked: Any) -> bool:
    """Whether a planned value equals the requested one; numbers and booleans may be given as text."""
    if planned == asked or (planned == "no" and asked is False):  # YAML reads an unquoted no as False
        return True
    if isinstance(asked, bytes):
        return bool(planned == asked.decode())
    if isinstance(planned, float) and isinstance(asked, int):  # integers above 2**53 are not exact as floats
        return planned == float(asked)
    if not isinstance(asked, str):
        return False
    if isinstance(planned, bool):
        return asked.strip().lower() in (
            ("true", "1", "yes", "on", "y", "t") if planned else ("false", "0", "no", "off", "n", "f")
        )
    return not isinstance(planned, str) and float(planned) == float(asked)


def repeated(actuator: Any, plan: Plan) -> Workload:
    """Return the workload that the command in a plan's metadata would measure, as a shell and ``run`` read it."""
    words = shlex.split(plan.command())
    name, command, option, asked, *pairs = words
    assert (name, command, option) == (f"ado-{actuator.identifier.replace('_', '-')}", "run", "--experiment")
    values, experiment = arguments.read_workload(pairs, asked, actuator.plugin())
    return make_plan(actuator.identifier, experiment, values).workload


@thorough
@given(values=entities, actuator=st.sampled_from([SFTTrainer, FMSHFTuning]), kind=st.integers(0, 6))
def test_an_entity_is_planned_as_asked_or_refused(values: dict[str, Any], actuator: Any, kind: int) -> None:
    """2,000 entities: each gives a plan with exactly its values, or one message, within a second of CPU time."""
    experiment = actuator.plugin().kinds[kind % len(actuator.plugin().kinds)]
    begin = time.process_time()
    try:
        plan = make_plan(actuator.identifier, experiment, values)
    except failures.Failure as failure:
        check_message(str(failure))
        verdict = refusal(failure, actuator.identifier, experiment)
        json.dumps(verdict.metadata)
    else:
        assert all(means(getattr(plan.workload, name), asked) for name, asked in values.items())
        json.dumps(plan.workload.model_dump(), allow_nan=False).encode()
        assert repeated(actuator, plan) == plan.workload
    assert time.process_time() - begin < 1


PARAMETERS = list(SFTTrainer.parameters_class.model_fields)


@thorough
@given(
    given_values=st.dictionaries(
        st.one_of(st.sampled_from(PARAMETERS), st.sampled_from(PARAMETERS), st.text(max_size=12)), anything, max_size=4
    ),
    actuator=st.sampled_from([SFTTrainer, FMSHFTuning]),
)
def test_a_configuration_is_taken_as_given_or_refused(given_values: dict[str, Any], actuator: Any) -> None:
    """2,000 configurations: each becomes parameters with exactly its values, or is rejected with one message."""
    try:
        parameters = actuator.validate_parameters(given_values)
    except ValueError as refused:
        check_message(str(refused))
        return
    assert all(means(getattr(parameters, name), asked) for name, asked in given_values.items())


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("state", "expected a path that begins with / or ~"),
        ("/a\0b", "expected a path without zero bytes"),
        ("~nobody-of-this-name/state", "could not determine home directory"),
    ],
)
def test_a_state_directory_is_the_same_for_all_processes(place: str, why: str) -> None:
    """Hosts and trainers have other working directories, so a relative state_dir is rejected."""
    with pytest.raises(ValueError, match=why) as refused:
        SFTTrainer.validate_parameters({"state_dir": place})
    assert str(refused.value).startswith(f"state_dir {place!r} is impossible: ")
    check_message(str(refused.value))


@pytest.mark.parametrize("name", ["model_max_length", "seed", "model_name", "packing"])
def test_a_number_too_long_to_print_is_refused(name: str) -> None:
    """Python does not convert integers of more than 4300 digits to text; the message omits the value."""
    with pytest.raises(failures.InvalidConfiguration) as refused:
        parse({**GOOD, name: 10**5000})
    check_message(str(refused.value))
    assert str(refused.value).startswith(f"{name} of type int is impossible")


def test_an_unquoted_no_means_no() -> None:
    """YAML reads the word no as false; mixed_precision, the only property with that value, accepts false."""
    assert parse({**GOOD, "mixed_precision": yaml.safe_load("no")}).mixed_precision == "no"


BAD_FILES = [
    b"", b"[", b"\xff\xfe", b"a: b: c", b"- 1", b"entity: 3", b"1: 2", b"model_name: 2026-99-99", b"\0", b"[" * 3000, b"{}",
    b"experiment: [1]",
    b"!!python/object/apply:os.system ['touch pwned']", b"model_name: !!python/name:os.system", b"&a [*a]", b"model_name: *nothing",
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_FILES, ids=lambda content: repr(content[:24]))
def test_a_bad_workload_file_is_one_line(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``run`` ends with status 2, or 1 for a rejected workload, and one line; nothing in the file is executed."""
    monkeypatch.chdir(tmp_path)
    Path("workload.yaml").write_bytes(content)
    status = main(["run", "workload.yaml"])
    shown = capsys.readouterr()
    if status == 1:  # well-formed, but no workload
        check_message(shown.out.strip().splitlines()[-1])
    else:
        assert status == 2
        check_message(shown.err.removesuffix("\n"))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("content", [*BAD_FILES, b"max_retries: -1", b"enviroment: current", b"parameters: 3"])
def test_a_bad_configuration_file_is_one_line(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that cannot be used ends ``run`` with status 2 and one line; an empty one means the defaults."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_bytes(content)
    workload = [f"{name}={value}" for name, value in {**GOOD, "batch_size": 0}.items()]
    status = main(["run", *workload, "--config", "config.yaml"])
    shown = capsys.readouterr()
    if content == b"{}":
        assert (status, shown.err) == (1, "")
    else:
        assert status == 2
        check_message(shown.err.removesuffix("\n"))


words = st.one_of(
    st.sampled_from(ADVERSARIAL),
    st.text(max_size=20),
    st.builds("{}={}".format, st.sampled_from([*names, "x"]), st.sampled_from(ADVERSARIAL) | st.text(max_size=10)),
).filter(lambda word: not word.startswith("-"))


@quick
@given(given_words=st.lists(words, min_size=1, max_size=3))
def test_no_command_line_is_a_traceback(given_words: list[str]) -> None:
    """Arguments of ``run`` are accepted, or rejected with its own exception."""
    plugin = SFTTrainer.plugin()
    try:
        values, experiment = arguments.read_workload(given_words, None, plugin)
        make_plan("sfttrainer", experiment, values)
    except (arguments.BadUse, failures.Failure) as refused:
        check_message(failures.plain_message(str(refused)))


LINES = st.one_of(
    st.binary(max_size=40),
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.fixed_dictionaries(
        {},
        optional={name: st.text(max_size=30) | st.none() | st.integers() for name in ("text", "prompt", "completion", "messages")},
    ).map(lambda row: json.dumps(row).encode()),
    st.sampled_from([b"[" * 3000, b'{"text": "\\ud800"}', b'{"text": "x"}', b'{"messages": [{}]}', b'{"text": 1e999}', b"\xef\xbb\xbf{}"]),
)  # fmt: skip
TOKENIZER = byte_tokenizer.build(16)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file that the data set tests overwrite."""
    return tmp_path_factory.mktemp("a folder; $(touch pwned) – ünïcode") / "data.jsonl"


@quick
@given(lines=st.lists(LINES, max_size=4))
def test_a_data_set_file_is_read_or_refused(lines: list[bytes], data_file: Path) -> None:
    """300 files of JSON, half-JSON and bytes: samples, or one message; special characters in the path have no effect."""
    data_file.write_bytes(b"\n".join(lines))
    workload = JobWorkload(**{**parse({**GOOD, "max_steps": 2}).model_dump(), "dataset_id": str(data_file)})
    try:
        made = data.build(Job(id="test", workload=workload), TOKENIZER, None)
    except BadInput as refused:
        check_message(str(refused))
    else:
        assert made.lengths
        assert min(made.lengths) >= 1
