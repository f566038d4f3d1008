"""Elements of HTML, whose texts are escaped where they are put in."""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any


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
