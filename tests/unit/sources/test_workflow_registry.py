"""Finding steps in a registry: real git, served from this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.errors import Cancelled, ErrorCode, Misconfigured, NotFound, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.settings import RepositorySettings
from image_builder.sources.git.remote import Network
from image_builder.sources.step import StepRef
from image_builder.sources.workflow_registry import WorkflowRegistry
from tests.support.git_repository import MINIMAL, GitHttpServer, GitRepository, git_daemon

HOUR_S = 3600.0


@pytest.fixture
def upstream(tmp_path: Path) -> GitRepository:
    repository = GitRepository(tmp_path / "registry")
    repository.write("minimal_workflow/wordcount/eflows4hpc.yaml")
    repository.write("minimal_workflow/wordcount/src/count.py", "print(1)\n")
    repository.write("tutorial/lysozyme/eflows4hpc.yml")
    repository.write("tutorial/no_description/README.md", "text")
    repository.write("docs/index.md", "text")
    repository.write(".github/workflows/ci/eflows4hpc.yaml")
    repository.commit()
    return repository


class Site:
    """Makes registries on one folder of mirrors, and closes them at the end."""

    def __init__(self, mirrors: Path) -> None:
        self.mirrors = mirrors
        self.opened: list[WorkflowRegistry] = []

    def open(
        self, url: str, *, max_age_s: float = 0, network: Network | None = None, **settings: object
    ) -> WorkflowRegistry:
        registry = WorkflowRegistry(
            RepositorySettings.model_validate(
                {"workflow_repository": url, "mirror_max_age_s": max_age_s, **settings}
            ),
            self.mirrors,
            network=network,
        )
        self.opened.append(registry)
        return registry


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "mirrors")
    yield made
    for registry in made.opened:
        registry.close()


def wordcount(registry: WorkflowRegistry, version: str = "latest") -> StepRef:
    return registry.locate("minimal_workflow", "wordcount", version)


def test_latest_is_the_default_branch(upstream: GitRepository, site: Site) -> None:
    found = wordcount(site.open(upstream.url))
    assert found == StepRef(
        workflow="minimal_workflow",
        step_id="wordcount",
        version="latest",
        commit=upstream.git("rev-parse", "HEAD"),
        tree=upstream.tree("minimal_workflow/wordcount"),
    )


@pytest.mark.parametrize(
    "version",
    [
        "main",
        "side",
        "feature/deep/name",
        "v1",
        "v2-annotated",
        "v3-nested",
        "refs/heads/side",
        "heads/side",
        "tags/v1",
        "refs/tags/v1",
    ],
)
def test_a_version_is_a_branch_or_a_tag(upstream: GitRepository, site: Site, version: str) -> None:
    upstream.git("tag", "v1")
    upstream.git("tag", "-a", "-m", "annotated", "v2-annotated")
    upstream.git("tag", "-a", "-m", "a tag of a tag", "v3-nested", "v2-annotated")
    upstream.git("branch", "side")
    upstream.git("branch", "feature/deep/name")
    assert wordcount(site.open(upstream.url), version).commit == upstream.git("rev-parse", "HEAD")


def test_a_version_is_a_commit(upstream: GitRepository, site: Site) -> None:
    old = upstream.git("rev-parse", "HEAD")
    upstream.write("minimal_workflow/wordcount/more.txt", "more")
    upstream.commit()
    registry = site.open(upstream.url)
    for version in (old, old.upper(), old[:7], old[:12]):
        found = wordcount(registry, version)
        assert (found.commit, found.tree) == (old, upstream.tree("minimal_workflow/wordcount", old))
        assert found.warnings == ()
    with pytest.raises(NotFound) as refusal:
        wordcount(registry, old[:6])
    assert refusal.value.field == "version"


def unlisted_commit(upstream: GitRepository, how: str) -> str:
    """A commit that the other side serves to whoever knows its hash, as hosts do with forks'."""
    upstream.git("config", "uploadpack.allowAnySHA1InWant", "true")
    commit = upstream.commit("of a stranger")
    if how == "pull request":
        upstream.git("update-ref", "refs/pull/7/head", commit)
    elif how == "note":
        upstream.git("update-ref", "refs/notes/x", commit)
    upstream.git("reset", "--quiet", "--hard", "HEAD~1")
    return commit


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("how", ["pull request", "note", "fork"])
def test_a_commit_on_no_branch_is_refused(
    upstream: GitRepository, site: Site, how: str, is_held: bool
) -> None:
    registry = site.open(upstream.url)
    wordcount(registry)
    strangers = unlisted_commit(upstream, how)
    if is_held:  # a branch had it when the mirror was made
        upstream.git("branch", "once", strangers)
        assert wordcount(registry, "once").commit == strangers
        upstream.git("branch", "--quiet", "-D", "once")
        wordcount(registry, "latest")
    else:
        assert strangers not in {item.name for item in site.mirrors.rglob("*")}
    spellings = (strangers, strangers.upper(), *((strangers[:9],) if is_held else ()))
    for version in spellings:
        with pytest.raises(NotFound, match=r"no branch|no version") as refusal:
            wordcount(registry, version)
        assert refusal.value.field == "version"
    upstream.git("branch", "merged", strangers)
    assert wordcount(registry, strangers).warnings == ()


