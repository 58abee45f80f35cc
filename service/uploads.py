"""Take folders that users send: unpack, check, count and remove them."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import FieldProblem, InvalidRequest, NotFound
from image_builder.host.secrets import Secret
from image_builder.request.build_request import BuildRequest
from image_builder.sources.description import parse_description
from image_builder.sources.git.remote import Network
from image_builder.sources.git.trees import BadTree
from image_builder.sources.local_step import read_folder
from image_builder.sources.step import StepRef, limits_of
from image_builder.sources.uploads import Upload, keep_upload
from image_builder.sources.user_repositories import Credential, fetch_step, host_of
from service import sealing
from service.db import git_credentials
from service.db import uploads as db


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uploads:
    """The folders that the users of one service have sent."""

    engine: Engine
    settings: Settings

    def take(self, archive: IO[bytes], user_id: int) -> Upload:
        """Keep the folder in a tar archive for a user.

        Raises `InvalidRequest` for what is none or not within the limits of steps, `BadDescription`
        for a folder that cannot be built, and `LimitReached` when the user has sent too much.
        """
        self._require_place("folder")
        upload = self._kept(archive)
        self._record(upload, user_id)
        if not (self._root / upload.tree).is_dir():  # removed before it was written down
            archive.seek(0)
            return self._kept(archive)
        return upload

    def fetch(self, request: BuildRequest, user_id: int) -> StepRef:
        """Return the step in a user's repository, whose folder is kept from now on.

        Raises what `fetch_step` does, `BadDescription` for a folder that cannot be built, and
        `LimitReached` when the user has sent too much.
        """
        self._require_place("repository")
        library = self.settings.library
        network = Network.of(library.repositories, library.build)
        limits = limits_of(library.repositories)
        credential = self._credential(request.repository or "", user_id)
        fetched = fetch_step(request, self._root, limits, network, credential=credential)
        self._record(
            Upload(tree=fetched.step.tree, files=0, size_bytes=fetched.size_bytes), user_id
        )
        return fetched.step

    def require(self, tree: str, user_id: int) -> None:
        """Raise `NotFound` for a folder that this user has not sent, or that is removed."""
        if not db.use(self.engine, user_id, tree) or not (self._root / tree).is_dir():
            raise NotFound(
                "You have sent no such folder, or it was removed.",
                field="folder",
                hint="Send it with the request, as a tar archive.",
            )

    def forget(self, tree: str) -> bool:
        """Remove a folder that nobody has sent and no build waits for; return whether it did."""
        if tree in db.known_trees(self.engine):
            return False
        aside = self._root / f"aside-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            (self._root / tree).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return True
        return False

    def unneeded(self, grace_s: float) -> Iterator[Path]:
        """Yield the folders that nobody needs, and what killed writers left."""
        if not self._root.is_dir():
            return
        known, horizon = db.known_trees(self.engine), time.time() - grace_s
        for folder in sorted(self._root.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                # The time of a change: all kept folders have one time of writing (`trees.MTIME_S`).
                if folder.name not in known and folder.stat().st_ctime < horizon:
                    yield folder

    def remove(self, folder: Path) -> bool:
        """Remove one of `unneeded`, unless it is needed by now; return whether it did."""
        if folder.name.startswith("aside-"):
            shutil.rmtree(folder, ignore_errors=True)
            return True
        return self.forget(folder.name)

    @property
    def _root(self) -> Path:
        return self.settings.library.build.uploads

    def _credential(self, repository: str, user_id: int) -> Credential | None:
        """Return with what a user logs in to a repository's host; over TLS alone."""
        kept = git_credentials.for_host(self.engine, user_id, host_of(repository))
        if kept is None or not repository.startswith("https://"):
            return None
        login, sealed = kept
        secret = sealing.unseal(sealed, self.settings.service).get_secret_value()
        return Credential(user=login, secret=Secret(secret))

    def _record(self, upload: Upload, user_id: int) -> None:
        """Check the description of a kept folder, and note whose it is."""
        try:
            files = read_folder(self._root / upload.tree)
            parse_description(files.description, files.description_file)
            gone = db.record(
                self.engine,
                user_id,
                upload.tree,
                upload.size_bytes,
                max_bytes=self.settings.service.max_uploads_bytes_per_user,
                max_bytes_of_all=self.settings.service.max_uploads_bytes,
            )
        except BaseException:
            self.forget(upload.tree)
            raise
        for tree in gone:
            self.forget(tree)

    def _require_place(self, field: str) -> None:
        service, build = self.settings.service, self.settings.library.build
        if service.executor == "celery" and build.uploads_folder is None:
            problem = "this site's workers share no folder for what users send"
            raise InvalidRequest(
                [FieldProblem(field, problem, "describe the image, or put it into the registry")]
            )

    def _kept(self, archive: IO[bytes]) -> Upload:
        try:
            return keep_upload(archive, self._root, limits_of(self.settings.library.repositories))
        except BadTree as error:
            raise InvalidRequest([FieldProblem("folder", str(error), error.hint)]) from None
