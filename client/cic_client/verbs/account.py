"""Log in and out."""

from __future__ import annotations

import getpass
import sys

from cic_client import login, places
from cic_client.call import Call

MAX_TOKEN_CHARACTERS = 10_000


def login_with_token(call: Call) -> int:
    """Keep a token, once the service has taken it."""
    asked, screen = call.asked, call.screen
    if warning := login.in_the_clear(asked.url):
        screen.note(warning, "yellow")
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
    """Forget the token that is kept."""
    login.forget(places.login_file(call.environ))
    call.screen.note(
        "No log-in is kept any more. The token is good until your account page revokes it."
    )
    return 0


def _typed() -> str:
    return getpass.getpass("Token: ")


def _line_of_standard_input() -> str:
    return sys.stdin.readline(MAX_TOKEN_CHARACTERS)
