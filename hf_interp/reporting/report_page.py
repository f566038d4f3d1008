"""A page of HTML that needs nothing else: texts are escaped where they are put in, styles stand inside. No torch."""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

NUM_COLOURS = 7
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f23; --paper: #ffffff; --muted: #4d5660; --line: #d0d7de; --box: #f4f6f8;
  --warn: #fff4d6; --link: #0757a8;
  --c0: #0072b2; --c1: #c04a00; --c2: #00795a; --c3: #a8487e; --c4: #8a6100; --c5: #5b5bd6; --c6: #1b1f23; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #14171a; --muted: #aab2ba; --line: #3a424a;
  --box: #1e2328; --warn: #3a3013; --link: #7cc0ff;
  --c0: #56b4e9; --c1: #ff9b5e; --c2: #3fd0a4; --c3: #e7a1cb; --c4: #f0c64a; --c5: #a9b4ff; --c6: #e6e8ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 82rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
a { color: var(--link); } p { max-width: 60rem; } .note { color: var(--muted); font-size: .9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.warnings { background: var(--warn); border-left: .3rem solid var(--c4); padding: .5rem 1rem; }
.warnings ul { margin: .25rem 0; padding-left: 1.1rem; }
.charts { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.charts + * { margin-top: 1.25rem; }
figure { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: .4rem; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
.chart { display: block; width: 100%; height: auto; }
.chart * { stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .4rem 0; padding: 0; list-style: none;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; min-width: 0; }
.legend svg { flex: none; width: 30px; height: 12px; }
summary { cursor: pointer; font-size: .9rem; color: var(--link); }
.scroll { overflow-x: auto; max-width: 100%; max-height: 32rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal;
  max-width: 24rem; }
th { background: var(--box); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; min-width: 6rem; overflow-wrap: anywhere; }
.numbers td + td { white-space: nowrap; }
.words th, .words td { text-align: left; vertical-align: top; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print { .scroll { max-height: none; overflow: visible; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is loaded and no script runs, whatever the page holds."""


class Html(str):
    """A text that is HTML already, and goes into a page as it is."""


class Writer:
    """Writes elements; every text and attribute goes through `plain`, then is escaped.

    Args:
        plain: what is to be done with texts before, such as to take secrets out.
    """

    def __init__(self, plain: Callable[[str], str] = str) -> None:
        self.plain = plain

    def text(self, value: Any) -> Html:
        """A text that stands for itself.

        >>> Writer().text("a < b & c")
        'a &lt; b &amp; c'
        """
        return value if isinstance(value, Html) else Html(html.escape(self.plain(str(value))))

    def tag(self, name: str, *children: Any, **attributes: Any) -> Html:
        """An element; attributes whose names are words of Python end in `_`, hyphens are written as `_`.

        >>> Writer().tag("a", "1 < 2", href="#x", aria_label='"')
        '<a href="#x" aria-label="&quot;">1 &lt; 2</a>'
        """
        shown = "".join(
            f' {key.rstrip("_").replace("_", "-")}="{self.text(value)}"' for key, value in attributes.items()
        )
        return Html(f"<{name}{shown}>{''.join(self.text(child) for child in children)}</{name}>")

    def list(self, items: Iterable[Any], **attributes: Any) -> Html:
        """A list."""
        return self.tag("ul", *(self.tag("li", item) for item in items), **attributes)

    def table(
        self, header: Sequence[Any], rows: Sequence[Sequence[Any]], *, label: str, of_words: bool = False
    ) -> Html:
        """A table in a box of its own, which scrolls where the page is narrower.

        Args:
            header: names of the columns.
            rows: cells.
            label: what it is, for those who do not see it.
            of_words: flush left, and not as numbers.
        """
        head = self.tag("tr", *(self.tag("th", cell, scope="col") for cell in header))
        body = [self.tag("tr", *(self.tag("td", cell) for cell in row)) for row in rows]
        inner = self.tag(
            "table", self.tag("thead", head), self.tag("tbody", *body), class_="words" if of_words else "numbers"
        )
        # by keyboard, a box scrolls only if it can be focused
        return self.tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=label)

    def details(self, summary: str, *children: Any) -> Html:
        """What is shown on demand."""
        return self.tag("details", self.tag("summary", summary), *children)

    def page(self, title: str, *children: Any) -> str:
        """The whole document."""
        head = [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<link rel="icon" href="data:,">'),
            self.tag("title", title),
            Html(f"<style>{STYLE}</style>"),
        ]
        body = self.tag("body", self.tag("main", self.tag("h1", title), *children))
        return f'<!DOCTYPE html>\n<html lang="en">\n<head>{"".join(head)}</head>\n{body}\n</html>\n'
