"""Starts git so that it talks to repositories elsewhere, and only to allowed ones.

Git is started through `process` with an environment of its own: no prompt, no hooks, no
configuration of the machine or its user, allowed protocols only. Credentials in a URL never become
an argument: they are sent as a header that git reads from its environment, to that URL's host alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from image_builder.errors import CicError, Misconfigured
from image_builder.host import process
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command
from image_builder.settings import GIT_SCHEMES, BuildSettings, RepositorySettings
from image_builder.sources.git.urls import BadGitUrl, GitUrl, parse_url

QUIET_S = 60.0
"""How long git may be silent; it shows its progress, so then the remote side is gone."""
ASK_TIMEOUT_S = 20.0
REFS_MAX_AGE_S = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SYSTEM_CA_FOLDER = Path("/etc/ssl/certs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Says how git reaches other machines from here."""

    schemes: tuple[str, ...] = GIT_SCHEMES
    hosts: tuple[str, ...] | None = None
    """The only hosts that git talks to; None allows all."""
    timeout_s: float = 300.0
    ca_bundle: Path | None = None
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None

    @classmethod
    def of(cls, repositories: RepositorySettings, build: BuildSettings) -> Network:
        """Return what a site's settings say about git and the network."""
        return cls(
            schemes=repositories.allowed_git_schemes,
            hosts=repositories.allowed_git_hosts,
            timeout_s=repositories.git_timeout_s,
            ca_bundle=build.ca_bundle,
            http_proxy=build.http_proxy,
            https_proxy=build.https_proxy,
            no_proxy=build.no_proxy,
        )


def git_command(
    name: str,
    argv: Sequence[str],
    url: GitUrl,
    network: Network,
    *,
    added: Mapping[str, str],
    timeout_s: float | None = None,
) -> Command:
    """Return a command with which git talks to `url`; `added` is for its environment.

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
    """Return what git's environment has beyond the inherited one when it talks to `url`."""
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
    """Return the environment of every git of ours: no prompts, English, no foreign settings."""
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
    """Return the references of a repository elsewhere, `name -> hash`.

    Raises what `process.run` raises.
    """
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
    """Says which commit a branch or tag names now, and remembers it for `REFS_MAX_AGE_S`.

    Failures are remembered, too.
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
        """Return the commit behind branch or tag `ref`, or None if it is not known.

        `HEAD` is the default branch.
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
            references = list_remote(checked, self._network, names, cancel=cancel)
        except (BadGitUrl, CicError):
            if cancel is not None:
                cancel.check()
            return None
        return next((references[name] for name in names if name in references), None)


def _config(url: GitUrl) -> Mapping[str, str]:
    """Return git's configuration as variables of its environment."""
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
