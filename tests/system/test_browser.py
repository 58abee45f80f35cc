"""What people do, in a real browser against the real service."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sqlite3
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import sights
from tests.support.browser import Browser, browser
from tests.support.daemon_images import remove_images
from tests.support.site import (
    HELLO,
    MACHINE,
    PASSWORD,
    PROJECT,
    USER,
    Service,
    Site,
    add_user,
    free_port,
    make_site,
    running_service,
)

pytestmark = pytest.mark.system


def talks() -> dict[str, str]:
    """A step that talks for a while, and tries to write HTML; never the same, so that docker has no
    layer of it.
    """
    return {
        "eflows4hpc.yaml": "apt: []\n",
        "post_inst.sh": f"# {secrets.token_hex()}\n"
        'for i in $(seq 1 60); do echo "line $i <b>&amp;</b>"; sleep 0.2; done\n',
    }


NEVER_ENDS = {
    "eflows4hpc.yaml": "apt: []\n",
    "post_inst.sh": "while :; do echo still here; sleep 1; done\n",
}
REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "hello"}
AXE = PROJECT / "build" / "axe"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    site = make_site(tmp_path_factory.mktemp("site"))
    steps = {
        "hello": HELLO,
        "talks": talks(),
        "talks-on": talks(),
        "never-ends": NEVER_ENDS,
        **sights.STEPS,
    }
    for step, files in steps.items():
        site.add_step("demo", step, files)
    environ = {**sights.SETTINGS, "CIC_LOG_STREAM_S": "2"}  # streams end often
    with running_service(site.with_environ(**environ)) as running:
        yield running
    remove_images(site)


@pytest.fixture(scope="module")
def facts(service: Service) -> Iterator[sights.Facts]:
    found = sights.prepare(service)
    yield found
    sights.clear(service, found)


@pytest.fixture
def open_browser(service: Service, tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Opens browsers, each with cookies of its own. At the end, none has asked another host or
    complained.
    """
    with ExitStack() as stack:
        opened: list[Browser] = []

        def start(user: str | None = None, password: str = PASSWORD, **more: Any) -> Browser:
            profile = tmp_path / f"profile-{len(opened)}"
            page = stack.enter_context(browser(f"{service.url}/image_creation", profile, **more))
            opened.append(page)
            if user is not None:
                page.log_in(user, password)
            return page

        yield start
        for page in opened:
            asked = {urllib.parse.urlsplit(address).netloc for address in page.asked_addresses()}
            assert asked == {urllib.parse.urlsplit(service.url).netloc}
            assert not [text for text in page.complaints() if "Content Security Policy" in text]


def request_build(page: Browser, step: str) -> str:
    """Fill in the form for a new build, and return the build's id."""
    page.open("/builds/new")
    page.fill(
        workflow="demo",
        step_id=step,
        push="no",
        **{key: MACHINE[key] for key in ("platform", "architecture")},
    )
    page.click("button[value=build]")
    page.wait(lambda: page.path.startswith("/builds/") and "/new" not in page.path)
    return page.path.removeprefix("/builds/")


def wait_for_end(page: Browser, timeout_s: float = 240) -> None:
    page.wait(lambda: page.find("#progress").get_attribute("data-ended") == "yes", timeout_s)
    page.wait(lambda: page.find("#log").get_attribute("data-complete") == "yes")


