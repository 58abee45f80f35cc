"""Answer the calls about notices: the caller's webhooks, the mail, and what was sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from service.api.caller import note, principal
from service.api.openapi import Answer, describes
from service.api.queries import parse_body
from service.api.responses import Time
from service.context import service
from service.db import mail_addresses, notices, webhooks
from service.db.webhooks import MAX_URL
from service.errors import Missing
from service.notices import subscriptions
from service.times import moment, moment_if

EventName = Literal["build.finished", "build.failed", "build.needs_attention"]
Events = Annotated[
    list[EventName], Field(min_length=1, max_length=3, examples=[["build.finished"]])
]
Url = Annotated[
    str, Field(min_length=1, max_length=MAX_URL, examples=["https://ci.example.org/hook"])
]
_WEBHOOK = {"webhook_id": "$response.body#/id"}


class NewWebhook(BaseModel):
    """An address that is told of the caller's builds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: Url
    events: Events = Field(default=list(get_args(EventName)))


class ChangedWebhook(BaseModel):
    """What is to change of a webhook; the rest stays."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: Url | None = None
    events: Events | None = None
    on: bool | None = None


class MailWanted(BaseModel):
    """Where the caller wants mail, and of what."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    address: str = Field(min_length=3, max_length=254, examples=["ada@example.org"])
    events: Events = Field(default=list(get_args(EventName)))
    on: bool = True


class WebhookAnswer(TypedDict):
    """A webhook, without its secret."""

    id: int
    url: str
    events: list[EventName]
    on: bool
    why_off: Annotated[str | None, Field(description="why the service turned it off by itself")]
    created_at: Time


class NewWebhookAnswer(WebhookAnswer):
    """A new webhook with its secret, which no other answer shows."""

    secret: str


class WebhookList(TypedDict):
    """The caller's webhooks."""

    webhooks: list[WebhookAnswer]


class TestAnswer(TypedDict):
    """A notice that is under way."""

    notice: Annotated[str, Field(description="the notice's id, as its receiver gets it")]


class MailAnswer(TypedDict):
    """Where the caller gets mail."""

    address: str
    events: list[EventName]
    on: bool
    confirmed: Annotated[
        bool, Field(description="nothing is sent until the link of a first mail is opened")
    ]


class TryAnswer(TypedDict):
    """One try to send a notice."""

    at: str
    status: Annotated[int | None, Field(description="the HTTP status of the receiver's answer")]
    said: Annotated[str, Field(description="what came of it")]


class NoticeAnswer(TypedDict):
    """A notice: what it tells, to whom, and what came of it."""

    id: str
    event: str
    build: str | None
    webhook: Annotated[int | None, Field(description="null for a mail")]
    created_at: Time
    outcome: Annotated[
        Literal["sent", "given up", "dropped"] | None, Field(description="null: it goes on")
    ]
    tries: int
    tried: Annotated[list[TryAnswer], Field(description="the last tries")]
    next_try_at: Time | None
    ended_at: Time | None


class NoticeList(TypedDict):
    """The caller's latest notices, newest first."""

    notices: list[NoticeAnswer]


def add_calls(api: Blueprint) -> None:
    api.add_url_rule("/webhook/", view_func=list_webhooks)
    api.add_url_rule("/webhook/", view_func=add_webhook, methods=["POST"])
    api.add_url_rule("/webhook/<webhook_id>", view_func=change_webhook, methods=["POST"])
    api.add_url_rule("/webhook/<webhook_id>", view_func=remove_webhook, methods=["DELETE"])
    api.add_url_rule("/webhook/<webhook_id>/test", view_func=test_webhook, methods=["POST"])
    api.add_url_rule("/mail/", view_func=mail)
    api.add_url_rule("/mail/", view_func=set_mail, methods=["POST"])
    api.add_url_rule("/mail/", view_func=remove_mail, methods=["DELETE"])
    api.add_url_rule("/notice/", view_func=list_notices)


@describes("List your webhooks", answer=WebhookList)
def list_webhooks() -> Response:
    rows = webhooks.of_user(service().engine, principal().id)
    return jsonify({"webhooks": [webhook_answer(row) for row in rows]})


