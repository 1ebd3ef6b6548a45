"""Chromium or Chrome: on the path, or named by the variable ``BROWSER``."""

import contextlib
import os
import shutil

NAMES = "chromium", "chromium-browser", "google-chrome"


@contextlib.contextmanager
def launched():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("BROWSER") or next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as playwright:
        # As root, Chromium only starts without its sandbox.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
