"""Builds wheels of the plugins, and runs Ray jobs that install them; the nox sessions `wheels` and `ray_submit` use it.

    python tools/ray_jobs.py wheels [OPTIONS]
    python tools/ray_jobs.py submit --address URL [OPTIONS] -- COMMAND...

Part of the repository, not of a plugin. May import the standard library and PyYAML; to submit also Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import email.parser
import hashlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = {"sfttrainer": "ado_sfttrainer", "fms_hf_tuning": "ado_fms_hf_tuning"}
RUNTIME_ENV = "ray_runtime_env.yaml"
# Ray's variable for the unpacked working directory of the job; pip replaces it
HERE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
# Ray's defaults, repeated because options of the user replace them
PIP_OPTIONS = ("--disable-pip-version-check", "--no-cache-dir")
# without a terminal, as in a job, ado truncates its tables to 80 columns
COLUMNS = "200"
POLL_S = 0.5
# retries bridge a broken port-forward or a restarting proxy
ATTEMPTS = 10
RETRY_S = 3.0
# interval of the lines about a job that has not started
HEARTBEAT_S = 15.0
LONGEST_REASON = 150


class Refused(Exception):
    """The request cannot be fulfilled; the text is the message for the user."""


def build(into: Path, plugins: list[str], root: Path = ROOT) -> list[Path]:
    """Build the wheels of ``plugins`` into ``into``, where they replace older wheels of any plugin."""
    into.mkdir(parents=True, exist_ok=True)
    for name in PLUGINS.values():
        for old in into.glob(f"{name}-*.whl"):
            old.unlink()
    directories = [str(root / plugin) for plugin in plugins]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(into), *directories]
    if subprocess.run(pip, check=False).returncode:
        raise Refused("A wheel could not be built; see pip's output above.")
    return [wheel for plugin in plugins for wheel in into.glob(f"{PLUGINS[plugin]}-*.whl")]


def not_added(plugins: list[str], root: Path = ROOT) -> list[str]:
    """Return the untracked files below the plugins and their core. Of these only Python files ship.

    Ignored files are not listed; without git the list is empty.
    """
    folders = ["core", *(f"{plugin}/src" for plugin in plugins)]
    git = ["git", "-c", "safe.directory=*", "ls-files", "--others", "--exclude-standard", "-z", "--", *folders]
    try:
        listed = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return sorted(filter(None, listed.split("\0")))


def extras_of(wheel: Path) -> set[str]:
    """Return the extras of a wheel."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        text = file.read(metadata).decode()
    return set(email.parser.HeaderParser().parsestr(text).get_all("Provides-Extra", []))


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """Additions to the environment of a job, besides the wheels.

    Attributes:
        extras: extras to install, of the wheels that have them.
        constraint: a file of version constraints.
        lines: more lines of a pip requirements file: packages, or options such as --extra-index-url.
        options: more options of the command ``pip install``.
        variables: for the installer and the job: NAME=VALUE, or NAME for the variable's value on the cluster's nodes.
    """

    extras: tuple[str, ...] = ()
    constraint: Path | None = None
    lines: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


def runtime_env(working_dir: Path, wheels: list[Path], additions: JobOptions) -> dict[str, Any]:
    """Return the runtime environment of a job whose working directory holds ``wheels``; constraints are copied into it.

    Raises:
        Refused: no wheel offers an extra, or a variable has no value.
    """
    for variable in additions.variables:
        if not re.fullmatch(r"\w+(=.*)?", variable, re.DOTALL):
            raise Refused(f"--env {variable.partition('=')[0]} is not valid; expected NAME=VALUE or NAME.")
    offered = {wheel: extras_of(wheel) for wheel in wheels}
    for extra in additions.extras:
        if not any(extra in names for names in offered.values()):
            known = sorted(set().union(*offered.values()))
            raise Refused(f"No wheel has the extra {extra!r}; available: {', '.join(known) or 'none'}.")
    lines = list(additions.lines)
    if additions.constraint is not None:
        lines.append(f"--constraint {HERE}/{_copy_by_content(additions.constraint, working_dir).name}")
    for wheel, names in offered.items():
        wanted = ",".join(extra for extra in additions.extras if extra in names)
        lines.append(f"{HERE}/{wheel.name}" + (f"[{wanted}]" if wanted else ""))
    listed: Any = (
        {"packages": lines, "pip_install_options": [*PIP_OPTIONS, *additions.options]} if additions.options else lines
    )
    # Ray replaces ${NAME} on the node
    given = {
        name: value if equals else f"${{{name}}}"
        for name, equals, value in (variable.partition("=") for variable in additions.variables)
    }
    return {"pip": listed, "env_vars": {"COLUMNS": COLUMNS} | given}


