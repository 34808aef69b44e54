"""A real Chromium for tests of pages: one for the whole session, because each start takes seconds."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --window-size=1280,900""".split()
LOADED = "return performance.getEntriesByType('resource').map(entry => entry.name)"
"""Addresses that a page has loaded beside itself."""
CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const paint = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (node) => { for (let n = node; n; n = n.parentElement) {
  const rgb = paint(getComputedStyle(n).backgroundColor);
  if (rgb[3] === 255) return rgb; } return [255, 255, 255]; };
const found = [];
const add = (node, color, paper) => {
  const [a, b] = [light(paint(color)), light(paper)].sort((x, y) => y - x);
  const text = (node.textContent || node.placeholder).trim().slice(0, 30);
  found.push([(a + 0.05) / (b + 0.05), `${node.tagName} ${color} on ${paper}: ${text}`]); };
for (const node of document.querySelectorAll(arguments[0])) {
  const style = getComputedStyle(node);
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (own && (node.tagName === "text" || !node.closest("svg")))
    add(node, node.closest("svg") ? style.fill : style.color, behind(node));
  if (node.placeholder) add(node, getComputedStyle(node, "::placeholder").color, behind(node));
}
return found;
"""
"""Contrast of each text, in the elements of a selector, with what is behind it (WCAG 2, 1.4.3)."""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser: Debian's packages chromium and chromium-driver are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def errors_of(browser: Any) -> list[str]:
    """Return the errors in the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def set_width(browser: Any, width: int) -> None:
    """Show the page as a screen of this width does; 0 restores the window's own."""
    if not width:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        return
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_scheme(browser: Any, scheme: str) -> None:
    """Prefer `light` or `dark`."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
