"""Offer every call of the service as a method, named as the service's OpenAPI document names it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import requests

from cic_client import lazy
from cic_client.accepted import Accepted
from cic_client.errors import BadInput, Refused, UnexpectedAnswer, Unreachable
from cic_client.transport import AWAY, TRIES, Body, Login, Transport, Whole, base_url

TEXT = "text/plain"
DEFAULT_ROOT = "image_creation"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 10.0
PATIENCE = 30
"""How many failures in a row a call that polls bears, once the service has answered it."""

if TYPE_CHECKING:
    from cic_client import download, models
    from cic_client import folder as packing
    from cic_client.download import Open, Progress
else:  # a request, which is to be answered at once, needs none of them
    download, packing, models = (
        lazy.module(f"cic_client.{name}") for name in ("download", "folder", "models")
    )

Polled = TypeVar("Polled")
Request = Mapping[str, Any] | str | bytes
"""A build request: its fields, or its text as it stands in a file."""


def _nothing(_present: int, _size: int) -> None:
    """Is told of progress, and does nothing."""


class Client:
    """A service, as one user sees it. Use it in a `with` statement, or call `close`.

    `token` logs in, or `user` and `password`. `root` is where the service lives under the address,
    and `tries` how often a call is made that may be repeated.
    Every call raises `Refused`, `Unreachable`, `UnexpectedAnswer` or `BadInput`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        user: str | None = None,
        password: str = "",
        root: str = DEFAULT_ROOT,
        verify_tls: bool = True,
        tries: int = TRIES,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pause = pause
        self._transport = Transport(
            base_url(url, root),
            Login(token=token, user=user, password=password),
            verify_tls=verify_tls,
            tries=tries,
            pause=pause,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    # ---- Builds

    def submit(self, request: Request, *, folder: Path | None = None) -> Accepted:
        """Ask for an image; with `folder`, of the step in that folder of this machine."""
        if folder is None:
            return self._post("/build/", request).parsed(Accepted)
        body = packing.packed(_request_bytes(request), folder)
        with cast("IO[bytes]", body.content):
            return self._transport.call("POST", "/build/", body=body).parsed(Accepted)

    def plan(self, request: Request) -> models.Plan:
        """Return what would be built; nothing is."""
        return self._post("/build/plan", request).parsed(models.Plan)

    def list_builds(
        self, *, status: str | None = None, page: int = 1, per_page: int = 20
    ) -> models.BuildList:
        """Return a page of your builds, newest first."""
        query = {
            "page": str(page),
            "per_page": str(per_page),
            **({"status": status} if status else {}),
        }
        return self._get("/build/", query).parsed(models.BuildList)

    def status(self, build_id: str) -> models.Build:
        """Return how a build stands."""
        return self._get(f"/build/{_segment(build_id)}").parsed(models.Build)

    def cancel(self, build_id: str) -> models.Build:
        """Give a build up."""
        path = f"/build/{_segment(build_id)}/cancel"
        return self._transport.call("POST", path).parsed(models.Build)

    def delete(self, build_id: str) -> None:
        """Delete a build that has ended."""
        self._transport.call("DELETE", f"/build/{_segment(build_id)}")

    def timeline(self, build_id: str) -> models.Timeline:
        """Return what ran in a build, and when; also while it goes on."""
        return self._get(f"/build/{_segment(build_id)}/timeline").parsed(models.Timeline)

    def log(self, build_id: str, *, offset: int = 0) -> models.LogPart:
        """Return a part of a build's log, from a byte on."""
        path = f"/build/{_segment(build_id)}/log"
        answer = self._transport.call("GET", path, query={"offset": str(offset)}, accept=TEXT)
        following = answer.headers.get("X-Log-Offset", "")
        if not re.fullmatch("[0-9]{1,18}", following) or int(following) < offset:
            raise UnexpectedAnswer("The service does not say where its log goes on.")
        return models.LogPart(
            content=answer.content,
            next_offset=int(following),
            is_complete=answer.headers.get("X-Log-Complete") == "true",
        )

    def log_so_far(self, build_id: str) -> Iterator[bytes]:
        """Yield what there is of a build's log."""
        offset = 0
        while (part := self.log(build_id, offset=offset)).content:
            yield part.content
            offset = part.next_offset

    def follow_log(self, build_id: str, *, offset: int = 0) -> Iterator[bytes]:
        """Yield a build's log from a byte on, as it grows, until it is complete."""
        pause_s = FIRST_PAUSE_S
        part = self.log(build_id, offset=offset)
        while True:
            if part.content:
                yield part.content
            if part.is_complete:
                return
            pause_s = FIRST_PAUSE_S if part.next_offset > offset else _longer(pause_s)
            offset = part.next_offset
            self._pause(pause_s)
            part = self._patiently(self.log, build_id, offset=offset)

    def watch(self, build_id: str) -> Iterator[models.Build]:
        """Yield how a build stands, again and again; the last one has ended."""
        pause_s, seen = FIRST_PAUSE_S, None
        build = self.status(build_id)
        while True:
            yield build
            if build.has_ended:
                return
            pause_s = FIRST_PAUSE_S if build != seen else _longer(pause_s)
            seen = build
            self._pause(pause_s)
            build = self._patiently(self.status, build_id)

    def wait(self, build_id: str) -> models.Build:
        """Return a build once it has ended, well or not."""
        *_, last = self.watch(build_id)
        return last

    # ---- Images

    def list_images(self) -> models.ImageList:
        """Return the finished images that you may fetch, newest first."""
        return self._get("/image/").parsed(models.ImageList)

    def image(self, filename: str) -> models.Image:
        """Return what is known of an image."""
        return self._get(f"/image/{_segment(filename)}").parsed(models.Image)

    def share(self, filename: str, users: Sequence[str], groups: Sequence[str] = ()) -> None:
        """Share your private image with these users and groups of yours, and nobody else."""
        audience = {"users": list(users), **({"groups": list(groups)} if groups else {})}
        self._post(f"/image/{_segment(filename)}/share", audience)

    def pin(self, filename: str) -> None:
        """Let clean-up keep an image. For administrators."""
        self._transport.call("POST", f"/image/{_segment(filename)}/pin")

    def unpin(self, filename: str) -> None:
        """Let clean-up treat an image as all others. For administrators."""
        self._transport.call("DELETE", f"/image/{_segment(filename)}/pin")

    def document_of(self, filename: str, name: str) -> str:
        """Return a text that an image was made from, such as `spack.lock`."""
        return self._text(f"/image/{_segment(filename)}/document/{_segment(name)}")

    def packages_of(
        self,
        filename: str,
        *,
        search: str = "",
        kind: str | None = None,
        page: int = 1,
        per_page: int = 100,
    ) -> models.PackageList:
        """Return a page of what is installed in an image; `kind` is spack, debian or python."""
        query = {"page": str(page), "per_page": str(per_page)}
        query |= {key: value for key, value in (("search", search), ("kind", kind)) if value}
        return self._get(f"/image/{_segment(filename)}/packages", query).parsed(models.PackageList)

    def check(self, filename: str, machine: str | None = None, **facts: str) -> models.Check:
        """Return whether an image works on a machine of the catalogue, or one of these facts."""
        query = facts | ({"machine": machine} if machine else {})
        return self._get(f"/image/{_segment(filename)}/check", query).parsed(models.Check)

    def script_of(self, filename: str, machine: str | None = None, **facts: str) -> str:
        """Return what starts an image on a machine; `kind` and `program` are given with the facts."""
        query = facts | ({"machine": machine} if machine else {})
        return self._text(f"/image/{_segment(filename)}/script", query)

    def download(
        self,
        filename: str,
        folder: Path,
        *,
        name: str | None = None,
        sha256: str | None = None,
        progress: Progress = _nothing,
    ) -> Path:
        """Fetch an image into a folder, and return its path; what is there already is completed.

        The file is called `name`, or else as the image. With `sha256`, nothing but that file is
        taken. Raises `WrongChecksum` too.
        """
        image = self._image_to_fetch(filename, sha256)
        target = folder / (name or filename)
        return download.until_whole(
            lambda noted: download.fetch(image, target, self._opening(image), noted),
            progress,
            self._pause,
        )

    def copy_to(
        self,
        filename: str,
        write: Callable[[bytes], object],
        *,
        progress: Progress = _nothing,
    ) -> None:
        """Write an image to where nothing is kept, block by block.

        What is written is good once this returns: `WrongChecksum` comes at the end.
        """
        image = self._image_to_fetch(filename, None)
        copy = download.Copy(image, write)
        download.until_whole(
            lambda noted: copy.go_on(self._opening(image), noted), progress, self._pause
        )

    def _image_to_fetch(self, filename: str, sha256: str | None) -> models.Image:
        image = self.image(filename)
        if image.filename != filename or sha256 not in (None, image.sha256):
            raise UnexpectedAnswer(f"{filename} is another image by now.")
        return image

    def _opening(self, image: models.Image) -> Open:
        def open_from(offset: int) -> requests.Response:
            headers = {"Accept-Encoding": "identity"}
            if offset:
                headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{image.sha256}"'}
            path = f"/images/download/{_segment(image.filename)}"
            return self._transport.open("GET", path, headers=headers)

        return open_from

    # ---- Machines

    def architectures(self, *, platform: str | None = None) -> models.ArchitectureList:
        """Return the CPU targets that a request may name."""
        query = {"platform": platform} if platform else {}
        return self._get("/architecture/", query).parsed(models.ArchitectureList)

    def machines(self, *, search: str | None = None) -> models.MachineList:
        """Return the machine catalogue, or of it the machines that have all words of a search."""
        query = {"search": search} if search else {}
        return self._get("/machine/", query).parsed(models.MachineList)

    def recognise_machine(self, facts: Request) -> models.Recognised:
        """Return which machine the facts are of that `cic_cli here` prints."""
        return self._post("/machine/recognise", facts).parsed(models.Recognised)

    # ---- Notices

    def list_webhooks(self) -> models.WebhookList:
        """Return your webhooks."""
        return self._get("/webhook/").parsed(models.WebhookList)

    def add_webhook(self, url: str, events: Sequence[str] | None = None) -> models.NewWebhook:
        """Have an address told of your builds; the answer alone has the secret that signs."""
        asked = {"url": url} | ({} if events is None else {"events": list(events)})
        return self._post("/webhook/", asked).parsed(models.NewWebhook)

    def change_webhook(
        self,
        webhook_id: int,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        on: bool | None = None,
    ) -> models.Webhook:
        """Change what is given of a webhook."""
        given = {"url": url, "events": None if events is None else list(events), "on": on}
        asked = {key: value for key, value in given.items() if value is not None}
        return self._post(f"/webhook/{webhook_id:d}", asked).parsed(models.Webhook)

    def remove_webhook(self, webhook_id: int) -> None:
        """Have a webhook called no more."""
        self._transport.call("DELETE", f"/webhook/{webhook_id:d}")

    def test_webhook(self, webhook_id: int) -> models.UnderWay:
        """Have a webhook called, to try it; `list_notices` says what came of it."""
        path = f"/webhook/{webhook_id:d}/test"
        return self._transport.call("POST", path).parsed(models.UnderWay)

    def mail(self) -> models.Mail:
        """Return where you get mail."""
        return self._get("/mail/").parsed(models.Mail)

    def set_mail(
        self, address: str, *, events: Sequence[str] | None = None, on: bool = True
    ) -> models.Mail:
        """Say where you get mail; a new address gets a link that confirms it."""
        asked: dict[str, Any] = {"address": address, "on": on}
        asked |= {} if events is None else {"events": list(events)}
        return self._post("/mail/", asked).parsed(models.Mail)

    def remove_mail(self) -> None:
        """Get no more mail."""
        self._transport.call("DELETE", "/mail/")

    def list_notices(self) -> models.NoticeList:
        """Return what was sent to your webhooks and by mail, newest first."""
        return self._get("/notice/").parsed(models.NoticeList)

    # ---- Who you are

    def list_groups(self) -> models.GroupList:
        """Return the groups that you are in, with which you may share images."""
        return self._get("/group/").parsed(models.GroupList)

    def device_log_in(self) -> models.DeviceLogIn:
        """Return where a program logs its user in; `device.log_in` does so."""
        return self._get("/auth/oidc").parsed(models.DeviceLogIn)

    def log_in_with_device(
        self, id_token: str, *, access_token: str | None = None, name: str = "cic login"
    ) -> models.LoggedIn:
        """Return a token of the service for what the device flow gave; it takes it once."""
        given = {"id_token": id_token, "access_token": access_token, "name": name}
        return self._post("/auth/oidc", given).parsed(models.LoggedIn)

    def revoke_token(self) -> None:
        """Revoke the token that this client logs in with; every other call is refused then."""
        self._transport.call("DELETE", "/auth/token")

    # ---- The service itself

    def live(self) -> models.Health:
        """Return whether the server answers."""
        return self._get("/health/live").parsed(models.Health)

    def ready(self) -> models.Health:
        """Return whether the service can build."""
        return self._get("/health/ready").parsed(models.Health)

    def public_keys(self) -> str:
        """Return the keys of what the service signs, in PEM."""
        return self._text("/key/")

    def metrics(self) -> str:
        """Return the service's numbers, in Prometheus' text format."""
        return self._text("/metrics")

    def openapi(self) -> dict[str, Any]:
        """Return the service's own description."""
        return self._get("/openapi.json").parsed(models.Answer).as_json()

    def _patiently(self, call: Callable[..., Polled], *arguments: Any, **options: Any) -> Polled:
        """Return what a call answers, though the service be away for a while."""
        for _ in range(PATIENCE - 1):
            try:
                return call(*arguments, **options)
            except Unreachable:
                pass
            except Refused as error:
                if error.status not in AWAY:
                    raise
            self._pause(LONGEST_PAUSE_S)
        return call(*arguments, **options)

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Whole:
        return self._transport.call("GET", path, query=query)

    def _text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        return self._transport.call("GET", path, query=query, accept=TEXT).text

    def _post(self, path: str, request: Request) -> Whole:
        return self._transport.call("POST", path, body=Body(_request_bytes(request)))


def _request_bytes(request: Request) -> bytes:
    if isinstance(request, bytes):
        return request
    return (request if isinstance(request, str) else json.dumps(dict(request))).encode()


def _segment(name: str) -> str:
    """Return a name as one segment of a path. Raises `BadInput` for what servers would resolve."""
    if "/" in name or name in ("", ".", ".."):
        raise BadInput(
            f"'{name}' is no build id or image name (a filename has no slash, unlike an image_id)."
        )
    return quote(name, safe="")


def _longer(pause_s: float) -> float:
    return min(2 * pause_s, LONGEST_PAUSE_S)
