"""The questions for people who sign up: digits as a picture and as sound.

The answer stays in the database. A question is asked once: whatever the first answer is, its row is
gone.
"""

from __future__ import annotations

import datetime
import secrets
import threading
from typing import Any

import requests
import sqlalchemy as sa
from captcha.audio import AudioCaptcha
from captcha.image import ImageCaptcha
from sqlalchemy.engine import Engine

from service.db.database import now, reading, writing
from service.db.models import Captcha
from service.errors import TooManyFailures

CAPTCHAS: sa.Table = Captcha.__table__

LIFE = datetime.timedelta(minutes=10)
DIGITS = 6
MAX_OPEN = 60
"""Questions that one address may have open."""
MAX_SHOWN = 8
"""How often one question may be drawn or spoken."""

_drawing = threading.BoundedSemaphore(2)


def ask(engine: Engine, address: str) -> str:
    """Make a question and return its id. Raises `TooManyFailures` for an address that collects
    them.
    """
    captcha_id, moment = secrets.token_urlsafe(32), now()
    answer = "".join(secrets.choice("0123456789") for _ in range(DIGITS))
    with writing(engine) as connection:
        connection.execute(CAPTCHAS.delete().where(CAPTCHAS.c.until <= moment))
        count = (
            sa.select(sa.func.count()).select_from(CAPTCHAS).where(CAPTCHAS.c.address == address)
        )
        if (connection.scalar(count) or 0) >= MAX_OPEN:
            raise TooManyFailures("Too many questions were asked for.")
        connection.execute(
            CAPTCHAS.insert().values(
                id=captcha_id, answer=answer, address=address, shown=0, until=moment + LIFE
            )
        )
    return captcha_id


def is_answered(engine: Engine, captcha_id: str, answer: str) -> bool:
    """Whether this is the answer. The question is used up either way."""
    with writing(engine) as connection:
        wanted: str | None = connection.scalar(_answer(captcha_id))
        removed = connection.execute(CAPTCHAS.delete().where(CAPTCHAS.c.id == captcha_id)).rowcount
    given = "".join(answer.split())
    return bool(wanted and removed and secrets.compare_digest(wanted.encode(), given.encode()))


def picture(engine: Engine, captcha_id: str) -> bytes | None:
    """The question as PNG; None when there is no such question, or it was shown often enough."""
    answer = _show(engine, captcha_id)
    if answer is None:
        return None
    with _drawing:
        return ImageCaptcha(width=240, height=80).generate(answer).getvalue()


def sound(engine: Engine, captcha_id: str) -> bytes | None:
    """The question as WAV; None as for the picture."""
    answer = _show(engine, captcha_id)
    if answer is None:
        return None
    with _drawing:
        return bytes(AudioCaptcha().generate(answer))


def is_verified(verify_url: str, secret: str, response: str, address: str) -> bool:
    """Whether a provider that speaks reCAPTCHA's protocol says that a person answered. Raises
    `RequestException`.
    """
    if not response:
        return False
    answer = requests.post(
        verify_url, data={"secret": secret, "response": response, "remoteip": address}, timeout=10
    )
    answer.raise_for_status()
    return bool(answer.json().get("success"))


def _answer(captcha_id: str) -> sa.Select[Any]:
    return sa.select(CAPTCHAS.c.answer).where(CAPTCHAS.c.id == captcha_id, CAPTCHAS.c.until > now())


def _show(engine: Engine, captcha_id: str) -> str | None:
    with reading(engine) as connection:
        answer: str | None = connection.scalar(_answer(captcha_id))
    if answer is None:
        return None
    with writing(engine) as connection:
        shown = connection.execute(
            CAPTCHAS.update()
            .where(CAPTCHAS.c.id == captcha_id, CAPTCHAS.c.shown < MAX_SHOWN)
            .values(shown=CAPTCHAS.c.shown + 1)
        ).rowcount
    return answer if shown else None
