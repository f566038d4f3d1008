"""Watch the sentiment of a stream of news: `python recipes/finance_monitor/monitor.py MODEL_DIR --input news.txt`.

Scores texts in batches, keeps the shares of the labels among the last texts of every topic, and raises an alert when
the negative share of a topic jumps (see `jumps`).
"""

import argparse
import json
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import streams
import yaml
from jumps import JumpDetector, RollingShares
from streams import BadLine, Item

from hf_interp.reporting.colours import OTHERS
from hf_interp.utils.console import run_command
from hf_interp.utils.files import write_json

_, ALERT, _, SHARE, *_ = OTHERS  # the colours of the two sides are theirs alone
ALL = "(all)"
"""The topic of every text."""
KNOWN_IDS = 10_000
"""So many of the last ids are kept, to leave out texts that come again."""
STATE_VERSION = 1

Score = Callable[[list[str]], list[dict[str, float]]]


# Topics


def read_topics(path: Path) -> dict[str, list[str]]:
    """A YAML mapping from topics to lists of keywords.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another thing.
    """
    try:
        topics = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(topics, dict):
        raise ValueError(f"{str(path)!r} must be a mapping from topics to lists of keywords, got {topics!r}.")
    return topics


def compile_topics(topics: Mapping[str, Sequence[str]]) -> dict[str, re.Pattern[str]]:
    """One pattern a topic: any of its keywords, as whole words, in upper or lower case.

    Raises:
        ValueError: for a topic without keywords, or a keyword that is not a string.

    >>> pattern = compile_topics({"Tesla": ["$TSLA", "Tesla Motors"]})["Tesla"]
    >>> [bool(pattern.search(text)) for text in ["$tsla falls", "TESLA  motors", "$TSLAX", "Teslas"]]
    [True, True, False, False]
    """
    patterns = {}
    for topic, keywords in topics.items():
        if not isinstance(topic, str) or not topic.strip() or topic == ALL:
            raise ValueError(f"A topic must have a name other than {ALL}, got {topic!r}. Put it into quotes.")
        if not isinstance(keywords, (list, tuple)) or not keywords:
            raise ValueError(f"Topic {topic!r} must have a list of keywords, got {keywords!r}.")
        for keyword in keywords:
            if not isinstance(keyword, str) or not keyword.strip():
                raise ValueError(
                    f"A keyword of topic {topic!r} must be a string, got {keyword!r}. Put into quotes what YAML reads "
                    "otherwise, such as ON or 7."
                )
        words = "|".join(r"\s+".join(map(re.escape, keyword.split())) for keyword in keywords)
        patterns[topic] = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    return patterns


# The monitor


class Monitor:
    """From scored texts to records and alerts; what it has seen is its explicit state.

    Args:
        labels: the labels of the classifier.
        negative: the one whose share is watched.
        topics: keywords by topic.
        window: texts that the rolling shares look back on.
        **detector: settings of every topic's `JumpDetector`.

    Raises:
        ValueError: for an unknown label, or settings out of range.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        negative: str = "negative",
        topics: Mapping[str, Sequence[str]] | None = None,
        window: int = 100,
        **detector: Any,
    ) -> None:
        self.labels = list(labels)
        self.negative = find_label(self.labels, negative)
        self._patterns = compile_topics(topics or {})
        names = [ALL, *self._patterns]
        self.shares = {name: RollingShares(self.labels, window=window) for name in names}
        self.detectors = {name: JumpDetector(**detector) for name in names}
        self.settings: dict[str, Any] = {
            "labels": self.labels,
            "negative": self.negative,
            "topics": {name: list(keywords) for name, keywords in (topics or {}).items()},
            "window": window,
            **detector,
        }
        self.num_texts = 0
        self._known: dict[str, None] = {}

    def is_new(self, item: Item) -> bool:
        """Whether a text has not been taken before, or has no id to tell by; notes the id."""
        if item.id is None:
            return True
        if item.id in self._known:
            return False
        self._known[item.id] = None
        if len(self._known) > KNOWN_IDS:
            del self._known[next(iter(self._known))]
        return True

    def take(self, item: Item, scores: Mapping[str, float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Count one text; its record, and its alerts, one a topic at the most."""
        self.num_texts += 1
        label = max(self.labels, key=scores.__getitem__)
        topics = [ALL, *(name for name, pattern in self._patterns.items() if pattern.search(item.text))]
        alerts: list[dict[str, Any]] = []
        for name in topics:
            self.shares[name].update(label)
            usual = self.detectors[name].usual_share
            if self.detectors[name].update(label == self.negative):
                alerts.append({"topic": name, "usual_share": round(usual or 0.0, 6)})
        negative_share = {name: round(self.shares[name][self.negative], 6) for name in topics}
        record: dict[str, Any] = {
            "number": self.num_texts,
            "id": item.id,
            "time": item.time,
            "text": item.text,
            "label": label,
            "scores": {name: round(scores[name], 6) for name in self.labels},
            "topics": topics,
            "negative_share": negative_share,
            "alerts": [alert["topic"] for alert in alerts],
        }
        about = {key: record[key] for key in ("number", "id", "time", "text")}
        return record, [{**alert, "negative_share": negative_share[alert["topic"]], **about} for alert in alerts]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in kinds that JSON knows."""
        return {
            "settings": self.settings,
            "num_texts": self.num_texts,
            "known": list(self._known),
            "shares": {name: shares.state_dict() for name, shares in self.shares.items()},
            "detectors": {name: detector.state_dict() for name, detector in self.detectors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the monitor with this state stood.

        Raises:
            ValueError: if it had other settings.
        """
        for name in self.settings:
            if state["settings"].get(name) != self.settings[name]:
                raise ValueError(
                    f"The state was made with {name} = {state['settings'].get(name)!r}, got {self.settings[name]!r}. "
                    "Give the same, or begin anew with another --state."
                )
        self.num_texts = state["num_texts"]
        self._known = dict.fromkeys(state["known"])
        for name in self.shares:
            self.shares[name].load_state_dict(state["shares"][name])
            self.detectors[name].load_state_dict(state["detectors"][name])


