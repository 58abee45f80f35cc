"""Reads and writes a repository of an OCI registry: blobs and manifests, over HTTP.

Uploads and downloads stream, so a file of any size takes no memory; what is read whole is bounded in size and time.
A reader of a manifest or a blob always gets a whole one: the registry checks every upload against its digest, and a
tag moves in one step.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import requests
import urllib3
from requests.utils import parse_header_links

from image_builder.docker.label_names import TITLE
from image_builder.errors import ErrorCode, Unavailable

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TIMEOUT_S = (10.0, 120.0)
"""The limits of connecting, and of each pause in an answer."""
ANSWER_S, TAGS_S = 120.0, 600.0
"""How long an answer that is read whole may take to come, and a list of all tags with its pages."""
MAX_MANIFEST_BYTES = 4 * 1024**2
"""What registries take at least, says the OCI's specification of distribution; many take no more."""
MAX_TAGS_BYTES = 64 * 1024**2
"""Of all pages together: half a million tags of the longest kind."""
MAX_TOKEN_BYTES = 1024**2
MAX_BLOB_BYTES = 256 * 1024**2
"""Of a blob that is read whole, such as a document about an image."""
MAX_REDIRECT_BYTES = 1024**2
MAX_SHOWN = 300
PAGE = 1000
NO_ANSWER = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
"""For an address that cannot be one, requests lets errors of urllib3 and urllib through."""
_BLOCK_BYTES = 64 * 1024
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]+")
"""As the OCI's specification of images has it; other programs' may be of other algorithms."""
PLAIN = {"Accept-Encoding": "identity"}
"""Nothing is asked for compressed, and so nothing grows as it is read."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Hosts of this machine, whose registries are used without TLS, as Docker does."""


class RegistryUnavailable(Unavailable):
    """The registry does not answer, or answers with an error."""

    code = ErrorCode.IMAGE_REGISTRY_UNAVAILABLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Holds a manifest with the digest that the registry knows it by.

    Anybody who may write to the repository may have made it, of any JSON.
    """

    digest: str
    content: Mapping[str, Any]

    @property
    def annotations(self) -> dict[str, str]:
        return _annotations(self.content)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Return the descriptors of its layers. What has no digest or size is none."""
        layers = self.content.get("layers")
        return [
            layer
            for layer in (layers if isinstance(layers, list) else ())
            if isinstance(layer, dict)
            and _DIGEST.fullmatch(str(layer.get("digest")))
            and isinstance(size := layer.get("size"), int)
            and size >= 0
        ]

    @property
    def layers_by_title(self) -> dict[str, dict[str, Any]]:
        """Return the descriptors of the layers that are files, by their names."""
        titled = ((_annotations(layer).get(TITLE), layer) for layer in self.layers)
        return {title: layer for title, layer in titled if title is not None}


