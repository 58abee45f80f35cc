"""Git repositories elsewhere: which URLs are allowed, and how git is started to talk to them.

Git is started through `process` with an environment of its own: no prompt, no hooks, no
configuration of the machine or its user, allowed protocols only. Credentials that stand in a URL
never become an argument: they travel as a header that git reads from its environment and sends to
that URL's host alone.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from image_builder import process
from image_builder.errors import CicError, Misconfigured
from image_builder.process import CancelToken, Command, Secret
from image_builder.settings import LibrarySettings

DEFAULT_SCHEMES = ("https", "http", "ssh", "git", "file")
QUIET_S = 60.0
"""Git shows its progress; when nothing came for so long, the other side is gone."""
ASK_TIMEOUT_S = 20.0
REFS_MAX_AGE_S = 30.0

_URL_SHAPE = re.compile(r"[!-~]+\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SCP_LIKE = re.compile(rf"(?:{_USER}@)?[A-Za-z0-9][A-Za-z0-9.-]*:[^:].*\Z")
_SCHEME_NAMES = frozenset({"http", "https", "ssh", "git", "file", "ftp", "ftps", "ext", "fd"})
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SYSTEM_CA_FOLDER = Path("/etc/ssl/certs")


class BadGitUrl(ValueError):
    """A URL that git is not given; the message holds no credentials."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GitUrl:
    """A checked URL. `text` holds no credentials and may be shown; `header` is what logs in, if
    anything does.
    """

    text: str
    scheme: str
    header: Secret | None = None
    secrets: tuple[Secret, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def host(self) -> str:
        """The host that it leads to; empty for a folder of this machine."""
        if _SCHEME.match(self.text):
            return urlsplit(self.text).hostname or ""
        return self.text.partition(":")[0].rpartition("@")[2].lower()

    @property
    def origin(self) -> str:
        """Scheme, host and port: where `header` may go."""
        parts = urlsplit(self.text)
        return f"{parts.scheme}://{parts.netloc}/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """How git reaches other machines from here."""

    schemes: tuple[str, ...] = DEFAULT_SCHEMES
    hosts: tuple[str, ...] | None = None
    """The only hosts that git talks to; None: all."""
    timeout_s: float = 300.0
    ca_bundle: Path | None = None
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None

    @classmethod
    def of(cls, settings: LibrarySettings) -> Network:
        """What a site's settings say about it."""
        build, repositories = settings.build, settings.repositories
        return cls(
            schemes=repositories.allowed_git_schemes,
            hosts=repositories.allowed_git_hosts,
            timeout_s=repositories.git_timeout_s,
            ca_bundle=build.ca_bundle,
            http_proxy=build.http_proxy,
            https_proxy=build.https_proxy,
            no_proxy=build.no_proxy,
        )


def parse_url(text: str, schemes: Sequence[str] = DEFAULT_SCHEMES) -> GitUrl:
    """A git URL (`https://…`, `ssh://…`, `git@host:path`, `file:///…`), checked. Raises
    `BadGitUrl`.
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
    """The URL of a repository on this machine."""
    return GitUrl(text="file://" + quote(str(folder.absolute())), scheme="file")


def git_command(
    name: str,
    argv: Sequence[str],
    url: GitUrl,
    network: Network,
    *,
    added: Mapping[str, str],
    timeout_s: float | None = None,
) -> Command:
    """A command that lets git talk to `url`; `added` goes into its environment (`GIT_DIR`).

    Raises `Misconfigured` for a host that is not allowed. Git follows no redirect, which could lead
    to any other.
    """
    if (
        network.hosts is not None
        and url.host
        and url.host not in {host.lower() for host in network.hosts}
    ):
        raise Misconfigured(
            f"git does not talk to {url.host} here.",
            hint="Add it to repositories_cfg['allowed_git_hosts'], if it may.",
        )
    return Command(
        name=name,
        argv=("git", *argv),
        env=environment(url, network) | dict(added),
        secrets=url.secrets,
        timeout_s=timeout_s or network.timeout_s,
        quiet_timeout_s=QUIET_S,
    )


def environment(url: GitUrl, network: Network) -> dict[str, str]:
    """What git's environment holds beyond the inherited one when it talks to `url`."""
    values = quiet_environment()
    values |= {
        "GIT_ALLOW_PROTOCOL": ":".join(network.schemes),
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20",
    }
    values |= _config(url)
    for name, value in (
        ("http_proxy", network.http_proxy),
        ("https_proxy", network.https_proxy),
        ("no_proxy", network.no_proxy),
    ):
        if value:
            values |= {name: value, name.upper(): value}
    if network.ca_bundle is not None:
        values["GIT_SSL_CAINFO"] = str(network.ca_bundle)
        if _SYSTEM_CA_FOLDER.is_dir():
            values["GIT_SSL_CAPATH"] = str(_SYSTEM_CA_FOLDER)
    return values


def quiet_environment() -> dict[str, str]:
    """What every git of ours gets: no questions, English messages, no configuration but what is
    given here.
    """
    return {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_PARAMETERS": "",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_DEFAULT_HASH": "sha1",
        "GIT_DEFAULT_REF_FORMAT": "files",
        "LC_ALL": "C.UTF-8",
        "LANGUAGE": "C",
    }


def list_remote(
    url: GitUrl,
    network: Network,
    patterns: Sequence[str] = (),
    *,
    added: Mapping[str, str] | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, str]:
    """The references of a repository elsewhere, `name -> hash`. Raises what `process.run` raises."""
    command = git_command(
        "git ls-remote",
        ("ls-remote", "--quiet", "--", url.text, *patterns),
        url,
        network,
        added=added or {},
        timeout_s=min(ASK_TIMEOUT_S, network.timeout_s),
    )
    output = process.run(command, cancel=cancel, capture_stdout=True).stdout.decode(
        "utf-8", "replace"
    )
    rows = (line.partition("\t") for line in output.splitlines())
    return {name: digest for digest, _, name in rows if _COMMIT.match(digest)}


class RemoteCommits:
    """Which commit a branch or tag of some repository names now; remembers answers, failures too,
    for 30 s.
    """

    def __init__(
        self,
        network: Network,
        *,
        max_age_s: float = REFS_MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network = network
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, str | None]] = {}

    def commit(self, url: str, ref: str, *, cancel: CancelToken | None = None) -> str | None:
        """The commit behind branch or tag `ref` (`HEAD`: the default branch), or None where it
        cannot be had.
        """
        now = self._clock()
        with self._lock:
            known = self._known.get((url, ref))
            if known is not None and now - known[0] < self._max_age_s:
                return known[1]
        commit = self._ask(url, ref, cancel)
        with self._lock:
            self._known = {
                key: value for key, value in self._known.items() if now - value[0] < self._max_age_s
            }
            self._known[url, ref] = (now, commit)
        return commit

    def _ask(self, url: str, ref: str, cancel: CancelToken | None) -> str | None:
        try:
            checked = parse_url(url, self._network.schemes)
            names = (
                ["HEAD"]
                if ref == "HEAD"
                else [f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}"]
            )
            found = list_remote(checked, self._network, names, cancel=cancel)
        except (BadGitUrl, CicError):
            if cancel is not None:
                cancel.check()
            return None
        return next((found[name] for name in names if name in found), None)


