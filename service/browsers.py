"""What browsers may send to the API: no page of another site may use a log-in that they remember.

Programs (curl, `cic_cli`, requests) send neither `Origin` nor `Sec-Fetch-Site`, and pages cannot
keep browsers from sending them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Request

from service.errors import Forbidden, WrongMediaType

READS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN = frozenset({"same-origin", "none"})
"""`Sec-Fetch-Site` of a page of ours, and of what a person typed."""
JSON = "application/json"


def refuse_other_sites(request: Request) -> None:
    """Raise `Forbidden` for a change that another site's page asks for.

    Raises `WrongMediaType` for a browser's body that is no JSON: a form of any site can send others.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if request.method in READS or (site is None and origin is None):
        return
    if not _is_own(site, origin, request.host):
        raise Forbidden(
            "A page of another site sent this request.",
            hint="Send it from a program, or from this service's own pages.",
        )
    if request.content_length and request.mimetype != JSON:
        raise WrongMediaType(
            "A browser sends JSON here, and this is something else.",
            hint=f"Send the request with Content-Type: {JSON}.",
        )


def _is_own(site: str | None, origin: str | None, host: str) -> bool:
    if site is not None:
        return site in OWN
    return origin is not None and urlsplit(origin).netloc.lower() == host.lower()
