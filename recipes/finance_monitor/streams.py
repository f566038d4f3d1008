"""Where texts come from: lines of a file or of standard input, a file that grows, a feed.

Every source is a generator of `Item`s that ends when its stream does, or when `stop` is set. An item carries the place
behind it, from which the source goes on after a restart.
"""

import gzip
import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 16
FEED_BYTES = 20_000_000
"""A feed is read no further than this."""
FEED_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Item:
    """One text.

    Args:
        id: the source's own name for it, by which it is known again; `None` where it has none.
        text: not empty, without surrounding white space.
        time: as the source gives it.
        place: where the source goes on behind it, in kinds that JSON knows; `None` if it cannot go back.
    """

    id: str | None
    text: str
    time: str | None = None
    place: Any = None


class BadLine(ValueError):
    """A line that holds no text; the message names it."""


def parse_line(line: bytes, where: str, *, as_json: bool) -> Item | None:
    """The item of a line; `None` for an empty one.

    Args:
        line: UTF-8; bytes that are not are replaced.
        where: what to call the line, such as "line 3 of news.jsonl".
        as_json: whether the line is an object with `text`, and perhaps `id` and `time`; else it is the text.

    Raises:
        BadLine: for a line that is not such an object.

    >>> parse_line(b' Sales rose. ', "line 1", as_json=False).text
    'Sales rose.'
    >>> parse_line(b'{"text": "Sales rose.", "id": 7}', "line 1", as_json=True).id
    '7'
    """
    decoded = line.decode("utf-8", errors="replace").strip("\ufeff \t\r\n")
    if not decoded:
        return None
    if not as_json:
        return Item(None, _clean(decoded))
    try:
        row = json.loads(decoded)
    except (ValueError, RecursionError) as error:  # the latter for brackets nested thousands deep
        raise BadLine(f"{where} is not JSON: {error or type(error).__name__}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BadLine(f"{where} must be an object with a string `text`, got {decoded[:80]}")
    cleaned = _clean(text)
    return Item(_optional(row, "id", where), cleaned, _optional(row, "time", where)) if cleaned else None


def read_lines(
    path: Path,
    *,
    as_json: bool,
    bad: Callable[[BadLine], None],
    place: Any = None,
    stop: threading.Event,
    warn: Callable[[str], None],
) -> Iterator[Item]:
    """A file, which may be compressed as .gz, to its end.

    Args:
        path: the file.
        as_json: see `parse_line`.
        bad: is given the lines that hold no text.
        place: how many lines to skip.
        stop: ends the stream.
        warn: is told if there are fewer.
    """
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if stop.is_set():
                return
            if number > (place or 0):
                yield from _item(line, f"line {number} of {str(path)!r}", as_json, bad, number)
    if number < (place or 0):
        warn(f"{str(path)!r} has {number} lines, but {place} of it were read before: it is another file by now")


def read_stdin(*, as_json: bool, bad: Callable[[BadLine], None], stop: threading.Event) -> Iterator[Item]:
    """Standard input to its end, each line as soon as it is there."""
    # Without Python's buffer, whose lock would hold up the end of the program while a line is waited for.
    with open(0, "rb", buffering=0, closefd=False) as file:
        number, rest = 0, b""
        while not stop.is_set():
            chunk = file.read(CHUNK)
            lines = (rest + (chunk or b"\n")).split(b"\n")
            rest = lines.pop()
            for line in lines:
                number += 1
                yield from _item(line, f"line {number} of standard input", as_json, bad, None)
            if not chunk:
                return


def follow(
    path: Path,
    *,
    as_json: bool,
    bad: Callable[[BadLine], None],
    place: Any = None,
    from_start: bool = False,
    poll: float = 0.5,
    stop: threading.Event,
    warn: Callable[[str], None],
) -> Iterator[Item]:
    """Lines as they are added to a file, as `tail -F` gives them; a line counts when its end is there.

    A file that was moved away is read to its end and the new one of that name from its beginning; so is one that was
    cut. A file that is cut and has grown past the old place between two looks cannot be told from one that grew.

    Args:
        path: the file; if there is none, it is waited for.
        as_json, bad, stop: see `read_lines`.
        place: where to go on: {"inode", "offset"}.
        from_start: whether to begin with what is there already; else with what is added.
        poll: seconds between looks.
        warn: is told when the file was cut or replaced.
    """
    first = True
    while not stop.is_set():
        try:
            file = path.open("rb")
        except FileNotFoundError:
            first, from_start = first and place is not None, True  # what comes is new
            stop.wait(poll)
            continue
        with file:
            status = os.fstat(file.fileno())
            if first and place is not None:
                offset = place["offset"]
                if status.st_ino != place["inode"] or status.st_size < offset:
                    warn(f"{str(path)!r} was cut or replaced since it was last read; reading it from its beginning")
                    offset = 0
            else:
                offset = 0 if from_start or not first else status.st_size
            first = False
            yield from _grow(file, path, offset, as_json, bad, poll, stop, warn)


def read_feed(
    source: str,
    *,
    poll: float,
    polls: int | None = None,
    stop: threading.Event,
    warn: Callable[[str], None],
) -> Iterator[Item]:
    """Titles of an RSS or Atom feed, the oldest first, fetched again every `poll` seconds.

    An entry is known by its id, else by its link, else by its title. Every fetch gives all the entries of the feed:
    whoever reads them leaves out those that it has seen. A fetch that fails is told to `warn`, and tried again.

    Args:
        source: an http or https address, or a file.
        poll: seconds between fetches.
        polls: how often to fetch; `None` for ever.
        stop: ends the stream.
        warn: is told about what cannot be fetched or read.

    Raises:
        ImportError: without feedparser.
    """
    feedparser = import_feedparser()
    known: dict[str, str] = {}
    done = 0
    while not stop.is_set():
        try:
            content = fetch(source, known)
        except OSError as error:
            warn(f"cannot fetch {source}: {error}; trying again in {poll:g} s")
            content = None
        if content is not None:
            parsed = feedparser.parse(content)
            if parsed.bozo and not parsed.entries:
                warn(f"{source} is no RSS or Atom feed: {parsed.get('bozo_exception', 'nothing to read')}")
            yield from _entries(parsed.entries)
        done += 1
        if polls is not None and done >= polls:
            return
        stop.wait(poll)


def fetch(source: str, known: dict[str, str]) -> bytes | None:
    """What is at an address or in a file; `None` if a server says that it has not changed.

    Args:
        source: an http or https address, or a file.
        known: the validators of the last answer, as headers of the next request; updated.

    Raises:
        OSError: if it cannot be read.
    """
    if not source.startswith(("http://", "https://")):
        with open(source, "rb") as file:
            return file.read(FEED_BYTES)
    request = urllib.request.Request(source, headers={"User-Agent": "hf_interp-finance-monitor", **known})
    try:
        with urllib.request.urlopen(request, timeout=FEED_TIMEOUT) as answer:
            content: bytes = answer.read(FEED_BYTES)
            headers = {"If-None-Match": answer.headers["ETag"], "If-Modified-Since": answer.headers["Last-Modified"]}
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 304:
            return None
        raise
    except (ValueError, http.client.HTTPException) as error:  # an address without a host, an answer cut short
        raise OSError(str(error)) from error
    known.clear()
    known.update({name: value for name, value in headers.items() if value is not None})
    return content


def import_feedparser() -> Any:
    """The library that reads feeds.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import feedparser  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("--feed needs feedparser: pip install feedparser") from error
    return feedparser


def _grow(
    file: BinaryIO,
    path: Path,
    offset: int,
    as_json: bool,
    bad: Callable[[BadLine], None],
    poll: float,
    stop: threading.Event,
    warn: Callable[[str], None],
) -> Iterator[Item]:
    """Lines of an open file until another has taken its name."""
    inode = os.fstat(file.fileno()).st_ino
    file.seek(offset)
    rest = b""
    replaced = False
    while not stop.is_set():
        chunk = file.read(CHUNK)
        if chunk:
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                begin, offset = offset, offset + len(line) + 1
                where = f"the line at byte {begin} of {str(path)!r}"
                yield from _item(line, where, as_json, bad, {"inode": inode, "offset": offset})
            continue
        if replaced:  # all that was written before it was moved has been read
            if rest:
                place = {"inode": inode, "offset": offset + len(rest)}
                yield from _item(rest, f"the last line of the old {str(path)!r}", as_json, bad, place)
            return
        if os.fstat(file.fileno()).st_size < file.tell():
            warn(f"{str(path)!r} was cut; reading it from its beginning")
            file.seek(0)
            offset, rest = 0, b""
            continue
        with suppress(FileNotFoundError):  # moved away, and not yet made anew
            replaced = path.stat().st_ino != inode
        if replaced:
            warn(f"{str(path)!r} was replaced; reading the new one")
        else:
            stop.wait(poll)


def _item(line: bytes, where: str, as_json: bool, bad: Callable[[BadLine], None], place: Any) -> Iterator[Item]:
    """No item or one."""
    try:
        item = parse_line(line, where, as_json=as_json)
    except BadLine as error:
        bad(error)
        return
    if item is not None:
        yield Item(item.id, item.text, item.time, place)


def _entries(entries: Iterable[Any]) -> Iterator[Item]:
    """Entries of a feed, the oldest first; those without a time lead, in turned order: feeds begin with the newest."""
    items = []
    for entry in entries:
        text = _clean(entry.get("title") or entry.get("summary") or "")
        if not text:
            continue
        moment = entry.get("published_parsed") or entry.get("updated_parsed")
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment) if moment else None
        name = entry.get("id") or entry.get("link") or "sha1:" + hashlib.sha1(text.encode()).hexdigest()
        items.append(Item(_clean(name), text, written))
    items.reverse()
    yield from sorted(items, key=lambda item: item.time or "")


def _clean(text: str) -> str:
    """`text` without surrounding white space, and without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8").strip()


def _optional(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadLine(f"`{key}` of {where} must be a string or a number, got {value!r}")
    return _clean(str(value))