def _parse_scp_like(text: str, schemes: Sequence[str]) -> GitUrl:
    if (
        not _SCP_LIKE.match(text) or text.partition(":")[0].lower() in _SCHEME_NAMES
    ):  # https:/host: a typing error
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
    hidden = (
        {encoded, word, password or ""} if word else {encoded, name, user or ""}
    )  # a token may stand alone
    return GitUrl(
        text=clean,
        scheme=scheme,
        header=Secret(f"Authorization: Basic {encoded}"),
        secrets=tuple(Secret(value) for value in sorted(hidden | {quote(word, safe="")}) if value),
    )


def _config(url: GitUrl) -> Mapping[str, str]:
    """Git's configuration as variables of its environment."""
    pairs = [
        ("core.hooksPath", os.devnull),
        ("credential.helper", ""),
        ("gc.autoDetach", "false"),
        ("maintenance.autoDetach", "false"),
        ("fetch.unpackLimit", "1"),
        ("http.followRedirects", "false"),
        ("http.lowSpeedLimit", "100"),
        ("http.lowSpeedTime", str(int(QUIET_S))),
    ]
    if url.header is not None:
        pairs.append((f"http.{url.origin}.extraHeader", url.header.get_secret_value()))
    values = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        values |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a setting says that files are: a plain `folder` as it lies there, or a git `url`.

    `ref` is the branch, tag or commit wanted (None: the default branch), `inside` a folder in the
    repository.
    """

    folder: Path | None = None
    url: GitUrl | None = None
    ref: str | None = None
    inside: str = ""


def parse_source(text: str, schemes: Sequence[str] = DEFAULT_SCHEMES) -> Source:
    """`/a/folder`, `URL`, `URL#ref`, `URL#ref:folder/in/it`; a folder with `#ref` is a repository
    on this machine.

    Raises `BadGitUrl`.
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