def test_a_commit_on_no_branch_is_taken_with_a_warning_where_that_is_allowed(
    upstream: GitRepository, site: Site
) -> None:
    registry = site.open(upstream.url, allow_unlisted_commits=True)
    wordcount(registry)
    lost = upstream.commit("rewritten")
    upstream.git("reset", "--quiet", "--hard", "HEAD~1")
    found = wordcount(registry, lost)
    assert found.commit == lost
    assert "on no branch and no tag" in found.warnings[0]
    assert wordcount(registry, lost[:9]).commit == lost


def test_an_abbreviation_that_several_commits_share_is_refused(
    upstream: GitRepository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "image_builder.sources.git.revisions.MIN_ABBREVIATION", 4
    )  # two that share seven are hard to make
    upstream.git(
        "fast-import",
        "--quiet",
        stdin=b"".join(
            b"commit refs/heads/many\ncommitter a <a@b> %d +0000\ndata 0\n\n" % second
            for second in range(2000)
        ),
    )
    beginnings = [commit[:4] for commit in upstream.git("rev-list", "many").split()]
    shared = next(first for first in beginnings if beginnings.count(first) > 1)
    with pytest.raises(NotFound, match="Several commits") as refusal:
        wordcount(site.open(upstream.url), shared)
    assert refusal.value.field == "version"


def test_latest_follows_the_default_branch_and_its_change(
    upstream: GitRepository, site: Site
) -> None:
    registry = site.open(upstream.url)
    first = wordcount(registry).commit
    upstream.write("minimal_workflow/wordcount/more.txt", "more")
    second = upstream.commit()
    assert wordcount(registry).commit == second != first
    upstream.git("checkout", "--quiet", "-b", "other", first or "")
    upstream.write("minimal_workflow/wordcount/other.txt", "other")
    third = upstream.commit()
    assert wordcount(registry).commit == third
    assert wordcount(registry, "main").commit == second


def test_a_detached_head_is_still_latest(upstream: GitRepository, site: Site) -> None:
    upstream.git("checkout", "--quiet", "--detach")
    detached = upstream.commit("on no branch")
    assert wordcount(site.open(upstream.url)).commit == detached


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_nothing_called_latest_shadows_the_default_branch(
    upstream: GitRepository, site: Site, kind: str
) -> None:
    upstream.git(kind, "latest")
    shadow = upstream.git("rev-parse", "HEAD")
    newest = upstream.commit("newer")
    registry = site.open(upstream.url)
    found = wordcount(registry)
    assert found.commit == newest
    assert f"its {kind} called 'latest'" in found.warnings[0]
    assert (
        wordcount(registry, "heads/latest" if kind == "branch" else "tags/latest").commit == shadow
    )


def test_a_tag_wins_over_a_branch_of_its_name(upstream: GitRepository, site: Site) -> None:
    upstream.git("tag", "both")
    tagged = upstream.git("rev-parse", "HEAD")
    branch = upstream.commit("newer")
    upstream.git("branch", "both")
    registry = site.open(upstream.url)
    found = wordcount(registry, "both")
    assert found.commit == tagged
    assert "the tag is taken" in found.warnings[0]
    assert wordcount(registry, "heads/both").commit == branch


def test_a_tag_of_a_file_is_no_version(upstream: GitRepository, site: Site) -> None:
    upstream.git("tag", "of-a-file", upstream.blob(b"content"))
    with pytest.raises(NotFound) as refusal:
        wordcount(site.open(upstream.url), "of-a-file")
    assert refusal.value.field == "version"


