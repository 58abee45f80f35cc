"""Check offline that an image file is what a service signed, to the last byte.

A file that a service signed is a SIF of one layout: a head with a table of descriptors, its objects one
behind the other, and at the end the squashfs. One object is a statement with digests of the head and of
every other object, in an envelope with the service's signature; another is the signature that
`apptainer verify` reads, over digests as well. So every byte is either signed, or made again here and
compared. `cic_cli verify` does the same with openssl.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cic_client import contents, keys
from cic_client.errors import BadInput, ClientError
from cic_client.keys import PublicKey

STATEMENT, BILL, SQUASHFS, SIGNATURE = (
    "provenance.dsse.json",
    "sbom.spdx.json",
    "squashfs",
    "signature",
)
STATEMENT_TYPE = "application/vnd.in-toto+json"
SEALED_TYPE = "application/vnd.sylabs.sif-metadata+json"
MAX_STATEMENT_BYTES = 64 * 1024**2
LONGEST_SIGNATURE_BYTES = 72
"""An envelope is filled up with line ends to the length that this makes."""

_MAGIC = b"SIF_MAGIC\0"
_MAGIC_AT, _MAGIC_END, _ID_AT, _ID_END = 32, 45, 48, 64
_TABLE_AT, _SLOTS = 4096, 48
_ROW = struct.Struct("<i?3I7q128s384s")
_HEAD_BYTES = _TABLE_AT + _SLOTS * _ROW.size
_ALIGNMENT = 4096
_PARTITION_TYPE, _SIGNATURE_TYPE = 0x4004, 0x4005
_CHUNK_BYTES = 1024**2


class NotProven(ClientError):
    """The file is not what a service signed, or none of the keys signed it."""

    exit_status = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """What a signed file says about itself."""

    key: int
    """Which of the keys signed it, from 1 on."""
    keys: int
    objects: int
    statement: Mapping[str, Any]
    """The in-toto statement, with SLSA's provenance."""
    bill: Mapping[str, Any] | None
    """The bill of materials in SPDX, if the file has one."""
    squashfs_at: int
    """Where in the file the image's files begin, in bytes."""

    @property
    def identity(self) -> str:
        """Return the identity of the image, a digest of all that it was made of."""
        return str(self._definition["internalParameters"]["identity"])

    @property
    def request(self) -> Mapping[str, Any]:
        """Return what was asked for."""
        request: Mapping[str, Any] = self._definition["externalParameters"]["request"]
        return request

    def as_json(self) -> dict[str, Any]:
        return {"identity": self.identity, **dataclasses.asdict(self)}

    @property
    def _definition(self) -> Mapping[str, Any]:
        definition: Mapping[str, Any] = self.statement["predicate"]["buildDefinition"]
        return definition


def verify(path: Path, public_keys: str) -> Proof:
    """Return what a file says about itself, if one of these keys (PEM) signed all of it.

    Raises `NotProven`, and `BadInput` for what cannot be read.
    """
    trusted = keys.read(public_keys)
    try:
        with path.open("rb") as file:
            return _File(path, file, trusted).proof()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def compared(path: Path, proof: Proof) -> int | None:
    """Return how many packages of its bill of materials are in a file that was verified.

    None says that this machine has no `unsquashfs`, which shows them. Raises `NotProven` if
    the file has other packages.
    """
    claims = contents.claims_of(proof.bill or {})
    if claims.count and not contents.is_comparable():
        return None
    if claims.count and (why := contents.difference(path, proof.squashfs_at, claims)):
        raise NotProven(f"{path} is not what was signed: {why}")
    return claims.count


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """One object of a file: its row in the table, and where it is."""

    name: str
    row: bytes
    offset: int
    size_bytes: int


