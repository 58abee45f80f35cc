"""Serve the page on which users say where they are told of their builds, and see what was sent."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, flash, redirect, render_template, url_for
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as AnyResponse
from wtforms import BooleanField, StringField

from image_builder.errors import FieldProblem, InvalidRequest
from service.db import mail_addresses, notices, webhooks
from service.db.webhooks import MAX_URL
from service.errors import Missing
from service.notices import subscriptions
from service.notices.confirmation import address_in
from service.notices.events import Event
from service.web.forms import add_problems, record_audit_event
from service.web.session import service, user

SHOWN_NOTICES = 30


class EventsForm(FlaskForm):  # type: ignore[misc]
    """Which events somebody is told of."""

    finished = BooleanField("Finished", default=True)
    failed = BooleanField("Failed", default=True)
    needs_attention = BooleanField("Needs attention", default=True)

    def chosen(self) -> list[str]:
        """Return the chosen events. Raises `InvalidRequest` for none."""
        fields = {
            Event.FINISHED: self.finished,
            Event.FAILED: self.failed,
            Event.NEEDS_ATTENTION: self.needs_attention,
        }
        events = [event.value for event, field in fields.items() if field.data]
        if not events:
            raise InvalidRequest([FieldProblem("finished", "nothing is chosen", "choose one")])
        return events


class WebhookForm(EventsForm):
    url = StringField(
        "Address",
        render_kw={"maxlength": MAX_URL, "autocomplete": "off", "inputmode": "url"},
        description="It gets a POST request for each of the events.",
    )


class MailForm(EventsForm):
    address = StringField(
        "Address",
        render_kw={"maxlength": 254, "autocomplete": "email", "inputmode": "email"},
        description="A new address gets a mail with a link that confirms it.",
    )
    is_on = BooleanField("Send mail", default=True)


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/account/notices", "notices", page)
    for rule, endpoint, view in (
        ("/account/webhooks", "add_webhook", add_webhook),
        ("/account/webhooks/<int:webhook_id>/switch", "switch_webhook", switch_webhook),
        ("/account/webhooks/<int:webhook_id>/test", "test_webhook", test_webhook),
        ("/account/webhooks/<int:webhook_id>/remove", "remove_webhook", remove_webhook),
        ("/account/mail", "set_mail", set_mail),
        ("/account/mail/remove", "remove_mail", remove_mail),
    ):
        web.add_url_rule(rule, endpoint, view, methods=["POST"])
    web.add_url_rule("/account/mail/<token>", "confirm_mail", confirm_mail)
    web.add_url_rule("/account/mail/<token>", "confirmed_mail", confirmed_mail, methods=["POST"])


def page() -> str:
    return _page()


def add_webhook() -> Any:
    """Keep a webhook and show its secret, this once."""
    form = WebhookForm(prefix="webhook")
    try:
        webhook_id, secret = subscriptions.add_webhook(
            service().engine,
            service().settings,
            user().id,
            url=(form.url.data or "").strip(),
            events=form.chosen(),
        )
    except InvalidRequest as error:
        add_problems(form, error.problems)
        return _page(webhook_form=form), 400
    record_audit_event("webhook", str(webhook_id))
    return _page(secret=secret)


def switch_webhook(webhook_id: int) -> AnyResponse:
    """Turn a webhook off, or on again."""
    row = webhooks.one_of_user(service().engine, user().id, webhook_id)
    if row is None:
        raise Missing("There is no such webhook.")
    subscriptions.change_webhook(
        service().engine, service().settings, user().id, webhook_id, is_on=not row.is_on
    )
    record_audit_event("change webhook", str(webhook_id))
    flash(f"The webhook is {'off' if row.is_on else 'on'}.", "success")
    return redirect(url_for("web.notices"))


def test_webhook(webhook_id: int) -> AnyResponse:
    subscriptions.test_webhook(service().engine, user().id, webhook_id)
    flash("A test is on its way. Load this page again to see what came of it.", "info")
    return redirect(url_for("web.notices"))


def remove_webhook(webhook_id: int) -> AnyResponse:
    if not webhooks.remove(service().engine, user().id, webhook_id):
        raise Missing("There is no such webhook.")
    record_audit_event("remove webhook", str(webhook_id))
    flash("The webhook is removed.", "success")
    return redirect(url_for("web.notices"))


def set_mail() -> Any:
    """Keep where mail goes, and what of."""
    form = MailForm(prefix="mail")
    try:
        is_confirmed = subscriptions.set_mail(
            service().engine,
            service().settings,
            user().id,
            address=(form.address.data or "").strip(),
            events=form.chosen(),
            is_on=form.is_on.data,
        )
    except InvalidRequest as error:
        add_problems(form, error.problems)
        return _page(mail_form=form), 400
    record_audit_event("mail", form.address.data)
    flash("That is kept." if is_confirmed else "Open the link in the mail that you get.", "success")
    return redirect(url_for("web.notices"))


def remove_mail() -> AnyResponse:
    mail_addresses.remove(service().engine, user().id)
    record_audit_event("remove mail")
    flash("You get no more mail.", "success")
    return redirect(url_for("web.notices"))


def confirm_mail(token: str) -> str:
    """Ask once more: programs that look into mails open links, and press no buttons."""
    return render_template("confirm_mail.html", address=_address_in(token), token=token)


def confirmed_mail(token: str) -> AnyResponse:
    address = _address_in(token)
    if not mail_addresses.confirm(service().engine, user().id, address):
        raise Missing("You have another mail address by now.", hint="Use its own link.")
    record_audit_event("confirm mail", address)
    flash("The address is confirmed.", "success")
    return redirect(url_for("web.notices"))


def _address_in(token: str) -> str:
    address = address_in(token, user().id, service().settings.service)
    if address is None:
        raise Missing(
            "This link is not yours, or not valid any more.",
            hint="Log in as who asked for it, or save the address once more.",
        )
    return address


def _page(
    *,
    webhook_form: WebhookForm | None = None,
    mail_form: MailForm | None = None,
    secret: str = "",
) -> str:
    engine, settings = service().engine, service().settings.service
    mail = mail_addresses.of_user(engine, user().id)
    return render_template(
        "notices.html",
        secret=secret,
        has_webhooks=bool(settings.allowed_webhook_schemes),
        has_mail=settings.smtp_host is not None,
        webhook_form=webhook_form or WebhookForm(formdata=None, prefix="webhook"),
        mail_form=mail_form or _mail_form(mail),
        mail=mail,
        webhooks=webhooks.of_user(engine, user().id),
        notices=notices.of_user(engine, user().id, limit=SHOWN_NOTICES),
    )


def _mail_form(mail: Any | None) -> MailForm:
    """The form as it was kept, or for a new address."""
    if mail is None:
        return MailForm(formdata=None, prefix="mail")
    return MailForm(
        formdata=None,
        prefix="mail",
        address=mail.address,
        is_on=mail.is_on,
        finished=Event.FINISHED.value in mail.events,
        failed=Event.FAILED.value in mail.events,
        needs_attention=Event.NEEDS_ATTENTION.value in mail.events,
    )
