"""Steps in repositories that users name: fetched over HTTP, from allowed hosts alone."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.errors import BadDescription, InvalidRequest, NotFound, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.host.secrets import Secret
from image_builder.sources.git.remote import Network
from image_builder.sources.git.trees import BLOCK_BYTES, Limits
from image_builder.sources.own_description import parse_any_request
from image_builder.sources.user_repositories import Credential, FetchedStep, fetch_step, host_of
from tests.support.git_repository import GitHttpServer, GitRepository
from tests.support.site import MACHINE

LIMITS = Limits(max_files=100, max_bytes=1024**2)
NETWORK = Network(hosts=("127.0.0.1",), timeout_s=30)


@dataclasses.dataclass(frozen=True)
class Host:
    """A git host with one repository."""

    server: GitHttpServer
    repository: GitRepository
    kept: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/me/flows"

    def fetch(self, network: Network = NETWORK, **fields: Any) -> FetchedStep:
        credential = fields.pop("credential", None)
        request = parse_any_request({"machine": MACHINE, "repository": self.url, **fields})
        return fetch_step(request, self.kept, LIMITS, network, credential=credential)

    def refuse(self, **fields: Any) -> dict[str, str]:
        with pytest.raises(InvalidRequest) as caught:
            self.fetch(**fields)
        assert list(self.kept.glob("*")) == []
        return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host that asks for no log-in."""
    repository = GitRepository(tmp_path / "hosted" / "me" / "flows")
    repository.write("solver/eflows4hpc.yaml", "apt:\n  - bc\n")
    repository.write("solver/run.sh", "#!/bin/sh\n", executable=True)
    repository.commit()
    server = GitHttpServer(tmp_path / "hosted", "ada", "canary-password")
    server.expected = None
    with server.running():
        yield Host(server, repository, tmp_path / "kept")


def test_a_folder_of_a_repository(host: Host) -> None:
    fetched = host.fetch(path="solver", name="flows/solver")
    step = fetched.step
    assert step.tree == host.repository.tree("solver")
    assert step.commit == host.repository.git("rev-parse", "HEAD")
    assert (step.workflow, step.step_id) == ("flows", "solver")
    assert step.path == host.kept / step.tree
    assert fetched.size_bytes == 2 * BLOCK_BYTES, "each file takes a block at least"
    assert [path.name for path in host.kept.iterdir()] == [step.tree]
    assert host.fetch(path="solver").step.tree == step.tree


def test_the_whole_repository_is_a_step(host: Host) -> None:
    host.repository.write("eflows4hpc.yaml", "apt: [bc]\n")
    host.repository.commit()
    assert host.fetch().step.tree == host.repository.git("rev-parse", "HEAD^{tree}")