def test_a_new_user_gets_an_image(
    service: Service, open_browser: Callable[..., Browser], tmp_path: Path
) -> None:
    """Sign up with the captcha, request, watch the build, download the SIF: it is the one that was
    built.
    """
    page = open_browser()
    page.open("/signup")
    captcha_id = page.find("[name=captcha_id]").get_attribute("value")
    assert (
        page.driver.execute_script("return document.querySelector('.captcha').naturalWidth") > 100
    )
    with sqlite3.connect(service.site.root / "db.sqlite") as database:
        (answer,) = database.execute(
            "SELECT answer FROM captchas WHERE id = ?", (captcha_id,)
        ).fetchone()
    page.fill(name="mary", password=PASSWORD, repeated=PASSWORD, answer=answer)
    page.click("main form button")
    page.wait(lambda: page.path == "/builds")
    assert "You have no builds yet" in page.text()

    build_id = request_build(page, "hello")
    page.wait(lambda: "--- BUILDING" in page.text("#log") or "CONVERTING" in page.text("#log"), 120)
    wait_for_end(page)
    assert page.text("#progress .badge") == "FINISHED"
    status = service.call("GET", f"/build/{build_id}", user="mary").json()

    page.click(f"a[href*='/images/{status['filename']}/download']")
    sif = tmp_path / "profile-0" / "downloads" / status["filename"]
    page.wait(lambda: sif.exists() and sif.stat().st_size == status["size_bytes"])
    assert hashlib.sha256(sif.read_bytes()).hexdigest() == status["sha256"]

    page.open("/images")
    assert status["filename"] in page.text()
    page.open(f"/images/{status['filename']}")
    assert page.text("#sha256") == status["sha256"]

    page.click("[data-copy]")
    page.wait(lambda: page.text("[data-copy]") == "Copied")
    assert page.clipboard() == page.text(":has(> [data-copy]) code")


def test_a_wrong_captcha_makes_no_user(open_browser: Callable[..., Browser]) -> None:
    page = open_browser()
    page.open("/signup")
    first = page.find("[name=captcha_id]").get_attribute("value")
    page.fill(name="robot", password=PASSWORD, repeated=PASSWORD, answer="not digits")
    page.click("main form button")
    page.wait(lambda: page.all("[aria-invalid]"))
    assert page.find("[name=captcha_id]").get_attribute("value") != first
    page.open("/login")
    page.fill(name="robot", password=PASSWORD)
    page.click("main form button")
    assert page.wait(lambda: page.all(".invalid-feedback"))


def test_wrong_fields_are_told_beside_them_and_what_was_typed_is_kept(
    open_browser: Callable[..., Browser],
) -> None:
    page = open_browser(USER)
    page.open("/builds/new")
    page.fill(workflow="demo", step_id="hello", architecture="romee", mpi="$(mpi)")
    page.click("button[value=build]")
    page.wait(lambda: page.all("[aria-invalid]"))

    assert {element.get_attribute("name") for element in page.all("[aria-invalid]")} == {
        "architecture",
        "mpi",
    }
    assert "rome" in page.text("#architecture-error")
    assert page.find("[name=mpi]").get_attribute("value") == "$(mpi)"
    assert page.find("[name=step_id]").get_attribute("value") == "hello"
    page.fill(architecture="rome", mpi="")
    page.click("button[value=plan]")
    page.wait(lambda: page.all("#plan"))
    assert "FROM" in page.text("#plan")


def test_the_form_offers_what_the_registry_and_the_catalogue_hold(
    open_browser: Callable[..., Browser],
) -> None:
    page = open_browser(USER)
    page.open("/builds/new")
    page.fill(workflow="demo")
    page.wait(lambda: page.all("#step_id-list option[value=talks]"))
    page.wait(lambda: not page.all("#architecture-list option[value=neoverse_v2]"))
    page.fill(platform="linux/arm64")
    page.wait(lambda: page.all("#architecture-list option[value=neoverse_v2]"))
    page.fill(machine="lumi-c")
    assert page.find("[name=architecture]").get_attribute("value") == "milan"
    assert page.find("[name=platform]").get_attribute("value") == "linux/amd64"


def test_what_would_be_built_is_shown_while_one_types(
    open_browser: Callable[..., Browser],
) -> None:
    """Errors come to the fields that were touched, and a plan that was open stays open."""
    page = open_browser(USER)
    page.open("/builds/new")
    machine = {key: MACHINE[key] for key in ("platform", "architecture")}
    page.fill(workflow="demo", step_id="hello", push="no", **machine)
    page.wait(lambda: page.all("#preview #plan"))
    assert "demo_hello_x86_64" in page.text("#plan")
    assert not page.all("[aria-invalid=true]")
    page.click("#plan details:last-of-type summary")
    assert "FROM" in page.text("#plan")

    page.fill(architecture="romee")
    page.wait(lambda: page.all("[name=architecture][aria-invalid=true]"))
    assert "rome" in page.text("#architecture-error")
    assert not page.all("#plan")
    page.fill(architecture="rome")
    page.wait(lambda: page.all("#plan"))
    assert not page.all("[aria-invalid=true]")
    assert "zen2" in page.text("#plan")

    page.fill(what="own", packages="zlib@@")
    page.wait(lambda: page.all("[name=packages][aria-invalid=true]"))
    page.open("/builds")
    assert "You have no builds yet" in page.text() or page.all("table")


