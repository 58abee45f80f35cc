"""Says where Spack took a package's source from, as Spack's own files in the image know it. Pure.

From 1.2 on Spack writes a document of its own for each package; before, there is the recipe of the
package, of which only what stands there literally is read: nothing of it is run.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from image_builder.proof.texts import plain

_VERSION = re.compile(r"\bversion\(\s*[\"']([^\"'\n]{1,100})[\"']\s*,([^()]{0,1000})\)")
_LICENCE = re.compile(
    r"^ {4}license\(\s*[\"']([^\"'\n]{1,200})[\"']([^()\n]{0,300})\)", re.MULTILINE
)
_URL = re.compile(r"^ {4}url\s*=\s*[\"']([^\"'\n]{1,500})[\"']", re.MULTILINE)
_GIT = re.compile(r"^ {4}git\s*=\s*[\"']([^\"'\n]{1,500})[\"']", re.MULTILINE)
_HOMEPAGE = re.compile(r"^ {4}homepage\s*=\s*[\"']([^\"'\n]{1,500})[\"']", re.MULTILINE)
_ARGUMENT = re.compile(r"\b(sha256|md5|commit|url)\s*=\s*[\"']([^\"'\n]{1,500})[\"']")
_DIGESTS = {"SHA256": re.compile(r"[0-9a-f]{64}\Z"), "MD5": re.compile(r"[0-9a-f]{32}\Z")}
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Holds what is known of a package's source; what is not known is empty."""

    url: str = ""
    checksums: tuple[tuple[str, str], ...] = ()
    """Algorithms, in SPDX's words, and digests of what `url` names."""
    licence: str = ""
    conditional_licences: tuple[str, ...] = ()
    """Licences of which each holds for some versions or variants, or where there are several."""
    homepage: str = ""


def source_of(version: str, document: bytes | None, recipe: bytes | None) -> Source:
    """Return the source of a version, of Spack's own document and the package's recipe."""
    told = _from_recipe(version, recipe.decode("utf-8", "replace")) if recipe else Source()
    own = _from_document(document) if document else Source()
    return dataclasses.replace(
        told,
        url=own.url or told.url,
        checksums=own.checksums or told.checksums,
        licence=own.licence or told.licence,
    )


def _from_document(text: bytes) -> Source:
    try:
        package: dict[str, Any] = json.loads(text)["packages"][0]
        checksums = package.get("checksums") or package.get("checksum") or []
        return Source(
            url=_said(package.get("downloadLocation")),
            checksums=_checked((entry["algorithm"], entry["checksumValue"]) for entry in checksums),
            licence=_said(package.get("licenseDeclared")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Source()


def _said(value: Any) -> str:
    return "" if value in (None, "NOASSERTION", "NONE") else plain(str(value), most=500)


def _from_recipe(version: str, recipe: str) -> Source:
    arguments: dict[str, str] = {}
    for match in _VERSION.finditer(recipe):
        if match[1] == version:
            arguments = dict(_ARGUMENT.findall(match[2]))
            break
    licences = [(plain(match[1]), "when" in match[2]) for match in _LICENCE.finditer(recipe)]
    is_plain = len(licences) == 1 and not licences[0][1]
    return Source(
        url=_address(version, recipe, arguments),
        checksums=_checked((name.upper(), value) for name, value in arguments.items()),
        licence=licences[0][0] if is_plain else "",
        conditional_licences=() if is_plain else tuple(licence for licence, _ in licences),
        homepage=plain(_first(_HOMEPAGE, recipe), most=500),
    )


def _address(version: str, recipe: str, arguments: dict[str, str]) -> str:
    """Return where a version comes from, if the recipe has it word for word."""
    if "url" in arguments:
        return plain(arguments["url"], most=500)
    git, commit = _first(_GIT, recipe), arguments.get("commit", "")
    if git and _COMMIT.match(commit):
        return plain(f"git+{git}@{commit}", most=600)
    url = _first(_URL, recipe)
    is_of_it = re.search(rf"(?<![0-9.]){re.escape(version)}(?!\.?[0-9])", url) is not None
    return plain(url, most=500) if is_of_it else ""


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""


def _checked(checksums: Any) -> tuple[tuple[str, str], ...]:
    return tuple(
        (algorithm, digest)
        for algorithm, digest in checksums
        if algorithm in _DIGESTS and _DIGESTS[algorithm].match(str(digest))
    )