def test_versions(host: Host) -> None:
    first = host.repository.git("rev-parse", "HEAD")
    host.repository.git("tag", "-a", "v1", "-m", "one")
    host.repository.git("branch", "feature/x")
    host.repository.write("solver/eflows4hpc.yaml", "apt:\n  - less\n")
    host.repository.commit()
    host.repository.git("branch", "v1")
    newest = host.fetch(path="solver").step
    assert newest.commit != first
    for version in ("v1", "tags/v1", "feature/x", "heads/feature/x", first):
        assert host.fetch(path="solver", version=version).step.commit == first, version
    assert host.fetch(path="solver", version="heads/v1").step.commit == newest.commit


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"version": "none"}, "version"),
        ({"version": "abcdef1"}, "version"),
        ({"path": "nothing"}, "path"),
        ({"path": "solver/run.sh"}, "path"),
        ({"path": "solver/eflows4hpc.yaml/x"}, "path"),
    ],
)
def test_what_is_not_there(host: Host, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(NotFound) as caught:
        host.fetch(**fields)
    assert caught.value.field == field and caught.value.hint
    assert list(host.kept.glob("*")) == []


def test_a_repository_that_asks_for_a_log_in(host: Host, tmp_path: Path) -> None:
    host.server.expected = GitHttpServer.expected_of("ada", "canary-password")
    refused = host.refuse(path="solver")["repository"]
    assert "asks for a log-in" in refused and "keep a credential for 127.0.0.1" in refused
    wrong = Credential(user="ada", secret=Secret("canary-wrong"))
    refused = host.refuse(path="solver", credential=wrong)["repository"]
    assert "refuses your credential" in refused and "canary" not in refused
    right = Credential(user="ada", secret=Secret("canary-password"))
    fetched = host.fetch(path="solver", credential=right)
    assert fetched.step.tree == host.repository.tree("solver")
    assert "canary" not in repr(fetched)


@pytest.mark.parametrize(
    "network",
    [
        Network(hosts=None),
        Network(hosts=()),
        Network(hosts=("git.example.org",)),
        Network(hosts=("127.0.0.1",), schemes=("https", "file")),
    ],
)
def test_hosts_that_are_not_allowed_are_not_asked(host: Host, network: Network) -> None:
    assert "does not talk to 127.0.0.1" in host.refuse(network=network)["repository"]
    assert host.server.seen == []


def test_a_host_that_is_not_there(host: Host) -> None:
    host.server.server_close()
    request = parse_any_request({"machine": MACHINE, "repository": "http://127.0.0.1:1/me/flows"})
    with pytest.raises(InvalidRequest, match="cannot be read"):
        fetch_step(request, host.kept, LIMITS, NETWORK)


def test_a_host_that_says_nothing(host: Host) -> None:
    hurried = dataclasses.replace(NETWORK, timeout_s=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/me/flows"
        with pytest.raises(Unavailable, match="does not answer"):
            host.fetch(hurried, repository=address)


def test_submodules_and_links_out_are_refused_in_words(host: Host) -> None:
    commit = host.repository.git("rev-parse", "HEAD")
    host.repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},solver/sub")
    host.repository.git("commit", "-qm", "submodule")
    with pytest.raises(BadDescription, match="is a git submodule"):
        host.fetch(path="solver")
    (host.repository.folder / "out").mkdir()
    (host.repository.folder / "out" / "link").symlink_to("/etc/passwd")
    host.repository.commit()
    with pytest.raises(BadDescription, match="leaves the folder"):
        host.fetch(path="out")
    assert list(host.kept.glob("*")) == []


def test_a_tree_that_names_itself_a_million_times_over(host: Host) -> None:
    blob = host.repository.blob(b"x")
    tree = host.repository.make_tree(("100644", blob, b"f"))
    for _ in range(12):
        tree = host.repository.make_tree(*(("40000", tree, b"%d" % n) for n in range(10)))
    host.repository.commit_step(tree)
    with pytest.raises(BadDescription, match="more than 100"):
        host.fetch(path="hostile/step")


def test_a_repository_that_is_too_large(host: Host) -> None:
    host.repository.write("elsewhere/data", os.urandom(3 * 1024**2).hex())
    host.repository.commit()
    assert "larger than 1 MiB" in host.refuse(path="solver")["repository"]


def test_a_withdrawn_request_fetches_nothing_more(host: Host) -> None:
    request = parse_any_request({"machine": MACHINE, "repository": host.url, "path": "solver"})
    cancel = CancelToken()
    cancel.cancel("It is over.")
    with pytest.raises(Exception, match=r"It is over\."):
        fetch_step(request, host.kept, LIMITS, NETWORK, cancel=cancel)


@pytest.mark.parametrize(
    "repository",
    [
        "file:///etc",
        "ssh://git@host/x",
        "git@host:x",
        "git://host/x",
        "ext::sh -c id",
        "https://user:canary@host/x",
        "https://token@host/x",
        "https://host",
        "https://host/",
        "https://host/x?y=z",
        "https://host/x#y",
        "https://host/../x",
        "https://host//x",
        "https://-host/x",
        "https://host/x y",
        "https://host/x\n",
        "--upload-pack=id",
        "https://" + "h" * 600 + "/x",
    ],
)
def test_addresses_that_are_refused(repository: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_any_request({"machine": MACHINE, "repository": repository})
    assert [problem.field for problem in caught.value.problems] == ["repository"]
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc", "..", "a/../b", "a//b", ".", "a\\b"])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_any_request({"machine": MACHINE, "repository": "https://host/x", "path": path})
    assert [problem.field for problem in caught.value.problems] == ["path"]


def test_hosts() -> None:
    assert host_of("https://Git.Example.org:8443/me/x.git") == "git.example.org"
