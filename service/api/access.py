"""Answer the REST calls about who calls: groups, log-ins of programs, and tokens."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request
from werkzeug.wrappers import Response as AnyResponse

from image_builder.errors import UserError
from service.api import devices, responses
from service.api.caller import note, principal
from service.api.openapi import Answer, describes
from service.api.queries import DeviceTokens, parse_body
from service.browsers import refuse_other_sites
from service.context import service
from service.db import accounts, groups


def add_calls(api: Blueprint) -> None:
    api.add_url_rule("/group/", view_func=list_groups)
    api.add_url_rule("/auth/oidc", view_func=device_log_in)
    api.add_url_rule("/auth/oidc", view_func=log_in_with_device, methods=["POST"])
    api.add_url_rule("/auth/token", view_func=revoke_token, methods=["DELETE"])


@describes("List the groups that you are in", answer=responses.GroupList)
def list_groups() -> Response:
    return jsonify({"groups": groups.of_user(service().engine, principal().id)})


@describes(
    "Where a program logs its user in",
    answer=responses.DeviceLogIn,
    is_public=True,
    problems=(404, 429),
)
def device_log_in() -> Response:
    """Return the provider's endpoints for the device flow; all of it is public."""
    return jsonify(devices.where(service().provider))


@describes(
    "Log in with what the device flow gave",
    body=DeviceTokens,
    answer=responses.LoggedIn,
    is_public=True,
    problems=(403, 404, 429),
)
def log_in_with_device() -> Response:
    """Return a token of this service for a fresh ID token, which is good for this once."""
    refuse_other_sites(request)
    asked = parse_body(DeviceTokens, request.get_data(cache=False))
    return jsonify(devices.exchange(service(), asked, request.remote_addr or ""))


@describes(
    "Revoke the token that this call is made with",
    answers={204: Answer(description="It is good for nothing any more.")},
    problems=(400,),
    is_for_any_token=True,
)
def revoke_token() -> AnyResponse:
    """Revoke the caller's token: whoever holds a token can end it, and no other."""
    token_id = principal().token_id
    if token_id is None:
        raise UserError(
            "No token came with this call.", hint="Send the one to revoke, with Bearer."
        )
    if accounts.revoke_token(service().engine, principal().id, token_id):
        note("revoke token", str(token_id))
    return Response(status=204)
