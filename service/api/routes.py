"""Put the REST calls together: each parses its request, asks the part that knows, and answers.

Everything but health, metrics and the API's description needs a login; the whole blueprint requires
one, so that a call cannot forget it.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app, request

from service.api import access, builds, images, machines, notices, site
from service.api.caller import principal
from service.api.openapi import call_of
from service.auth import auth
from service.browsers import refuse_other_sites
from service.context import service
from service.db import accounts
from service.errors import Forbidden
from service.fair_use import tell_allowance

api = Blueprint("api", __name__)


@api.before_request
def _require_login() -> Any:
    """Refuse calls without a login, but for the public ones, and tokens without the scope.

    What is answered is counted.
    """
    call = call_of(current_app, request.endpoint)
    if call is not None and call.is_public:
        if call.is_counted:
            service().fair_use.count_stranger(request)
        return None
    refuse_other_sites(request)
    refused = auth.login_required(lambda: None)()
    if refused is not None:
        service().fair_use.count_stranger(request)
        return refused
    is_costly = call is not None and call.is_costly
    service().fair_use.count_user(principal().id, is_costly=is_costly)
    scope = accounts.READ if request.method in ("GET", "HEAD", "OPTIONS") else accounts.WRITE
    is_for_any_token = call is not None and call.is_for_any_token
    if scope not in principal().scopes and not is_for_any_token:
        raise Forbidden(
            f"This token is not good for that: it lacks the scope {scope}.",
            hint="Make another token.",
        )
    return None


api.after_request(tell_allowance)

for _part in (builds, images, machines, access, notices, site):
    _part.add_calls(api)
