"""A browser without network, and the pages that scripts/test_report made; without them nothing here is collected."""

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

REPORTS = os.environ.get("RAIOPT_REPORTS")
collect_ignore_glob = [] if REPORTS else ["*.py"]
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync
"""
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


def address(name):
    return (Path(REPORTS or "") / f"{name}.html").resolve().as_uri()


@pytest.fixture(scope="session")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser):
    """Opens one of the reports from its file; fails if the page reported an error or requested a resource."""
    contexts, troubles = [], []

    def opened(name, look="light"):
        contexts.append(browser.new_context(offline=True, **LOOKS[look]))
        page = contexts[-1].new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked(request.url))
        page.goto(address(name))
        return page

    def asked(url):
        if not url.startswith(("file:", "data:")):
            troubles.append(f"request: {url}")

    yield opened
    for context in contexts:
        context.close()
    assert not troubles


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")
