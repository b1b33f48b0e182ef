"""Writes the pinned lists of a library version: ``python -m ado_actuators.fms_hf_tuning.environments VERSION``.

uv resolves both variants from the library's own requirements, for Linux on x86-64; nothing is installed. Each package is followed by
the hashes of all its files on the index, so that a mirror cannot provide other files. Imports the standard library and, of the core,
``host.uv`` and ``host.package_indexes``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ..core.host import package_indexes as indexes
from ..core.host.uv import EnvironmentProblem, find_uv
from . import FILE_NAME, HERE, VARIANTS

PYTHONS = ("3.11", "3.12")
ACCELERATION = "fms-acceleration>=0.6.2"
# fms-acceleration-odm is excluded: without torchdata, importing the library fails
PLUGINS = ("fms-acceleration-peft", "fms-acceleration-foak", "fms-acceleration-aadp", "fms-acceleration-moe")
# quantises on CPUs, too, and memory estimates of QLoRA need it
ON_CPU = PLUGINS[:1]
# pyarrow 26 cannot be imported with numpy 1, although its metadata allow it, and fms-acceleration requires numpy 1
UNDECLARED = ("pyarrow<26",)
# no CPU build within the library's bounds on torch is on all indexes; the library runs with this one
CPU_TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HASHED = re.compile(r"^(\S+==\S+) (?:;[^\\\n]*)?\\\n((?: +--hash=\S+(?: \\\n)?)+)", re.MULTILINE)
# torchvision requires one release of torch, and the library uses it for image data only
NOT_ON_CPU = re.compile(r"^(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def pin(version: str, variant: str) -> str:
    """Return the text of the list for ``version`` and ``variant``.

    Raises:
        EnvironmentProblem: the packages cannot be resolved.
    """
    wanted = [f"fms-hf-tuning=={version}", ACCELERATION, *UNDECLARED, *(PLUGINS if variant == "cuda" else ON_CPU)]
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
    """Return the lines of a list, each followed by the hashes of all files of that release on the index.

    The CPU build of torch has no hashes, because each index and each local directory may have another build.

    Raises:
        EnvironmentProblem: the index does not answer, or has no hash of a package.
    """
    known: dict[str, str] = {}
    for python in PYTHONS:
        # a package may have different versions for different Pythons
        selected = [line for line in lines if "python_version" not in line or f"== '{python}'" in line]
        pins = [pin for line in selected if not (pin := line.partition(" ;")[0]).endswith("+cpu")]
        known |= dict(HASHED.findall(_compile(pins, python, "--no-deps", "--generate-hashes")))
    return [_with_its_hashes(line, known) for line in lines]


def _with_its_hashes(line: str, known: dict[str, str]) -> str:
    pinned = line.partition(" ;")[0]
    if hashes := known.get(pinned):
        return f"{line} \\\n{hashes.rstrip()}"
    if pinned.endswith("+cpu"):
        return line
    raise EnvironmentProblem(f"The index has no hash of {pinned}, so its files cannot be verified; use another index.")


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
        raise EnvironmentProblem(f"{wanted[0]} cannot be resolved for Python {python}; see the output of uv above.")
    return done.stdout


def _merge(resolved: dict[str, list[str]]) -> list[str]:
    """Return the lines of all Python versions; a line that some versions lack gets a marker for its version."""
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
    # Checked before the packages are resolved, which takes minutes. Only writing shows whether it is possible: permissions allow root
    # to write on a read-only file system
    try:
        tempfile.TemporaryFile(dir=arguments.output).close()
    except OSError as error:
        sys.exit(f"Cannot write to {arguments.output} ({error.strerror}); give another --output.")
    for variant in VARIANTS:
        try:
            text = pin(arguments.version, variant)
        except EnvironmentProblem as problem:
            sys.exit(str(problem))
        path = arguments.output / FILE_NAME.format(version=arguments.version, variant=variant)
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
