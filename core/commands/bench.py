"""Plans and measures the workloads of a command line on this machine, for ``run --vary``.

Each plugin has its own copy of the core. A bench of another plugin is made by that plugin's copy, so only plain values pass between them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import failures
from ..host import preflight
from ..host.local import Local
from ..host.state_dir import state_dir
from ..measurement.distribution import beside
from ..measurement.plan import Plan, make_plan
from ..measurement.plugin import Plugin
from ..measurement.verdict import refusal
from ..protocol.messages import ProgressCallback
from ..protocol.results import ResultMetadata
from .arguments import PRICE, BadUse, read_settings, read_workload

# the package of this copy of the core is ado_actuators.NAME.core.commands
PLUGIN = __name__.split(".core.")[0].rpartition(".")[2]
# the arguments of ``reporting.rows.Row``, in its order
RowValues = tuple[str, str, str, dict[str, Any], dict[str, Any], str, ResultMetadata]


class Bench:
    """One plugin with the workload of a command line; a context manager that ends its trainers.

    Args:
        plugin: to measure with.
        parameters_class: class of the actuator configuration's parameters.
        words: of the command line.
        experiment: what to measure; None: as the words say.
        config: a file with the actuator configuration's parameters, or None.
        progress: gets messages on how far a measurement is.
        of_any_actuator: whether a point file for the other actuator is used as well.

    Raises:
        BadUse: the words or the file cannot be used.
    """

    def __init__(
        self,
        plugin: Plugin,
        parameters_class: type[Any],
        words: list[str],
        *,
        experiment: str | None,
        config: Path | None,
        progress: ProgressCallback,
        of_any_actuator: bool = False,
    ) -> None:
        self._of_any_actuator = of_any_actuator
        self._plugin = plugin
        self._words = words
        self._experiment = experiment
        values, _ = read_workload(words, experiment, plugin, of_any_actuator=of_any_actuator)
        self._settings = read_settings(config, parameters_class, price=values.get(PRICE))
        self._local = Local(plugin, self._settings, state_dir(self._settings.state_dir), progress)

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_trainers()

    def end_trainers(self) -> None:
        """End the trainers; the next measurement starts new ones."""
        self._local.__exit__(None, None, None)

    def fault(self, word: str) -> str:
        """Return why the workload with a further word cannot be measured, as far as that is known without a trainer; else nothing."""
        try:
            plan = self._plan(word)[0]
            job = plan.job(trust_remote_code=self._settings.trust_remote_code, address=("", 0), rank=0, threads=1)
            preflight.check(job, self._settings.environment)
        except (failures.Failure, BadUse) as failure:
            return str(failure)
        return ""

    def measure(self, word: str) -> RowValues:
        """Measure the workload with a further word; a failure is part of the values."""
        plan, asked, experiment = self._plan(word)
        actuator = self._plugin.identifier
        try:
            verdict = self._local.measure(plan)
        except failures.CannotRun as failure:
            verdict = refusal(failure, actuator, experiment)
        except failures.Failure as failure:
            # the values measured so far are still compared
            return "run", actuator, experiment, asked, {}, str(failure), {}
        message = verdict.message or str(verdict.metadata.get("reason", ""))
        return "run", actuator, experiment, asked, verdict.properties, message, verdict.metadata

    def _plan(self, word: str) -> tuple[Plan, dict[str, Any], str]:
        words = [*self._words, *([word] if word else [])]
        asked, experiment = read_workload(words, self._experiment, self._plugin, of_any_actuator=self._of_any_actuator)
        asked.pop(PRICE, None)
        return make_plan(self._plugin.identifier, experiment, asked), asked, experiment


@contextlib.contextmanager
def _renamed() -> Any:
    """Turn a ``BadUse`` of another copy of the core into ours."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "BadUse":
            raise BadUse(str(error)) from None
        raise


def _is_ours(package: str) -> bool:
    """Return whether a plugin of this repository is installed under this name; IBM's has the same name and no such module."""
    try:
        return importlib.util.find_spec(f"{package}.core.commands.bench") is not None
    except ModuleNotFoundError:
        return False


def other(identifier: str, words: list[str], **options: Any) -> Bench:
    """Return a bench of the plugin with this identifier, made by its own copy of the core; the options are those of ``Bench``.

    Raises:
        BadUse: the plugin is not installed, or its bench cannot use the words.
    """
    package = f"ado_actuators.{identifier}"
    if not _is_ours(package):
        # not by name: the index has IBM's distribution ado-sfttrainer
        raise BadUse(f"The actuator {identifier} is not installed here. Run: pip install {beside(PLUGIN, identifier)}")
    plugin, parameters_class = importlib.import_module(f"{package}.__main__").load()
    with _renamed():
        made: Bench = importlib.import_module(f"{package}.core.commands.bench").Bench(
            plugin, parameters_class, words, **options
        )
    return made