def find_label(labels: Sequence[str], wanted: str) -> str:
    """A label by its name, in upper or lower case.

    >>> find_label(["NEGATIVE", "POSITIVE"], "negative")
    'NEGATIVE'

    Raises:
        ValueError: if there is none.
    """
    for label in labels:
        if label.lower() == wanted.lower():
            return label
    raise ValueError(f"The model has the labels {list(labels)}, but none {wanted!r}; name one with --negative_label.")


# Scores


def load_classifier(path: str, *, max_length: int, device: str | None = None) -> tuple[list[str], Score]:
    """The labels of a text classifier, and a function from texts to the probability of each.

    Args:
        path: a folder, or a name on the Hub.
        max_length: texts are cut to this many tokens, or to as many as the model takes.
        device: where to run it, such as cuda:0; by default on an accelerator if there is one.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # stderr is for alerts
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    if device is None:
        device = str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    model.to(device)
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    positions = getattr(model.config, "max_position_embeddings", max_length)
    limit = min(max_length, tokenizer.model_max_length, positions)

    @torch.no_grad()
    def score(texts: list[str]) -> list[dict[str, float]]:
        inputs = tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt").to(device)
        probabilities = model(**inputs).logits.float().softmax(-1)
        return [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]

    return labels, score


# The stream in batches


def in_batches(
    items: Iterable[Item],
    *,
    batch_size: int,
    max_wait: float,
    stop: threading.Event,
    idle: float | None = None,
) -> Iterator[list[Item]]:
    """Items in batches: full ones, or those that have waited for `max_wait` seconds since the first of them came.

    The items are read by a thread, at most one batch ahead.

    Args:
        items: the stream; what it raises is raised here, after the items before it.
        batch_size: items in a full batch.
        max_wait: seconds.
        stop: is set when no more items are wanted.
        idle: end the stream when nothing has come for so many seconds; `None` for never.
    """
    waiting: queue.Queue[Item | BaseException | None] = queue.Queue(maxsize=batch_size)

    def put(what: Item | BaseException | None) -> None:
        while not stop.is_set():
            try:
                waiting.put(what, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the thread that scores
            put(error)

    # A daemon, since a read from a terminal or a pipe cannot be ended from outside.
    threading.Thread(target=read, name="reader", daemon=True).start()
    batch: list[Item] = []
    deadline = 0.0  # of the batch, once it has begun
    try:
        while True:
            try:
                what = waiting.get(timeout=max(deadline - time.monotonic(), 0.0) if batch else idle)
            except queue.Empty:
                if not batch:
                    return
                yield batch
                batch = []
                continue
            if isinstance(what, Item):
                deadline = deadline if batch else time.monotonic() + max_wait
                batch.append(what)
                if len(batch) < batch_size:
                    continue
            if batch:
                yield batch
                batch = []
            if isinstance(what, BaseException):
                raise what
            if what is None:
                return
    finally:
        stop.set()


def open_source(
    args: argparse.Namespace, place: Any, stop: threading.Event, bad: Callable[[BadLine], None]
) -> Iterator[Item]:
    """The stream that the arguments name, from `place` on.

    Raises:
        FileNotFoundError: for an input that is not there.
        ImportError: for a feed without feedparser.
    """
    if args.feed is not None:
        streams.import_feedparser()
        return streams.read_feed(args.feed, poll=args.poll or 60.0, polls=args.polls, stop=stop, warn=warn)
    source = args.follow or args.input
    suffixes = Path(source).suffixes
    as_json = args.format == "jsonl" or (args.format == "auto" and bool({".jsonl", ".ndjson"} & set(suffixes)))
    if args.follow is not None:
        return streams.follow(
            Path(source),
            as_json=as_json,
            bad=bad,
            place=place,
            from_start=args.from_start,
            poll=args.poll or 0.5,
            stop=stop,
            warn=warn,
        )
    if source == "-":
        return streams.read_stdin(as_json=as_json, bad=bad, stop=stop)
    if not Path(source).is_file():
        raise FileNotFoundError(f"There is no file {source!r} (--input).")
    return streams.read_lines(Path(source), as_json=as_json, bad=bad, place=place, stop=stop, warn=warn)


# What is written


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def skip_bad(error: BadLine) -> None:
    """Say which line is left out."""
    warn(f"{error}; skipped")


def refuse_bad(error: BadLine) -> None:
    """Stop at the line."""
    raise error


def read_state(path: Path | None) -> dict[str, Any] | None:
    """A saved state; `None` if there is none yet.

    Raises:
        ValueError: if the file holds something else.
    """
    if path is None or not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        state = None
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        raise ValueError(f"{str(path)!r} holds no state of this monitor; name another file, or remove it.")
    return state


def open_log(path: Path, size: int | None) -> TextIO:
    """A file to append lines to, cut to `size` bytes first if given.

    What is behind that size was written by a run that was killed before it could save its state, and comes again.

    Raises:
        ValueError: if the file is shorter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = path.stat().st_size if path.exists() else 0
    if size is not None and found < size:
        raise ValueError(
            f"{str(path)!r} has {found} bytes, but had {size} when the state was saved. Put it back, or begin anew "
            "with another --state."
        )
    if size is not None and found > size:
        os.truncate(path, size)
    return path.open("a", encoding="utf-8")


