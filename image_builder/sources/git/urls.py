"""Checks URLs of git repositories, and separates their credentials."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from image_builder.host.secrets import Secret
from image_builder.settings import GIT_SCHEMES

_URL_SHAPE = re.compile(r"[!-~]+\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SCP_LIKE = re.compile(rf"(?:{_USER}@)?[A-Za-z0-9][A-Za-z0-9.-]*:[^:].*\Z")
_SCHEME_NAMES = frozenset({"http", "https", "ssh", "git", "file", "ftp", "ftps", "ext", "fd"})


class BadGitUrl(ValueError):
    """The URL is not passed to git; the message contains no credentials."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GitUrl:
    """Holds a checked URL; `text` has no credentials, and `header` logs in, if anything does."""

    text: str
    scheme: str
    header: Secret | None = None
    secrets: tuple[Secret, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def host(self) -> str:
        """Return the URL's host; empty for a folder of this machine."""
        if _SCHEME.match(self.text):
            return urlsplit(self.text).hostname or ""
        return self.text.partition(":")[0].rpartition("@")[2].lower()

    @property
    def origin(self) -> str:
        """Return scheme, host and port, the only place where `header` may be sent."""
        parts = urlsplit(self.text)
        return f"{parts.scheme}://{parts.netloc}/"


def parse_url(text: str, schemes: Sequence[str] = GIT_SCHEMES) -> GitUrl:
    """Return a checked git URL (`https://…`, `ssh://…`, `git@host:path`, `file:///…`).

    Raises `BadGitUrl`.
    """
    if not _URL_SHAPE.match(text) or text.startswith("-"):
        raise BadGitUrl("it is not a git URL")
    scheme_match = _SCHEME.match(text)
    if scheme_match is None:
        return _parse_scp_like(text, schemes)
    scheme = scheme_match[1].lower()
    _check_scheme(scheme, schemes)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BadGitUrl("its host or port cannot be read") from None
    if scheme == "file":
        if host not in ("", "localhost") or not parts.path.startswith("/"):
            raise BadGitUrl("a file URL begins with file:/// and names a folder of this machine")
        return GitUrl(text="file://" + parts.path, scheme=scheme)
    if not re.match(r"[A-Za-z0-9:]", host) or not parts.path.strip("/"):
        raise BadGitUrl("it names no host or no repository")
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{port}" if port else ""
    if scheme == "ssh":
        return _ssh_url(parts.username, parts.password, netloc, parts.path)
    clean = urlunsplit((scheme, netloc, parts.path, parts.query, ""))
    return _with_credentials(clean, scheme, parts.username, parts.password)


def folder_url(folder: Path) -> GitUrl:
    """Return the URL of a repository on this machine."""
    return GitUrl(text="file://" + quote(str(folder.absolute())), scheme="file")


def _parse_scp_like(text: str, schemes: Sequence[str]) -> GitUrl:
    # A scheme's name before the colon is a typing error, such as https:/host.
    if not _SCP_LIKE.match(text) or text.partition(":")[0].lower() in _SCHEME_NAMES:
        raise BadGitUrl("it is not a git URL")
    _check_scheme("ssh", schemes)
    return GitUrl(text=text, scheme="ssh")


def _check_scheme(scheme: str, schemes: Sequence[str]) -> None:
    if scheme not in schemes:
        raise BadGitUrl(f"{scheme}:// is not allowed here; allowed: {', '.join(schemes)}")


def _ssh_url(user: str | None, password: str | None, netloc: str, path: str) -> GitUrl:
    if password:
        raise BadGitUrl("ssh takes no password from a URL; give this user a key instead")
    if user is not None and not re.match(_USER + r"\Z", user):
        raise BadGitUrl("its user name is not allowed")
    return GitUrl(
        text=f"ssh://{user}@{netloc}{path}" if user else f"ssh://{netloc}{path}", scheme="ssh"
    )


def _with_credentials(clean: str, scheme: str, user: str | None, password: str | None) -> GitUrl:
    if user is None and password is None:
        return GitUrl(text=clean, scheme=scheme)
    if scheme not in ("http", "https"):
        raise BadGitUrl(f"{scheme}:// takes no user name")
    name, word = unquote(user or ""), unquote(password or "")
    encoded = base64.b64encode(f"{name}:{word}".encode()).decode()
    # Without a password, the user may be a token.
    hidden = {encoded, word, password or ""} if word else {encoded, name, user or ""}
    return GitUrl(
        text=clean,
        scheme=scheme,
        header=Secret(f"Authorization: Basic {encoded}"),
        secrets=tuple(Secret(value) for value in sorted(hidden | {quote(word, safe="")}) if value),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Says where a setting's files are: in a plain `folder`, or at a git `url`.

    `ref` is the branch, tag or commit wanted (None: the default branch), `inside` a folder in the
    repository.
    """

    folder: Path | None = None
    url: GitUrl | None = None
    ref: str | None = None
    inside: str = ""


def parse_source(text: str, schemes: Sequence[str] = GIT_SCHEMES) -> Source:
    """Return the source that a setting's text means.

    The text is `/a/folder`, `URL`, `URL#ref` or `URL#ref:folder/in/it`; a folder with `#ref` is a
    repository on this machine. Raises `BadGitUrl`.
    """
    plain = Path(text).expanduser()
    if plain.is_dir():
        return Source(folder=plain.absolute())
    place, _, fragment = text.partition("#")
    ref, _, inside = fragment.partition(":")
    inside = inside.strip("/")
    if any(part in ("", ".", "..") for part in inside.split("/")) and inside:
        raise BadGitUrl(f"{inside!r} is not a folder in a repository")
    if _SCHEME.match(place) or (_SCP_LIKE.match(place) and "/" not in place.partition(":")[0]):
        return Source(url=parse_url(place, schemes), ref=ref or None, inside=inside)
    if not fragment:
        return Source(folder=plain.absolute())
    _check_scheme("file", schemes)
    return Source(url=folder_url(Path(place).expanduser()), ref=ref or None, inside=inside)
