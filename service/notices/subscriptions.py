"""Let users say where they are told of their builds: what pages and REST calls have in common."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr
from sqlalchemy.engine import Engine

from config.settings import Settings, is_mail_address
from image_builder.errors import FieldProblem, InvalidRequest
from service import sealing
from service.db import mail_addresses, notices, webhooks
from service.errors import Missing
from service.notices.destinations import Policy, require_url
from service.notices.events import OF_BUILDS
from service.notices.webhook import new_secret

EVENTS = tuple(event.value for event in OF_BUILDS)


def add_webhook(
    engine: Engine, settings: Settings, user_id: int, *, url: str, events: Sequence[str]
) -> tuple[int, str]:
    """Keep a webhook; return its id and its secret, which nobody can see again.

    Raises `InvalidRequest` for an address that is none, or not allowed here.
    """
    _require_webhooks(settings)
    require_url(url, Policy.of(settings))
    secret = new_secret()
    sealed = sealing.seal(SecretStr(secret), settings.service)
    webhook_id = webhooks.add(engine, user_id, url=url, events=events, sealed=sealed)
    return webhook_id, secret


def change_webhook(
    engine: Engine,
    settings: Settings,
    user_id: int,
    webhook_id: int,
    *,
    url: str | None = None,
    events: Sequence[str] | None = None,
    is_on: bool | None = None,
) -> None:
    """Change what is given of a user's webhook. Raises `Missing` and `InvalidRequest`."""
    if url is not None:
        require_url(url, Policy.of(settings))
    given = {"url": url, "events": list(events) if events is not None else None, "is_on": is_on}
    values = {key: value for key, value in given.items() if value is not None}
    present = webhooks.one_of_user(engine, user_id, webhook_id)
    if present is None or (values and not webhooks.change(engine, user_id, webhook_id, **values)):
        raise no_such_webhook()


def test_webhook(engine: Engine, user_id: int, webhook_id: int) -> str:
    """Have a user's webhook called, also while it is off; return the notice's id.

    Raises `Missing` and `TooManyRequests`.
    """
    if webhooks.one_of_user(engine, user_id, webhook_id) is None:
        raise no_such_webhook()
    return notices.add_test(engine, user_id, webhook_id)


def set_mail(
    engine: Engine,
    settings: Settings,
    user_id: int,
    *,
    address: str,
    events: Sequence[str],
    is_on: bool,
) -> bool:
    """Keep where a user gets mail; return whether the address is confirmed already.

    If not, a mail asks for that, again at each call. Raises `InvalidRequest` and `TooManyRequests`.
    """
    if settings.service.smtp_host is None:
        problem = "this site sends no mail"
        raise InvalidRequest([FieldProblem("address", problem, "use a webhook, or poll")])
    if not is_mail_address(address):
        raise InvalidRequest(
            [FieldProblem("address", "is no mail address", "write one such as ada@example.org")]
        )
    is_confirmed = mail_addresses.keep(engine, user_id, address=address, events=events, is_on=is_on)
    if not is_confirmed:
        notices.ask_for_confirmation(engine, user_id, address)
    return is_confirmed


def no_such_webhook() -> Missing:
    return Missing("There is no such webhook.", hint="GET /webhook/ lists your webhooks.")


def _require_webhooks(settings: Settings) -> None:
    if not settings.service.allowed_webhook_schemes:
        problem = "this site has no webhooks"
        raise InvalidRequest([FieldProblem("url", problem, "poll the build's status")])
