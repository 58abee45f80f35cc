"""Which URLs git is given, and how."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

from image_builder.errors import Misconfigured
from image_builder.host.process import ProcessFailed
from image_builder.sources.git.remote import (
    Network,
    RemoteCommits,
    environment,
    git_command,
    list_remote,
)
from image_builder.sources.git.urls import BadGitUrl, Source, folder_url, parse_source, parse_url
from tests.support.git_repository import GitHttpServer, GitRepository


@pytest.mark.parametrize(
    ("text", "scheme", "shown"),
    [
        (
            "https://example.org/group/registry.git",
            "https",
            "https://example.org/group/registry.git",
        ),
        ("HTTPS://example.org:8443/r", "https", "https://example.org:8443/r"),
        ("https://[::1]:8443/r", "https", "https://[::1]:8443/r"),
        ("https://user:word@example.org/r", "https", "https://example.org/r"),
        ("https://token@example.org/r", "https", "https://example.org/r"),
        ("ssh://git@example.org:2222/r", "ssh", "ssh://git@example.org:2222/r"),
        ("git@example.org:group/r.git", "ssh", "git@example.org:group/r.git"),
        ("git://example.org/r", "git", "git://example.org/r"),
        ("file:///srv/r", "file", "file:///srv/r"),
        ("file://localhost/srv/r", "file", "file:///srv/r"),
    ],
)
def test_urls_that_are_taken(text: str, scheme: str, shown: str) -> None:
    url = parse_url(text)
    assert (url.scheme, str(url)) == (scheme, shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "registry",
        "ext::sh -c id",
        "ext::id",
        "fd::17",
        "-u",
        "--upload-pack=id",
        "--",
        "https:/example.org/r",
        "ftp://example.org/r",
        "javascript://example.org/r",
        "https:///r",
        "https://example.org",
        "https://example.org/",
        "https://exa mple.org/r",
        "https://example.org/r\n",
        "https://example.org/r\0",
        "https://-x/r",
        "ssh://-oProxyCommand=id/r",
        "ssh://-x@example.org/r",
        "-x@example.org:r",
        "git@-oProxyCommand=id:r",
        "git@example.org:",
        "git::example.org",
        "file://example.org/r",
        "file:r",
        "ssh://git:word@example.org/r",
        "git://user@example.org/r",
        "https://example.org:x/r",
        "https://[::1/r",
        "é://example.org/r",
    ],
)
def test_urls_that_are_refused(text: str) -> None:
    with pytest.raises(BadGitUrl):
        parse_url(text)


def test_a_refusal_holds_no_credentials() -> None:
    for text in (
        "ftp://user:canary@example.org/r",
        "ssh://user:canary@example.org/r",
        "https://user:canary@example.org:x/r",
        "https://user:canary@/r",
        "git://user:canary@example.org/r",
    ):
        with pytest.raises(BadGitUrl) as refusal:
            parse_url(text)
        assert "canary" not in str(refusal.value)


def test_only_allowed_schemes() -> None:
    with pytest.raises(BadGitUrl, match="http:// is not allowed here; allowed: https"):
        parse_url("http://example.org/r", ("https",))
    with pytest.raises(BadGitUrl, match="ssh://"):
        parse_url("git@example.org:r", ("https",))


def test_credentials_travel_in_the_environment_to_their_host_alone() -> None:
    url = parse_url("https://robot:can%2Fary@example.org:8443/r")
    command = git_command(
        "git fetch", ("fetch", "--", url.text), url, Network(), added={"GIT_DIR": "/m"}
    )
    assert command.argv == ("git", "fetch", "--", "https://example.org:8443/r")
    assert "canary" not in repr((url, command)) and "can/ary" not in repr((url, command))
    settings = {
        command.env[f"GIT_CONFIG_KEY_{number}"]: command.env[f"GIT_CONFIG_VALUE_{number}"]
        for number in range(int(command.env["GIT_CONFIG_COUNT"]))
    }
    assert (
        settings["http.https://example.org:8443/.extraHeader"]
        == "Authorization: Basic cm9ib3Q6Y2FuL2FyeQ=="
    )
    assert {secret.get_secret_value() for secret in command.secrets} == {
        "cm9ib3Q6Y2FuL2FyeQ==",
        "can/ary",
        "can%2Fary",
    }


def test_a_token_that_stands_alone_is_a_secret() -> None:
    assert "token" in {
        secret.get_secret_value() for secret in parse_url("https://token@example.org/r").secrets
    }


def test_git_gets_the_site_s_network_and_nothing_of_the_user_s(tmp_path: Path) -> None:
    network = Network(
        schemes=("https", "ssh"),
        ca_bundle=tmp_path / "ca.pem",
        http_proxy="http://proxy:1",
        https_proxy="http://proxy:2",
        no_proxy="localhost",
    )
    values = environment(parse_url("https://example.org/r"), network)
    expected = {
        "GIT_ALLOW_PROTOCOL": "https:ssh",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_SSL_CAINFO": str(tmp_path / "ca.pem"),
        "http_proxy": "http://proxy:1",
        "HTTP_PROXY": "http://proxy:1",
        "https_proxy": "http://proxy:2",
        "HTTPS_PROXY": "http://proxy:2",
        "no_proxy": "localhost",
        "NO_PROXY": "localhost",
    }
    assert {name: values.get(name) for name in expected} == expected
    assert "core.hooksPath" in values.values() and "credential.helper" in values.values()


def test_sources(tmp_path: Path) -> None:
    folder = tmp_path / "cata#logue"
    folder.mkdir()
    remote = parse_url("https://example.org/r.git")
    assert parse_source(str(folder)) == Source(folder=folder)
    assert parse_source(str(tmp_path / "not there")) == Source(folder=tmp_path / "not there")
    assert parse_source("https://example.org/r.git") == Source(url=remote)
    assert parse_source("https://example.org/r.git#v1") == Source(url=remote, ref="v1")
    assert parse_source("https://example.org/r.git#v1:cfg/site/") == Source(
        url=remote, ref="v1", inside="cfg/site"
    )
    assert parse_source("https://example.org/r.git#:cfg") == Source(url=remote, inside="cfg")
    assert parse_source(f"{tmp_path}#v1") == Source(url=folder_url(tmp_path), ref="v1")
    assert parse_source("git@example.org:r#v1").ref == "v1"
    for text in (
        "https://example.org/r#v1:../x",
        "https://example.org/r#v1:a//b",
        "ftp://example.org/r",
    ):
        with pytest.raises(BadGitUrl):
            parse_source(text)
    with pytest.raises(BadGitUrl, match="file://"):
        parse_source(f"{tmp_path}#v1", ("https",))


def test_remote_commits(tmp_path: Path) -> None:
    repository = GitRepository(tmp_path / "r")
    first = repository.commit()
    repository.git("tag", "-a", "-m", "annotated", "v1")
    repository.git("branch", "topic/one")
    now = [0.0]
    remote = RemoteCommits(Network(), clock=lambda: now[0])
    assert [remote.commit(repository.url, ref) for ref in ("main", "HEAD", "v1", "topic/one")] == [
        first
    ] * 4
    assert [
        remote.commit(repository.url, ref)
        for ref in ("one", "mai", "*", "--help", "refs/heads/main")
    ] == [None] * 5
    second = repository.commit()
    now[0] = 29.9
    assert remote.commit(repository.url, "main") == first
    now[0] = 30.1
    assert remote.commit(repository.url, "main") == second


def test_a_remote_that_cannot_be_asked_has_no_commit(tmp_path: Path) -> None:
    repository = GitRepository(tmp_path / "r")
    commit = repository.commit()
    mark = tmp_path / "mark"
    now = [0.0]
    remote = RemoteCommits(Network(schemes=("file",)), clock=lambda: now[0])
    for url in (
        f"ext::touch {mark}",
        f"--upload-pack=touch {mark}",
        "https://example.org/r",
        "git://127.0.0.1:1/r",
        "",
    ):
        assert remote.commit(url, "main") is None
    assert not mark.exists()
    shutil.move(tmp_path / "r", tmp_path / "away")
    assert remote.commit(repository.url, "main") is None
    shutil.move(tmp_path / "away", tmp_path / "r")
    assert remote.commit(repository.url, "main") is None, "a failure is remembered too"
    now[0] = 31
    assert remote.commit(repository.url, "main") == commit


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Answers every question with a redirect to the server's `target`, under the same path."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(302)
        self.send_header("Location", self.server.target + self.path)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_redirects_lead_nowhere(tmp_path: Path) -> None:
    upstream = GitRepository(tmp_path / "upstream")
    upstream.write("file", "content")
    upstream.commit()
    with (
        GitHttpServer(tmp_path, "ada", "word").running() as there,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as redirecting,
    ):
        redirecting.asked, redirecting.target = [], f"http://127.0.0.1:{there.server_address[1]}"  # type: ignore[attr-defined]
        threading.Thread(target=redirecting.serve_forever, daemon=True).start()
        url = parse_url(f"http://ada:word@127.0.0.1:{redirecting.server_address[1]}/upstream")
        with pytest.raises(ProcessFailed):
            list_remote(url, Network())
        redirecting.shutdown()
    assert redirecting.asked and there.paths == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("https://Git.example.org:8443/r", "git.example.org"),
        ("ssh://git@git.example.org/r", "git.example.org"),
        ("git@git.example.org:group/r", "git.example.org"),
        ("git.example.org:r", "git.example.org"),
        ("https://user:word@git.example.org/r", "git.example.org"),
        ("https://[::1]:80/r", "::1"),
        ("file:///srv/r", ""),
    ],
)
def test_only_allowed_hosts(text: str, host: str) -> None:
    url = parse_url(text)
    assert url.host == host
    for allowed in (None, ("other.example.org", "Git.Example.org", "::1")):
        git_command("git fetch", ("fetch",), url, Network(hosts=allowed), added={})
    if host:
        with pytest.raises(Misconfigured, match="does not talk to") as caught:
            git_command("git fetch", ("fetch",), url, Network(hosts=("example.org",)), added={})
        assert "allowed_git_hosts" in caught.value.hint


def test_a_host_that_is_not_allowed_is_not_asked(tmp_path: Path) -> None:
    remote = RemoteCommits(Network(hosts=("git.example.org",)))
    with GitHttpServer(tmp_path, "ada", "word").running() as server:
        assert (
            remote.commit(f"http://ada:word@127.0.0.1:{server.server_address[1]}/r", "main") is None
        )
        assert server.paths == []
