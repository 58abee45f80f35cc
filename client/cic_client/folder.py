"""Pack a request and a folder into the form that the service takes."""

from __future__ import annotations

import secrets
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from cic_client.errors import BadInput
from cic_client.transport import Body


def packed(request: bytes, folder: Path) -> Body:
    """Return the form with a request and a tar of a folder; its file is to be closed.

    Owners and git's own files stay here. Raises `BadInput`.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder.")
    boundary = secrets.token_hex(16)
    form = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives this call
    try:
        form.write(
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="request"\r\n'
            "Content-Type: application/json\r\n\r\n".encode()
        )
        form.write(request)
        form.write(
            f"\r\n--{boundary}\r\n"
            'Content-Disposition: form-data; name="folder"; filename="folder.tar"\r\n'
            "Content-Type: application/x-tar\r\n\r\n".encode()
        )
        _add_tar(form, folder)
        form.write(f"\r\n--{boundary}--\r\n".encode())
    except BaseException as error:
        form.close()
        if isinstance(error, OSError):
            raise BadInput(f"The folder {folder} cannot be packed: {error}") from None
        raise
    return Body(form, f"multipart/form-data; boundary={boundary}")


def _add_tar(form: IO[bytes], folder: Path) -> None:
    with tarfile.open(fileobj=form, mode="w|", format=tarfile.PAX_FORMAT) as archive:

        def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
            # A file of two names is sent twice, since hard links are refused.
            archive.inodes.clear()  # type: ignore[attr-defined]  # typeshed does not know it
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            return member

        for path in sorted(folder.iterdir()):
            if path.name != ".git":
                archive.add(path, arcname=f"./{path.name}", filter=anonymous)