@describes(
    "Have an address told of your builds",
    body=NewWebhook,
    answer=NewWebhookAnswer,
    links={"change_webhook": _WEBHOOK, "test_webhook": _WEBHOOK, "remove_webhook": _WEBHOOK},
)
def add_webhook() -> Response:
    """Keep a webhook. Its notices are signed with the secret, after Standard Webhooks."""
    asked = parse_body(NewWebhook, request.get_data(cache=False))
    parts, who = service(), principal()
    webhook_id, secret = subscriptions.add_webhook(
        parts.engine, parts.settings, who.id, url=asked.url, events=asked.events
    )
    note("webhook", str(webhook_id))
    return jsonify({**webhook_answer(_own(str(webhook_id))), "secret": secret})


@describes("Change a webhook", body=ChangedWebhook, answer=WebhookAnswer)
def change_webhook(webhook_id: str) -> Response:
    row = _own(webhook_id)
    asked = parse_body(ChangedWebhook, request.get_data(cache=False))
    parts, who = service(), principal()
    subscriptions.change_webhook(
        parts.engine,
        parts.settings,
        who.id,
        row.id,
        url=asked.url,
        events=asked.events,
        is_on=asked.on,
    )
    note("change webhook", webhook_id)
    return jsonify(webhook_answer(_own(webhook_id)))


@describes("Remove a webhook", answers={204: Answer(description="It is called no more.")})
def remove_webhook(webhook_id: str) -> Response:
    webhooks.remove(service().engine, principal().id, _own(webhook_id).id)
    note("remove webhook", webhook_id)
    return Response(status=204)


@describes("Have a webhook called, to try it", answer=TestAnswer, is_costly=True)
def test_webhook(webhook_id: str) -> Response:
    """Send a notice of the type `test`, which is tried again as others are."""
    row = _own(webhook_id)
    notice = subscriptions.test_webhook(service().engine, principal().id, row.id)
    return jsonify({"notice": notice})


@describes("See where you get mail", answer=MailAnswer, problems=(404,))
def mail() -> Response:
    return jsonify(_mail_answer())


@describes("Say where you get mail", body=MailWanted, answer=MailAnswer)
def set_mail() -> Response:
    """Keep an address; a new one gets a mail with a link that confirms it."""
    asked = parse_body(MailWanted, request.get_data(cache=False))
    parts, who = service(), principal()
    subscriptions.set_mail(
        parts.engine,
        parts.settings,
        who.id,
        address=asked.address,
        events=asked.events,
        is_on=asked.on,
    )
    note("mail", asked.address)
    return jsonify(_mail_answer())


@describes("Get no more mail", answers={204: Answer(description="The address is forgotten.")})
def remove_mail() -> Response:
    mail_addresses.remove(service().engine, principal().id)
    note("remove mail", "")
    return Response(status=204)


@describes("See what was sent to your webhooks and by mail", answer=NoticeList)
def list_notices() -> Response:
    rows = notices.of_user(service().engine, principal().id)
    return jsonify({"notices": [_notice_answer(row) for row in rows]})


def webhook_answer(row: Any) -> WebhookAnswer:
    return {
        "id": row.id,
        "url": row.url,
        "events": row.events,
        "on": row.is_on,
        "why_off": row.why_off,
        "created_at": moment(row.created_at),
    }


def _notice_answer(row: Any) -> NoticeAnswer:
    return {
        "id": row.id,
        "event": row.event,
        "build": row.build_id,
        "webhook": row.webhook_id,
        "created_at": moment(row.created_at),
        "outcome": row.outcome,
        "tries": row.tries,
        "tried": row.tried,
        "next_try_at": moment_if(row.next_try_at),
        "ended_at": moment_if(row.ended_at),
    }


def _mail_answer() -> MailAnswer:
    row = mail_addresses.of_user(service().engine, principal().id)
    if row is None:
        raise Missing("You get no mail.", hint="POST /mail/ says where you want it.")
    return {
        "address": row.address,
        "events": row.events,
        "on": row.is_on,
        "confirmed": row.confirmed_at is not None,
    }


def _own(webhook_id: str) -> Any:
    """Return the caller's webhook of this number; raise `Missing` for any other."""
    is_number = webhook_id.isascii() and webhook_id.isdigit() and len(webhook_id) < 10
    row = None
    if is_number:
        row = webhooks.one_of_user(service().engine, principal().id, int(webhook_id))
    if row is None:
        raise subscriptions.no_such_webhook()
    return row