class Body:
    """Reads a blob while it is downloaded."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def read(self, size: int | None = None) -> bytes:
        """Return the next bytes as soon as there are any, none at the end.

        Raises `RegistryUnavailable` when the connection breaks.
        """
        try:
            chunk: bytes = self._raw.read1(size)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _broken_off(error) from error
        return chunk


class _Whole:
    """Reads what is read whole: one answer or several, bounded in size and time together."""

    def __init__(self, what: str, most_bytes: int, *, within_s: float | None = None) -> None:
        self._what, self._most = what, most_bytes
        self._left, self._end = most_bytes, time.monotonic() + (within_s or ANSWER_S)

    def content(self, answer: requests.Response) -> bytes:
        """Return the body of an answer as it came, not decompressed. Raises `RegistryUnavailable`."""
        content = self._read(answer, self._left + 1)
        if len(content) > self._left:
            raise RegistryUnavailable(
                f"{self._what} is larger than {self._most} bytes, which is all that is read.",
                hint="Look at what is in the registry; this service puts nothing so large there.",
            )
        self._left -= len(content)
        return content

    def beginning(self, answer: requests.Response) -> bytes:
        """Return the body of an answer without what is beyond the bound."""
        return self._read(answer, self._left)

    def _read(self, answer: requests.Response, most: int) -> bytes:
        """Return up to so many bytes, also of a body that comes byte by byte: `read1` waits for none."""
        content = bytearray()
        try:
            while len(content) < most and (
                block := answer.raw.read1(
                    min(_BLOCK_BYTES, most - len(content)), decode_content=False
                )
            ):
                content += block
                if time.monotonic() > self._end:
                    raise RegistryUnavailable(
                        f"{self._what} takes the registry too long to send.",
                        hint="Try again in a while.",
                    )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _broken_off(error) from error
        return bytes(content)


class OciRepository:
    """Reads and writes one repository; safe among threads, which share a pool of connections."""

    def __init__(
        self,
        host: str,
        name: str,
        *,
        credentials: tuple[str, str] | None = None,
        ca_bundle: Path | None = None,
    ) -> None:
        is_local = host.rpartition(":")[0] in LOOPBACK or host in LOOPBACK
        self.host, self.name = host, name
        self._base = f"{'http' if is_local else 'https'}://{host}/v2/{name}"
        self._credentials = credentials
        self._session = requests.Session()
        self._session.trust_env = not is_local
        self._session.hooks["response"].append(_bounded_redirect)
        self._verify = str(ca_bundle) if ca_bundle is not None else True
        self._authorization: str | None = None

    def tags(self) -> list[str]:
        """Return every tag; none if there is no such repository yet."""
        names: list[str] = []
        whole = _Whole("The list of tags", MAX_TAGS_BYTES, within_s=TAGS_S)
        address: str | None = f"{self._base}/tags/list?n={PAGE}"
        while address is not None:
            with self._request("GET", address, accept=(200, 404)) as answer:
                if answer.status_code == 404:
                    return []
                names += _tags(whole.content(answer))
                links = parse_header_links(answer.headers.get("Link", ""))
                following = next((link["url"] for link in links if link.get("rel") == "next"), None)
                address = _joined(address, following) if following else None
        return names

    def manifest(self, tag: str) -> Manifest | None:
        """Return the manifest that a tag means at present, or None."""
        with self._request(
            "GET", f"{self._base}/manifests/{tag}", accept=(200, 404), headers={"Accept": MANIFEST}
        ) as answer:
            if answer.status_code == 404:
                return None
            text = _Whole(f"The manifest {tag}", MAX_MANIFEST_BYTES).content(answer)
            return Manifest(digest=_digest(text), content=_parsed(text))

    def put_manifest(self, tag: str, content: Mapping[str, Any]) -> str:
        """Let a tag mean a manifest whose blobs are uploaded, and return the manifest's digest."""
        body = _written(content)
        with self._request(
            "PUT",
            f"{self._base}/manifests/{tag}",
            accept=(201,),
            body=lambda: body,
            headers={"Content-Type": MANIFEST},
        ):
            return _digest(body)

    @staticmethod
    def digest_of(content: Mapping[str, Any]) -> str:
        """Return the digest that a manifest will have."""
        return _digest(_written(content))

    def delete_manifest(self, digest: str) -> bool:
        """Delete a manifest with all its tags; return False if the registry forbids deleting."""
        with self._request(
            "DELETE", f"{self._base}/manifests/{digest}", accept=(200, 202, 404, 405)
        ) as answer:
            return answer.status_code != 405

    def blob_bytes(self, digest: str) -> int | None:
        """Return how large a blob is, or None if it is missing."""
        with self._request("HEAD", f"{self._base}/blobs/{digest}", accept=(200, 404)) as answer:
            return _length(answer) if answer.status_code == 200 else None

    @contextlib.contextmanager
    def blob(self, digest: str, *, begin: int = 0) -> Iterator[Body]:
        """Yield a blob from byte `begin` on, while it is downloaded. Raises `FileNotFoundError`."""
        with self._blob(digest, {"Range": f"bytes={begin}-"} if begin else None) as answer:
            if begin and answer.status_code != 206:
                raise RegistryUnavailable(
                    f"The registry {self.host} does not send parts of a file."
                )
            yield Body(answer.raw)

    def small_blob(self, digest: str) -> bytes:
        """Return the whole content of a blob such as a text. Raises `FileNotFoundError`."""
        with self._blob(digest) as answer:
            content = _Whole(f"The blob {digest}", MAX_BLOB_BYTES).content(answer)
        if _digest(content) != digest:
            raise RegistryUnavailable(f"What the registry sends as {digest} is something else.")
        return content

    def put_blob(self, content: bytes) -> dict[str, Any]:
        """Upload a small blob unless the registry has it; return its part of a descriptor."""
        digest = _digest(content)
        if self.blob_bytes(digest) is None:
            self._upload(digest, len(content), lambda: content)
        return {"digest": digest, "size": len(content)}

    def put_file(self, path: Path, sha256: str) -> dict[str, Any]:
        """Upload a file of this sha256 unless the registry has it; return its descriptor.

        The descriptor has digest and size alone. The registry checks what it receives against the
        digest, and refuses anything else.
        """
        digest, size_bytes = f"sha256:{sha256}", path.stat().st_size
        if self.blob_bytes(digest) != size_bytes:
            with path.open("rb") as file:

                def from_the_beginning() -> IO[bytes]:
                    file.seek(0)
                    return file

                self._upload(digest, size_bytes, from_the_beginning)
        return {"digest": digest, "size": size_bytes}

    def _blob(self, digest: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        answer = self._request(
            "GET", f"{self._base}/blobs/{digest}", accept=(200, 206, 404), headers=headers
        )
        if answer.status_code == 404:
            answer.close()
            raise FileNotFoundError(digest)
        return answer

    def _upload(self, digest: str, size_bytes: int, body: Callable[[], Any]) -> None:
        with self._request("POST", f"{self._base}/blobs/uploads/", accept=(202,)) as answer:
            place = _joined(answer.url, answer.headers.get("Location", ""))
        place += ("&" if "?" in place else "?") + urllib.parse.urlencode({"digest": digest})
        with self._request(
            "PUT",
            place,
            accept=(201,),
            body=body,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)},
        ):
            pass

    def _request(
        self,
        method: str,
        address: str,
        *,
        accept: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
    ) -> requests.Response:
        """Return the answer, whose body is not read yet.

        An answer whose status is none of `accept` raises `RegistryUnavailable`. `body` is called
        for what to send each time: with a log-in, a request is sent twice.
        """
        answer = self._send(method, address, headers, body)
        if answer.status_code == 401:
            answer.close()
            self._log_in(answer.headers.get("WWW-Authenticate", ""))
            answer = self._send(method, address, headers, body)
        if answer.status_code in accept:
            return answer
        with answer:
            said = _Whole("An error", MAX_SHOWN).beginning(answer)
            raise RegistryUnavailable(
                f"The registry {self.host} answers {method} with {answer.status_code}: "
                + said.decode("utf-8", "replace"),
                hint="Check the address and the credentials.",
            )

    def _send(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str] | None,
        body: Callable[[], Any] | None,
    ) -> requests.Response:
        mine = {"Authorization": self._authorization} if self._authorization else {}
        try:
            return self._session.request(
                method,
                address,
                headers=PLAIN | mine | dict(headers or {}),
                stream=True,
                data=body() if body is not None else None,
                timeout=TIMEOUT_S,
                verify=self._verify,
            )
        except NO_ANSWER as error:
            raise RegistryUnavailable(
                f"The registry {self.host} does not answer: {type(error).__name__}.",
                hint="Try again in a while.",
            ) from error

    def _log_in(self, challenge: str) -> None:
        """Log in as the registry's challenge says.

        `Basic` sends the password itself, `Bearer` a token that its issuer gives for the password.
        """
        scheme, _, fields = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials is not None:
            self._authorization = (
                "Basic " + base64.b64encode(":".join(self._credentials).encode()).decode()
            )
        elif scheme.lower() == "bearer":
            self._authorization = f"Bearer {self._token(_challenge(fields))}"
        else:
            raise RegistryUnavailable(
                f"The registry {self.host} wants a log-in.",
                hint="Set registry_cfg's user and token for this registry.",
            )

    def _token(self, challenge: Mapping[str, str]) -> str:
        asked = {
            "service": challenge.get("service", ""),
            "scope": f"repository:{self.name}:pull,push,delete",
        }
        try:
            with self._session.get(
                challenge.get("realm", ""),
                params=asked,
                auth=self._credentials,
                headers=PLAIN,
                stream=True,
                timeout=TIMEOUT_S,
                verify=self._verify,
            ) as answer:
                answer.raise_for_status()
                said = _parsed(_Whole("The token", MAX_TOKEN_BYTES).content(answer))
            return str(said.get("token") or said["access_token"])
        except (*NO_ANSWER, KeyError) as error:
            raise RegistryUnavailable(
                f"The registry {self.host} gives no token: {type(error).__name__}.",
                hint="Check registry_cfg's user and token.",
            ) from error


