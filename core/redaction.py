"""Removes secrets from messages, logs and progress. Standard library only.

A secret is the value of an environment variable whose name says so (``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``, ``DB_PASSWORD``), user
and password of a URL, a token or signature in a URL's query, and what has the form of a well-known token. detect-secrets, a library of
such forms, has none for the Hugging Face hub and would have to be installed in every training environment.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping

# the first group matches at the end of a word of the name (PGPASSWORD, X_API_KEYS); the second only whole words
TELLING = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|(API|SECRET|ACCESS)KEY|CREDENTIAL|SSHPASS|AUTHORIZATION|COOKIE|WEBHOOK|KUBECONFIG)S?\d*(_|$)"
    r"|(^|_)(PWD|PASS|PAT|AUTH|KEY|JWT|SAS|SIGNATURE|SIG)S?\d*(_|$)"
    r"|(COOKIE|WEBHOOK|CREDENTIAL|PASSPHRASE|KUBECONFIG)"
)
# shorter values are modes and switches, and would be found in every other word
SHORTEST = 8
HIDDEN = "***"
# longer lines are written in pieces
LONGEST_LINE_BYTES = 2**16
_LOGIN = re.compile(r"\w+://([^/\s]+)@")
# shells keep directories in these
_DIRECTORIES = ("PWD", "OLDPWD")
# what is hidden whatever the environment holds; the first group stays
_FORMS = (
    re.compile(r"(\w://)[^/\s:@'\"]*:[^/\s'\"]+(?=@)"),
    re.compile(
        r"([?&;](?:[\w.-]*[_.-])?(?:access_?token|token|sig|signature|credential|secret|password|passwd|api_?key|key|auth|awsaccesskeyid)=)[^&;\s'\"<>]+",
        re.IGNORECASE,
    ),
    re.compile(r"(\b(?:Bearer|Basic) )[\w.~+/-]{16,}=*", re.IGNORECASE),
    re.compile(r"()\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    re.compile(r"()\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|gl(?:pat|ptt|cbt|rt|dt|imt)-[\w-]{20,})"),
    re.compile(r"()\b(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"()\b(?:sk|pk|rk)-[\w-]{20,}|()\b(?:sk|rk)_live_\w{20,}"),
    re.compile(r"()\bxox[abeoprs]-[\w-]{10,}"),
    re.compile(r"()\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"),
    re.compile(r"()\bpypi-AgE[\w-]{50,}|()\bnpm_[A-Za-z0-9]{36}\b|()\bAIza[\w-]{35}\b"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]+"),
)


def secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets of an environment, longest first: whole, each line of them, and in each form of ``_written``."""
    found = set()
    for name, value in environ.items():
        if name not in _DIRECTORIES and TELLING.search(name.upper()):
            # the secret follows Bearer or Basic
            found |= {value.strip(), value.removeprefix("Bearer ").removeprefix("Basic ").strip(), *value.splitlines()}
        for login in _LOGIN.findall(value):
            found |= {login, login.partition(":")[2]}
    found |= {form for one in found if len(one) >= SHORTEST for form in _written(one)}
    return sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True)


def _written(secret: str) -> Iterator[str]:
    """Return the forms of a secret: as Python, JSON and URLs quote it, and its base64 wherever it begins in what is encoded."""
    yield from (quoted[1:-1] for quoted in (repr(secret), json.dumps(secret)))
    yield from (
        urllib.parse.quote(secret, safe="", errors="replace"),
        urllib.parse.quote_plus(secret, errors="replace"),
    )
    data = secret.encode("utf-8", "surrogateescape")
    for offset in range(3):
        # only the characters that depend on nothing around the secret
        first, last = -(-offset * 4 // 3), (offset + len(data)) * 4 // 3
        encoded = base64.b64encode(bytes(offset) + data).decode()[first:last]
        yield from (encoded, encoded.translate(str.maketrans("+/", "-_")))


def hide(text: str) -> str:
    """Return ``text`` without the secrets of this process's environment and without what has the form of a secret."""
    for secret in secrets(os.environ):
        text = text.replace(secret, HIDDEN)
    return _hide_forms(text)


def _hide_forms(text: str) -> str:
    for form in _FORMS:
        text = form.sub(lambda found: (found[1] or "") + HIDDEN, text)
    return text


def hide_bytes(data: bytes, *, cut: bool = False) -> bytes:
    """Return ``data`` without secrets; if its beginning was ``cut`` off, also without the end of a secret at its beginning."""
    known = _secret_bytes()
    if cut:
        start = min(len(data), max((len(secret) for secret in known), default=0))
        while (later := max((_end_across(data, secret, start) for secret in known), default=start)) > start:
            start = later
        data = data[start:]
    return _hide_bytes(data, known)


def _secret_bytes() -> list[bytes]:
    return [secret.encode("utf-8", "surrogateescape") for secret in secrets(os.environ)]


def _hide_bytes(data: bytes, known: list[bytes]) -> bytes:
    for secret in known:
        data = data.replace(secret, HIDDEN.encode())
    return _hide_forms(data.decode("latin-1")).encode("latin-1")


def _end_across(data: bytes, secret: bytes, start: int) -> int:
    """Return where a secret ends that ``start`` would divide, else ``start``."""
    begin = data.find(secret, max(0, start - len(secret) + 1), start + len(secret) - 1)
    return start if begin < 0 or begin >= start else begin + len(secret)


class Filter:
    """Removes what ``hide`` removes from a stream of bytes that arrives in pieces; complete lines leave at once."""

    def __init__(self) -> None:
        self._secrets = _secret_bytes()
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes that can be written now: complete lines, but for an end that may begin a secret of several lines."""
        data = self._held + piece
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) > LONGEST_LINE_BYTES:
            cut = len(data)
        cut -= max((_overlap(data[:cut], secret) for secret in self._secrets), default=0)
        while (earlier := min((_across(data, secret, cut) for secret in self._secrets), default=cut)) < cut:
            cut = earlier
        # hidden only now, because a complete secret may be the beginning of a longer one
        out, self._held = data[:cut], data[cut:]
        return _hide_bytes(out, self._secrets)

    def end(self) -> bytes:
        """Return the bytes that are still held when the stream has ended."""
        return _hide_bytes(self.held(), self._secrets)

    def held(self) -> bytes:
        """Return the bytes that are still held as they are, and hold them no longer."""
        held, self._held = self._held, b""
        return held


def _across(data: bytes, secret: bytes, cut: int) -> int:
    """Return where a secret begins that ``cut`` would part, else ``cut``."""
    begin = data.find(secret, max(0, cut - len(secret) + 1), cut + len(secret) - 1)
    return cut if begin < 0 else begin


def _overlap(data: bytes, secret: bytes) -> int:
    """Return how many bytes at the end of ``data`` are the beginning of ``secret``."""
    longest = min(len(data), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)