def test_machines_are_found_while_one_types(open_browser: Callable[..., Browser]) -> None:
    page = open_browser(USER)
    page.open("/machines")
    count = len([row for row in page.all("#machines tbody tr") if row.is_displayed()])
    page.fill(search="lumi amd")
    page.wait(lambda: page.text("#search-said"))
    shown = [row.text for row in page.all("#machines tbody tr") if row.is_displayed()]
    assert 0 < len(shown) < count and any("lumi-g" in text for text in shown)
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.open("/machines?search=lumi+amd")
    assert [row.text for row in page.all("#machines tbody tr") if row.is_displayed()] == shown


def test_the_graph_leads_to_the_list_by_keyboard(
    facts: sights.Facts, open_browser: Callable[..., Browser]
) -> None:
    page = open_browser(sights.ADMIN)
    page.open(f"/images/graph/{facts.identity}")
    box = page.find("svg.graph a")
    address = str(page.driver.execute_script("return arguments[0].href.baseVal", box))
    box.send_keys(Keys.ENTER)
    page.wait(lambda: page.path.startswith("/images/packages/"))
    assert page.driver.current_url.endswith(address) and "?search=" in address
    assert page.find("#search").get_attribute("value") in address


def test_a_log_survives_a_reload(service: Service, open_browser: Callable[..., Browser]) -> None:
    """Also a pause, and texts in it that look like HTML: at the end the page shows the same bytes
    as the API.
    """
    page = open_browser(USER)
    build_id = request_build(page, "talks")
    page.wait(lambda: "line 5 " in page.text("#log"), 120)
    page.driver.refresh()
    page.wait(lambda: "line 10 " in page.text("#log"), 120)
    page.click("#pause")
    page.wait(lambda: "paused" in page.text("#log-state"))
    page.click("#pause")
    wait_for_end(page)

    log = service.call("GET", f"/build/{build_id}/log").text
    assert page.text("#log") == log
    assert "line 60 <b>&amp;</b>" in log
    page.find("#find").send_keys("line 42 ")
    page.click("#search button")
    assert page.driver.execute_script("return getSelection().toString()") == "line 42 "


def test_a_log_survives_a_cut_of_the_network(
    service: Service, open_browser: Callable[..., Browser]
) -> None:
    """What was written meanwhile is shown when the network is back, once."""
    page = open_browser(USER)
    build_id = request_build(page, "talks-on")
    page.wait(lambda: "line 5 " in page.text("#log"), 120)
    set_offline(page, True)
    page.wait(lambda: "line 30 " in service.call("GET", f"/build/{build_id}/log").text, 120)
    assert "line 30 " not in page.text("#log")
    set_offline(page, False)
    page.wait(lambda: "line 30 " in page.text("#log"))
    wait_for_end(page)
    assert page.text("#log") == service.call("GET", f"/build/{build_id}/log").text


def set_offline(page: Browser, offline: bool) -> None:
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )


def test_a_log_survives_a_stop_of_the_service(site: Site, tmp_path: Path) -> None:
    """The service stops under an open page and starts again: the page shows all of the log."""
    site.add_step("demo", "talks", talks())
    brief = site.with_environ(CIC_STOP_TIMEOUT_S="0")
    port = free_port()
    with browser(f"http://127.0.0.1:{port}/image_creation", tmp_path / "profile") as page:
        with running_service(brief, port=port):
            page.log_in(USER, PASSWORD)
            build_id = request_build(page, "talks")
            page.wait(lambda: "line 5 " in page.text("#log"), 120)
        assert "line 60 " not in page.text("#log"), "the service was there until the end"
        with running_service(brief, port=port, name="again") as again:
            wait_for_end(page)
            log = again.call("GET", f"/build/{build_id}/log").text
            assert page.text("#log") == log
            assert "line 60 " in log


