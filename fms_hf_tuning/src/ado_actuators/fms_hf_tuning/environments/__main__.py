"""Makes the pinned lists of a library version: ``python -m ado_actuators.fms_hf_tuning.environments VERSION``.

Both variants are resolved with uv from the library's own bounds, for Linux on x86-64; nothing is installed. Every package
carries the hashes of all its files on the index, so that no mirror can hand out another one. Imports the standard library
and, of the core, ``environment`` and ``indexes``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ..core.host import package_indexes as indexes
from ..core.host.environment import EnvironmentProblem, find_uv
from . import HERE, VARIANTS

PYTHONS = ("3.11", "3.12")
ACCELERATION = "fms-acceleration>=0.6.2"
# fms-acceleration-odm stays out: without torchdata it breaks every run while the library is imported
PLUGINS = ("fms-acceleration-peft", "fms-acceleration-foak", "fms-acceleration-aadp", "fms-acceleration-moe")
# pyarrow 26 refuses numpy 1 when it is imported, without declaring so, and fms-acceleration allows no numpy 2
UNDECLARED = ("pyarrow<26",)
# the library's bounds on torch have no CPU build that all indexes carry; this one runs it
CPU_TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HASHED = re.compile(r"^(\S+==\S+) (?:;[^\\\n]*)?\\\n((?: +--hash=\S+(?: \\\n)?)+)", re.MULTILINE)
# torchvision must match torch to the minor version and is only used for image data
NOT_ON_CPU = re.compile(r"^(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def pin(version: str, variant: str) -> str:
    """Return the text of the list for ``version`` and ``variant``.

    Raises:
        EnvironmentProblem: when the packages cannot be resolved.
    """
    wanted = [f"fms-hf-tuning=={version}", ACCELERATION, *UNDECLARED, *(PLUGINS if variant == "cuda" else ())]
    lines = _merge({python: _resolve(wanted, python) for python in PYTHONS})
    head = [
        f"# Environment of fms-hf-tuning {version}, {variant}; installed without dependencies.",
        f"# Made by: python -m ado_actuators.fms_hf_tuning.environments {version}",
        f"# python: {' '.join(PYTHONS)}",
    ]
    if variant == "cpu":
        head.append(f"# index: {CPU_INDEX}")
        lines = [line for line in lines if not NOT_ON_CPU.match(line)]
        lines += [f"torch=={CPU_TORCH}+cpu ; sys_platform == 'linux'", f"torch=={CPU_TORCH} ; sys_platform != 'linux'"]
    return "\n".join([*head, *with_hashes(sorted(lines))]) + "\n"


def with_hashes(lines: list[str]) -> list[str]:
    """Return the lines of a list, each followed by the hashes of all files its release has on the index.

    torch's CPU build has none: every index that carries it, and every local directory, may have built its own.

    Raises:
        EnvironmentProblem: when the index does not answer, or knows no hash of a package.
    """
    known: dict[str, str] = {}
    for python in PYTHONS:
        # a package may have another version for another Python
        theirs = [line for line in lines if "python_version" not in line or f"== '{python}'" in line]
        pins = [pin for line in theirs if not (pin := line.partition(" ;")[0]).endswith("+cpu")]
        known |= dict(HASHED.findall(_compile(pins, python, "--no-deps", "--generate-hashes")))
    return [_with_its_hashes(line, known) for line in lines]


def _with_its_hashes(line: str, known: dict[str, str]) -> str:
    pinned = line.partition(" ;")[0]
    if hashes := known.get(pinned):
        return f"{line} \\\n{hashes.rstrip()}"
    if pinned.endswith("+cpu"):
        return line
    raise EnvironmentProblem(f"The index gives no hash of {pinned}, so nothing would tell another file from it.")


def _resolve(wanted: list[str], python: str) -> list[str]:
    return [line for line in _compile(wanted, python).splitlines() if line and not line.startswith("#")]


def _compile(wanted: list[str], python: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "wanted.in"
        source.write_text("\n".join(wanted) + "\n")
        command = [find_uv(), "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--python-version", python]
        variables = indexes.variables()
        command += ["--python-platform", "x86_64-manylinux_2_28", *indexes.options(variables), *options, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=directory, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise EnvironmentProblem(f"{wanted[0]} cannot be resolved for Python {python}; uv says why above.")
    return done.stdout


def _merge(resolved: dict[str, list[str]]) -> list[str]:
    """Return the lines of all Python versions; one that not all have carries the version it is for."""
    common = set.intersection(*(set(lines) for lines in resolved.values()))
    special = [
        f"{line} ; python_version == '{python}'"
        for python, lines in resolved.items()
        for line in lines
        if line not in common
    ]
    return [*common, *special]


def main() -> None:
    """Write both lists of a version."""
    parser = argparse.ArgumentParser(prog="python -m ado_actuators.fms_hf_tuning.environments", description=pin.__doc__)
    parser.add_argument("version", help="version of fms-hf-tuning, for example 3.2.2")
    parser.add_argument("--output", type=Path, default=HERE, help="directory to write to (default: this package)")
    arguments = parser.parse_args()
    # said before minutes of resolving; by trying, since root seems to be allowed what a read-only disk refuses
    try:
        tempfile.TemporaryFile(dir=arguments.output).close()
    except OSError as error:
        sys.exit(f"Nothing can be written to {arguments.output} ({error.strerror}); give another --output.")
    for variant in VARIANTS:
        try:
            text = pin(arguments.version, variant)
        except EnvironmentProblem as problem:
            sys.exit(str(problem))
        path = arguments.output / f"fms-hf-tuning-{arguments.version}-{variant}.txt"
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
