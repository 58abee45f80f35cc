"""List every page that the service can show, as a browser comes to it.

Tests and `scripts/screenshots` look at all of them.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from image_builder.spack import lockfile
from image_builder.spack.lockfile import Graph
from image_builder.store.image_store import open_images
from image_builder.timeline import origins
from image_builder.timeline.spans import BUILT, CACHED, PACKAGE, Span
from service.db import accounts
from service.db.database import make_engine
from service.notices import confirmation
from tests.conftest import DATA, PROJECT
from tests.support.browser import Browser
from tests.support.site import MACHINE, PASSWORD, Service, add_user

ADMIN, NEWCOMER = "grace", "newcomer"
STEPS: Mapping[str, Mapping[str, str]] = {
    "broken": {"eflows4hpc.yaml": "apt:\n  - no-such-package-anywhere\n"},
    "slow": {
        "eflows4hpc.yaml": "apt: []\n",
        "post_inst.sh": "for i in $(seq 600); do echo line $i; sleep 0.5; done\n",
    },
}
"""What the pages of failed and of running builds need in the registry, in addition to `hello`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What there is to look at: builds of `ADMIN`, and two images."""

    finished: str
    failed: str
    going_on: str
    filename: str
    identity: str
    image_id: str
    mail_link: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """One look of a page; `endpoint` is the route that renders it.

    `act` goes on from `path`, as a person does.
    """

    name: str
    endpoint: str
    path: str
    user: str | None = ADMIN
    act: Callable[[Browser], Any] = lambda page: None


NOT_PAGES = frozenset(
    {
        "home",
        "build_state",
        "build_log",
        "choices",
        "preview",
        "workflows",
        "download",
        "document",
        "captcha_picture",
        "captcha_sound",
        "cancel",
        "retry",
        "delete",
        "logout",
        "openid",
        "openid_back",
        "revoke_token",
        "remove_credential",
        "share",
        "change_user",
        "switch_webhook",
        "test_webhook",
        "remove_webhook",
        "remove_mail",
        "confirmed_mail",
    }
)
"""Routes that redirect, or answer with data."""


SETTINGS = {
    "CIC_REPOSITORIES_ALLOWED_GIT_HOSTS": "git.example.org",
    "CIC_PUBLIC_URL": "https://cic.example.org/image_creation",
    "CIC_SMTP_HOST": "127.0.0.1",
    "CIC_MAIL_SENDER": "cic@example.org",
}
"""What a site needs so that its pages show all that they have."""


def prepare(service: Service) -> Facts:
    """Make builds of every kind, an administrator, and a user who has nothing."""
    add_user(service.site, ADMIN, PASSWORD, is_admin=True)
    add_user(service.site, NEWCOMER, PASSWORD)

    def submit(step: str, engine: str = "singularity") -> str:
        answer = service.call(
            "POST",
            "/build/",
            user=ADMIN,
            json={
                "machine": {**MACHINE, "container_engine": engine},
                "workflow": "demo",
                "step_id": step,
                "push": False,
            },
        )
        return str(answer.json()["id"])

    finished, failed, docker = submit("hello"), submit("broken"), submit("hello", "docker")
    ended = service.wait_for(finished, user=ADMIN)
    keep_lockfile(service, ended["identity"])
    image_id = service.wait_for(docker, user=ADMIN)["image_id"]
    service.wait_for(failed, user=ADMIN)
    return Facts(
        finished=finished,
        failed=failed,
        going_on=submit("slow"),
        filename=ended["filename"],
        identity=ended["identity"],
        image_id=image_id,
        mail_link=mail_link(service),
    )


def mail_link(service: Service) -> str:
    """Return the page at which `ADMIN` confirms a mail address."""
    settings = service.site.settings.service
    engine = make_engine(settings.database)
    user = accounts.by_name(engine, ADMIN)
    engine.dispose()
    assert user is not None
    return f"/account/mail/{confirmation.token_for(user.id, 'grace@example.org', settings)}"


def keep_lockfile(service: Service, identity: str) -> None:
    """Put a real lockfile beside an image that has none: pages draw it as they draw its own."""
    lock = (DATA / "locks" / "spack-1.1-cuda-zen2.json").read_text("utf-8")
    nodes = Graph(json.loads(lock)).built()
    told = [
        Span(kind=PACKAGE, name=node.name, hash=node.hash, began_s=0.0).ended(
            60.0, BUILT if number % 2 else CACHED
        )
        for number, node in enumerate(nodes)
        if number % 5
    ]
    documents = {lockfile.FILE: lock, origins.FILE: origins.document(json.loads(lock), told) or ""}
    library = service.site.settings.library
    open_images(library.build, library.registry).keep_documents(identity, documents)


def clear(service: Service, facts: Facts) -> None:
    """End what still goes on."""
    service.call("POST", f"/build/{facts.going_on}/cancel", user=ADMIN)


def sights(facts: Facts) -> list[Sight]:
    """Return every page, in its good and its bad times; those of one user follow each other."""
    return [
        Sight(name="login", endpoint="login", path="/login", user=None),
        Sight(name="login-wrong", endpoint="login", path="/login", user=None, act=_log_in_wrongly),
        Sight(name="signup", endpoint="signup", path="/signup", user=None),
        Sight(
            name="signup-wrong", endpoint="signup", path="/signup", user=None, act=_sign_up_wrongly
        ),
        Sight(name="docs", endpoint="docs", path="/docs", user=None),
        Sight(name="builds-empty", endpoint="builds", path="/builds", user=NEWCOMER),
        Sight(name="account-empty", endpoint="account", path="/account", user=NEWCOMER),
        Sight(name="notices-empty", endpoint="notices", path="/account/notices", user=NEWCOMER),
        Sight(name="builds", endpoint="builds", path="/builds"),
        Sight(name="builds-none", endpoint="builds", path="/builds?status=CONVERTING"),
        Sight(
            name="build-finished",
            endpoint="build",
            path=f"/builds/{facts.finished}",
            act=_wait_for_log,
        ),
        Sight(
            name="build-failed", endpoint="build", path=f"/builds/{facts.failed}", act=_wait_for_log
        ),
        Sight(
            name="build-going-on",
            endpoint="build",
            path=f"/builds/{facts.going_on}",
            act=_wait_for_log,
        ),
        Sight(
            name="build-asking",
            endpoint="build",
            path=f"/builds/{facts.finished}",
            act=_ask_to_delete,
        ),
        Sight(name="timeline", endpoint="timeline", path=f"/builds/{facts.finished}/timeline"),
        Sight(name="timeline-failed", endpoint="timeline", path=f"/builds/{facts.failed}/timeline"),
        Sight(
            name="timeline-going-on",
            endpoint="timeline",
            path=f"/builds/{facts.going_on}/timeline",
        ),
        Sight(name="images", endpoint="images", path="/images"),
        Sight(name="images-none", endpoint="images", path="/images?search=nothing+of+that"),
        Sight(name="image", endpoint="image", path=f"/images/{facts.filename}?machine=lumi-g"),
        Sight(
            name="image-docker", endpoint="image_of_docker", path=f"/images/docker/{facts.image_id}"
        ),
        Sight(name="packages", endpoint="packages", path=f"/images/packages/{facts.identity}"),
        Sight(
            name="packages-none",
            endpoint="packages",
            path=f"/images/packages/{facts.identity}?search=nothing+of+that",
        ),
        Sight(name="graph", endpoint="graph", path=f"/images/graph/{facts.identity}"),
        Sight(name="machines", endpoint="machines", path="/machines"),
        Sight(name="machines-search", endpoint="machines", path="/machines?search=csc+amd"),
        Sight(
            name="machines-wrong",
            endpoint="recognise_machine",
            path="/machines",
            act=_paste_wrongly,
        ),
        Sight(
            name="machines-recognised",
            endpoint="recognise_machine",
            path="/machines",
            act=_paste_facts,
        ),
        Sight(name="new", endpoint="new_build", path="/builds/new?machine=lumi-c"),
        Sight(name="new-wrong", endpoint="new_build", path="/builds/new", act=_request_wrongly),
        Sight(
            name="new-plan",
            endpoint="new_build",
            path="/builds/new?workflow=demo&step_id=hello",
            act=_plan,
        ),
        Sight(name="account-token", endpoint="add_token", path="/account", act=_make_token),
        Sight(name="account", endpoint="account", path="/account"),
        Sight(
            name="account-wrong",
            endpoint="change_password",
            path="/account",
            act=_change_password_wrongly,
        ),
        Sight(
            name="account-credential-wrong",
            endpoint="add_credential",
            path="/account",
            act=lambda page: _send(page, "form[action$='/account/credentials'] button"),
        ),
        Sight(name="webhook", endpoint="add_webhook", path="/account/notices", act=_add_webhook),
        Sight(
            name="webhook-wrong",
            endpoint="add_webhook",
            path="/account/notices",
            act=lambda page: _send(page, "form[action$='/account/webhooks'] button"),
        ),
        Sight(
            name="mail-wrong",
            endpoint="set_mail",
            path="/account/notices",
            act=lambda page: _send(page, "form[action$='/account/mail'] button"),
        ),
        Sight(name="notices", endpoint="notices", path="/account/notices"),
        Sight(name="mail-link", endpoint="confirm_mail", path=facts.mail_link),
        Sight(name="admin", endpoint="admin", path="/admin"),
        Sight(name="nowhere", endpoint="404", path="/nowhere"),
    ]


def _send(page: Browser, button: str) -> None:
    page.click(button)
    page.wait(lambda: page.all("[aria-invalid]"))


def _log_in_wrongly(page: Browser) -> None:
    page.fill(name="nobody", password="not this one")
    _send(page, "main form button")


def _sign_up_wrongly(page: Browser) -> None:
    page.fill(name="a b", password="short", repeated="shorter", answer="none")
    _send(page, "main form button")


def _request_wrongly(page: Browser) -> None:
    page.fill(workflow="demo", step_id="helo", architecture="romee", mpi="$(mpi)")
    _send(page, "button[value=build]")


def _paste_wrongly(page: Browser) -> None:
    page.fill(collected="no facts")
    _send(page, "main form[method=post] button")


def _paste_facts(page: Browser) -> None:
    """Paste what the client collects on this machine."""
    client = subprocess.run(
        [PROJECT / "cic_cli", "here"], capture_output=True, text=True, check=True
    )
    page.fill(collected=client.stdout)
    page.click("main form[method=post] button")
    page.wait(lambda: page.all("#description"))


def _plan(page: Browser) -> None:
    page.click("button[value=plan]")
    page.wait(lambda: page.all("#plan"))


def _make_token(page: Browser) -> None:
    page.find("form[action$='/account/tokens'] [name=name]").send_keys("laptop")
    page.click("form[action$='/account/tokens'] button")
    page.wait(lambda: page.all("#new-token"))


def _add_webhook(page: Browser) -> None:
    """Keep a webhook, and try it: its name leads nowhere, so that the page shows a try that failed."""
    page.find("[name=webhook-url]").send_keys("https://ci.example.invalid/hook")
    page.click("form[action$='/account/webhooks'] button")
    page.wait(lambda: page.all("#new-secret"))
    page.click("form[action$='/test'] button")
    page.wait(lambda: page.all("td a, td[data-label=Outcome]"))
    page.open("/account/notices")
    page.find("[name=webhook-url]").send_keys("https://ci.example.invalid/another")
    page.click("form[action$='/account/webhooks'] button")
    page.wait(lambda: page.all("#new-secret"))


def _change_password_wrongly(page: Browser) -> None:
    page.fill(present=PASSWORD + "?", password="another one entirely", repeated="yet another one")
    _send(page, "form[action$='/account/password'] button")


def _wait_for_log(page: Browser) -> None:
    page.wait(lambda: page.text("#log"))


def _ask_to_delete(page: Browser) -> None:
    page.click("details.confirm summary")


LOOKS = tuple(
    (width, height, dark) for width, height in ((360, 780), (1600, 1000)) for dark in (False, True)
)


def look(page: Browser, width: int, height: int, dark: bool) -> None:
    """Show the page that stands in a window of this size, light or dark."""
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {
            "features": [
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]
        },
    )  # a colour on its way to another is none
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    page.wait(
        lambda: (
            page.driver.execute_script("return document.documentElement.dataset.bsTheme")
            == ("dark" if dark else "light")
        )
    )


def visit(start: Callable[[str | None], Browser], facts: Facts) -> Iterator[tuple[Sight, Browser]]:
    """Bring a browser to one sight after the other.

    `start` opens one that is logged in as this user.
    """
    page: Browser | None = None
    user: str | None = None
    for sight in sights(facts):
        if page is None or sight.user != user:
            page, user = start(sight.user), sight.user
        page.open(sight.path)
        sight.act(page)
        yield sight, page
