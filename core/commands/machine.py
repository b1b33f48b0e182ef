"""What this machine can measure, and what is missing. Imports ado only to check that it can be imported; never torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from .. import failures
from ..host import environment, nvml, uv
from ..host.node import cpu_count
from ..host.state_dir import state_dir
from ..measurement.distribution import asked_by
from ..measurement.plugin import ENVIRONMENTS
from ..metrics.accelerators import GIB
from ..protocol.supported import RECURRENT_PACKAGES
from ..workload import ibm_names
from ..workload.command import distribution

State = Literal["ok", "note", "missing"]
# disk space of a managed environment with the CUDA build of torch, and with the CPU build
SPACE_FOR_CUDA_GIB = 12.0
SPACE_FOR_CPU_GIB = 3.0
# share of all cores in use up to which a machine counts as quiet
QUIET_LOAD = 0.3
# IBM's actuator has the distribution's name and the package's; its entry point distinguishes them
SHARED_NAME = "ado-sfttrainer"
OF_IBM = f"ado_actuators.sfttrainer.actuators:{ibm_names.ACTUATOR}"


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check; ``remedy`` is the command that installs or repairs what is missing."""

    what: str
    state: State
    text: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The plugin that is examined.

    Attributes:
        plugin: its identifier.
        environment: where it trains by default: ``current`` or ``managed``.
        configured: the actuator configuration's state_dir; empty: the default.
    """

    plugin: str
    environment: str
    configured: str = ""

    @property
    def distribution(self) -> str:
        """Name of the package that pip knows."""
        return distribution(self.plugin)

    @property
    def state_dir(self) -> Path:
        """Directory for logs, run files and environments, on the node that evaluates this property."""
        return state_dir(self.configured)


def examine(subject: Subject) -> list[Check]:
    """Examine this machine; takes seconds at most and changes nothing."""
    gpus = _gpus()
    return [
        Check("CPU", "ok", _cpu()),
        _load(),
        *gpus,
        *_packages(subject),
        *_cpu_build_of_torch(subject, has_gpu=any(check.what == "GPU" and check.state == "ok" for check in gpus)),
        *_pip(),
        _actuator(subject),
        *_whose(importlib.metadata.distributions(name=SHARED_NAME), subject),
        *_managed(subject),
        *_recurrent(subject),
        _disk(subject),
    ]


# -- hardware ---------------------------------------------------------------------------------------------------


def _cpu() -> str:
    memory = psutil.virtual_memory()
    return f"{cpu_count()} usable cores, {memory.total / GIB:.1f} GiB of memory, {memory.available / GIB:.1f} GiB of it free"


def _load() -> Check:
    """Check whether other work takes CPU time: rates measured meanwhile are lower, and not steady on CPUs."""
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    text = f"{busy:.1f} of {cores} cores busy in the last minute"
    if busy <= QUIET_LOAD * cores:
        return Check("load", "ok", text)
    return Check("load", "note", f"{text}; rates on CPUs will not be steady: measure when the machine is quiet")


def _gpus() -> list[Check]:
    try:
        visible = nvml.visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except failures.Failure as refused:
        return [Check("GPU", "missing", str(refused), "nvidia-smi -L")]
    if len(visible):
        return [check for device in visible for check in _gpu(device)]
    if _is_on_pci_bus():
        reason = f"an NVIDIA GPU is installed, but {visible.absent}"
        return [Check("GPU", "missing", reason, "nvidia-smi   # lists the GPU once NVIDIA's driver is installed")]
    return [Check("GPU", "note", f"{visible.absent} number_gpus 0 measures on the CPU.")]


def _gpu(device: nvml.Device) -> Iterator[Check]:
    memory = f", {device.memory_total_bytes / GIB:.1f} GiB" if device.memory_total_bytes else ""
    limit = f", limit {device.power_limit_watts:g} W" if device.power_limit_watts else ""
    yield Check("GPU", "ok", f"{device.name}{memory}{limit}, driver {device.driver}")
    if device.missing:
        yield Check("GPU", "note", "; ".join(f"no {name}: {why}" for name, why in device.missing.items()))


def _is_on_pci_bus() -> bool:
    """Whether the PCI bus has an NVIDIA display device, with or without a driver."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


# -- software ---------------------------------------------------------------------------------------------------