@pytest.mark.parametrize(
    ("workflow", "step", "version", "field", "hint"),
    [
        ("minimal_workflw", "wordcount", "latest", "workflow", "Did you mean minimal_workflow?"),
        ("zzz", "wordcount", "latest", "workflow", "It has minimal_workflow, tutorial."),
        ("minimal_workflow", "word_count", "latest", "step_id", "Did you mean wordcount?"),
        ("minimal_workflow", "zzz", "latest", "step_id", "It has wordcount."),
        ("docs", "index.md", "latest", "step_id", "It has none."),
        ("minimal_workflow", "wordcount", "mian", "version", "Did you mean main?"),
        ("minimal_workflow", "wordcount", "zzz", "version", "It has latest, main."),
        ("minimal_workflow", "wordcount", "0" * 40, "version", "It has latest, main."),
        ("minimal_workflow", "wordcount", "deadbeef", "version", "It has latest, main."),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(
    upstream: GitRepository,
    site: Site,
    workflow: str,
    step: str,
    version: str,
    field: str,
    hint: str,
) -> None:
    registry = site.open(upstream.url, max_age_s=HOUR_S)
    wordcount(registry)
    with pytest.raises(NotFound) as refusal:
        registry.locate(workflow, step, version)
    assert (refusal.value.field, refusal.value.hint) == (field, hint)


def test_a_mirror_is_not_fetched_while_it_is_young(upstream: GitRepository, site: Site) -> None:
    registry = site.open(upstream.url, max_age_s=HOUR_S)
    first = wordcount(registry)
    upstream.commit("newer")
    assert wordcount(registry) == first
    assert wordcount(site.open(upstream.url, max_age_s=HOUR_S)) == first, (
        "another process shares the mirror"
    )
    shutil.rmtree(upstream.folder)
    assert wordcount(registry) == first


def test_a_miss_fetches_once_more(upstream: GitRepository, site: Site) -> None:
    registry = site.open(upstream.url, max_age_s=HOUR_S)
    wordcount(registry)
    upstream.write("minimal_workflow/new_step/eflows4hpc.yaml")
    added = upstream.commit()
    upstream.git("tag", "v9")
    assert wordcount(registry, "v9").commit == added
    upstream.write("new_workflow/step/eflows4hpc.yaml")
    newest = upstream.commit()
    assert registry.locate("new_workflow", "step").commit == newest
    assert wordcount(registry, newest[:10]).commit == newest


def test_a_commit_held_by_the_mirror_needs_no_registry(upstream: GitRepository, site: Site) -> None:
    registry = site.open(upstream.url)
    found = wordcount(registry)
    shutil.rmtree(upstream.folder)
    assert wordcount(registry, found.commit or "") == dataclasses.replace(
        found, version=found.commit or ""
    )
    with pytest.raises(NotFound) as refusal:
        registry.locate("minimal_workflow", "nothing", found.commit or "")
    assert refusal.value.field == "step_id"


def test_an_unreachable_registry_is_unavailable(upstream: GitRepository, site: Site) -> None:
    registry = site.open(upstream.url)
    wordcount(registry)
    shutil.rmtree(upstream.folder)
    for version in ("latest", "main", "deadbeef"):
        with pytest.raises(Unavailable) as failure:
            wordcount(registry, version)
        assert failure.value.code is ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE
        assert upstream.url in failure.value.message
        assert "workflow_repository" in failure.value.hint


def test_a_registry_that_was_never_reached_is_unavailable_and_leaves_no_mirror(
    tmp_path: Path, site: Site
) -> None:
    with pytest.raises(Unavailable) as failure:
        wordcount(site.open("git://127.0.0.1:1/registry.git"))
    assert failure.value.code is ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE
    assert not [item for item in site.mirrors.iterdir() if item.is_dir()]


def test_an_empty_registry_has_nothing(tmp_path: Path, site: Site) -> None:
    empty = GitRepository(tmp_path / "empty")
    registry = site.open(empty.url)
    with pytest.raises(NotFound, match="default branch") as refusal:
        wordcount(registry)
    assert refusal.value.field == "version"
    empty.write("minimal_workflow/wordcount/eflows4hpc.yaml")
    commit = empty.commit()
    assert wordcount(registry).commit == commit


def test_a_registry_whose_head_went_away_keeps_its_branches(
    upstream: GitRepository, site: Site
) -> None:
    registry = site.open(upstream.url)
    found = wordcount(registry)
    upstream.git("branch", "kept")
    upstream.git("symbolic-ref", "HEAD", "refs/heads/not_there")
    assert wordcount(registry, "kept").commit == found.commit
    with pytest.raises(NotFound, match="default branch"):
        wordcount(registry)


def test_branches_that_are_deleted_or_become_folders_are_followed(
    upstream: GitRepository, site: Site
) -> None:
    upstream.git("branch", "topic")
    registry = site.open(upstream.url)
    wordcount(registry, "topic")
    upstream.git("branch", "-D", "topic")
    upstream.git("branch", "topic/one")
    assert wordcount(registry, "topic/one").commit
    with pytest.raises(NotFound):
        wordcount(registry, "topic")


def test_a_forced_push_is_followed(upstream: GitRepository, site: Site) -> None:
    registry = site.open(upstream.url)
    upstream.git("tag", "moving")
    wordcount(registry, "moving")
    upstream.git("commit", "--quiet", "--amend", "--allow-empty", "--message", "rewritten")
    upstream.git("tag", "--force", "moving")
    rewritten = upstream.git("rev-parse", "HEAD")
    assert wordcount(registry).commit == wordcount(registry, "moving").commit == rewritten


def test_a_ref_in_the_setting_is_what_latest_means(upstream: GitRepository, site: Site) -> None:
    upstream.git("tag", "release")
    released = upstream.git("rev-parse", "HEAD")
    newest = upstream.commit("newer")
    registry = site.open(upstream.url + "#release")
    assert wordcount(registry).commit == released
    assert wordcount(registry, "main").commit == newest
    with pytest.raises(NotFound, match="'gone', which workflow_repository"):
        wordcount(site.open(upstream.url + "#gone"))


def test_a_default_branch_in_the_settings_is_what_latest_means(
    upstream: GitRepository, site: Site
) -> None:
    upstream.git("branch", "release")
    released = upstream.git("rev-parse", "HEAD")
    newest = upstream.commit("newer")
    registry = site.open(upstream.url, default_workflow_repository_branch="release")
    assert wordcount(registry).commit == released
    assert wordcount(registry, "main").commit == newest
    with pytest.raises(NotFound, match="'gone', which default_workflow_repository_branch"):
        wordcount(site.open(upstream.url, default_workflow_repository_branch="gone"))
    with pytest.raises(Misconfigured, match=r"latest is 'main'.*it is 'release'.*Leave one"):
        site.open(upstream.url + "#main", default_workflow_repository_branch="release")


def test_a_folder_with_a_repository_is_a_registry(
    upstream: GitRepository, site: Site, tmp_path: Path
) -> None:
    assert wordcount(site.open(str(upstream.folder))).commit
    spaced = GitRepository(tmp_path / "with a space & 100%")
    spaced.write("minimal_workflow/wordcount/eflows4hpc.yaml")
    assert wordcount(site.open(str(spaced.folder)), spaced.commit()).tree == spaced.tree(
        "minimal_workflow/wordcount"
    )


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c true",
        "ext::true",
        "--upload-pack=true",
        "-oProxyCommand=true",
        "ftp://host/registry",
        "https://",
        "https://host",
        "file://other/registry",
        "ssh://user:word@host/registry",
        "http://host:port/registry",
        "git@-host:registry",
        "https://host/regis\ntry",
        "https://host/r#main:folder",
    ],
)
def test_a_setting_that_is_no_allowed_url_is_refused_with_its_key(site: Site, url: str) -> None:
    with pytest.raises((Misconfigured, Unavailable)) as failure:
        wordcount(site.open(url))
    assert "workflow_repository" in str(failure.value)