def test_cancel_asks_once_more_and_ends_the_build(open_browser: Callable[..., Browser]) -> None:
    page = open_browser(USER)
    request_build(page, "never-ends")
    page.wait(lambda: "still here" in page.text("#log"), 120)
    page.click("details.confirm summary")
    page.click("details.confirm[open] button")
    page.wait(lambda: "CANCELLED" in page.text("#progress"))
    wait_for_end(page)
    page.click("details.confirm summary")
    page.click("details.confirm[open] button")
    page.wait(lambda: page.path == "/builds")
    assert "The build was deleted." in page.text()


def test_nobody_sees_what_is_anothers(
    service: Service, open_browser: Callable[..., Browser]
) -> None:
    build_id = service.call("POST", "/build/", json=REQUEST).json()["id"]
    add_user(service.site, "second", PASSWORD)
    page = open_browser("second")
    for path in ("", "/state", "/log"):
        page.open(f"/builds/{build_id}{path}")
        assert "There is no such build." in page.text()
    page.open(f"/builds/new?from={build_id}")
    assert "There is no such build." in page.text()
    page.open("/builds")
    assert build_id not in page.driver.page_source
    page.open("/admin")
    assert "There is no such page." in page.text()


def test_another_password_ends_the_other_session(
    service: Service, open_browser: Callable[..., Browser]
) -> None:
    add_user(service.site, "careful", PASSWORD)
    here, there = open_browser("careful"), open_browser("careful")
    here.open("/account")
    here.fill(present=PASSWORD, password="another one entirely", repeated="another one entirely")
    here.click("form[action$='/account/password'] button")
    here.wait(lambda: "Every other session has ended" in here.text())
    here.open("/builds")
    there.open("/builds")

    assert here.path == "/builds"
    assert there.path.startswith("/login")
    there.fill(name="careful", password="another one entirely")
    there.click("main form button")
    there.wait(lambda: there.path == "/builds")


def test_a_token_is_shown_once_and_works(
    service: Service, open_browser: Callable[..., Browser]
) -> None:
    page = open_browser(USER)
    page.open("/account")
    page.find("form[action$='/account/tokens'] [name=name]").send_keys("laptop")
    page.click("form[action$='/account/tokens'] button")
    token = page.wait(lambda: page.text("#new-token code"))
    assert service.call("GET", "/build/", user=token, password="").status_code == 200
    page.open("/account")
    assert token not in page.driver.page_source
    page.click("details.confirm summary")
    page.click("details.confirm[open] button")
    page.wait(lambda: "does not work any more" in page.text())
    assert service.call("GET", "/build/", user=token, password="").status_code == 401


def axe_script() -> str:
    """axe-core's program, fetched once from the npm registry into an ignored folder."""
    script = AXE / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("ACCESSIBILITY WAS NOT CHECKED: there is no npm to fetch axe-core with")
        AXE.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run(
            [npm, "install", "--no-save", "--no-audit", "--no-fund", "axe-core@4"],
            cwd=AXE,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if fetched.returncode != 0:
            pytest.skip(
                f"ACCESSIBILITY WAS NOT CHECKED: npm cannot fetch axe-core: {fetched.stderr[-300:]}"
            )
    return script.read_text("utf-8")


def test_every_page_is_accessible_and_fits(
    service: Service, facts: sights.Facts, open_browser: Callable[..., Browser]
) -> None:
    """In a small and in a large window, light and dark, with what goes wrong on forms, and without
    anything to show.
    """
    axe, found, wide = axe_script(), {}, {}
    for sight, page in sights.visit(open_browser, facts):
        page.driver.execute_script(axe)
        for width, height, dark in sights.LOOKS:
            sights.look(page, width, height, dark)
            name = (sight.name, width, "dark" if dark else "light")
            found[name] = serious_findings(page)
            wide[name] = page.driver.execute_script("return document.documentElement.scrollWidth")

    assert {name: findings for name, findings in found.items() if findings} == {}
    assert {name: px for name, px in wide.items() if px > name[1]} == {}


def serious_findings(page: Browser) -> list[str]:
    found = page.driver.execute_async_script("const done = arguments[0]; axe.run().then(done);")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']][:5]}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
    ]
