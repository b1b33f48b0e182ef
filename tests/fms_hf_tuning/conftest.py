"""Fixtures for tests of the fms-hf-tuning stack: one environment and one host for each library version."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from ado_actuators.fms_hf_tuning.core.host.local import Local
from ado_actuators.fms_hf_tuning.core.measurement.plugin import Plugin
from ado_actuators.fms_hf_tuning.description import PLUGIN
from ado_actuators.fms_hf_tuning.environments import FILE_NAME

VERSIONS = PLUGIN.versions("cpu")


@pytest.fixture(scope="session", params=VERSIONS)
def local(request: pytest.FixtureRequest, own_home: Path) -> Iterator[Local]:
    """Start one host for each library version. Its environment is built from the list in the package."""
    # the list of one version, whatever version a workload asks for
    requirements = FILE_NAME.format(version=request.param, variant="cpu")
    plugin = Plugin("fms_hf_tuning", PLUGIN.kinds, requirements)
    settings = types.SimpleNamespace(
        environment="managed",
        reuse_workers=True,
        run_timeout_s=300.0,
        max_retries=0,
        retry_backoff_s=0.0,
        price_usd_per_device_hour=None,
        trust_remote_code=False,
        skip_predicted_oom=False,
    )
    # the default directory, so that operations of the system tests find the environments too
    with Local(plugin, settings, own_home / ".cache" / "ado-actuators", progress=print) as host:
        host.version = request.param  # type: ignore[attr-defined]
        yield host
