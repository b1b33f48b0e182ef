"""Removes secrets of the environment from messages, logs and progress. Standard library only.

A secret is the value of a variable whose name says so (``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``, ``DB_PASSWORD``), and user and
password of a URL in any variable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

# the first group matches at the end of a word of the name (PGPASSWORD, X_API_KEYS); the second only whole words
TELLING = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|(API|SECRET|ACCESS)KEY|CREDENTIAL|SSHPASS|AUTHORIZATION)S?\d*(_|$)"
    r"|(^|_)(PWD|PASS|PAT|AUTH|KEY)S?\d*(_|$)"
)
# shorter values are modes and switches, and would be found in every other word
SHORTEST = 8
HIDDEN = "***"
_LOGIN = re.compile(r"\w+://([^/\s]+)@")
# shells keep directories in these
_DIRECTORIES = ("PWD", "OLDPWD")


def secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets of an environment, longest first: whole, each line of them, and as Python and JSON quote them."""
    found = set()
    for name, value in environ.items():
        if name not in _DIRECTORIES and TELLING.search(name.upper()):
            # the secret follows Bearer or Basic
            found |= {value.strip(), value.removeprefix("Bearer ").removeprefix("Basic ").strip(), *value.splitlines()}
        for login in _LOGIN.findall(value):
            found |= {login, login.partition(":")[2]}
    found |= {quoted[1:-1] for one in found for quoted in (repr(one), json.dumps(one))}
    return sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True)


def hide(text: str) -> str:
    """Return ``text`` without the secrets of this process's environment."""
    for secret in secrets(os.environ):
        text = text.replace(secret, HIDDEN)
    return text


class Filter:
    """Removes the secrets of this process's environment from a stream of bytes that arrives in pieces."""

    def __init__(self) -> None:
        self._secrets = [secret.encode("utf-8", "surrogateescape") for secret in secrets(os.environ)]
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes that can be written now; an end that may begin a secret is held until the next piece."""
        data = self._held + piece
        cut = len(data) - max((_overlap(data, secret) for secret in self._secrets), default=0)
        while (earlier := min((_across(data, secret, cut) for secret in self._secrets), default=cut)) < cut:
            cut = earlier
        # hidden only now, because a complete secret may be the beginning of a longer one
        out, self._held = data[:cut], data[cut:]
        return self._hide(out)

    def end(self) -> bytes:
        """Return the bytes that are still held when the stream has ended."""
        held, self._held = self._held, b""
        return self._hide(held)

    def _hide(self, data: bytes) -> bytes:
        for secret in self._secrets:
            data = data.replace(secret, HIDDEN.encode())
        return data


def _across(data: bytes, secret: bytes, cut: int) -> int:
    """Return where a secret begins that ``cut`` would part, else ``cut``."""
    begin = data.find(secret, max(0, cut - len(secret) + 1), cut + len(secret) - 1)
    return cut if begin < 0 else begin


def _overlap(data: bytes, secret: bytes) -> int:
    """Return how many bytes at the end of ``data`` are the beginning of ``secret``."""
    longest = min(len(data), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)
