"""Wheels of the plugins, and Ray jobs that install them: what the nox sessions `wheels` and `ray_submit` run.

    python tools/ray_jobs.py wheels [OPTIONS]
    python tools/ray_jobs.py submit --address URL [OPTIONS] -- COMMAND...

Belongs to the repository, not to a plugin. May import the standard library and PyYAML; to submit also Ray.
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
# where Ray has unpacked the job's working directory on the node that installs: pip replaces it
HERE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
# Ray's own, which options of the user's would replace
PIP_OPTIONS = ("--disable-pip-version-check", "--no-cache-dir")
# a job has no terminal, for which ado cuts its tables, versions included, to 80 columns
COLUMNS = "200"
POLL_S = 0.5
# a broken port-forward or a proxy that restarts is given this long
ATTEMPTS = 10
RETRY_S = 3.0


class Refused(Exception):
    """What was asked for cannot be done; the text is the message for the user."""


def build(into: Path, plugins: list[str], root: Path = ROOT) -> list[Path]:
    """Build the wheels of ``plugins`` into ``into``, where they replace older wheels of any plugin."""
    into.mkdir(parents=True, exist_ok=True)
    for name in PLUGINS.values():
        for old in into.glob(f"{name}-*.whl"):
            old.unlink()
    directories = [str(root / plugin) for plugin in plugins]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(into), *directories]
    if subprocess.run(pip, check=False).returncode:
        raise Refused("A wheel could not be built; the reason stands above.")
    return [wheel for plugin in plugins for wheel in into.glob(f"{PLUGINS[plugin]}-*.whl")]


def not_added(plugins: list[str], root: Path = ROOT) -> list[str]:
    """Return the files below the plugins and their core that git does not know: they do not ship, but for Python files, which do.

    What git ignores is not told, and without git nothing is known.
    """
    folders = ["core", *(f"{plugin}/src" for plugin in plugins)]
    git = ["git", "-c", "safe.directory=*", "ls-files", "--others", "--exclude-standard", "-z", "--", *folders]
    try:
        listed = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return sorted(filter(None, listed.split("\0")))


def extras_of(wheel: Path) -> set[str]:
    """Return the extras that a wheel offers."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        text = file.read(metadata).decode()
    return set(email.parser.HeaderParser().parsestr(text).get_all("Provides-Extra", []))


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a job's environment should have beside the plain wheels.

    Attributes:
        extras: for the wheels that offer them.
        constraint: a file of version constraints.
        lines: more lines of a pip requirements file: packages, or options such as --extra-index-url.
        options: more options of the command ``pip install``.
        variables: for the installer and the job: NAME=VALUE, or NAME for the value that the variable has on the cluster's nodes.
    """

    extras: tuple[str, ...] = ()
    constraint: Path | None = None
    lines: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


def runtime_env(working_dir: Path, wheels: list[Path], wishes: Wishes) -> dict[str, Any]:
    """Return the runtime environment of a job whose working directory holds ``wheels``; constraints are copied into it.

    Raises:
        Refused: no wheel offers an extra, or a variable has no value.
    """
    for variable in wishes.variables:
        if not re.fullmatch(r"\w+(=.*)?", variable, re.DOTALL):
            raise Refused(f"--env {variable.partition('=')[0]} is not of the form NAME=VALUE or NAME.")
    offered = {wheel: extras_of(wheel) for wheel in wheels}
    for extra in wishes.extras:
        if not any(extra in names for names in offered.values()):
            known = sorted(set().union(*offered.values()))
            raise Refused(f"No wheel has the extra {extra!r}; there are: {', '.join(known) or 'none'}.")
    lines = list(wishes.lines)
    if wishes.constraint is not None:
        lines.append(f"--constraint {HERE}/{_copy_by_content(wishes.constraint, working_dir).name}")
    for wheel, names in offered.items():
        wanted = ",".join(extra for extra in wishes.extras if extra in names)
        lines.append(f"{HERE}/{wheel.name}" + (f"[{wanted}]" if wanted else ""))
    listed: Any = (
        {"packages": lines, "pip_install_options": [*PIP_OPTIONS, *wishes.options]} if wishes.options else lines
    )
    # Ray replaces ${NAME} on the node
    given = {
        name: value if equals else f"${{{name}}}"
        for name, equals, value in (variable.partition("=") for variable in wishes.variables)
    }
    return {"pip": listed, "env_vars": {"COLUMNS": COLUMNS} | given}


def exposed_secrets(wishes: Wishes) -> list[str]:
    """Return the options whose secrets the job's metadata would show in clear, without the secrets."""
    secrets = runpy.run_path(str(ROOT / "core" / "redaction.py"))["secrets"]
    variables = [variable.partition("=") for variable in wishes.variables]
    named = [f"--env {name}" for name, _, value in variables if secrets({name: value})]
    lines = [("--pip", line) for line in wishes.lines] + [("--pip-option", line) for line in wishes.options]
    return named + [option for option, line in lines if secrets({"URL": re.sub(r"\$\{\w+\}", "", line)})]