def _packages(subject: Subject) -> Iterator[Check]:
    """Check the plugin, the packages that it requires, and those of its extras."""
    try:
        version = importlib.metadata.version(subject.distribution)
        wanted = [Requirement(line) for line in importlib.metadata.requires(subject.distribution) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Check(subject.distribution, "missing", "the plugin is not installed", f"pip install ./{subject.plugin}")
        return
    yield Check(subject.distribution, "ok", version)
    extras: dict[str, State] = {
        "": "missing",
        "train": "missing" if subject.environment == "current" else "note",
        "qlora": "note",
        "optimizers": "note",
        "kernels": "note",
        "images": "note",
        "report": "note",
    }
    for extra, state in extras.items():
        asked = [one for one in wanted if asked_by(one, extra)]
        problems = [wrong for one in asked if (wrong := problem(one))]
        name = {"": "packages", "train": "training stack"}.get(extra, extra)
        remedy = f"pip install './{subject.plugin}[{extra}]'" if extra else f"pip install ./{subject.plugin}"
        if problems:
            yield Check(name, state, "; ".join(problems), remedy)
        elif asked:
            yield Check(name, "ok", ", ".join(f"{one.name} {importlib.metadata.version(one.name)}" for one in asked))


def _cpu_build_of_torch(subject: Subject, has_gpu: bool) -> Iterator[Check]:
    torch = _version("torch")
    if has_gpu and subject.environment == "current" and torch and torch.endswith("+cpu"):
        remedy = "pip install --force-reinstall torch"
        yield Check("torch", "missing", f"torch {torch} is a CPU build and does not use the GPU", remedy)


def _pip() -> Iterator[Check]:
    """Check pip, with which Ray installs what jobs bring along; environments made by uv lack it."""
    if importlib.util.find_spec("pip") is None:
        text = "pip is not installed: Ray jobs that bring packages, such as ray_submit's, cannot install them here"
        yield Check("pip", "note", text, f"{sys.executable} -m ensurepip")


def problem(requirement: Requirement) -> str:
    """Return what is wrong with a required package; empty where nothing is."""
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is installed, {requirement.specifier} is required"
    return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _actuator(subject: Subject) -> Check:
    found = list(importlib.metadata.entry_points(group="ado.actuators", name=subject.plugin))
    again = f"pip install --force-reinstall --no-deps ./{subject.plugin}"
    if not found:
        return Check("actuator", "missing", "the installed package declares no ado.actuators entry point", again)
    try:
        found[0].load()
    except Exception as error:
        return Check("actuator", "missing", f"ado cannot load it: {type(error).__name__}: {error}", again)
    return Check("actuator", "ok", f"ado finds {subject.plugin}")


def _whose(installed: Iterable[importlib.metadata.Distribution], subject: Subject) -> Iterator[Check]:
    """Distinguish the distribution ado-sfttrainer of this project from IBM's, which has the same name and the same package."""
    of_ibm: list[str] = []
    ours: list[str] = []
    for one in installed:
        entries = [entry.value for entry in one.entry_points if entry.group == "ado.actuators"]
        (of_ibm if OF_IBM in entries else ours).append(one.version)
    what, again = "distribution", "pip uninstall ado-sfttrainer && pip install ./sfttrainer"
    if of_ibm and ours:
        text = f"{SHARED_NAME} is there twice, {ours[0]} of this project and {of_ibm[0]} of IBM: files of one hide the other's"
        yield Check(what, "missing", text, again)
    elif of_ibm:
        state: State = "missing" if subject.distribution == SHARED_NAME else "note"
        text = f"{SHARED_NAME} {of_ibm[0]} is IBM's, with the actuator {ibm_names.ACTUATOR}; this project's would replace it"
        yield Check(what, state, text, again if state == "missing" else "")
    elif ours:
        yield Check(what, "ok", f"{SHARED_NAME} {ours[0]} is this project's, not IBM's of the same name")


def _managed(subject: Subject) -> Iterator[Check]:
    lists = sorted(ENVIRONMENTS.glob("*.txt"))
    if not lists:
        return
    try:
        yield Check("uv", "ok", uv.find_uv())
    except uv.EnvironmentProblem as problem:
        yield Check("uv", "missing", str(problem), "pip install uv")
    for one in lists:
        python = environment.built(one, subject.state_dir / "environments")
        text = f"built: {python}" if python else "not built yet; the first measurement that needs it builds it"
        yield Check(one.stem, "ok" if python else "note", text)


def _recurrent(subject: Subject) -> Iterator[Check]:
    """Check the packages without which models with state spaces or linear attention run in PyTorch."""
    what = "recurrent layers"
    if subject.environment == "managed":
        lists = [one.read_text(encoding="utf-8") for one in sorted(ENVIRONMENTS.glob("*-cuda.txt"))]
        missing = [name for name in RECURRENT_PACKAGES.values() if not any(f"\n{name}==" in text for text in lists)]
        remedy = "name an environment with these packages as environment in the actuator configuration"
        where = "in the managed environments"
    else:
        missing = [name for name in RECURRENT_PACKAGES.values() if _version(name) is None]
        remedy, where = f"pip install --no-build-isolation {' '.join(missing)}", "installed"
    if missing:
        text = f"{', '.join(missing)} not {where}: on a GPU Granite 4 hybrids and Qwen3-Next run in PyTorch's slow path"
        yield Check(what, "note", text, remedy)
    else:
        yield Check(what, "ok", ", ".join(RECURRENT_PACKAGES.values()))


def _disk(subject: Subject) -> Check:
    place = next(path for path in (subject.state_dir, *subject.state_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free / GIB
    text = f"{free:.1f} GiB free at {subject.state_dir}"
    needed = SPACE_FOR_CUDA_GIB if subject.environment == "managed" else SPACE_FOR_CPU_GIB
    if not os.access(place, os.W_OK):
        return Check(
            "disk", "missing", f"{place} is not writable", f"ls -ld {place}   # or set state_dir in the configuration"
        )
    if free < needed:
        return Check(
            "disk", "missing", f"{text}, {needed:g} GiB are needed", f"du -sh {place}/*   # or set state_dir elsewhere"
        )
    return Check("disk", "ok", text)
