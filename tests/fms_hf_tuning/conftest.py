"""What tests of the fms-hf-tuning stack share: an environment is built once, a host started once for each library version."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from ado_actuators.fms_hf_tuning import environments
from ado_actuators.fms_hf_tuning.core.host.local import Local
from ado_actuators.fms_hf_tuning.core.measurement.plugin import Plugin


@pytest.fixture(scope="session", params=environments.versions())
def local(request: pytest.FixtureRequest, own_home: Path) -> Iterator[Local]:
    """One host for each library version; its environment is built from the list in the package."""
    # ado and Ray: pytest imports this file also where the tests that need them are deselected
    from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning

    plugin = Plugin("fms_hf_tuning", FMSHFTuning.kinds, environments.requirements(request.param, "cpu").name)
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
    # the default, where operations of the system tests find the environments too
    with Local(plugin, settings, own_home / ".cache" / "ado-actuators", progress=print) as host:
        host.version = request.param  # type: ignore[attr-defined]
        yield host