def test_only_the_allowed_schemes_are_used(upstream: GitRepository, site: Site) -> None:
    with pytest.raises(Misconfigured, match="file:// is not allowed here"):
        site.open(upstream.url, allowed_git_schemes=("https",))


def test_what_the_web_form_offers(upstream: GitRepository, site: Site) -> None:
    for name in ("v1.9", "v1.10", "nightly"):
        upstream.git("tag", name)
    upstream.git("branch", "dev")
    registry = site.open(upstream.url, max_age_s=HOUR_S)
    assert registry.versions() == ("latest", "dev", "main", "v1.10", "v1.9", "nightly")
    assert registry.workflows() == ("minimal_workflow", "tutorial")
    assert registry.workflows("v1.9") == ("minimal_workflow", "tutorial")
    assert registry.steps("tutorial") == ("lysozyme",)
    assert registry.steps("nothing") == ()


def test_a_step_is_a_folder(upstream: GitRepository, site: Site) -> None:
    upstream.write("a_file", "text")
    upstream.write("minimal_workflow/a_file", "text")
    os.symlink("wordcount", upstream.folder / "minimal_workflow/a_link")
    upstream.commit()
    registry = site.open(upstream.url)
    for workflow, step, field in (
        ("a_file", "x", "workflow"),
        ("minimal_workflow", "a_file", "step_id"),
        ("minimal_workflow", "a_link", "step_id"),
        ("..", "x", "workflow"),
        ("minimal_workflow", "../tutorial", "step_id"),
        (".", "wordcount", "workflow"),
    ):
        with pytest.raises(NotFound) as refusal:
            registry.locate(workflow, step)
        assert refusal.value.field == field