def watch(args: argparse.Namespace) -> None:
    """Run the monitor as the arguments say."""
    topics = read_topics(args.topics) if args.topics else {}
    compile_topics(topics)  # now, before a model is loaded
    names = ("reference", "odds_ratio", "run_length", "confidence", "base_rate", "relearn")
    detector = {name: getattr(args, name) for name in names}
    JumpDetector(**detector)
    state = read_state(args.state)
    source = f"{'feed' if args.feed else 'follow' if args.follow else 'input'}:{args.feed or args.follow or args.input}"
    place = state["place"] if state is not None and state["source"] == source else None
    stop = threading.Event()
    items = open_source(args, place, stop, refuse_bad if args.strict else skip_bad)
    labels, score = load_classifier(args.model, max_length=args.max_length, device=args.device)
    monitor = Monitor(
        labels,
        negative=args.negative_label,
        topics=topics,
        window=args.window,
        **detector,
    )
    if state is not None:
        monitor.load_state_dict(state["monitor"])
    paths = {"output": args.output, "alerts": args.alerts or (args.output and args.output.with_name("alerts.jsonl"))}
    sizes = state["sizes"] if state is not None else {}
    with ExitStack() as stack:
        logs = {
            name: stack.enter_context(open_log(path, sizes.get(name)))
            for name, path in paths.items()
            if path is not None
        }
        try:
            for batch in in_batches(
                items, batch_size=args.batch_size, max_wait=args.max_wait, stop=stop, idle=args.stop_after_idle
            ):
                new = [item for item in batch if monitor.is_new(item)]
                for item, scores in zip(new, score([item.text for item in new]) if new else [], strict=True):
                    _report(*monitor.take(item, scores), logs)
                for log in logs.values():
                    log.flush()
                if args.state is not None:
                    written = {name: os.fstat(log.fileno()).st_size for name, log in logs.items()}
                    saved = {"version": STATE_VERSION, "source": source, "place": batch[-1].place, "sizes": written}
                    write_json(args.state, {**saved, "monitor": monitor.state_dict()})
        finally:  # also when interrupted: a stream that is followed ends in no other way
            if args.plot is not None:
                for log in logs.values():
                    log.flush()
                plot_shares(args.output, args.plot)


def _report(record: dict[str, Any], alerts: list[dict[str, Any]], logs: Mapping[str, TextIO]) -> None:
    print(json.dumps(record, ensure_ascii=False), file=logs.get("output", sys.stdout))
    for alert in alerts:
        if "alerts" in logs:
            print(json.dumps(alert, ensure_ascii=False), file=logs["alerts"])
        print(format_alert(alert), file=sys.stderr, flush=True)


def format_alert(alert: Mapping[str, Any]) -> str:
    """One line about an alert."""
    when = f" ({alert['time']})" if alert["time"] else ""
    return (
        f"ALERT {alert['topic']}: negative share {alert['negative_share']:.0%}, usually {alert['usual_share']:.0%}, "
        f"at text {alert['number']}{when}: {shorten(alert['text'])!r}"
    )


