"""Versions of packages as numbers."""

from ado_actuators.sfttrainer.core.protocol.releases import release_of


def test_releases_are_ordered() -> None:
    """By numbers, not by letters; a part with letters is left out."""
    assert release_of("4.9.3") < release_of("4.57.0.dev0") < release_of("5.0rc1")
    assert release_of("2.13.0+cpu") == (2, 13)
    assert release_of("") < (0, 20)
