"""Removes secrets from messages, logs and progress. Standard library only.

A secret is the value of an environment variable whose name says so (``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``, ``DB_PASSWORD``), user
and password of a URL, a token or signature in a URL's query, and text in the format of a well-known token. detect-secrets, a library of
such formats, lacks the one of the Hugging Face hub and would have to be installed in every training environment.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping

# the first alternative matches at the end of a word of the name (PGPASSWORD, X_API_KEYS); the second only whole words
SECRET_NAMES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|(API|SECRET|ACCESS)KEY|CREDENTIAL|SSHPASS|AUTHORIZATION|COOKIE|WEBHOOK|KUBECONFIG|CONNECTION_STRING)S?\d*(_|$)"
    r"|(^|_)(PWD|PW|PASS|PAT|AUTH|KEY|JWT|SAS|SIGNATURE|SIG)S?\d*(_|$)"
    r"|(COOKIE|WEBHOOK|CREDENTIAL|PASSPHRASE|KUBECONFIG)"
)
# shorter values are usually modes and switches; hiding them would change ordinary words
SHORTEST = 8
HIDDEN = "***"
# longer lines are written in pieces
LONGEST_LINE_BYTES = 2**16
# characters that stay as they are when a URL is quoted: none, as by Python, as by JavaScript's encodeURIComponent, as by requests
_UNQUOTED = ("", "/", "!*'()", "!#$%&'()*+,/:;=?@[]~")
_ESCAPED = re.compile("%[0-9A-F]{2}")
_LOGIN = re.compile(r"\w+://([^/\s]+)@")
# variables in which shells keep directories
_DIRECTORIES = ("PWD", "OLDPWD")
# hidden regardless of the environment; the first group is kept
_FORMS = (
    re.compile(r"(\w://)[^/\s:@'\"]*:[^/\s'\"]+(?=@)"),
    re.compile(
        r"([?&;](?:[\w.-]*[_.-])?(?:access_?token|token|sig|signature|credential|secret|password|passwd|api_?key|key|auth|awsaccesskeyid)=)[^&;\s'\"<>]+",
        re.IGNORECASE,
    ),
    re.compile(
        r"(\b(?:password|passwd|passphrase|api_?key|access_?key|secret_?key|access_?token)['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]{4,}",
        re.IGNORECASE,
    ),
    re.compile(r"(\b(?:Set-)?Cookie['\"]?:\s*['\"]?)[^\r\n'\"]+", re.IGNORECASE),
    re.compile(r"((?:^|[\s'\"(,=])[\w.+-]+:)[^\s:@/'\"]{3,}(?=@[\w-]+(?:\.[\w-]+)+)"),
    re.compile(r"(\bAuthorization['\"]?\s*[:=]\s*['\"]?(?:Bearer |Basic )?)[^\s'\",;]+", re.IGNORECASE),
    re.compile(r"(\b(?:Bearer|Basic) )[\w.~+/-]{16,}=*", re.IGNORECASE),
    re.compile(r"()\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    re.compile(r"()\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|gl(?:pat|ptt|cbt|rt|dt|imt)-[\w-]{20,})"),
    re.compile(r"()\b(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"()\b(?:sk|pk|rk)-[\w-]{20,}|()\b(?:sk|rk)_live_\w{20,}"),
    re.compile(r"()\bxox[abeoprs]-[\w-]{10,}"),
    re.compile(r"()\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"),
    re.compile(r"()\bpypi-AgE[\w-]{50,}|()\bnpm_[A-Za-z0-9]{36}\b|()\bAIza[\w-]{35}\b"),
    re.compile(r"()\b(?:dckr_pat_|nvapi-|ya29\.)[\w-]{20,}|()\b(?:r8|gsk)_\w{36,}|()\bSG\.[\w-]{16,}\.[\w-]{16,}"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?:[^-]|-(?!----))+"),
)
# also tokens that are cut or invented: a message seldom has a word like them, a log may
_SHORT_TOKENS = re.compile(r"\b(hf_|sk-|ghp_|glpat-)[A-Za-z0-9_\-]{8,}")


def secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets of an environment, longest first: each value, each of its lines, and all their forms (``_encoded``)."""
    found = set()
    for name, value in environ.items():
        if name not in _DIRECTORIES and SECRET_NAMES.search(name.upper()):
            # the secret follows Bearer or Basic
            found |= {value.strip(), value.removeprefix("Bearer ").removeprefix("Basic ").strip(), *value.splitlines()}
        for login in _LOGIN.findall(value):
            found |= {login, login.partition(":")[2]}
    found |= {form for one in found if len(one) >= SHORTEST for form in _encoded(one)}
    return sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True)