def _annotations(described: Mapping[str, Any]) -> dict[str, str]:
    """Return the annotations of a manifest or a descriptor that are texts."""
    told = described.get("annotations")
    return {
        name: text
        for name, text in (told.items() if isinstance(told, dict) else ())
        if isinstance(text, str)
    }


def beside_tag(digest: str, kind: str) -> str:
    """Return the tag of what is beside an artifact: of its signatures, for the kind `sig`."""
    return f"{digest.replace(':', '-')}.{kind}"


def _written(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _bounded_redirect(answer: requests.Response, **_: Any) -> None:
    """Read the body of a redirect, which requests would read without a bound before it follows."""
    if answer.is_redirect:
        content = _Whole("A redirect", MAX_REDIRECT_BYTES).content(answer)
        answer.raw.release_conn()
        answer.raw = io.BytesIO(content)


def _length(answer: requests.Response) -> int:
    told = answer.headers.get("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,18}", told):
        raise RegistryUnavailable("The registry does not say how large a blob is.")
    return int(told)


def _joined(address: str, told: str) -> str:
    """Return the address that an answer tells, which may be relative."""
    try:
        return urllib.parse.urljoin(address, told)
    except ValueError as error:
        raise RegistryUnavailable("The registry names an address that is none.") from error


def _broken_off(error: Exception) -> RegistryUnavailable:
    return RegistryUnavailable(f"The registry's answer broke off: {type(error).__name__}.")


def _tags(text: bytes) -> list[str]:
    tags = _parsed(text).get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise RegistryUnavailable("The registry's answer is no list of tags.")
    return tags


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RegistryUnavailable("The registry's answer is not JSON.") from error
    if not isinstance(content, dict):
        raise RegistryUnavailable("The registry's answer is no JSON object.")
    return content


def _challenge(fields: str) -> dict[str, str]:
    """The fields of a WWW-Authenticate header behind its scheme."""
    return dict(re.findall(r'\b(\w+)="([^"]*)"', fields))
