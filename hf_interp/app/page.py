"""The page of the slider, in Gradio: a text, an image or a recording, an α, and the answers of M₀, M_α and M_θ to it.

Nothing of a visitor is kept: α and texts come with every question and go back with its answer; files that are sent are
deleted within the hour. The page speaks with nobody but its own server, which listens on this machine alone unless it
is asked not to.
"""

import base64
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from hf_interp.app.answers import AnswerView, CurveView
from hf_interp.app.examples import Example, Source
from hf_interp.app.models import MAX_CHARACTERS, MAX_FILE_BYTES, AlphaSlider, open_slider
from hf_interp.app.predictions import best_choices
from hf_interp.reporting.card import escape
from hf_interp.utils.errors import import_extra
from hf_interp.utils.task_info import COMPONENTS

LOOPBACK = "127.0.0.1"
MAX_WAITING = 64
"""Questions that wait for their turn; more are refused."""
KEPT_FOR = 3600
"""Seconds, at most, that an uploaded file is kept."""
FILE_OPTIONS: dict[str, dict[str, Any]] = {
    "image": {"type": "filepath", "image_mode": None},  # the file as it is
    "audio": {"type": "filepath"},
}
"""Of the components that take files."""
NUM_ROWS = 5
"""Choices at each place in what the API gives."""


def serve_source(
    source: Source,
    *,
    max_new_tokens: int = 32,
    chats: bool | None = None,
    device: str = "cpu",
    host: str | None = LOOPBACK,
    port: int | None = None,
    share: bool = False,
) -> None:
    """Open the models of a source and serve their page until it is interrupted.

    Args:
        source: the models, their curve, and texts to try.
        max_new_tokens, chats, device: see `open_slider`.
        host: the address to listen at; `None` leaves it to `GRADIO_SERVER_NAME`, and is else this machine alone.
        port: by default the first that is free from 7860 on.
        share: open a tunnel through Gradio's servers, by which anybody who knows the address can use the page.
    """
    import_gradio()  # before anything is loaded
    check_place(host, port, device)
    slider = open_slider(source.recipe, source.finetuned, max_new_tokens=max_new_tokens, chats=chats, device=device)
    launch_page(build_page(slider, source), host=host, port=port, share=share, takes_files=slider.takes != "text")