class _File:
    """A file, as far as it is read."""

    def __init__(self, path: Path, file: BinaryIO, trusted: Sequence[PublicKey | None]) -> None:
        self._path, self._file, self._trusted = path, file, trusted
        self._size_bytes = os.fstat(file.fileno()).st_size
        self._head = self._read(0, _HEAD_BYTES)
        self._parts = self._read_table()

    def proof(self) -> Proof:
        """Check the whole file. Raises `NotProven`."""
        key, text = self._opened(STATEMENT, STATEMENT_TYPE)
        statement = self._parsed(text, STATEMENT)
        digests = self._compare(_subjects(statement))
        sealing_key, sealed = self._opened(SIGNATURE, SEALED_TYPE)
        if sealing_key != key:
            raise self._unproven("it is signed with two keys")
        if sealed != self._sealed(digests):
            raise self._unproven("its signature is of another file")
        proof = Proof(
            key=key,
            keys=len(self._trusted),
            objects=len(self._parts),
            statement=statement,
            bill=self._bill(),
            squashfs_at=self._part(SQUASHFS).offset,
        )
        self._require_meaning(proof)
        return proof

    def _unproven(self, why: str) -> NotProven:
        return NotProven(f"{self._path} is not what was signed: {why}")

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count)

    def _read_table(self) -> tuple[_Part, ...]:
        """Return the objects, each of which is within the file and behind the one before."""
        head = self._head
        if len(head) < _HEAD_BYTES or head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise self._unproven("it is no SIF")
        parts: list[_Part] = []
        end = _HEAD_BYTES
        for at in range(_TABLE_AT, _HEAD_BYTES, _ROW.size):
            row = head[at : at + _ROW.size]
            if not row[4]:
                break
            kind, _, _, _, _, offset, size_bytes, *_, raw_name, _ = _ROW.unpack(row)
            name = raw_name.split(b"\0", 1)[0].decode("utf-8", "replace")
            if kind == _PARTITION_TYPE:
                name, end = SQUASHFS, -(-end // _ALIGNMENT) * _ALIGNMENT
            elif kind == _SIGNATURE_TYPE:
                name = SIGNATURE
            if offset != end:
                raise self._unproven("its objects do not follow each other")
            end += size_bytes
            if size_bytes < 0 or end > self._size_bytes:
                raise self._unproven("it is cut")
            name = name or f"object {len(parts) + 1}"
            parts.append(_Part(name=name, row=row, offset=offset, size_bytes=size_bytes))
        if len({part.name for part in parts}) != len(parts):
            raise self._unproven("two of its objects have one name")
        if len(parts) < 2 or end != self._size_bytes:
            raise self._unproven("something is behind its end")
        return tuple(parts)

    def _part(self, name: str) -> _Part:
        for part in self._parts:
            if part.name == name:
                return part
        raise self._unproven(
            f"it has no {name}: the service that made it has no key, or has none of its own"
        )

    def _opened(self, name: str, payload_type: str) -> tuple[int, bytes]:
        """Return which of the keys signed an object, and what is in its envelope.

        The envelope is written again and compared, so that nothing in it is left unread.
        """
        part = self._part(name)
        if part.size_bytes > MAX_STATEMENT_BYTES:
            raise self._unproven(f"its {name} is larger than any that is known")
        raw = self._read(part.offset, part.size_bytes)
        try:
            content = json.loads(raw)
            payload = base64.b64decode(content["payload"], validate=True)
            signature = base64.b64decode(content["signatures"][0]["sig"], validate=True)
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._unproven(f"its {name} is no envelope") from None
        longest = len(_envelope(payload_type, payload, bytes(LONGEST_SIGNATURE_BYTES)))
        if _envelope(payload_type, payload, signature).ljust(longest, b"\n") != raw:
            raise self._unproven(f"its {name} is no envelope")
        signed = b"DSSEv1 %d %s %d %s" % (
            len(payload_type),
            payload_type.encode(),
            len(payload),
            payload,
        )
        for number, key in enumerate(self._trusted, 1):
            if keys.is_signed_with(key, signature, signed):
                return number, payload
        raise self._unproven(f"none of the keys has signed its {name}")

    def _compare(self, subjects: Mapping[str, str]) -> dict[str, str]:
        """Return the digest of each object, which has to be the one that is stated."""
        if subjects.get("head") != hashlib.sha256(self._head).hexdigest():
            raise self._unproven("its head is another")
        digests, end = {}, _HEAD_BYTES
        for part in self._parts:
            if any(self._read(end, part.offset - end)):
                raise self._unproven("something is between its parts")
            end = part.offset + part.size_bytes
            digests[part.name] = self._digest(part)
            if part.name in (STATEMENT, SIGNATURE):
                continue
            if subjects.get(part.name) != digests[part.name]:
                raise self._unproven(f"its {part.name} is another")
        if len(subjects) != len(self._parts) - 1:
            raise self._unproven("a part of it is missing")
        return digests

    def _digest(self, part: _Part) -> str:
        digest, left = hashlib.sha256(), part.size_bytes
        self._file.seek(part.offset)
        while left and (chunk := self._file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        return digest.hexdigest()

    def _sealed(self, digests: Mapping[str, str]) -> bytes:
        """Return what `apptainer verify` compares: digests of descriptors and objects."""
        head = self._head[:_MAGIC_END] + self._head[_ID_AT:_ID_END]
        content = {
            "version": 1,
            "header": {"digest": f"sha256:{hashlib.sha256(head).hexdigest()}"},
            "objects": [
                {
                    "relativeId": number,
                    "descriptorDigest": f"sha256:{_described(part.row, number)}",
                    "objectDigest": f"sha256:{digests[part.name]}",
                }
                for number, part in enumerate(self._parts)
                if part.name != SIGNATURE
            ],
        }
        return json.dumps(content, separators=(",", ":")).encode()

    def _bill(self) -> Mapping[str, Any] | None:
        part = next((part for part in self._parts if part.name == BILL), None)
        if part is None:
            return None
        if part.size_bytes > MAX_STATEMENT_BYTES:
            raise self._unproven(f"its {BILL} is larger than any that is known")
        return self._parsed(self._read(part.offset, part.size_bytes), BILL)

    def _parsed(self, text: bytes, name: str) -> Mapping[str, Any]:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise self._unproven(f"its {name} is no JSON")
        return content

    def _require_meaning(self, proof: Proof) -> None:
        """Require that what is signed tells how an image came about."""
        try:
            known = isinstance(proof.request, dict) and proof.identity != ""
        except (LookupError, TypeError):
            known = False
        if not known:
            raise self._unproven("its statement does not tell how it came about")


def _subjects(statement: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]}
    except (LookupError, TypeError):
        return {}


def _envelope(payload_type: str, payload: bytes, signature: bytes) -> bytes:
    content = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _described(row: bytes, number: int) -> str:
    """Return the digest of what of a descriptor is signed."""
    kept = row[:5] + struct.pack("<I", number) + row[13:17] + row[25:33] + row[41:49] + row[57:585]
    return hashlib.sha256(kept).hexdigest()