def _encoded(secret: str) -> Iterator[str]:
    """Return the forms of a secret: as quoted by Python, JSON, HTML and URLs, and in base64, base32 and hexadecimal digits."""
    yield from (quoted[1:-1] for quoted in (repr(secret), json.dumps(secret)))
    for safe in _UNQUOTED:
        for quote in (urllib.parse.quote, urllib.parse.quote_plus):
            quoted = quote(secret, safe, errors="replace")
            yield from (
                quoted,
                _ESCAPED.sub(lambda found: found.group().lower(), quoted),
                urllib.parse.quote(quoted, ""),
            )
    yield html.escape(secret)
    for data in (secret.encode("utf-8", "surrogateescape"), secret.encode("utf-16-le", "surrogatepass")):
        yield from (data.hex(), data.hex().upper())
        for encoded in _in_digits(data, base64.b64encode, 3, 4):
            yield from (encoded, encoded.translate(str.maketrans("+/", "-_")))
            # as programs break it into lines
            yield from (encoded[at : at + width] for width in (64, 76) for at in range(0, len(encoded), width))
        yield from _in_digits(data, base64.b32encode, 5, 8)


def _in_digits(data: bytes, encode: Callable[[bytes], bytes], size: int, digits: int) -> Iterator[str]:
    """Return ``data`` as it is encoded behind other text, at each place in a group of ``size`` bytes, which become ``digits`` digits."""
    for offset in range(size):
        # only the digits that do not depend on the text around it
        first, last = -(-offset * digits // size), (offset + len(data)) * digits // size
        yield encode(bytes(offset) + data).decode()[first:last]


def hide(text: str) -> str:
    """Return ``text`` without the secrets of this process's environment and without text in the format of a secret."""
    for secret in secrets(os.environ):
        text = text.replace(secret, HIDDEN)
    return _hide_forms(text)


def hide_logins(text: str) -> str:
    """Return ``text`` with the user information of URLs hidden, also a user without a password."""
    return re.sub(r"(\w+://)[^/\s@]*@", rf"\1{HIDDEN}@", text)


def hide_in_message(text: str) -> str:
    """Return ``text`` without secrets, without anything that begins like a token, and without the users of URLs."""
    return hide_logins(_SHORT_TOKENS.sub(rf"\1{HIDDEN}", hide(text)))


def _hide_forms(text: str) -> str:
    for form in _FORMS:
        text = form.sub(lambda found: (found[1] or "") + HIDDEN, text)
    return text


def hide_bytes(data: bytes, *, cut: bool = False) -> bytes:
    """Return ``data`` without secrets.

    Args:
        data: the bytes.
        cut: whether their beginning was cut off. They may then begin inside a secret, so as many bytes as the longest secret has are
            removed there.
    """
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
    """Return the end of a secret that ``start`` would split, or ``start`` if there is none."""
    begin = data.find(secret, max(0, start - len(secret) + 1), start + len(secret) - 1)
    return start if begin < 0 or begin >= start else begin + len(secret)


class Filter:
    """Removes from a stream of bytes what ``hide`` removes from text; complete lines are returned at once."""

    def __init__(self) -> None:
        self._secrets = _secret_bytes()
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes that can be written now: complete lines, up to where a secret of several lines may begin."""
        data = self._held + piece
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) > LONGEST_LINE_BYTES:
            cut = len(data)
        cut -= max((_overlap(data[:cut], secret) for secret in self._secrets), default=0)
        while (earlier := min((_across(data, secret, cut) for secret in self._secrets), default=cut)) < cut:
            cut = earlier
        # not hidden earlier, because a complete secret may be the beginning of a longer one
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
    """Return the start of a secret that ``cut`` would split, or ``cut`` if there is none."""
    begin = data.find(secret, max(0, cut - len(secret) + 1), cut + len(secret) - 1)
    return cut if begin < 0 else begin


def _overlap(data: bytes, secret: bytes) -> int:
    """Return how many bytes at the end of ``data`` are the beginning of ``secret``."""
    longest = min(len(data), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)