def test_a_cancelled_look_up_ends(upstream: GitRepository, site: Site) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        site.open(upstream.url).locate("minimal_workflow", "wordcount", cancel=cancel)
    assert wordcount(site.open(upstream.url)).commit


def test_through_a_git_daemon(upstream: GitRepository, site: Site, tmp_path: Path) -> None:
    hidden = upstream.commit("only a pull request has it")
    upstream.git("update-ref", "refs/pull/1/head", hidden)
    upstream.git("reset", "--quiet", "--hard", "HEAD~1")
    with git_daemon(tmp_path) as base:
        registry = site.open(f"{base}/registry", allow_unlisted_commits=True)
        found = wordcount(registry)
        assert found.tree == upstream.tree("minimal_workflow/wordcount")
        assert wordcount(registry, hidden).commit == hidden
        registry.extract(found, tmp_path / "step")
    assert (tmp_path / "step/eflows4hpc.yaml").read_text() == MINIMAL
    with pytest.raises(Unavailable):
        wordcount(registry)
    registry.extract(found, tmp_path / "step again")
    assert registry.read(found).description == MINIMAL


def test_credentials_log_in_and_are_nowhere_else(
    upstream: GitRepository, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    _record_commands(monkeypatch, started)
    with GitHttpServer(tmp_path, "robot", "s3cret:canary/1").running() as server:
        port = server.server_port
        registry = site.open(f"http://robot:s3cret%3Acanary%2F1@127.0.0.1:{port}/registry/.git")
        found = wordcount(registry)
        assert found.commit == upstream.git("rev-parse", "HEAD")
        assert server.seen and set(server.seen) == {server.expected}
        wrong = site.open(f"http://robot:wr0ng-canary@127.0.0.1:{port}/registry/.git#other")
        with pytest.raises(Unavailable) as failure:
            wordcount(wrong)
    texts = [str(failure.value), repr(failure.value), *started]
    texts += [
        path.read_bytes().decode("latin-1") for path in site.mirrors.rglob("*") if path.is_file()
    ]
    texts += [str(path) for path in site.mirrors.rglob("*")]
    assert started, "commands were recorded"
    secrets = ("canary", server.expected.partition(" ")[2], "cm9ib3Q6")
    assert not [text for text in texts for secret in secrets if secret in text]
    assert "credentials" in failure.value.hint


def test_a_site_s_own_ca_is_trusted_when_it_is_named(
    upstream: GitRepository, site: Site, tmp_path: Path
) -> None:
    server = GitHttpServer(tmp_path, "robot", "word")
    certificate = server.use_tls(tmp_path)
    with server.running():
        url = f"https://robot:word@127.0.0.1:{server.server_port}/registry/.git"
        with pytest.raises(Unavailable, match="certificate"):
            wordcount(site.open(url))
        assert server.seen == []
        assert wordcount(site.open(url, network=Network(ca_bundle=certificate))).commit


def test_the_site_s_proxy_is_used(upstream: GitRepository, site: Site, tmp_path: Path) -> None:
    with GitHttpServer(tmp_path, "robot", "word").running() as proxy:
        network = Network(http_proxy=f"http://127.0.0.1:{proxy.server_port}")
        registry = site.open("http://robot:word@registry.invalid/registry/.git", network=network)
        assert wordcount(registry).commit == upstream.git("rev-parse", "HEAD")
    assert proxy.paths and all(
        path.startswith("http://registry.invalid/registry/") for path in proxy.paths
    )


def _record_commands(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    """Notes the arguments of every process that Python starts, and goes on as before."""
    begin: Any = subprocess.Popen.__init__

    def noted(self: object, args: object, *rest: object, **options: object) -> None:
        started.append(repr(args))
        begin(self, args, *rest, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_registry_on_this_machine_may_belong_to_another_user(
    upstream: GitRepository, site: Site
) -> None:
    expected = upstream.git("rev-parse", "HEAD")
    for path in (upstream.folder, *upstream.folder.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    assert wordcount(site.open(upstream.url)).commit == expected


def test_hooks_of_the_registry_are_not_run(
    upstream: GitRepository, site: Site, tmp_path: Path
) -> None:
    mark = tmp_path / "hook ran"
    for name in (
        "post-checkout",
        "post-merge",
        "reference-transaction",
        "pre-auto-gc",
        "post-update",
    ):
        hook = upstream.folder / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
        hook.chmod(0o755)
    registry = site.open(upstream.url)
    registry.extract(wordcount(registry), tmp_path / "step")
    assert not mark.exists()
