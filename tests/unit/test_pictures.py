"""What a browser makes of the HTML for notebooks. Skipped where there is no browser: it is no dependency."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from docs import pictures
from hvdspark import notebook

pytestmark = pytest.mark.skipif(bool(pictures.missing()), reason=f"no browser: {pictures.missing()}")


class Shown:
    """An object that a notebook shows."""

    def _repr_html_(self) -> str:
        curves = notebook.curves([0, 1, 2], {"train_loss": [0.9, 0.5, 0.4]}, 2)
        return notebook.block(notebook.line("a title"), curves, notebook.table(("name", "value"), [("a", 0.5)]))


@pytest.mark.parametrize("doctype", ["", "<!doctype html>"])
def test_text_has_the_colour_of_the_page(doctype: str) -> None:
    """Without a doctype tables inherit none by themselves: black on black."""
    with pictures.browser() as page:
        page.set_content(f'{doctype}<div style="color:rgb(1, 2, 3)">{Shown()._repr_html_()}</div>')
        colours = page.locator("td, th, b, svg, div > span").evaluate_all(
            "found => found.map(one => getComputedStyle(one).color)"
        )
        assert len(colours) >= 5
        assert set(colours) == {"rgb(1, 2, 3)"}
        sizes = page.locator("td, th").evaluate_all("found => found.map(one => getComputedStyle(one).fontSize)")
        assert set(sizes) == {"13px"}


def test_pictures_are_small_and_of_both_pages(tmp_path: Path) -> None:
    with pictures.browser() as page:
        pictures.notebook_picture(page, [Shown()], tmp_path)
    corners = {}
    for path in tmp_path.glob("*.png"):
        assert path.stat().st_size < 20_000
        with Image.open(path) as picture:
            assert picture.width > 300
            corners[path.stem] = picture.convert("RGB").getpixel((1, 1))
    assert corners == {"notebook-light": (255, 255, 255), "notebook-dark": (17, 17, 17)}
