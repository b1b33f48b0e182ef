"""``ado --remote``: an operation runs on the cluster, its results come to a shared MySQL-compatible store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
import yaml

from ..processes import run, started
from .conftest import ROOT, Head, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(5400)]

EXAMPLES = ROOT / "examples" / "remote"
GRANTS = """
CREATE DATABASE study;
CREATE USER 'study'@'localhost' IDENTIFIED BY 'change-me', 'study'@'127.0.0.1' IDENTIFIED BY 'change-me';
GRANT ALL ON study.* TO 'study'@'localhost', 'study'@'127.0.0.1';
"""


@pytest.fixture(scope="module")
def store(own_home: Path) -> Iterator[dict[str, Any]]:
    """Start a MariaDB server on loopback, and give the example's ado context with its port."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    names = ("mariadbd", "mariadb-install-db", "my_print_defaults")
    server, install, defaults = (shutil.which(name, path=path) for name in names)
    if not server or not install or not defaults:
        pytest.skip("MariaDB is missing: apt-get install mariadb-server-core mariadb-client-core, or run nox as root")
    place, port = own_home / "mariadb", free_port()
    place.mkdir()
    (place / "grants.sql").write_text(GRANTS)
    common = ["--no-defaults", f"--datadir={place / 'data'}", *(["--user=root"] if os.getuid() == 0 else [])]
    made = [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    installed = run(made, cwd=place, env=os.environ, timeout_s=120)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    command = [server, *common, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={place / 's'}"]
    command += [f"--pid-file={place / 'pid'}", f"--init-file={place / 'grants.sql'}", "--innodb-buffer-pool-size=32M"]
    context = yaml.safe_load((EXAMPLES / "context.yaml").read_text())
    context["metadataStore"]["port"] = port
    with started(command, cwd=place, env=os.environ, log=place / "log", ready=lambda: accepts(context), timeout_s=60):
        yield context


def login(context: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of PyMySQL's connect from a context."""
    return {name: context["metadataStore"][name] for name in ("host", "port", "user", "password", "database")}


def accepts(store: dict[str, Any]) -> bool:
    """Whether the user of the store can connect."""
    with contextlib.suppress(pymysql.MySQLError):
        pymysql.connect(**login(store)).close()
        return True
    return False


def test_an_operation_on_the_cluster_fills_the_shared_store(
    head: Head, store: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    """The example's space and operation are created on the cluster with wheels of this tree; the results are in the store."""
    execution = yaml.safe_load((EXAMPLES / "execution.yaml").read_text())
    execution["executionType"]["clusterUrl"] = head.address
    for name, content in (("execution", execution), ("context", store)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    # ado remembers the context it was last given, which other tests must not see
    state = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config")}
    space = f"space={EXAMPLES / 'space.yaml'}"
    create: list[str | Path] = ["create", "operation", "-f", EXAMPLES / "operation.yaml", "--with", space]
    with_context: list[str | Path] = ["ado", "-c", tmp_path / "context.yaml"]
    remote = head.run(*with_context, "--remote", tmp_path / "execution.yaml", *create, cwd=repository, environ=state)
    assert remote.returncode == 0, remote.stdout
    assert re.findall(r"^Built wheel: (ado_\w+)-", remote.stdout, flags=re.M) == ["ado_sfttrainer", "ado_fms_hf_tuning"]
    operation = re.findall(r"random_walk@[\w.]+-[0-9a-f]+", remote.stdout)[-1]
    assert [kind for name, kind in rows(store, "SELECT identifier, kind FROM resources") if name == operation] == [
        "operation"
    ]
    (table,) = (name for (name,) in rows(store, "SHOW TABLES") if name.endswith("_measurement_results"))
    results = [json.loads(data) for (data,) in rows(store, f"SELECT data FROM {table}")]
    assert sorted(values(result)["is_valid"] for result in results) == [1, 1]
    assert all(values(result)["dataset_tokens_per_second"] > 0 for result in results)


def rows(store: dict[str, Any], query: str) -> list[tuple[Any, ...]]:
    """Return the result of a query. ado 2.3's commands for measurements use an operator that only MySQL has."""
    with pymysql.connect(**login(store)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def values(result: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a stored measurement result."""
    return {one["property"]["targetProperty"]["identifier"]: one["value"] for one in result["measurements"]}
