"""What the page's server takes from whom: questions of its own page and of programs, at a bounded size and rate."""

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
MAX_BYTES = 1 << 19
"""Of a request: two texts of the greatest length in the widest encoding."""
MAX_QUESTIONS, WINDOW = 300, 10.0
"""From one address in so many seconds."""
_ASKED = re.compile(r"/gradio_api/(queue/join|cancel|reset|(call|call/v2|run|api)/predict)/?")
_CLOSED = re.compile(r"/(gradio_api/)?(file|proxy|stream|upload|run-history|runs|monitoring|deep_link|vibe|profiling)")


class Guard:
    """ASGI middleware that refuses what the page does not need.

    Closed are uploads, files and every route that changes something but for questions. Refused are requests of pages of
    other origins, under other names than this machine's, if there are `hosts`, and more or longer questions than limits
    allow.
    """

    def __init__(self, app: Application, hosts: Collection[str] | None = None) -> None:
        self._app, self._hosts = app, hosts
        self._asked: Counter[str] = Counter()
        self._since = 0.0

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, text = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and text for a request that is refused."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
            return 403, "This page is served to its own machine alone."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc not in (host, headers.get("x-forwarded-host", host)):
            return 403, "Other pages may not ask this one."
        if scope["method"] in ("GET", "HEAD"):
            return (404, "There are no files here.") if _CLOSED.match(scope["path"]) else None
        if scope["method"] != "POST" or not _ASKED.fullmatch(scope["path"]):
            return 404, "Nothing but questions is taken here."
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            return 413, f"A question must have at most {MAX_BYTES:,} bytes, and say how many."
        return (429, "Too many questions. Wait some seconds.") if self._is_too_often(scope) else None

    def _is_too_often(self, scope: Scope) -> bool:
        if time.monotonic() - self._since > WINDOW:
            self._asked.clear()
            self._since = time.monotonic()
        address = (scope.get("client") or ("",))[0]
        self._asked[address] += 1
        return self._asked[address] > MAX_QUESTIONS