def exposed_secrets(additions: JobOptions) -> list[str]:
    """Return the options with secrets that the job's metadata would show in plain text; the secrets themselves are omitted."""
    secrets = runpy.run_path(str(ROOT / "core" / "redaction.py"))["secrets"]
    variables = [variable.partition("=") for variable in additions.variables]
    named = [f"--env {name}" for name, _, value in variables if secrets({name: value})]
    lines = [("--pip", line) for line in additions.lines] + [("--pip-option", line) for line in additions.options]
    return named + [option for option, line in lines if secrets({"URL": re.sub(r"\$\{\w+\}", "", line)})]


def submit(address: str, working_dir: Path, environment: dict[str, Any], command: list[str]) -> int:
    """Run ``command`` as a job, print its log as it comes, and return its exit status.

    Raises:
        Refused: the cluster does not accept the job, or stops answering.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(command), runtime_env={**environment, "working_dir": str(working_dir)}
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        # current Ray requires a token by default, which is in ~/.ray of the head node
        remedy = " Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN if ~/.ray/auth_token is not the cluster's."
        advice = remedy if "uthentication" in f"{type(error).__name__} {error}" else ""
        raise Refused(f"{address} does not accept the job: {_first_line(error)}{advice}") from None
    print(f"job {job} on {address}: {shlex.join(command)}", flush=True)
    try:
        return follow(client, job, address)
    except KeyboardInterrupt:
        print(f"job {job} continues; end it with: ray job stop --address {address} {job}")
        return 130


def follow(client: Any, job: str, address: str) -> int:
    """Print the log of ``job`` until it ends and return its exit status; a lost connection to the log does not end the job.

    Raises:
        Refused: the cluster stops answering.
    """
    try:
        asyncio.run(_print_log(client, job))
    # a closed connection raises Ray's RuntimeError, a failed connection an error of aiohttp
    except Exception as error:
        log = f"ray job logs --address {address} {job}"
        print(
            f"The log is interrupted ({_first_line(error)}); the job continues. For the complete log: {log}",
            file=sys.stderr,
        )
    while not (info := _info(client, job, address)).status.is_terminal():
        time.sleep(POLL_S)
    if info.status == "SUCCEEDED":
        return 0
    print(f"job {job} {info.status.lower()}: {_reason(info.message)}", file=sys.stderr)
    return info.driver_exit_code or 1


async def _print_log(client: Any, job: str) -> None:
    waiting = asyncio.create_task(_mention_waiting(client, job))
    try:
        async for lines in client.tail_job_logs(job):
            waiting.cancel()
            print(lines, end="", flush=True)
    finally:
        waiting.cancel()


async def _mention_waiting(client: Any, job: str) -> None:
    """Print every ``HEARTBEAT_S`` that the nodes are installing the packages of a job, which has no log until then."""
    begin = time.monotonic()
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        try:
            pending = (await asyncio.to_thread(client.get_job_info, job)).status == "PENDING"
        except Exception:
            continue  # the log's own errors are reported
        if pending:
            print(
                f"job {job}: installing its packages on the cluster, {time.monotonic() - begin:.0f} s", file=sys.stderr
            )


def _info(client: Any, job: str, address: str) -> Any:
    """Return the status of ``job`` on the cluster, with retries if it does not answer."""
    for attempt in range(ATTEMPTS):
        try:
            return client.get_job_info(job)
        except Exception as error:
            reason = _first_line(error)
        if attempt < ATTEMPTS - 1:
            time.sleep(RETRY_S)
    raise Refused(
        f"{address} does not answer: {reason}. Check the job later with: ray job status --address {address} {job}"
    )


def _first_line(message: object) -> str:
    """Return the first line of a message, at most 150 characters of it."""
    return next(iter(str(message or "").strip().splitlines()), "no reason given")[:LONGEST_REASON]


def _reason(message: object) -> str:
    """Return the first line of a job's message, and the last one if its environment failed: what pip said is there.

    The other lines of a job that ran repeat its log.
    """
    first = _first_line(message)
    last = next(iter(reversed(str(message or "").strip().splitlines())), "").strip()[-LONGEST_REASON:]
    failed = re.search(r"runtime.?env", first, re.IGNORECASE)
    return f"{first} … {last}" if failed and last != first else first


def _copy_by_content(file: Path, into: Path) -> Path:
    """Copy ``file`` under a name that contains a hash of its content, because Ray caches by name."""
    if not file.is_file():
        raise Refused(f"{file} is not a file.")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Path(shutil.copyfile(file, into / f"{file.stem}-{digest}{file.suffix}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ray_jobs.py", description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--plugin", action="append", choices=list(PLUGINS), help="build only this one (default: all; may be repeated)")
    add("--extra", action="append", default=[], help="an extra of the wheels that have it, such as train")
    add("--constraint", type=Path, help="a file of version constraints for pip")
    add("--pip", action="append", default=[], metavar="LINE", help="one more line of pip's requirements file")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="one more variable of the job's processes; without a value, the nodes' value is used",
    )
    add("--pip-option", action="append", default=[], metavar="OPTION", help="one more option of pip install")
    build_only = what.add_parser("wheels", parents=[common], help=f"build wheels and {RUNTIME_ENV}")
    build_only.add_argument("--into", type=Path, default=ROOT / "dist", help="directory (default: dist)")
    job = what.add_parser("submit", parents=[common], help="build and run a command with the wheels on a Ray cluster")
    job.add_argument("--address", required=True, help="address of the cluster's dashboard: http://HOST:8265")
    job.add_argument("--file", action="append", default=[], type=Path, help="copy this file into the job's directory")
    job.epilog = "Arguments after -- are the command."
    return parser


def _prepare(options: argparse.Namespace, into: Path) -> dict[str, Any]:
    """Build the wheels, write the runtime environment to the same directory and return it."""
    plugins = options.plugin or list(PLUGINS)
    wheels = build(into, plugins)
    for name in not_added(plugins):
        what = "in the wheels although" if name.endswith(".py") else "not in the wheels, because"
        print(f"warning: {name} is {what} git does not track it: git add {name}, or remove it", file=sys.stderr)
    additions = JobOptions(
        extras=tuple(options.extra),
        constraint=options.constraint,
        lines=tuple(options.pip),
        options=tuple(options.pip_option),
        variables=tuple(options.env),
    )
    environment = runtime_env(into, wheels, additions)
    for option in exposed_secrets(additions):
        print(
            f"warning: {option} has a secret, which {RUNTIME_ENV} and the job's metadata show to all users of the cluster. "
            "Set the variable on the nodes and give only its name: --env NAME, or ${NAME} in a URL",
            file=sys.stderr,
        )
    _write_private(into / RUNTIME_ENV, yaml.safe_dump(environment, sort_keys=False, width=1000))
    return environment


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, and replace an existing file or link."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: for ``submit`` that of the job; 2 for wrong arguments."""
    words, command = arguments, []
    if "--" in arguments:
        words, command = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = _parser().parse_args(words)
    try:
        if options.what == "wheels":
            _prepare(options, options.into)
            for path in sorted([*options.into.glob("*.whl"), options.into / RUNTIME_ENV]):
                print(path)
            return 0
        if not command:
            raise Refused("Give the command after --, such as: -- ado get actuators --details")
        for file in options.file:
            if not file.is_file():
                raise Refused(f"{file} is not a file.")
        with tempfile.TemporaryDirectory(prefix="ado-job-") as temporary:
            working_dir = Path(temporary)
            environment = _prepare(options, working_dir)
            for file in options.file:
                shutil.copyfile(file, working_dir / file.name)
            return submit(options.address, working_dir, environment, command)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
