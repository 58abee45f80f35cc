"""The software catalogue and Spack configuration: what is pinned, and that a build gets exactly
that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image_builder.errors import ErrorCode, Misconfigured, ServiceError, Unavailable
from image_builder.settings import RepositorySettings
from image_builder.sources import source_tree
from image_builder.sources.git import trees
from image_builder.sources.software_catalogue import Catalogue, PinnedCatalogue
from tests.support.git_repository import GitRepository

PACKAGE = 'from spack.package import *\n\n\nclass Tool(Package):\n    version("1", sha256="0")\n'


@pytest.fixture
def upstream(tmp_path: Path) -> GitRepository:
    repository = GitRepository(tmp_path / "software-catalog")
    repository.write("repo.yaml", "repo:\n  namespace: site\n")
    repository.write("packages/tool/package.py", PACKAGE)
    repository.write("packages/tool/fix.patch", "--- a\n+++ b\n")
    repository.write("packages/py-other/package.py", PACKAGE)
    repository.write("cfg/packages.yaml", "packages: {}\n")
    repository.write("cfg/linux/compilers.yaml", "compilers: []\n")
    repository.write("README.md", "text")
    repository.commit()
    return repository


Open = Callable[..., Catalogue]


@pytest.fixture
def open_catalogue(tmp_path: Path) -> Iterator[Open]:
    opened: list[Catalogue] = []

    def open_it(software: str | None, config: str | None, **settings: object) -> Catalogue:
        values = {
            "workflow_repository": "https://example.org/r",
            "software_repository": software,
            "mirror_max_age_s": 0,
        }
        opened.append(
            Catalogue(
                RepositorySettings.model_validate(values | settings), config, tmp_path / "mirrors"
            )
        )
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


@pytest.fixture(params=["folder", "git", "folder with a ref"])
def sources(request: pytest.FixtureRequest, upstream: GitRepository) -> tuple[str, str]:
    """The same catalogue and configuration, named in each way."""
    return {
        "folder": (str(upstream.folder), str(upstream.folder / "cfg")),
        "git": (upstream.url, upstream.url + "#main:cfg"),
        "folder with a ref": (f"{upstream.folder}#main", f"{upstream.folder}#:cfg"),
    }[request.param]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_pinned_is_what_is_copied(
    upstream: GitRepository, open_catalogue: Open, sources: tuple[str, str], tmp_path: Path
) -> None:
    catalogue = open_catalogue(*sources)
    pinned = catalogue.pin()
    catalogue.copy(pinned, tmp_path / "packages", tmp_path / "config")
    assert contents(tmp_path / "packages") == {
        "repo.yaml": "repo:\n  namespace: site\n",
        "packages/tool/package.py": PACKAGE,
        "packages/tool/fix.patch": "--- a\n+++ b\n",
        "packages/py-other/package.py": PACKAGE,
    }
    assert contents(tmp_path / "config") == {
        "packages.yaml": "packages: {}\n",
        "linux/compilers.yaml": "compilers: []\n",
    }
    assert pinned.config_tree == upstream.tree("cfg")
    for folder, tree in (("packages", pinned.packages_tree), ("config", pinned.config_tree)):
        found = trees.walk(tmp_path / folder, limits=trees.Limits())
        assert trees.tree_digest(trees.read_entries(tmp_path / folder, found)) == tree
    commit = (
        None
        if "#" not in sources[0] and not sources[0].startswith("file:")
        else upstream.git("rev-parse", "HEAD")
    )
    assert (pinned.packages_commit, pinned.config_commit) == (commit, commit)


def test_each_way_of_naming_it_pins_the_same_trees(
    upstream: GitRepository, open_catalogue: Open
) -> None:
    from_folder = open_catalogue(str(upstream.folder), str(upstream.folder / "cfg")).pin()
    from_git = open_catalogue(upstream.url, upstream.url + "#main:cfg").pin()
    assert (from_folder.packages_tree, from_folder.config_tree) == (
        from_git.packages_tree,
        from_git.config_tree,
    )


def test_only_what_makes_packages_counts(
    upstream: GitRepository, open_catalogue: Open, sources: tuple[str, str]
) -> None:
    catalogue = open_catalogue(*sources)
    before = catalogue.pin()
    upstream.write("README.md", "other text")
    upstream.write("packages/tool/__pycache__/package.cpython-312.pyc", "leftover")
    upstream.write("packages/tool/old.pyc", "leftover")
    upstream.git("add", "--all", "--force")
    upstream.commit()
    after = catalogue.pin()
    assert (after.packages_tree, after.config_tree) == (before.packages_tree, before.config_tree)
    upstream.write("packages/tool/fix.patch", "changed")
    upstream.commit()
    assert catalogue.pin().packages_tree != before.packages_tree
    assert catalogue.pin().config_tree == before.config_tree
    upstream.write("cfg/packages.yaml", "packages: {all: {}}\n")
    upstream.commit()
    assert catalogue.pin().config_tree != before.config_tree


def test_a_folder_counts_as_it_lies_there(
    upstream: GitRepository, open_catalogue: Open, tmp_path: Path
) -> None:
    catalogue = open_catalogue(str(upstream.folder), None)
    clean = catalogue.pin()
    upstream.write("packages/new/package.py", PACKAGE)
    changed = catalogue.pin()
    assert changed.packages_tree != clean.packages_tree
    upstream.write("packages/new/package.py", PACKAGE.replace("1", "2"))
    assert catalogue.pin().packages_tree not in (clean.packages_tree, changed.packages_tree), (
        "edited within a moment"
    )


@pytest.mark.parametrize("process", ["the same", "another"])
def test_a_build_gets_what_was_pinned_though_it_changed_since(
    upstream: GitRepository,
    open_catalogue: Open,
    process: str,
    sources: tuple[str, str],
    tmp_path: Path,
) -> None:
    catalogue = open_catalogue(*sources)
    pinned = catalogue.pin()
    upstream.write("packages/tool/package.py", "changed")
    upstream.write("cfg/packages.yaml", "changed")
    upstream.commit()
    assert catalogue.pin() != pinned
    builder = catalogue if process == "the same" else open_catalogue(*sources)
    builder.copy(pinned, tmp_path / "packages", tmp_path / "config")
    assert (tmp_path / "packages/packages/tool/package.py").read_text() == PACKAGE
    assert builder.package_text(pinned, "tool") == PACKAGE
    assert builder.config_text(pinned) == "packages: {}\n"


def test_what_was_pinned_and_is_gone_is_told(
    upstream: GitRepository, open_catalogue: Open, tmp_path: Path
) -> None:
    catalogue = open_catalogue(str(upstream.folder), None)
    pinned = catalogue.pin()
    shutil.rmtree(tmp_path / "mirrors")
    catalogue.copy(pinned, tmp_path / "packages", tmp_path / "config")
    upstream.write("packages/tool/package.py", "changed")
    shutil.rmtree(tmp_path / "mirrors")
    with pytest.raises(Unavailable, match="not there any more") as failure:
        catalogue.copy(pinned, tmp_path / "packages again", tmp_path / "config again")
    assert failure.value.code is ErrorCode.CATALOGUE_UNAVAILABLE


def test_without_catalogue_and_configuration_the_folders_are_empty(
    open_catalogue: Open, tmp_path: Path
) -> None:
    catalogue = open_catalogue(None, None)
    pinned = catalogue.pin()
    assert pinned == PinnedCatalogue()
    catalogue.copy(pinned, tmp_path / "packages", tmp_path / "config")
    assert list((tmp_path / "packages").iterdir()) == list((tmp_path / "config").iterdir()) == []
    assert catalogue.config_text(pinned) is catalogue.package_text(pinned, "tool") is None
    assert catalogue.branch_commits(pinned, ["tool@main"]) == ({}, [])


def test_texts(upstream: GitRepository, open_catalogue: Open, sources: tuple[str, str]) -> None:
    catalogue = open_catalogue(*sources)
    pinned = catalogue.pin()
    assert catalogue.config_text(pinned) == "packages: {}\n"
    assert catalogue.config_text(pinned, "concretizer.yaml") is None
    assert (
        catalogue.package_text(pinned, "tool")
        == catalogue.package_text(pinned, "py-other")
        == PACKAGE
    )
    for name in ("nothing", "../../cfg/packages.yaml", "..", "", "tool/../tool", "tool\n"):
        assert catalogue.package_text(pinned, name) is None


@pytest.mark.parametrize(
    ("software", "config", "said"),
    [
        ("/no/such/folder", None, "software_repository in repositories_cfg"),
        (None, "/no/such/folder", "spack_cfg in build_cfg"),
        ("{url}#gone", None, "no version 'gone'"),
        (None, "{url}#main:gone", "no folder 'gone'"),
        (None, "{url}#main:README.md", "no folder 'README.md'"),
        ("{folder}/cfg", None, "it has no repo.yaml"),
        ("{url}#main:cfg", None, "it has no repo.yaml"),
        ("ext::id", None, "software_repository in repositories_cfg"),
        ("ftp://example.org/r", None, "software_repository in repositories_cfg"),
        ("file:///no/such/repository", None, "software_repository in repositories_cfg"),
        (None, "git://127.0.0.1:1/r", "spack_cfg in build_cfg"),
    ],
)
def test_what_cannot_be_had_names_the_setting(
    upstream: GitRepository,
    open_catalogue: Open,
    software: str | None,
    config: str | None,
    said: str,
) -> None:
    names = {"url": upstream.url, "folder": str(upstream.folder)}
    with pytest.raises(ServiceError) as failure:
        open_catalogue(
            software and software.format(**names), config and config.format(**names)
        ).pin()
    assert isinstance(failure.value, Misconfigured | Unavailable)
    assert failure.value.code is ErrorCode.CATALOGUE_UNAVAILABLE
    assert said in str(failure.value)
    assert failure.value.hint


def test_a_catalogue_with_a_link_out_of_it_is_refused(
    upstream: GitRepository, open_catalogue: Open, sources: tuple[str, str]
) -> None:
    os.symlink("/etc", upstream.folder / "packages/outside")
    upstream.commit()
    with pytest.raises(
        Misconfigured, match="packages/outside is a symbolic link that leaves the folder"
    ):
        open_catalogue(*sources).pin()


def test_an_unchanged_folder_is_not_read_again(
    upstream: GitRepository, open_catalogue: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in upstream.folder.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    monkeypatch.setattr(source_tree, "UNSETTLED_NS", -1)  # a file's ctime cannot be set back
    catalogue = open_catalogue(str(upstream.folder), str(upstream.folder / "cfg"))
    pinned = catalogue.pin()

    def refuse(*_: object) -> None:
        raise AssertionError("a file was read")

    with monkeypatch.context() as patch:
        patch.setattr(trees, "read_entries", refuse)
        assert catalogue.pin() == pinned
    status = (upstream.folder / "packages/tool/package.py").stat()
    upstream.write(
        "packages/tool/package.py", PACKAGE.replace("1", "2")
    )  # same size, and its time set back
    os.utime(
        upstream.folder / "packages/tool/package.py", ns=(status.st_atime_ns, status.st_mtime_ns)
    )
    assert catalogue.pin() != pinned


def test_a_warm_pin_of_git_starts_no_process(
    upstream: GitRepository, open_catalogue: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = open_catalogue(upstream.url, upstream.url + "#:cfg", mirror_max_age_s=3600)
    pinned = catalogue.pin()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    assert catalogue.pin() == pinned


def test_old_copies_are_forgotten_and_used_ones_kept(
    upstream: GitRepository, open_catalogue: Open, tmp_path: Path
) -> None:
    catalogue = open_catalogue(str(upstream.folder), None)
    old = catalogue.pin().packages_tree or ""
    upstream.write("packages/tool/package.py", "second")
    used = catalogue.pin().packages_tree or ""
    kept = tmp_path / "mirrors/folders"
    os.utime(kept / old, (1_000_000_000, 1_000_000_000))
    upstream.write("packages/tool/package.py", "third")
    new = catalogue.pin().packages_tree or ""
    assert {path.name for path in kept.iterdir()} == {used, new}


def test_the_commits_behind_branch_versions(
    upstream: GitRepository, open_catalogue: Open, tmp_path: Path, sources: tuple[str, str]
) -> None:
    tool = GitRepository(tmp_path / "tool")
    commit = tool.commit()
    tool.git("branch", "Spack-changes")
    upstream.write(
        "packages/tool/package.py",
        f"""
class Tool(CMakePackage):
    git = "{tool.url}"
    version("master", branch="Spack-changes", submodules=True)
    version("broken", branch="gone")
""",
    )
    upstream.commit()
    catalogue = open_catalogue(*sources)
    commits, warnings = catalogue.branch_commits(
        catalogue.pin(), ["tool@master +mpi", "tool@broken", "py-other@1"]
    )
    assert commits == {"tool@master": commit}
    assert len(warnings) == 1 and "tool@broken" in warnings[0] and "force" in warnings[0]