def shorten(text: str, width: int = 80) -> str:
    """The beginning of a text.

    >>> shorten("Sales rose by a tenth.", 10)
    'Sales ros…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def plot_shares(output: Path, path: Path, *, most: int = 6) -> None:
    """The rolling negative share of each topic over the texts, with a mark at each alert.

    Args:
        output: the records, as the monitor writes them.
        path: the picture (.png, .svg, .pdf).
        most: so many topics at the most, those with the most texts.
    """
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float, bool]]] = {}
    with output.open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            for topic, share in record["negative_share"].items():
                lines.setdefault(topic, []).append((record["number"], share, topic in record["alerts"]))
    topics = sorted(lines, key=lambda topic: -len(lines[topic]))[:most]
    figure = Figure(figsize=(10, 1.2 + 1.5 * max(len(topics), 1)), layout="constrained")
    panels = figure.subplots(max(len(topics), 1), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, topic in zip(panels, topics, strict=False):
        numbers, shares, _ = zip(*lines[topic], strict=True)
        panel.plot(numbers, shares, color=SHARE, drawstyle="steps-post", label="negative share")
        alerts = [(number, share) for number, share, alert in lines[topic] if alert]
        for number, _share in alerts:
            panel.axvline(number, color=ALERT, linewidth=0.8, alpha=0.5)
        panel.plot(*(zip(*alerts, strict=True) if alerts else ((), ())), "v", color=ALERT, label="alert")
        panel.set_title(f"{topic}: {len(numbers)} texts, {len(alerts)} alerts", loc="left", fontsize="medium")
        panel.set_ylim(-0.04, 1.04)
        panel.grid(alpha=0.3)
    if topics:
        panels[0].legend(loc="upper left")
    panels[-1].set_xlabel("text")
    figure.supylabel("negative share of the last texts")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


# The command


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description="Watch the sentiment of a stream of news.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a text classifier: a folder, or a name on the Hub")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", metavar="FILE", help="a file of lines, also .gz, or - for standard input")
    source.add_argument("--follow", metavar="FILE", help="a file that grows, as for tail -F")
    source.add_argument("--feed", metavar="URL", help="an RSS or Atom feed: an http(s) address or a file")
    parser.add_argument(
        "--format", choices=["auto", "text", "jsonl"], default="auto", help="of the lines; auto goes by the file's name"
    )
    parser.add_argument("--strict", action="store_true", help="stop at a line that cannot be read, rather than skip it")
    parser.add_argument("--from_start", action="store_true", help="--follow: begin with what is in the file already")
    parser.add_argument("--poll", type=_positive, metavar="SECONDS", help="between looks (default: 0.5; feeds: 60)")
    parser.add_argument("--polls", type=_count, metavar="N", help="--feed: fetch so often, then end")
    parser.add_argument(
        "--stop_after_idle", type=_positive, metavar="SECONDS", help="end when no text has come for so long"
    )
    parser.add_argument("--batch_size", type=_count, default=32, help="texts that are scored at once")
    parser.add_argument(
        "--max_wait", type=_positive, default=2.0, metavar="SECONDS", help="score fewer texts rather than wait longer"
    )
    parser.add_argument("--max_length", type=_count, default=128, help="texts are cut to this many tokens")
    parser.add_argument("--device", help="such as cuda:0; by default an accelerator if there is one")
    parser.add_argument("--topics", type=Path, metavar="YAML", help="a mapping from topics to lists of keywords")
    parser.add_argument("--negative_label", default="negative", help="the label whose share is watched")
    parser.add_argument("--window", type=_count, default=100, help="texts that a rolling share looks back on")
    parser.add_argument("--reference", type=_count, default=200, help="texts to learn a topic's usual share from")
    parser.add_argument("--base_rate", type=float, help="the usual share, rather than learn it")
    parser.add_argument("--odds_ratio", type=float, default=3.0, help="the jump to look for, as a factor of the odds")
    parser.add_argument(
        "--run_length", type=float, default=1000.0, help="mean number of texts between false alarms of a topic"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.9, help="probability that false alarms are as rare as --run_length says"
    )
    parser.add_argument("--relearn", action="store_true", help="learn the usual share anew after an alert")
    parser.add_argument("--output", type=Path, metavar="JSONL", help="append the records here; else to standard output")
    parser.add_argument(
        "--alerts", type=Path, metavar="JSONL", help="append the alerts here; by default alerts.jsonl beside --output"
    )
    parser.add_argument("--state", type=Path, metavar="FILE", help="go on from here, and save here after each batch")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the records of --output at the end")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.plot is not None and args.output is None:
        parser.error("--plot draws the records of --output; give both")
    with _terminated_as_interrupted():
        return run_command(lambda: watch(args))


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which services are stopped, ends the program as Ctrl-C does: with the picture drawn."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
