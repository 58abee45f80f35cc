"""Send the notices that are due, in threads of the pool, until each was taken or is given up.

Every pool has a sender, on each host; a claim in the database keeps a notice with one of them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import CicError, ServiceError, UserError
from service import sealing
from service.db import mail_addresses, notices, webhooks
from service.db.database import now
from service.db.notices import DROPPED, GIVEN_UP, SENT, Claimed
from service.notices import mail, schedule
from service.notices.destinations import Policy
from service.notices.events import Event, body_of
from service.notices.webhook import Caller, Message, NoAnswer, signed_headers

SLOTS = 4
"""Notices that are sent at once, of different users."""
TICK_S = 1.0
LEASE_S = 180.0
"""How long a claim holds: longer than any try may take."""
LOOK_FOR_WAITING_EVERY_S = 60.0
AFTER_FAULT_S = 5.0

_log = logging.getLogger(__name__)


class Sender:
    """Sends what is due, from `start` until `stop`."""

    def __init__(
        self, engine: Engine, settings: Settings, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._engine, self._settings, self._chance = engine, settings, chance
        self._caller = Caller(
            policy=Policy.of(settings),
            proxy=settings.service.webhook_proxy,
            ca_bundle=settings.library.build.ca_bundle,
        )
        self._free = threading.Semaphore(SLOTS)
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="notice")
        self._wakened, self._stopped = threading.Event(), threading.Event()
        self._loop = threading.Thread(target=self._work, name="notices", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._loop.start()

    def wake(self) -> None:
        """Look for new notices at once."""
        self._wakened.set()

    def stop(self) -> None:
        """Begin no more; what is being sent ends by itself, within its deadline."""
        self._stopped.set()
        self._wakened.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        look_at = 0.0
        while not self._stopped.is_set():
            try:
                after_s = self._settings.service.needs_attention_after_s
                if after_s is not None and time.monotonic() >= look_at:
                    notices.tell_of_waiting(self._engine, after_s)
                    look_at = time.monotonic() + LOOK_FOR_WAITING_EVERY_S
                self._send_all_due()
                self._wakened.wait(TICK_S)
            except CicError as error:
                _log.warning("notices: %s", error)
                self._stopped.wait(AFTER_FAULT_S)
            except Exception:
                _log.exception("notices failed")
                self._stopped.wait(AFTER_FAULT_S)
            self._wakened.clear()

    def _send_all_due(self) -> None:
        while not self._stopped.is_set() and self._free.acquire(blocking=False):
            claimed = None
            try:
                claimed = notices.claim(self._engine, LEASE_S)
                if claimed is not None:
                    self._threads.submit(self._send_one, claimed)
            except RuntimeError:  # stopped meanwhile: the claim ends by itself
                claimed = None
            finally:
                if claimed is None:
                    self._free.release()
            if claimed is None:
                return

    def _send_one(self, claimed: Claimed) -> None:
        try:
            self.send(claimed)
        except CicError as error:
            _log.warning("notice %s: %s", claimed.id, error)
        except Exception:
            _log.exception("notice %s is left until its claim ends", claimed.id)
        finally:
            self._free.release()
            self.wake()

    def send(self, claimed: Claimed) -> None:
        """Try a claimed notice once, and write down what came of it."""
        if not claimed.is_wanted:
            notices.end(self._engine, claimed, DROPPED, "the account is blocked")
        elif claimed.webhook_id is None:
            self._send_mail(claimed)
        else:
            self._call_webhook(claimed, claimed.webhook_id)

    def _call_webhook(self, claimed: Claimed, webhook_id: int) -> None:
        webhook = webhooks.to_send(self._engine, webhook_id)
        if webhook is None or not (webhook.is_on or claimed.event is Event.TEST):
            notices.end(self._engine, claimed, DROPPED, "the webhook is off")
            return
        service = self._settings.service
        body = body_of(claimed.event, claimed.created_at, claimed.facts, service.public_url)
        message = Message(id=claimed.id, body=body)
        try:
            secret = sealing.unseal(webhook.sealed, service).get_secret_value()
            headers = signed_headers(message, secret, now())
            answer = self._caller.post(webhook.url, message, headers)
        except ServiceError:
            self._try_later(claimed, "its secret cannot be read: make the webhook anew")
        except UserError as error:
            self._try_later(claimed, error.message)
        except NoAnswer as error:
            self._try_later(claimed, str(error))
        else:
            said = f"it answered {answer.status}"
            if answer.is_taken:
                notices.end(self._engine, claimed, SENT, said, status=answer.status)
            elif answer.is_gone:
                webhooks.turn_off(self._engine, webhook_id, "It answered 410: it is gone.")
                notices.end(self._engine, claimed, GIVEN_UP, said, status=answer.status)
            else:
                self._try_later(claimed, said, status=answer.status, asked_s=answer.retry_after_s)

    def _send_mail(self, claimed: Claimed) -> None:
        settings = self._settings.service
        kept = mail_addresses.of_user(self._engine, claimed.user_id)
        is_question = claimed.event is Event.CONFIRM
        address = claimed.facts["address"] if is_question else kept and kept.address
        if settings.smtp_host is None or kept is None or kept.address != address:
            notices.end(self._engine, claimed, DROPPED, "no mail is sent there any more")
            return
        if not is_question and not (kept.is_on and kept.confirmed_at):
            notices.end(self._engine, claimed, DROPPED, "mail is off")
            return
        text = (
            mail.of_confirmation(claimed.user_id, address, claimed.id, settings)
            if is_question
            else mail.of_build(claimed.event, claimed.facts, address, claimed.id, settings)
        )
        try:
            mail.send(text, settings, self._settings.library.build.ca_bundle)
        except mail.NotSent as error:
            if error.is_final:
                notices.end(self._engine, claimed, GIVEN_UP, str(error))
            else:
                self._try_later(claimed, str(error))
        else:
            notices.end(self._engine, claimed, SENT, "the mail server took it")

    def _try_later(
        self, claimed: Claimed, said: str, *, status: int | None = None, asked_s: float = 0.0
    ) -> None:
        pause_s = schedule.pause_s(claimed.tries, self._chance(), asked_s)
        if pause_s is None:
            notices.end(self._engine, claimed, GIVEN_UP, said, status=status)
            _log.info("notice=%s is given up: %s", claimed.id, said)
        else:
            notices.put_off(self._engine, claimed, pause_s, said, status=status)