def submit(address: str, working_dir: Path, environment: dict[str, Any], command: list[str]) -> int:
    """Run ``command`` as a job, print its log as it comes, and return its exit status.

    Raises:
        Refused: the cluster does not take the job, or does not answer any more.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(command), runtime_env={**environment, "working_dir": str(working_dir)}
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        # current Ray asks for a token by default; whoever is on the head's machine has it in ~/.ray
        remedy = " Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN where ~/.ray/auth_token is not the cluster's."
        told = remedy if "uthentication" in f"{type(error).__name__} {error}" else ""
        raise Refused(f"{address} takes no job: {_first_line(error)}{told}") from None
    print(f"job {job} on {address}: {shlex.join(command)}", flush=True)
    try:
        return follow(client, job, address)
    except KeyboardInterrupt:
        print(f"job {job} goes on; end it with: ray job stop --address {address} {job}")
        return 130


def follow(client: Any, job: str, address: str) -> int:
    """Print the log of ``job`` until it ends and return its exit status; a lost log is no end of the job.

    Raises:
        Refused: the cluster does not answer any more.
    """
    try:
        asyncio.run(_print_log(client, job))
    # a closed connection is a RuntimeError of Ray, one that cannot be opened an error of aiohttp's own
    except Exception as error:
        log = f"ray job logs --address {address} {job}"
        print(
            f"the log breaks off ({_first_line(error)}), which does not end the job; all of it: {log}", file=sys.stderr
        )
    while not (info := _info(client, job, address)).status.is_terminal():
        time.sleep(POLL_S)
    if info.status == "SUCCEEDED":
        return 0
    # after its first line the message repeats the log
    print(f"job {job} {info.status.lower()}: {_first_line(info.message)}", file=sys.stderr)
    return info.driver_exit_code or 1


async def _print_log(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _info(client: Any, job: str, address: str) -> Any:
    """Return what the cluster says about ``job``, asked again while it does not answer."""
    for attempt in range(ATTEMPTS):
        try:
            return client.get_job_info(job)
        except Exception as error:
            reason = _first_line(error)
        if attempt < ATTEMPTS - 1:
            time.sleep(RETRY_S)
    raise Refused(f"{address} does not answer any more: {reason}. See: ray job status --address {address} {job}")


def _first_line(said: object) -> str:
    """Return the first line of what somebody said, at most 150 characters of it."""
    return next(iter(str(said or "").strip().splitlines()), "no reason given")[:150]


def _copy_by_content(file: Path, into: Path) -> Path:
    """Copy ``file`` under a name that changes with its content: Ray takes names for contents."""
    if not file.is_file():
        raise Refused(f"{file} is no file.")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Path(shutil.copyfile(file, into / f"{file.stem}-{digest}{file.suffix}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ray_jobs.py", description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--plugin", action="append", choices=list(PLUGINS), help="only this one (default: all; may be repeated)")
    add("--extra", action="append", default=[], help="an extra of the wheels that offer it, such as train")
    add("--constraint", type=Path, help="a file of version constraints for pip")
    add("--pip", action="append", default=[], metavar="LINE", help="one more line of pip's requirements file")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="one more variable of the job's processes; without a value: that of the nodes",
    )
    add("--pip-option", action="append", default=[], metavar="OPTION", help="one more option of pip install")
    build_only = what.add_parser("wheels", parents=[common], help=f"build wheels and {RUNTIME_ENV}")
    build_only.add_argument("--into", type=Path, default=ROOT / "dist", help="directory (default: dist)")
    job = what.add_parser("submit", parents=[common], help="build and run a command with the wheels on a Ray cluster")
    job.add_argument("--address", required=True, help="of the cluster's dashboard: http://HOST:8265")
    job.add_argument("--file", action="append", default=[], type=Path, help="put this into the job's directory as well")
    job.epilog = "What follows -- is the command."
    return parser


def _prepare(options: argparse.Namespace, into: Path) -> dict[str, Any]:
    """Build the wheels, write the runtime environment beside them and return it."""
    plugins = options.plugin or list(PLUGINS)
    wheels = build(into, plugins)
    for name in not_added(plugins):
        what = "in the wheels although" if name.endswith(".py") else "not in the wheels, since"
        print(f"warning: {name} is {what} git does not know it: git add {name}, or remove it", file=sys.stderr)
    wishes = Wishes(
        extras=tuple(options.extra),
        constraint=options.constraint,
        lines=tuple(options.pip),
        options=tuple(options.pip_option),
        variables=tuple(options.env),
    )
    environment = runtime_env(into, wheels, wishes)
    for option in exposed_secrets(wishes):
        print(
            f"warning: {option} has a secret, which {RUNTIME_ENV} and the job's metadata show in clear to all users of the cluster. "
            "Set the variable on the nodes and give only its name: --env NAME, or ${NAME} in a URL",
            file=sys.stderr,
        )
    _write_private(into / RUNTIME_ENV, yaml.safe_dump(environment, sort_keys=False, width=1000))
    return environment


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, also where there is one with other permissions, or a link."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: of ``submit`` the job's, 2 for bad use."""
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
                raise Refused(f"{file} is no file.")
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
