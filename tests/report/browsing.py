"""A headless Chromium for tests of the page, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """A browser with no network; the test is skipped where none is found."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((p for p in map(shutil.which, BROWSERS) if p), None)
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        if path is None and not os.path.exists(own):
            pytest.skip(f"no browser: neither {', '.join(BROWSERS)} (apt install chromium) nor Playwright's own")
        launched = playwright.chromium.launch(executable_path=path or own, args=["--no-sandbox"])
        try:
            yield launched
        finally:
            launched.close()


class Opened:
    """A page opened from a file. ``said`` has what its console said and every error; ``asked`` each address."""

    def __init__(self, browser: Any, path: Path, fragment: str = "", **context: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": 1300, "height": 900}, **context)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = path.resolve().as_uri()
        self.page.goto(self.address + fragment)
        self.page.wait_for_selector("#site *")

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found
