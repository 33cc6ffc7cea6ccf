"""Takes the images of docs/report: ``python docs/take_screenshots.py`` (needs Chromium)."""

from __future__ import annotations

import shutil
from pathlib import Path

from selenium import webdriver

FOLDER = Path(__file__).with_name("report")
VIEWS = {
    "light": (1480, 1300, "light"),
    "dark": (1480, 1300, "dark"),
    "phone": (500, 1000, "light"),
}
"""Width and height of the window in pixels, and the theme."""


def main() -> None:
    """An image of the top of the page in each view."""
    driver = shutil.which("chromedriver")
    for name, (width, height, theme) in VIEWS.items():
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
            options.add_argument(argument)
        options.add_argument(f"--window-size={width},{height}")
        with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
            media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.get((FOLDER / "report.html").as_uri())
            browser.implicitly_wait(5)
            browser.find_element("css selector", ".js-plotly-plot .main-svg")
            browser.save_screenshot(str(FOLDER / f"{name}.png"))


if __name__ == "__main__":
    main()
