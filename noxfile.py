#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2025.2.9"]
# ///
"""The jobs of this repository: `nox` runs all checks, `nox -s quickstart` makes a first report, `nox -l` lists them."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import runpy
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nox
import nox.project
from nox.command import CommandFailed

# nox imports this file by its path
sys.path.insert(0, str(Path(__file__).resolve().parent))
from tools import nox_checks

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

ROOT = Path(__file__).resolve().parent
# translates the user's pip settings for uv, as the plugins do
INDEXES = runpy.run_path(str(ROOT / "core" / "host" / "package_indexes.py"))
PLUGINS = {"sfttrainer": "ado-sfttrainer", "fms_hf_tuning": "ado-fms-hf-tuning"}
# the packages that the sessions need besides the plugins
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
# programs that tests use, with their Debian packages: a database server for ado's shared store (its installer needs the second program;
# the core package starts no server), and a browser for reports
PROGRAMS = {
    ("mariadbd", "my_print_defaults"): ("mariadb-server-core", "mariadb-client-core"),
    ("chromium",): ("chromium",),
}
HEARTBEAT_S = 15.0
each_plugin = nox.parametrize("plugin", list(PLUGINS), ids=list(PLUGINS))

nox.options.sessions = ["lint", "tests", "install", "wheel", "version"]


def tools(*groups: str) -> tuple[str, ...]:
    """Return the packages of dependency groups in pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, *groups)


@functools.cache
def package_settings() -> dict[str, str]:
    """Return the user's environment variables, completed with the package settings of pip's configuration files."""
    return INDEXES["pip_files"]() | os.environ


def uv_settings() -> dict[str, str]:
    """Return variables with which uv uses the package indexes of the user's pip, whose settings it does not read."""
    said = INDEXES["uv_variables"](package_settings())
    return {name: said[name] for name in said.keys() - os.environ.keys() if name.startswith(("UV_", "SSL_"))}


def install(session: nox.Session, *arguments: str) -> None:
    """Install into the session's environment, with uv if nox has it."""
    options = INDEXES["options"](package_settings()) if session.venv_backend == "uv" else []
    session.install(*options, *arguments, env=uv_settings())


def install_for_training(session: nox.Session, *arguments: str, compiled: bool = True) -> None:
    """Install packages for training on CPUs, without the gigabytes that torch needs for GPUs; ``compiled``: all of their modules."""
    backend = []
    own_links = {"PIP_FIND_LINKS", "UV_FIND_LINKS"} & {name for name, value in package_settings().items() if value}
    if session.venv_backend == "uv" and not own_links:
        backend = ["--torch-backend", "cpu"]
    if session.venv_backend == "uv" and compiled:
        # by default uv leaves compiling to the first import; if PYTHONDONTWRITEBYTECODE is set, each trainer would then start three
        # times as slowly
        backend.append("--compile-bytecode")
    install(session, *backend, "--constraint", "tests/constraints-cpu.txt", *arguments)


@contextlib.contextmanager
def heartbeats(session: nox.Session) -> Iterator[None]:
    """Log every 15 s what the installation in the block is doing, which prints nothing itself."""
    ended, begin = threading.Event(), time.monotonic()

    def report() -> None:
        while not ended.wait(HEARTBEAT_S):
            session.log(f"{time.monotonic() - begin:.0f} s: {progress(Path(session.virtualenv.location))}")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def progress(environment: Path) -> str:
    """Return how far an installation is: uv puts packages into the environment once all have been downloaded, then compiles them."""
    installed = sorted(environment.glob("lib/python*/site-packages/*.dist-info"))
    if not installed:
        return "downloading packages"
    return f"{len(installed)} packages are there; installing and compiling them"


def fresh(session: nox.Session, *plugins: str) -> list[str]:
    """Return the options that make uv build the plugins again, since it does not check installed directories for changes."""
    return (
        [f"--reinstall-package={PLUGINS[name]}" for name in plugins or PLUGINS] if session.venv_backend == "uv" else []
    )


def directories(**extras: str) -> list[str]:
    """Return pip's requirements for all plugins, each with its extras."""
    return [f"./{name}{extras.get(name, '')}" for name in PLUGINS]


