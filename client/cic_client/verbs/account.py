"""Log in and out."""

from __future__ import annotations

import getpass
import platform
import sys

from cic_client import login, places
from cic_client.call import Call
from cic_client.errors import ClientError, Refused

MAX_TOKEN_CHARACTERS = 10_000
MAX_NAME = 100
NO_LOG_IN, NOT_THERE = 401, 404
STILL_GOOD = "The token is good until your account page revokes it."


def log_in(call: Call) -> int:
    """Keep a token: one that logging in at the institute gives, or one that is typed."""
    asked, screen = call.asked, call.screen
    if warning := login.in_the_clear(asked.url):
        screen.note(warning, "yellow")
    token = None
    if sys.stdin.isatty() and not asked.token:
        token = _from_provider(call)
    if token is None:
        token = (_typed() if sys.stdin.isatty() else _line_of_standard_input()).strip()
    with login.client(login.Login(asked.url, {"token": token}), call.environ) as client:
        client.list_builds(per_page=1)  # refused, if the token is not good
    path = places.login_file(call.environ)
    ring = login.keep(asked.url, token, path, in_keyring=asked.keyring)
    if ring:
        screen.note(f"The token is kept in your keyring ({ring}), and the address in {path}.")
    else:
        screen.note(f"The log-in is kept in {path}, which you alone can read.")
    return 0


def logout(call: Call) -> int:
    """Revoke the token that is kept, and forget it whether or not the service answers."""
    path = places.login_file(call.environ)
    kept = login.kept(path)
    if kept is None:
        said = "There was no token to revoke."
    elif call.asked.keep_token:
        said = STILL_GOOD
    else:
        said = _revoked(kept, call)
    login.forget(path)
    call.screen.note(f"No log-in is kept any more. {said}")
    return 0


def _revoked(kept: login.Login, call: Call) -> str:
    """Revoke a token, and return what became of it."""
    try:
        with login.client(kept, call.environ, tries=1) as client:
            client.revoke_token()
    except Refused as error:
        if error.status == NO_LOG_IN:
            return "The token was not good any more."
        return f"{STILL_GOOD} {kept.url} did not revoke it: {error}"
    except ClientError as error:
        return f"{STILL_GOOD} {kept.url} did not revoke it: {error}"
    return f"{kept.url} has revoked the token."


def _from_provider(call: Call) -> str | None:
    """Return a token for a log-in at the service's OpenID provider; None where there is none."""
    from cic_client import device  # which one verb needs

    with login.client(login.Login(call.asked.url, {}), call.environ) as client:
        try:
            where = client.device_log_in()
        except Refused as error:
            if error.status != NOT_THERE:
                raise
            return None

        def tell(prompt: device.Prompt) -> None:
            call.screen.note(f"To log in with {where.name}, open in a browser of any machine:")
            call.screen.note(f"  {prompt.whole_address or prompt.address}", "bold")
            call.screen.note(f"The code is {prompt.code}. Waiting …")

        verify_tls = call.environ.get("CIC_INSECURE") != "1"
        given = device.log_in(where, tell, verify_tls=verify_tls)
        entered = client.log_in_with_device(
            given.id_token,
            access_token=given.access_token,
            name=f"cic on {platform.node()}"[:MAX_NAME],
        )
    call.screen.note(f"You are {entered.user}. The log-in is good until {entered.expires_at}.")
    return entered.token


def _typed() -> str:
    return getpass.getpass("Token: ")


def _line_of_standard_input() -> str:
    return sys.stdin.readline(MAX_TOKEN_CHARACTERS)
