"""Makes one build's folders, and removes them with everything in them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from image_builder.errors import NoSpace
from image_builder.host import file_leases


class Workspace:
    """Holds the folders of one build below one root.

    `context` is what buildx reads, `secrets` what it may mount and never copies, `scratch` is for
    everything else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.context = root / "context"
        self.secrets = root / "secrets"
        self.scratch = root / "scratch"

    def write_context(self, files: Mapping[str, str]) -> None:
        """Write texts below the context; scripts (a first line with `#!`) become executable."""
        for name, text in files.items():
            path = self.context / name
            if self.context.resolve() not in path.resolve().parents:
                raise ValueError(f"{name} is outside the build context")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            path.chmod(0o755 if text.startswith("#!") else 0o644)

    def write_secret(self, name: str, content: bytes) -> Path:
        """Write a file that only we may read, and return its path for `--secret id=…,src=…`."""
        path = self.secrets / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path


@contextlib.contextmanager
def made_workspace(root: Path, *, min_free_bytes: int = 0) -> Iterator[Workspace]:
    """Yield an empty workspace at `root` under a file lease, and remove it at the end.

    What an earlier attempt left there is removed first. Raises `NoSpace` when the disk has less
    than `min_free_bytes` free.
    """
    root.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    with file_leases.held_folder(root):
        try:
            _empty(root)
            workspace = Workspace(root)
            for folder in (workspace.context, workspace.secrets, workspace.scratch):
                folder.mkdir(mode=0o700)
            require_free_space(root, min_free_bytes)
            yield workspace
        finally:
            shutil.rmtree(root, ignore_errors=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def abandoned(builds: Path) -> list[Path]:
    """Return the folders of builds that were killed: no process has a lease on them."""
    return (
        [
            folder
            for folder in sorted(builds.iterdir())
            if folder.is_dir() and not file_leases.is_held(folder)
        ]
        if builds.is_dir()
        else []
    )


def remove_abandoned(folder: Path) -> bool:
    """Remove a build's folder unless a process has a lease on it; return whether it did."""
    with file_leases.alone(folder) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
        return free


def require_free_space(folder: Path, min_free_bytes: int) -> None:
    """Raise `NoSpace` when the disk below `folder` has less than `min_free_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < min_free_bytes:
        raise NoSpace(
            f"The disk of {folder} has {free_bytes / 1e9:.1f} GB free, and {min_free_bytes / 1e9:.1f} GB "
            "are needed before a stage begins.",
            hint="Free some room, or lower min_free_bytes.",
        )