def launch_page(
    page: Any,
    *,
    host: str | None = LOOPBACK,
    port: int | None = None,
    share: bool = False,
    takes_files: bool = False,
    blocks: bool = True,
) -> str:
    """Serve a page and return its address, at once if it does not block. See `serve_source`."""
    gradio = import_gradio()
    from starlette.middleware import Middleware

    is_local = not share and (host or os.environ.get("GRADIO_SERVER_NAME") or LOOPBACK) in LOOPBACK_HOSTS
    page.queue(max_size=MAX_WAITING)
    _, address, shared = page.launch(
        app_kwargs={
            "middleware": [Middleware(Guard, hosts=LOOPBACK_HOSTS if is_local else None, takes_files=takes_files)]
        },
        max_file_size=MAX_FILE_BYTES,
        server_name=host,
        server_port=port,
        share=share,
        theme=gradio.themes.Base(
            primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css_paths=Path(__file__).with_name("page.css"),
        footer_links=[],
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        pwa=False,
        prevent_thread_lock=True,
    )
    if blocks:
        print(f"The page is at {address}" + (f" and {shared}" if shared else "") + "; Ctrl-C ends it.", flush=True)
        page.block_thread()
    return str(address)


def check_place(host: str | None, port: int | None, device: str) -> None:
    """Refuse an address that cannot be listened at, and a device that is not there."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"`port` must lie in [1, 65535], got {port}. Leave it out to have a free one.")
    if host is not None:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except (OSError, UnicodeError) as error:
            raise OSError(
                f"Nothing can be served at {host!r}, port {port}: {error}. Take another --host or --port."
            ) from None
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of each kind of device another
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"`device` must be there, such as cpu, got {device!r}: {reason}") from None


def import_gradio() -> Any:
    """Import Gradio, told not to report to anybody; an error says how to install it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return import_extra("gradio", "The page needs Gradio, which is not installed", "app")


def build_page(slider: AlphaSlider, source: Source) -> Any:
    """Return the page of some models as `gradio.Blocks`."""
    gradio = import_gradio()
    start = source.curve.alpha if source.curve is not None and 0 <= source.curve.alpha <= 1 else 0.5
    first = source.examples[0] if source.examples else Example(text="")
    writes = slider.answer_kind in ("continuation", "text")
    heading = f"{escape(source.title)} · {slider.recipe.task} · M<sub>α</sub> = α·M<sub>θ</sub> + (1 − α)·M₀"
    title = f"α: {source.title}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_FOR // 4, KEPT_FOR)) as page:
        gradio.Markdown("\n\n".join(["# The α slider", heading, *map(escape, slider.notes)]))
        with gradio.Row():
            with gradio.Column(scale=5, min_width=280):
                size: dict[str, Any] = {"lines": 4, "max_lines": 12, "max_length": MAX_CHARACTERS}
                options = size if slider.takes == "text" else FILE_OPTIONS[slider.takes]
                component = getattr(gradio, COMPONENTS[slider.takes])
                text = component(first.text or None, label=slider.takes.capitalize(), elem_id="text", **options)
                size |= {"visible": source.has_pairs}
                pair = gradio.Textbox(first.text_pair, label="Second text", elem_id="pair", **size)
                writes = writes and slider.takes == "text"  # a file is whole when it is there
                button = gradio.Button("Ask", variant="primary", visible=writes, elem_id="ask")
                alpha = gradio.Slider(0, 1, start, step=0.01, label="α, from M₀ at 0 to M_θ at 1", elem_id="alpha")
                curve = CurveView(gradio, source.curve)
            with gradio.Column(scale=6, min_width=280, elem_id="answers"):
                message = gradio.Markdown(visible=False, elem_id="message")
                answers = AnswerView(gradio, slider)
        ask = {
            "fn": _answerer(gradio, slider, answers, curve),
            "inputs": [text, pair, alpha],
            "outputs": [message, *answers.components, *curve.components],
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        _put_examples(gradio, source, text, pair, ask if writes else None)
        typed = [text.submit, text.blur, pair.blur, button.click] if writes else [text.change, pair.change]
        gradio.on([alpha.change, *typed], trigger_mode="always_last", concurrency_limit=4, **ask)
        page.load(concurrency_limit=4, **ask)
        gradio.api(_api(slider), api_name="predict", concurrency_limit=4)
    return page


def _put_examples(gradio: Any, source: Source, text: Any, pair: Any, ask: dict[str, Any] | None) -> None:
    """Put tables of examples by side; a click takes one over and, where a changed text does not do so, asks."""
    titles = {"general": "Examples: general side", "domain": "Examples: domain side", "": "Examples"}
    label = gradio.Textbox(label="In the data", visible=False)
    inputs = [text, *([pair] if source.has_pairs else []), label]
    for side, title in titles.items():
        rows = [
            [example.text, *([example.text_pair] if source.has_pairs else []), example.label]
            for example in source.examples
            if example.side == side
        ]
        if not any(row[-1] for row in rows):  # without labels their column is left out
            rows = [row[:-1] for row in rows]
        if not rows:
            continue
        table = gradio.Examples(
            rows, inputs[: len(rows[0])], label=title, cache_examples=False, api_visibility="private"
        )
        table.dataset.elem_classes = ["slider-examples"]
        if ask is not None:
            table.load_input_event.then(**ask)


def _answerer(gradio: Any, slider: AlphaSlider, answers: AnswerView, curve: CurveView) -> Any:
    """Return the function behind the page, from what stands in it to the updates of what it shows."""

    def answer(text: str | None, pair: str, alpha: float) -> list[Any]:
        try:
            given = text or "" if slider.takes == "text" else Path(text).read_bytes() if text else b""
            found = slider.compare(given, alpha, pair)
            shown, message = answers.show(found, alpha), answers.remark(found)
        except FileNotFoundError:
            shown, message = answers.clear(), "The file is not kept any more. Choose it again."
        except (TypeError, ValueError) as error:
            shown, message = answers.clear(), str(error)
        return [gradio.update(value=escape(message), visible=bool(message)), *shown, *curve.show(alpha)]

    return answer


def _api(slider: AlphaSlider) -> Any:
    """Return the function that programs call with `Client(address).predict(text, alpha, api_name="/predict")`."""

    def predict(text: str, alpha: float, text_pair: str = "") -> dict[str, Any]:
        """Return the answers of M₀, M_α and M_θ to a text, or to a file in Base64."""
        try:
            given = text if slider.takes == "text" else _file_of(text, slider.takes)
            answers = slider.compare(given, alpha, text_pair)
        except (TypeError, ValueError) as error:
            raise import_gradio().Error(str(error), print_exception=False) from error
        outcomes = answers[1:]
        found: dict[str, Any] = {"alpha": alpha, "places": []}
        for place, name in enumerate(answers.places):
            best = best_choices(outcomes, place, NUM_ROWS)
            rows = {slider.choice(index): shares for index, shares in best.items()}
            found["places"].append({"name": name, "base, interpolated, finetuned": rows})
        if outcomes[0].text is not None:
            found["texts"] = [outcome.text for outcome in outcomes]
        return found

    return predict


def _file_of(text: str, kind: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"The {kind} must be the bytes of a file in Base64, got {text!r:.40}.") from error


# What the page's server takes from whom: questions of its own page and of programs, at a bounded size and rate.

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
MAX_BYTES = 1 << 19
"""Of a request: two texts of the greatest length in the widest encoding."""
MAX_FILE_REQUEST = 3 * MAX_FILE_BYTES // 2
"""Of a request where files are taken: one, in Base64 or as a form."""
MAX_QUESTIONS, WINDOW = 300, 10.0
"""From one address in so many seconds."""
_ASKED = re.compile(r"/gradio_api/(queue/join|cancel|reset|(call|call/v2|run|api)/predict)/?")
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_OWN_FILE = re.compile(r"/gradio_api/(file=(?!https?:)|upload_progress)")
"""What Gradio then checks to be of an upload or an example."""
_CLOSED = re.compile(r"/(gradio_api/)?(file|proxy|stream|upload|run-history|runs|monitoring|deep_link|vibe|profiling)")


class Guard:
    """ASGI middleware that refuses what the page does not need.

    Closed are uploads, files and every route that changes something but for questions; of a page that takes files, one
    may be uploaded and seen again. Refused are requests of pages of other origins, under other names than this
    machine's, if there are `hosts`, and more or longer questions than limits allow.
    """

    def __init__(self, app: Application, hosts: Collection[str] | None = None, *, takes_files: bool = False) -> None:
        self._app, self._hosts, self._takes_files = app, hosts, takes_files
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
            is_own = self._takes_files and _OWN_FILE.match(scope["path"])
            return (404, "There are no files here.") if _CLOSED.match(scope["path"]) and not is_own else None
        is_upload = self._takes_files and _UPLOAD.fullmatch(scope["path"])
        if scope["method"] != "POST" or not (is_upload or _ASKED.fullmatch(scope["path"])):
            return 404, "Nothing but questions is taken here."
        length = headers.get("content-length", "")
        most = MAX_FILE_REQUEST if self._takes_files else MAX_BYTES
        if not length.isdecimal() or int(length) > most:
            return 413, f"A question must have at most {most:,} bytes, and say how many."
        return (429, "Too many questions. Wait some seconds.") if self._is_too_often(scope) else None

    def _is_too_often(self, scope: Scope) -> bool:
        if time.monotonic() - self._since > WINDOW:
            self._asked.clear()
            self._since = time.monotonic()
        address = (scope.get("client") or ("",))[0]
        self._asked[address] += 1
        return self._asked[address] > MAX_QUESTIONS
