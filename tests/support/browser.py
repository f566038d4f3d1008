"""A real Chromium without a window, for tests of pages; they are skipped where there is none."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MEASURE = """
const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => { v /= 255;
  return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
const scale = (e) => { if (!e.closest('svg')) return 1; const m = e.getScreenCTM();
  return Math.sqrt(Math.abs(m.a * m.d - m.b * m.c)); };
const measureTexts = () => { const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) { const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim()) continue;
  const s = getComputedStyle(e); texts.push([ratio(e.closest('svg') ? s.fill : s.color, ground(e)),
    parseFloat(s.fontSize) * scale(e), e.textContent.slice(0, 40)]); }
return texts; };
"""
"""Functions for scripts in a page: of every text its contrast by WCAG 2.2, its size in pixels, and how it begins."""


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A driver of Chromium with a profile of its own, which notes the console and the network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("there is no Chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


def set_screen(browser: Any, width: int, theme: str = "light", height: int = 800) -> None:
    """Give the page a size, of a telephone below 500 pixels, and a theme."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested(browser: Any) -> list[str]:
    """Addresses that pages have asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
