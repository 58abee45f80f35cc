"""Ask people who sign up to type digits, shown as a picture or read as sound.

The answer stays in the database. A question is asked once: whatever the first answer is, its row is
gone. A sound is made once and kept in the row: making one takes a core for half a second.
"""

from __future__ import annotations

import datetime
import secrets
from typing import Any

import requests
import sqlalchemy as sa
from captcha.audio import AudioCaptcha
from captcha.image import ImageCaptcha
from sqlalchemy.engine import Engine

from service.addresses import network_of
from service.bottleneck import Bottleneck
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

_drawing = Bottleneck(2, waiting=6, message="Many people sign up at the moment.")
_speaking = Bottleneck(1, waiting=1, message="Many people listen at the moment.")


def ask(engine: Engine, address: str) -> str:
    """Make a question and return its id.

    Raises `TooManyFailures` for an address that collects them.
    """
    captcha_id, moment, network = secrets.token_urlsafe(32), now(), network_of(address)
    answer = "".join(secrets.choice("0123456789") for _ in range(DIGITS))
    with writing(engine, durable=False) as connection:
        connection.execute(CAPTCHAS.delete().where(CAPTCHAS.c.until <= moment))
        newest = sa.select(CAPTCHAS.c.until).where(CAPTCHAS.c.address == network)
        newest = newest.order_by(CAPTCHAS.c.until.desc()).limit(1).offset(MAX_OPEN - 1)
        until = connection.scalar(newest)
        if until is not None:  # as many are open, and the first of them ends then
            raise TooManyFailures(
                (until - moment).total_seconds(), "Too many questions were asked for."
            )
        connection.execute(
            CAPTCHAS.insert().values(
                id=captcha_id, answer=answer, address=network, shown=0, until=moment + LIFE
            )
        )
    return captcha_id


def is_answered(engine: Engine, captcha_id: str, answer: str) -> bool:
    """Return whether this is the answer. The question is used up either way."""
    with writing(engine, durable=False) as connection:
        wanted: str | None = connection.scalar(_answer(captcha_id))
        removed = connection.execute(CAPTCHAS.delete().where(CAPTCHAS.c.id == captcha_id)).rowcount
    given = "".join(answer.split())
    return bool(wanted and removed and secrets.compare_digest(wanted.encode(), given.encode()))


def picture(engine: Engine, captcha_id: str) -> bytes | None:
    """Return the question as PNG; None when there is none, or it was shown often enough.

    Raises `Busy`.
    """
    answer = _show(engine, captcha_id)
    if answer is None:
        return None
    with _drawing.passed():
        return ImageCaptcha(width=240, height=80).generate(answer).getvalue()


def sound(engine: Engine, captcha_id: str) -> bytes | None:
    """Return the question as WAV; None as for the picture. Raises `Busy`."""
    answer = _show(engine, captcha_id)
    if answer is None:
        return None
    kept = _kept_sound(engine, captcha_id)
    if kept is not None:
        return kept
    with _speaking.passed():
        wave = _kept_sound(engine, captcha_id) or bytes(AudioCaptcha().generate(answer))
    with writing(engine, durable=False) as connection:
        connection.execute(CAPTCHAS.update().where(CAPTCHAS.c.id == captcha_id).values(sound=wave))
    return wave


def _kept_sound(engine: Engine, captcha_id: str) -> bytes | None:
    with reading(engine) as connection:
        kept: bytes | None = connection.scalar(
            sa.select(CAPTCHAS.c.sound).where(CAPTCHAS.c.id == captcha_id)
        )
    return kept


def is_verified(verify_url: str, secret: str, response: str, address: str) -> bool:
    """Return whether a provider with reCAPTCHA's protocol confirms that a person answered.

    Raises `RequestException`.
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
    with writing(engine, durable=False) as connection:
        shown = connection.execute(
            CAPTCHAS.update()
            .where(CAPTCHAS.c.id == captcha_id, CAPTCHAS.c.shown < MAX_SHOWN)
            .values(shown=CAPTCHAS.c.shown + 1)
        ).rowcount
    return answer if shown else None
