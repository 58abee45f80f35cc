"""Write mails and hand them to the site's mail server."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
from collections.abc import Mapping
from email import utils
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

from config.settings import ServiceSettings
from service.notices.confirmation import token_for
from service.notices.events import Event, page_of

TIMEOUT_S = 20.0
PORTS = {"starttls": 587, "tls": 465, "none": 25}
MAX_SUBJECT = 200

_HAPPENED = {
    Event.FINISHED: "is finished",
    Event.FAILED: "has failed",
    Event.NEEDS_ATTENTION: "needs attention",
}


class NotSent(Exception):
    """The mail server did not take a mail; the message says why.

    `is_final`: it never will, for this address.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


def of_build(
    event: Event, facts: Mapping[str, Any], address: str, notice_id: str, settings: ServiceSettings
) -> EmailMessage:
    """Return the mail that tells of a build."""
    name = _plain(facts.get("filename") or facts["image_id"])
    lines = [f"Your build of {name} {_HAPPENED[event]}.", ""]
    if facts.get("error_code"):
        lines += [f"Error code: {_plain(facts['error_code'])}"]
    elif event is Event.NEEDS_ATTENTION:
        lines += ["It has waited for its turn for long."]
    if facts.get("ended_at"):
        lines += [f"Ended: {facts['ended_at']}"]
    lines += [f"Build: {page_of(facts, settings.public_url)}", ""]
    lines += [f"You chose to get this: {settings.public_url}/account/notices"]
    return _mail(f"{name} {_HAPPENED[event]}", lines, address, notice_id, settings)


def of_confirmation(
    user_id: int, address: str, notice_id: str, settings: ServiceSettings
) -> EmailMessage:
    """Return the mail with the link that confirms an address."""
    link = f"{settings.public_url}/account/mail/{token_for(user_id, address, settings)}"
    lines = [
        "Somebody, most likely you, wants to get mail of container image builds here.",
        "To confirm, log in and open this page within three days:",
        "",
        link,
        "",
        "Without that, nothing is sent here.",
    ]
    return _mail("Confirm your mail address", lines, address, notice_id, settings)


def send(mail: EmailMessage, settings: ServiceSettings, ca_bundle: Path | None) -> None:
    """Hand a mail to the site's server. Raises `NotSent`."""
    try:
        with _server(settings, ca_bundle) as server:
            if settings.smtp_user is not None and settings.smtp_password is not None:
                server.login(settings.smtp_user, settings.smtp_password.get_secret_value())
            server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        code = next((reply[0] for reply in error.recipients.values()), 0)
        raise NotSent(
            f"the mail server refuses the address ({code})", is_final=500 <= code < 600
        ) from None
    except smtplib.SMTPResponseException as error:
        raise NotSent(f"the mail server answers {error.smtp_code}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise NotSent(f"the mail server is not reached ({type(error).__name__})") from None


@contextlib.contextmanager
def _server(settings: ServiceSettings, ca_bundle: Path | None) -> Any:
    host = settings.smtp_host or ""
    port = settings.smtp_port or PORTS[settings.smtp_security]
    context = ssl.create_default_context()
    if ca_bundle is not None:
        context.load_verify_locations(ca_bundle)
    if settings.smtp_security == "tls":
        with smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context) as server:
            yield server
        return
    with smtplib.SMTP(host, port, timeout=TIMEOUT_S) as server:
        if settings.smtp_security == "starttls":
            server.starttls(context=context)
        yield server


def _mail(
    subject: str, lines: list[str], address: str, notice_id: str, settings: ServiceSettings
) -> EmailMessage:
    """A plain mail. Its `Message-ID` is the notice's, so that a second copy is known as one."""
    sender = settings.mail_sender or ""
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"] = sender, address
    mail["Subject"] = subject[:MAX_SUBJECT]
    mail["Message-ID"] = f"<{notice_id}@{sender.partition('@')[2]}>"
    mail["Date"] = utils.localtime()
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n".join(lines) + "\n", cte="7bit")  # links stay in one piece
    return mail


def _plain(text: str) -> str:
    """A text of ASCII in one line: no name of an image ends a header and begins another."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in str(text))