def measure_alone(session: nox.Session) -> None:
    """Measure with fms_hf_tuning as the only plugin; it builds its training environment, since ado's has no torch."""
    session.run("python", "-c", nox_checks.WITHOUT_TORCH)
    # the cache of downloaded packages is shared
    packages = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "uv"
    settings = {
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(packages)),
        **uv_settings(),
        **nox_checks.own_state(session),
    }
    workload = ["model_name=tiny-llama-5m", "model_max_length=16", "batch_size=1", "number_gpus=0", "max_steps=3"]
    with session.chdir(session.create_tmp()):
        session.run("ado-fms-hf-tuning", "run", *workload, env=settings)


def dependencies_first(session: nox.Session) -> None:
    """Install the plugins' dependencies with uv, if it exists, because pip takes ten times as long."""
    beside_nox = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=os.pathsep.join([beside_nox, os.environ.get("PATH", "")]))
    if uv:
        lists = [argument for plugin in PLUGINS for argument in ("--requirement", f"{plugin}/pyproject.toml")]
        python = f"{session.virtualenv.location}/bin/python"
        lists += INDEXES["options"](package_settings())
        session.run(uv, "pip", "install", "--quiet", "--python", python, *lists, env=uv_settings(), external=True)


def install_programs(session: nox.Session) -> None:
    """Install missing programs that tests use if this user may do so; otherwise their tests are skipped."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    missing = [
        package
        for programs, packages in PROGRAMS.items()
        if not all(shutil.which(program, path=path) for program in programs)
        for package in packages
    ]
    if not missing or os.getuid() != 0 or not shutil.which("apt-get"):
        return
    for command in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", *missing]):
        options = ["-o", "DPkg::Lock::Timeout=300", "-y"]
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        session.run("apt-get", *options, *command, env=quiet, external=True, silent=True, success_codes=range(256))


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style, the format and the types of everything."""
    install(session, *tools("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run(
        "lint-imports",
        "--no-cache",
        env={"PYTHONPATH": os.pathsep.join(f"{plugin}/src" for plugin in PLUGINS)},
        silent=True,
    )
    for plugin in PLUGINS:
        session.run("mypy", "--package", f"ado_actuators.{plugin}", env={"MYPYPATH": f"{plugin}/src"})
    # setup.py and plugin_build.py of the other plugin are a copy and a link
    scripts = ["noxfile.py", "sfttrainer/plugin_build.py", "sfttrainer/setup.py"]
    sources = ["benchmarks", "sfttrainer", *(f"{plugin}/src" for plugin in PLUGINS)]
    session.run("mypy", "benchmarks", "tests", "tools", *scripts, env={"MYPYPATH": os.pathsep.join(sources)})


@nox.session(default=False)
def unit(session: nox.Session) -> None:
    """Run the tests of the layers that need neither torch, Ray nor ado; arguments after -- are passed to pytest."""
    unit_tests(session)


def unit_tests(session: nox.Session) -> None:
    """Run the tests of the layers that need neither torch, Ray nor ado."""
    install(session, *tools("unit"))
    sources = os.pathsep.join(str(ROOT / plugin / "src") for plugin in PLUGINS)
    # the tests of a file share what takes long to make
    selected = ["-m", "not ray and not torch", "--numprocesses=2", "--dist=loadfile"]
    # compiling all modules takes longer than the tests: keep the result, outside the sources, also where the user's Python keeps none
    bytecode = {"PYTHONPYCACHEPREFIX": str(session.cache_dir / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    session.run("pytest", "--quiet", *(session.posargs or selected), env={"PYTHONPATH": sources, **bytecode})


@nox.session(default=False, venv_backend="none")
def dev(session: nox.Session) -> None:
    """Make .venv-dev with editable installs of both plugins, for `.venv-dev/bin/pytest tests/...`."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        session.error("uv is not installed; run `pip install uv` in the environment of nox.")
    own_links = {"PIP_FIND_LINKS", "UV_FIND_LINKS"} & {name for name, value in package_settings().items() if value}
    options = [*INDEXES["options"](package_settings()), *([] if own_links else ["--torch-backend", "cpu"])]
    python = str(ROOT / ".venv-dev" / "bin" / "python")
    session.run(uv, "venv", "--quiet", "--allow-existing", ".venv-dev", external=True)
    install_command = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", "tests/constraints-cpu.txt"]
    editable = [
        part for name in directories(sfttrainer="[train,qlora,optimizers,report]") for part in ("--editable", name)
    ]
    session.run(*install_command, *options, *editable, *tools("test", "lint"), env=uv_settings(), external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests except those of building and installing, which have separate sessions."""
    install_for_training(
        session, *fresh(session), *directories(sfttrainer="[train,qlora,optimizers,report]"), *tools("test")
    )
    install_programs(session)
    # two processes, since tests mostly wait for processes to start; tests of a file share these processes
    session.run("pytest", *(session.posargs or ["--numprocesses=2", "--dist=loadfile"]))


@nox.session
def docs(session: nox.Session) -> None:
    """Make the reference pages of both actuators from the code."""
    install(session, *fresh(session), *directories())
    session.run("python", "tools/reference.py")


@nox.session(name="install", venv_backend="venv", reuse_venv=False)
@each_plugin
def install_and_uninstall(session: nox.Session, plugin: str) -> None:
    """Install both plugins with pip, uninstall one, use the other, then install the first again, also as editable."""
    dependencies_first(session)
    session.install(*directories())
    nox_checks.check_installed(session, PLUGINS, set(PLUGINS))
    session.run("pip", "uninstall", "--yes", "--quiet", PLUGINS[plugin])
    nox_checks.check_installed(session, PLUGINS, set(PLUGINS) - {plugin})
    if plugin == "sfttrainer":
        measure_alone(session)
    session.install(f"./{plugin}")
    nox_checks.check_installed(session, PLUGINS, set(PLUGINS))
    session.install("--editable", f"./{plugin}")
    nox_checks.check_installed(session, PLUGINS, set(PLUGINS))


@nox.session
@each_plugin
def wheel(session: nox.Session, plugin: str) -> None:
    """Build the plugin in every way and compare the files that ship."""
    install(session, *tools("build"))
    session.run("pytest", "tests/packaging/test_wheel.py", "-k", plugin, *session.posargs)


@nox.session
@each_plugin
def version(session: nox.Session, plugin: str) -> None:
    """Change temporary copies of the repository, and check the version or the build error."""
    install(session, *tools("build"))
    session.run("pytest", "tests/packaging/test_version.py", "-k", plugin, *session.posargs)


@nox.session(default=False)
@nox.parametrize("releases", ["newest", "oldest"], ids=["newest", "oldest"])
def versions(session: nox.Session, releases: str) -> None:
    """Train with the newest or the oldest releases that the metadata promise, torch apart; arguments after -- are passed to pytest."""
    resolution = ["--upgrade"] if releases == "newest" else ["--resolution", "lowest-direct"]
    install_for_training(session, *resolution, *fresh(session, "sfttrainer"), "./sfttrainer[train,qlora]")
    install(session, *tools("pytest"))
    files = [f"tests/sfttrainer/test_{name}.py" for name in ("train", "optimizers", "measure", "estimate")]
    session.run("pytest", *(session.posargs or files))


@nox.session(default=False, python=["3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """Run the unit tests with another Python, and resolve all dependencies of the plugins for it."""
    for plugin in PLUGINS:
        resolve = ["uv", "pip", "compile", "--quiet", "--all-extras", "--python-version", str(session.python)]
        options = INDEXES["options"](package_settings())
        session.run(*resolve, *options, f"{plugin}/pyproject.toml", silent=True, env=uv_settings(), external=True)
    unit_tests(session)


@nox.session(default=False)
def models(session: nox.Session) -> None:
    """Train a small model of every type that transformers lists as causal, and compare with the table of docs/models.md."""
    install_for_training(session, *fresh(session, "sfttrainer"), "./sfttrainer[train]", *tools("pytest"))
    session.run("pytest", "tests/optional/test_models.py", *session.posargs)


@nox.session(default=False)
def deepspeed(session: nox.Session) -> None:
    """Train with every stage of DeepSpeed on CPUs."""
    install_for_training(session, *fresh(session), *directories(sfttrainer="[train,qlora,deepspeed]"), *tools("test"))
    session.run("pytest", "tests/optional/test_deepspeed.py", *session.posargs)


@nox.session(default=False)
def quickstart(session: nox.Session) -> None:
    """Measure the four workloads of the example and make a report; arguments after -- are passed to ado create operation."""
    session.log("Installing torch, TRL and ado: minutes the first time, seconds later.")
    # most modules of these packages are never imported: Python compiles those that are, where it may keep the result
    compiled = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    packages = ("./sfttrainer[train,qlora,report]", "pip")  # pip for the commands that pages and messages name
    with heartbeats(session):
        install_for_training(session, *fresh(session, "sfttrainer"), *packages, compiled=compiled)
    with session.chdir("sfttrainer/examples"):
        session.run("python", "../../tools/quickstart.py", *session.posargs)


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """Build the wheels of both plugins and a ray_runtime_env.yaml into dist/; -- --help shows the options."""
    install(session, *tools("wheel"))
    session.run("python", "tools/ray_jobs.py", "wheels", *session.posargs)


@nox.session(default=False)
def ray_submit(session: nox.Session) -> None:
    """Run a command with the wheels on a Ray cluster; exits with its status: -- --address URL -- COMMAND."""
    install(session, *tools("wheel"), "ray[default]")
    try:
        session.run("python", "tools/ray_jobs.py", "submit", *session.posargs)
    except CommandFailed as failed:
        # nox itself would return 1 for any status
        sys.exit(failed.return_code)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Make 300 measurements in an ado operation with a fault in one of ten; arguments after -- are passed to benchmarks/soak.py."""
    install_for_training(session, *fresh(session, "sfttrainer"), "./sfttrainer[train]")
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session(default=False)
def soak_nodes(session: nox.Session) -> None:
    """Measure on two Ray nodes while trainers, hosts, the dispatcher and a node are killed; arguments as of benchmarks/soak_nodes.py."""
    install_for_training(session, *fresh(session, "sfttrainer"), "./sfttrainer[train]")
    session.run("python", "benchmarks/soak_nodes.py", *session.posargs)


@nox.session(default=False, venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Run the checks that need a GPU, with the current Python and its training stack; arguments after -- go to benchmarks/gpu.py."""
    session.run("python", "benchmarks/gpu.py", *session.posargs, external=True)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Inject every fault and write the table of docs/reliability.md."""
    install_for_training(session, *fresh(session), *directories(sfttrainer="[train]"), *tools("test"))
    report = f"{session.create_tmp()}/faults.xml"
    files = (
        "core/host/test_faults.py",
        "core/host/test_faults_ranks.py",
        "core/host/test_environment.py",
        "system/test_cluster.py",
        "system/test_endings.py",
    )
    session.run(
        "pytest",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
        *(f"tests/{name}" for name in (*files, "system/test_faults_operation.py")),
    )
    session.run("python", "tools/fault_table.py", report)


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Check the pinned environments and the plugins' dependencies, all extras included, for known vulnerabilities."""
    install(session, "pip-audit", "uv")
    projects = [f"{plugin}/pyproject.toml" for plugin in PLUGINS]
    resolve = ["uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--all-extras"]
    resolve += [*INDEXES["options"](package_settings()), *projects]
    lists = [str(session.run(*resolve, silent=True, env=uv_settings()))]
    pinned = Path("fms_hf_tuning/src/ado_actuators/fms_hf_tuning/environments").glob("*.txt")
    lists += [path.read_text(encoding="utf-8") for path in sorted(pinned)]
    copy = Path(session.create_tmp()) / "pins.txt"
    found = []
    for pins in nox_checks.rounds(lists):
        copy.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = ("pip-audit", "--disable-pip", "--no-deps", "--progress-spinner", "off", "--requirement", str(copy))
        printed = str(session.run(*command, silent=True, success_codes=[0, 1]))
        if printed.count("could not be audited") >= len(pins) or re.search(r"ConnectionError|ServiceError", printed):
            session.skip("No advisory service with these packages can be reached.")
        if not printed.startswith("No known"):
            found.append(printed)
    if found:
        session.error("\n".join(found))


if __name__ == "__main__":
    nox.main()
