"""Taking a step: out of a registry that strangers wrote, or from a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image_builder.errors import BadDescription, Cancelled, NotFound, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.settings import RepositorySettings
from image_builder.sources import step
from image_builder.sources.git.trees import Limits
from image_builder.sources.local_step import copy_local, local_step, read_folder
from image_builder.sources.step import StepFiles
from image_builder.sources.workflow_registry import WorkflowRegistry
from tests.support.git_repository import MINIMAL, GitRepository

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


@pytest.fixture
def upstream(tmp_path: Path) -> GitRepository:
    return GitRepository(tmp_path / "registry")


@pytest.fixture
def open_registry(
    tmp_path: Path, upstream: GitRepository
) -> Iterator[Callable[..., WorkflowRegistry]]:
    opened: list[WorkflowRegistry] = []

    def open_it(**settings: object) -> WorkflowRegistry:
        opened.append(
            WorkflowRegistry(
                RepositorySettings.model_validate(
                    {"workflow_repository": upstream.url, "mirror_max_age_s": 3600, **settings}
                ),
                tmp_path / "mirrors",
            )
        )
        return opened[-1]

    yield open_it
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(open_registry: Callable[..., WorkflowRegistry]) -> WorkflowRegistry:
    return open_registry()


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def test_only_the_steps_folder_is_taken(
    upstream: GitRepository, registry: WorkflowRegistry, tmp_path: Path
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    upstream.write("flow/step/bin/run", "#!/bin/sh\n", executable=True)
    upstream.write("flow/step/.hidden", "hidden")
    upstream.write("flow/step/.gitattributes", "* export-ignore\n*.txt export-subst eol=crlf\n")
    upstream.write("flow/step/data.txt", "$Format:%H$\nsecond\n")
    os.symlink("../data.txt", upstream.folder / "flow/step/bin/link")
    upstream.write("flow/other/eflows4hpc.yaml")
    upstream.commit()
    ref = registry.locate("flow", "step")
    registry.extract(ref, tmp_path / "out")
    assert files_below(tmp_path / "out") == {
        "eflows4hpc.yaml",
        "bin/run",
        ".hidden",
        ".gitattributes",
        "data.txt",
        "bin/link",
    }
    assert (tmp_path / "out/data.txt").read_bytes() == b"$Format:%H$\nsecond\n", (
        "git's filters are not applied"
    )
    assert os.access(tmp_path / "out/bin/run", os.X_OK) and not os.access(
        tmp_path / "out/data.txt", os.X_OK
    )
    assert (
        local_step(tmp_path / "out", workflow="flow", step_id="step").tree
        == ref.tree
        == upstream.tree("flow/step")
    )


def test_what_changes_elsewhere_leaves_the_tree_alone(
    upstream: GitRepository, open_registry: Callable[..., WorkflowRegistry]
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    upstream.commit()
    registry = open_registry(mirror_max_age_s=0)
    before = registry.locate("flow", "step")
    upstream.write("flow/other/eflows4hpc.yaml")
    upstream.commit()
    after = registry.locate("flow", "step")
    assert (after.tree, after.commit != before.commit) == (before.tree, True)


def hostile_steps(repository: GitRepository) -> dict[str, tuple[str, str]]:
    """Trees that git itself would not make or not check out, each with what must be said about it."""
    blob = repository.blob(MINIMAL.encode())
    description = ("100644", blob, b"eflows4hpc.yaml")
    make = repository.make_tree

    def to(target: bytes) -> str:
        return repository.blob(target)

    bomb = make(("100644", blob, b"f"))
    for _ in range(12):
        bomb = make(*(("40000", bomb, b"d%d" % number) for number in range(10)))
    hollow = EMPTY_TREE
    repository.make_tree()
    for _ in range(12):
        hollow = make(*(("40000", hollow, b"d%d" % number) for number in range(10)))
    deep = make(("100644", blob, b"f"))
    for _ in range(1500):
        deep = make(("40000", deep, b"d"))
    commit = repository.git("commit-tree", EMPTY_TREE, "-m", "another repository's")
    return {
        "absolute link": (
            make(description, ("120000", to(b"/etc/passwd"), b"l")),
            "leaves the folder",
        ),
        "link upwards": (
            make(description, ("120000", to(b"../other/secret"), b"l")),
            "leaves the folder",
        ),
        "link by way of a link": (
            make(("120000", to(b"up/.."), b"a"), description, ("120000", to(b"."), b"up")),
            "leaves the folder",
        ),
        "empty link": (make(description, ("120000", to(b""), b"l")), "nowhere"),
        "huge link": (make(description, ("120000", to(b"x" * 100_000), b"l")), "nowhere"),
        "submodule": (make(description, ("160000", commit, b"module")), "submodule"),
        "dot git": (
            make(("40000", make(("100644", blob, b"config")), b".git"), description),
            "git keeps for itself",
        ),
        "dot GIT": (make(("100644", blob, b".GIT"), description), "git keeps for itself"),
        "parent": (
            make(("40000", make(("100644", blob, b"f")), b".."), description),
            "not allowed",
        ),
        "slash": (make(("100644", blob, b"../../escaped"), description), "not allowed"),
        "absolute name": (make(("100644", blob, b"/tmp/escaped"), description), "not allowed"),
        "newline": (make(("100644", blob, b"a\nb"), description), "not allowed"),
        "link and folder of one name": (
            make(
                ("120000", to(b"."), b"a"),
                ("40000", make(("100644", blob, b"f")), b"a"),
                description,
            ),
            "a file and a folder",
        ),
        "the same file twice": (make(description, description), "twice"),
        "tree bomb": (make(("40000", bomb, b"bomb"), description), "holds more than"),
        "hollow tree bomb": (make(description, ("40000", hollow, b"hollow")), "holds more than"),
        "deep tree": (make(("40000", deep, b"deep"), description), "folders deep"),
    }


@pytest.mark.slow
def test_hostile_steps_are_refused_and_leave_nothing(
    upstream: GitRepository, tmp_path: Path, open_registry: Callable[..., WorkflowRegistry]
) -> None:
    registry = open_registry(mirror_max_age_s=0, step_max_files=1000)
    outside = tmp_path / "builds"
    outside.mkdir()
    for name, (tree, problem) in hostile_steps(upstream).items():
        upstream.commit_step(tree)
        ref = registry.locate("hostile", "step")
        with pytest.raises(BadDescription, match=problem):
            registry.extract(ref, outside / "step")
        assert list(outside.iterdir()) == [], name


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"step_max_files": 3}, "more than 3 files"),
        ({"step_max_bytes": 2 * 1024**2}, "more than 2 MiB"),
    ],
)
def test_a_step_that_is_too_large_is_refused(
    upstream: GitRepository,
    open_registry: Callable[..., WorkflowRegistry],
    tmp_path: Path,
    settings: dict[str, int],
    problem: str,
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    for number in range(3):
        upstream.write(f"flow/step/f{number}", "x" * 1024**2)
    upstream.commit()
    registry = open_registry(**settings)
    with pytest.raises(BadDescription, match=problem):
        registry.extract(registry.locate("flow", "step"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_old_file_modes_are_taken_as_git_takes_them(
    upstream: GitRepository, registry: WorkflowRegistry, tmp_path: Path
) -> None:
    blob = upstream.blob(MINIMAL.encode())
    upstream.commit_step(
        upstream.make_tree(("100664", blob, b"eflows4hpc.yaml"), ("100775", blob, b"run"))
    )
    registry.extract(registry.locate("hostile", "step"), tmp_path / "out")
    assert [os.access(tmp_path / "out" / name, os.X_OK) for name in ("eflows4hpc.yaml", "run")] == [
        False,
        True,
    ]


def test_a_cancelled_extraction_leaves_nothing(
    upstream: GitRepository, registry: WorkflowRegistry, tmp_path: Path
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    upstream.commit()
    ref = registry.locate("flow", "step")
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        registry.extract(ref, tmp_path / "out", cancel)
    assert not (tmp_path / "out").exists()
    registry.extract(ref, tmp_path / "out")


def test_a_pinned_step_is_extracted_though_everything_moved_on(
    upstream: GitRepository, tmp_path: Path, open_registry: Callable[..., WorkflowRegistry]
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml", "apt: [old]\n")
    upstream.commit()
    ref = open_registry().locate("flow", "step")
    upstream.write("flow/step/eflows4hpc.yaml", "apt: [new]\n")
    upstream.git("commit", "--quiet", "--all", "--amend", "--message", "history rewritten")
    elsewhere = WorkflowRegistry(
        RepositorySettings(workflow_repository=upstream.url), tmp_path / "other mirrors"
    )
    elsewhere.extract(ref, tmp_path / "out")
    assert (
        elsewhere.read(ref).description
        == (tmp_path / "out/eflows4hpc.yaml").read_text()
        == "apt: [old]\n"
    )
    elsewhere.close()


def test_a_pinned_step_that_is_gone_is_told(
    upstream: GitRepository, tmp_path: Path, open_registry: Callable[..., WorkflowRegistry]
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    upstream.commit()
    ref = open_registry().locate("flow", "step")
    upstream.git("commit", "--quiet", "--amend", "--message", "history rewritten")
    upstream.git("reflog", "expire", "--expire=now", "--all")
    upstream.git("gc", "--quiet", "--prune=now")
    elsewhere = WorkflowRegistry(
        RepositorySettings(workflow_repository=upstream.url), tmp_path / "other mirrors"
    )
    with pytest.raises(Unavailable, match="no longer in the workflow registry"):
        elsewhere.extract(ref, tmp_path / "out")
    elsewhere.close()


# What the planner reads, from either place


@pytest.fixture(params=["registry", "folder"])
def read_step(
    request: pytest.FixtureRequest,
    upstream: GitRepository,
    open_registry: Callable[..., WorkflowRegistry],
) -> Callable[[], StepFiles]:
    """Reads the step `flow/step` as it lies in the work tree."""

    def from_registry() -> StepFiles:
        upstream.commit()
        registry = open_registry(mirror_max_age_s=0)
        return registry.read(registry.locate("flow", "step"))

    def from_folder() -> StepFiles:
        return read_folder(upstream.folder / "flow/step")

    return from_registry if request.param == "registry" else from_folder


def test_the_files_of_a_step(upstream: GitRepository, read_step: Callable[[], StepFiles]) -> None:
    upstream.write("flow/step/eflows4hpc.yml", "\ufeffapt: [é]\n")
    assert read_step() == StepFiles(description_file="eflows4hpc.yml", description="apt: [é]\n")
    upstream.write("flow/step/requirements.txt", "numpy\n")
    upstream.write("flow/step/post_inst.sh", "#! /bin/bash -e\r\necho\n")
    assert read_step() == StepFiles(
        description_file="eflows4hpc.yml",
        description="apt: [é]\n",
        requirements="numpy\n",
        has_post_install=True,
    )


def test_of_two_descriptions_the_yaml_is_used(
    upstream: GitRepository, read_step: Callable[[], StepFiles]
) -> None:
    upstream.write("flow/step/eflows4hpc.yml", "apt: [second]\n")
    upstream.write("flow/step/eflows4hpc.yaml", "apt: [first]\n")
    files = read_step()
    assert (files.description_file, files.description) == ("eflows4hpc.yaml", "apt: [first]\n")
    assert "eflows4hpc.yaml is used" in files.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"text", "eflows4hpc.yaml: is missing in the step's folder"),
        ("eflows4hpc.yaml", b"apt:\n- a\n- \xff\n", "eflows4hpc.yaml, line 3: is not UTF-8 text"),
        ("eflows4hpc.yaml", b"#" * (256 * 1024 + 1), "eflows4hpc.yaml: is larger than 256 KiB"),
        ("requirements.txt", b"numpy\n\xff", "requirements.txt, line 2: is not UTF-8 text"),
        ("requirements.txt", b"#" * (256 * 1024 + 1), "requirements.txt: is larger than 256 KiB"),
        ("eflows4hpc.yaml/file", b"", "eflows4hpc.yaml: is not a regular file"),
        ("post_inst.sh/file", b"", "post_inst.sh: is not a regular file"),
    ],
)
def test_files_that_cannot_be_read(
    upstream: GitRepository,
    read_step: Callable[[], StepFiles],
    name: str,
    content: bytes,
    message: str,
) -> None:
    if not name.startswith(("README", "eflows4hpc")):
        upstream.write("flow/step/eflows4hpc.yaml")
    upstream.write(f"flow/step/{name}")
    (upstream.folder / "flow/step" / name).write_bytes(content)
    with pytest.raises(BadDescription) as refusal:
        read_step()
    assert refusal.value.message == message
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["eflows4hpc.yaml", "requirements.txt", "post_inst.sh"])
@pytest.mark.parametrize("target", ["/etc/hostname", "other", "nowhere"])
def test_a_file_that_decides_is_no_link(
    upstream: GitRepository, read_step: Callable[[], StepFiles], name: str, target: str
) -> None:
    upstream.write("flow/step/eflows4hpc.yml")
    upstream.write("flow/step/other")
    os.symlink(target, upstream.folder / "flow/step" / name)
    with pytest.raises(BadDescription, match=f"{name}: is not a regular file"):
        read_step()


# Folders of this machine


def test_a_local_step_counts_the_files_as_they_lie_there(
    upstream: GitRepository, tmp_path: Path
) -> None:
    upstream.write("flow/step/eflows4hpc.yaml")
    upstream.commit()
    folder = upstream.folder / "flow/step"
    clean = local_step(folder, workflow="flow", step_id="step", version="mine")
    assert (clean.tree, clean.commit, clean.path) == (upstream.tree("flow/step"), None, folder)
    upstream.write("flow/step/untracked", "counts")
    changed = local_step(folder, workflow="flow", step_id="step")
    assert changed.tree != clean.tree
    copy_local(changed, tmp_path / "out")
    assert files_below(tmp_path / "out") == {"eflows4hpc.yaml", "untracked"}
    with pytest.raises(BadDescription, match="changed while it was read"):
        copy_local(clean, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_whole_checkout_is_taken_without_git_s_own_files(
    upstream: GitRepository, tmp_path: Path
) -> None:
    upstream.write("eflows4hpc.yaml")
    upstream.commit()
    ref = local_step(upstream.folder, workflow="flow", step_id="step")
    assert ref.tree == upstream.git("rev-parse", "HEAD^{tree}")
    copy_local(ref, tmp_path / "out")
    assert files_below(tmp_path / "out") == {"eflows4hpc.yaml"}


def test_a_folder_that_does_not_exist_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "description").mkdir()
    with pytest.raises(NotFound) as refusal:
        local_step(tmp_path / "descripton", workflow="flow", step_id="step")
    assert (refusal.value.field, refusal.value.hint) == ("path", "Did you mean description?")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound):
        local_step(tmp_path / "file", workflow="flow", step_id="step")


def test_a_local_step_is_held_to_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    os.symlink("../secret", tmp_path / "step/link")
    with pytest.raises(BadDescription, match="link: is a symbolic link that leaves the folder"):
        local_step(tmp_path / "step", workflow="flow", step_id="step")
    with pytest.raises(BadDescription, match="holds more than 50 files"):
        local_step("/usr", workflow="flow", step_id="step", limits=Limits(max_files=50))


def test_the_limits_are_the_site_s() -> None:
    settings = RepositorySettings(
        workflow_repository="https://example.org/r", step_max_files=7, step_max_bytes=9
    )
    assert step.limits_of(settings) == Limits(max_files=7, max_bytes=9)
