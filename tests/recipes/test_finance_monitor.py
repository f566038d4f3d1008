"""The monitor of financial news: the change detector, the sources, and the program on a small model."""

import gzip
import http.server
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import word_tokenizer, write_bert

from hf_interp.tasks.parsing import load_recipe
from hf_interp.train import run_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "finance_monitor"
sys.path.insert(0, str(RECIPE))

import made_up_jump  # noqa: E402
import monitor  # noqa: E402
import streams  # noqa: E402
from jumps import (  # noqa: E402
    RATES,
    Chart,
    JumpDetector,
    RollingShares,
    design_chart,
    expect,
    mean_run_length,
    raised_rate,
    reference_value,
    upper_limit,
)
from monitor import ALL, Monitor  # noqa: E402
from streams import BadLine, Item  # noqa: E402

LABELS = ["negative", "neutral", "positive"]
WORDS = [f"w{number}" for number in range(60)]

ATOM = (
    """<?xml version="1.0" encoding="utf-8"?><feed xmlns="http://www.w3.org/2005/Atom"><title>News</title>{}</feed>"""
)
ENTRY = "<entry><id>{0}</id><title>{1}</title><updated>2024-05-0{2}T08:00:00Z</updated></entry>"


def write_classifier(folder: Path, *, head: bool = True) -> Path:
    """An untrained BERT of three labels over `WORDS`; its weights are so large that its labels differ."""
    return write_bert(folder, word_tokenizer(WORDS), 16, LABELS, head=head, initializer_range=1.0)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(count)]


def write_stream(path: Path, count: int, seed: int = 0) -> Path:
    rows = [{"id": f"n{n}", "time": f"t{n}", "text": text} for n, text in enumerate(sentences(count, seed))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_scores(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "scores"} for record in records]


def detector_at(chart: Chart, **settings: Any) -> JumpDetector:
    detector = JumpDetector(**settings)
    state = {"base_rate": 0.2, "chart": vars(chart), "statistic": 0, "seen": 0, "negatives": 0}
    detector.load_state_dict(state)
    return detector


# The change detector


def test_the_sum_moves_as_worked_out_by_hand() -> None:
    detector = detector_at(Chart(up=3, down=1, threshold=6))
    found = []
    for negative in [0, 1, 0, 1, 0, 1, 0, 1, 1]:
        alarm = detector.update(bool(negative))
        found.append((detector.statistic, alarm))
    assert found == [
        (0, False),  # never below 0
        (3, False),
        (2, False),
        (5, False),
        (4, False),
        (0, True),  # 7 reaches 6; from 0 again
        (0, False),
        (3, False),
        (0, True),  # 6 is the threshold itself
    ]


def test_the_mean_run_length_is_that_of_chains_solved_by_hand() -> None:
    # one yes is enough: geometric
    assert mean_run_length(Chart(up=1, down=1, threshold=1), 0.25) == pytest.approx(4)
    # two yeses in a row: 1/p + 1/p²
    assert mean_run_length(Chart(up=1, down=1, threshold=2), 0.25) == pytest.approx(4 + 16)
    # a yes takes the sum past the threshold from 1 on, a no takes it back: the same chain
    assert mean_run_length(Chart(up=2, down=2, threshold=3), 0.25) == pytest.approx(4 + 16)


def test_the_reference_value_lies_between_the_rates_and_near_the_likelihood_ratios() -> None:
    for base in (RATES[0], 0.05, 0.2, 0.5, RATES[1]):
        for odds_ratio in (1.5, 3.0, 100.0):
            raised = raised_rate(base, odds_ratio)
            fraction = reference_value(base, odds_ratio)
            assert base < fraction < raised
            exact = math.log((1 - base) / (1 - raised)) / math.log(raised * (1 - base) / (base * (1 - raised)))
            assert abs(fraction - exact) <= 1 / 20
    assert reference_value(0.5, 3.0) == Fraction(12, 19)  # ln 2 / ln 3 = 0.6309


def test_the_threshold_is_the_lowest_that_keeps_the_run_length() -> None:
    for base in (0.01, 0.2, 0.6):
        chart = design_chart(base, odds_ratio=3.0, run_length=500.0)
        lower = Chart(chart.up, chart.down, chart.threshold - 1)
        assert mean_run_length(lower, base) < 500 <= mean_run_length(chart, base)


@pytest.mark.parametrize(("rate", "runs"), [(0.2, 600), (raised_rate(0.2, 3.0), 4000)])
def test_false_alarms_and_delay_agree_with_theory(rate: float, runs: int) -> None:
    detector = JumpDetector(base_rate=0.2, odds_ratio=3.0, run_length=300.0)
    assert detector.chart is not None
    expected = mean_run_length(detector.chart, rate)
    draw = random.Random(0)
    lengths = []
    for _ in range(runs):
        length = 1
        while not detector.update(draw.random() < rate):
            length += 1
        lengths.append(length)
    error = np.std(lengths) / math.sqrt(runs)
    assert abs(np.mean(lengths) - expected) < 4 * error
    assert error < expected / 20  # or the test could not fail
    assert (expected >= 300) if rate == 0.2 else (expected < 30)


def test_a_jump_is_found_sooner_than_a_false_alarm_and_a_fall_never() -> None:
    chart = design_chart(0.2, odds_ratio=3.0, run_length=1000.0)
    delays = [mean_run_length(chart, rate) for rate in (0.1, 0.2, 0.3, raised_rate(0.2, 3.0), 0.9, 1.0)]
    assert delays == sorted(delays, reverse=True)
    assert delays[-1] == math.ceil(chart.threshold / chart.up)
    detector = JumpDetector(base_rate=0.2)
    assert not any(detector.update(False) for _ in range(10_000))


def test_the_usual_rate_is_learned_from_the_reference_alone() -> None:
    detector = JumpDetector(reference=10)
    assert not any([detector.update(True) for _ in range(3)] + [detector.update(False) for _ in range(6)])
    assert (detector.base_rate, detector.usual_share) == (None, None)
    detector.update(False)
    learned = (upper_limit(3, 10, 0.9), 0.3)
    assert (detector.base_rate, detector.usual_share) == learned
    for _ in range(5):
        detector.update(True)
    assert (detector.base_rate, detector.usual_share) == learned
    assert JumpDetector(base_rate=0.2).usual_share == 0.2


def test_the_upper_limit_solves_the_equation_that_defines_it() -> None:
    for yeses, confidence, z in ((0, 0.9, 1.281552), (7, 0.9, 1.281552), (40, 0.975, 1.959964), (7, 0.5, 0.0)):
        limit = upper_limit(yeses, 40, confidence)
        assert limit - yeses / 40 == pytest.approx(z * math.sqrt(limit * (1 - limit) / 40), abs=1e-6)


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.5, 0.4, 0.6), (0.9, 0.85, 0.97)])
def test_a_learned_rate_keeps_the_run_length_as_often_as_asked(confidence: float, low: float, high: float) -> None:
    detector = JumpDetector(reference=100, run_length=300.0, confidence=confidence)
    kept, _ = expect(0.2, [], detector)
    assert low < kept < high


def test_the_delay_after_learning_agrees_with_simulation() -> None:
    settings = {"reference": 50, "run_length": 100.0, "confidence": 0.8}
    _, (expected,) = expect(0.2, [0.5], JumpDetector(**settings))
    draw = random.Random(0)
    delays = []
    for _ in range(1000):
        detector = JumpDetector(**settings)
        for _ in range(50):
            detector.update(draw.random() < 0.2)
        delays.append(1)
        while not detector.update(draw.random() < 0.5):
            delays[-1] += 1
    error = np.std(delays) / math.sqrt(len(delays))
    assert abs(np.mean(delays) - expected) < 4 * error < expected / 4


@pytest.mark.parametrize(("negative", "rate"), [(False, RATES[0]), (True, RATES[1])])
def test_a_learned_rate_is_held_where_charts_exist(negative: bool, rate: float) -> None:
    detector = JumpDetector(reference=200)
    for _ in range(200):
        detector.update(negative)
    assert detector.base_rate == rate
    assert detector.chart is not None


def test_a_lasting_jump_is_told_again_unless_the_rate_is_learned_anew() -> None:
    stream = [step % 10 == 0 for step in range(100)] + [step % 2 == 0 for step in range(400)]

    def alarms(**settings: Any) -> list[int]:
        detector = JumpDetector(reference=100, **settings)
        return [step for step, negative in enumerate(stream) if detector.update(negative)]

    lasting = alarms()
    assert len(lasting) > 5
    assert lasting[0] >= 100
    assert alarms(relearn=True) == lasting[:1]


def test_a_detector_goes_on_from_its_state_through_json() -> None:
    draw = random.Random(1)
    stream = [draw.random() < 0.15 for _ in range(150)] + [draw.random() < 0.5 for _ in range(150)]
    for cut in (0, 40, 50, 51, 200):  # before, at and after the end of the reference
        whole, first, second = (JumpDetector(reference=50) for _ in range(3))
        expected = [whole.update(negative) for negative in stream]
        found = [first.update(negative) for negative in stream[:cut]]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        found += [second.update(negative) for negative in stream[cut:]]
        assert found == expected
        assert sum(expected) > 0
        assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": 0}, "`reference` must be at least 1"),
        ({"odds_ratio": 1.4}, r"`odds_ratio` must lie in \[1.5, 100\], got 1.4"),
        ({"odds_ratio": 101.0}, "`odds_ratio`"),
        ({"run_length": 1.0}, "`run_length` must be more than 1"),
        ({"run_length": float("nan")}, "`run_length`"),
        ({"confidence": 0.4}, r"`confidence` must lie in \[0.5, 0.999\], got 0.4"),
        ({"base_rate": 0.0}, "`base_rate` must lie in"),
        ({"base_rate": 0.95}, "`base_rate` must lie in"),
    ],
)
def test_detectors_refuse_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JumpDetector(**settings)


def test_rolling_shares_forget_what_has_left_the_window() -> None:
    shares = RollingShares(LABELS, window=3)
    assert shares["negative"] == 0
    found = []
    for label in ["negative", "positive", "negative", "neutral", "neutral", "neutral"]:
        shares.update(label)
        found.append((shares["negative"], shares["positive"]))
    assert found == [(1, 0), (1 / 2, 1 / 2), (2 / 3, 1 / 3), (1 / 3, 1 / 3), (1 / 3, 0), (0, 0)]
    again = RollingShares(LABELS, window=3)
    again.load_state_dict(json.loads(json.dumps(shares.state_dict())))
    again.update("negative")
    assert (again["negative"], again["neutral"]) == (1 / 3, 2 / 3)
    with pytest.raises(ValueError, match="`window` must be at least 1"):
        RollingShares(LABELS, window=0)


# Topics


def test_topics_are_found_by_whole_words() -> None:
    patterns = monitor.compile_topics(
        {"Tesla": ["Tesla", "$TSLA"], "BoE": ["Bank of England"], "C": ["C++"], "Café": ["café"], "x": [".*"]}
    )

    def topics(text: str) -> list[str]:
        return [name for name, pattern in patterns.items() if pattern.search(text)]

    assert topics("TESLA cuts prices") == ["Tesla"]
    assert topics("up: $tsla, again") == ["Tesla"]
    assert topics("Teslas and $TSLAX") == []
    assert topics("The bank  of\tEngland and tesla") == ["Tesla", "BoE"]
    assert topics("Banks of England") == []
    assert topics("in C++.") == ["C"]
    assert topics("CAFÉ prices") == ["Café"]
    assert topics("anything") == []
    assert topics("a .* b") == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[a, b]", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("a: []", "Topic 'a' must have a list of keywords"),
        ("a: word", "Topic 'a' must have a list"),
        ("a: [ON]", "A keyword of topic 'a' must be a string, got True. Put into quotes"),
        ("a: ['  ']", "A keyword of topic 'a'"),
        ("(all): [x]", r"other than \(all\)"),
        ("1: [x]", "A topic must have a name"),
    ],
)
def test_bad_topics_are_refused_with_the_remedy(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        monitor.compile_topics(monitor.read_topics(path))


# The monitor itself


def scores(label: str) -> dict[str, float]:
    return {name: 0.8 if name == label else 0.1 for name in LABELS}


def test_records_hold_shares_and_alerts_by_topic() -> None:
    watch = Monitor(LABELS, topics={"a": ["ant"], "b": ["bee"]}, window=2, reference=4, run_length=20.0, confidence=0.5)
    stream = [("ant", "neutral")] * 4 + [("bee", "positive")] * 4 + [("ant and bee", "negative")] * 2
    records, alerts = [], []
    for number, (text, label) in enumerate(stream):
        record, raised = watch.take(Item(str(number), text, f"t{number}"), scores(label))
        records.append(record)
        alerts += raised
    assert records[0] == {
        "number": 1,
        "id": "0",
        "time": "t0",
        "text": "ant",
        "label": "neutral",
        "scores": {"negative": 0.1, "neutral": 0.8, "positive": 0.1},
        "topics": [ALL, "a"],
        "negative_share": {ALL: 0.0, "a": 0.0},
        "alerts": [],
    }
    assert records[-2]["topics"] == [ALL, "a", "b"]
    assert records[-2]["negative_share"] == {ALL: 0.5, "a": 0.5, "b": 0.5}
    assert records[-1]["negative_share"] == {ALL: 1.0, "a": 1.0, "b": 1.0}
    assert [alert["topic"] for alert in alerts] == [name for record in records for name in record["alerts"]]
    assert {alert["topic"] for alert in alerts} == {ALL, "a", "b"}
    last = alerts[-1]
    assert last == {
        "topic": "b",
        "usual_share": 0.0,  # of the four before
        "negative_share": 1.0,
        "number": 10,
        "id": "9",
        "time": "t9",
        "text": "ant and bee",
    }
    assert monitor.format_alert(last) == "ALERT b: negative share 100%, usually 0%, at text 10 (t9): 'ant and bee'"


def test_a_jump_of_the_positive_share_is_no_alert() -> None:
    watch = Monitor(LABELS, reference=50)
    labels = ["neutral", "negative"] * 25 + ["positive"] * 1000
    assert not any(watch.take(Item(None, "x"), scores(label))[1] for label in labels)


def test_the_negative_label_is_found_whatever_its_case() -> None:
    assert Monitor(["NEGATIVE", "POSITIVE"]).negative == "NEGATIVE"
    with pytest.raises(ValueError, match=r"labels \['LABEL_0'\], but none 'negative'; name one with --negative_label"):
        Monitor(["LABEL_0"])


def test_ids_are_known_again_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "KNOWN_IDS", 3)
    watch = Monitor(LABELS)
    found = [watch.is_new(Item(name, "x")) for name in ["b", "a", "b", "c", "d", "a", "b", None, None]]
    assert found == [True, True, False, True, True, False, True, True, True]


def test_a_state_with_other_settings_is_refused() -> None:
    state = json.loads(json.dumps(Monitor(LABELS, window=50).state_dict()))
    Monitor(LABELS, window=50).load_state_dict(state)
    with pytest.raises(ValueError, match="made with window = 50, got 60"):
        Monitor(LABELS, window=60).load_state_dict(state)
    with pytest.raises(ValueError, match="made with topics"):
        Monitor(LABELS, window=50, topics={"a": ["b"]}).load_state_dict(state)
    with pytest.raises(ValueError, match="made with labels"):
        Monitor(["negative", "positive"], window=50).load_state_dict(state)


# Sources


def collect(items: Iterator[Item]) -> list[str]:
    return [item.text for item in items]


def test_lines_are_texts_or_objects() -> None:
    def parse(line: bytes, as_json: bool) -> Item | None:
        return streams.parse_line(line, "line 4 of 'x'", as_json=as_json)

    assert parse("\ufeff Größe \r\n".encode(), False) == Item(None, "Größe")
    assert parse(b"\xff\x00", False) == Item(None, "\ufffd\x00")
    assert parse(b" \t\n", False) is None
    assert parse(b'{"text": "a", "id": 3, "time": "noon", "other": []}', True) == Item("3", "a", "noon")
    assert parse(b'{"text": "\\ud800 a"}', True) == Item(None, "? a")  # half of a surrogate pair
    assert parse(b'{"text": "  "}', True) is None
    for line, message in [
        (b"{", "line 4 of 'x' is not JSON"),
        (b"[" * 100_000, "line 4 of 'x' is not JSON"),
        (b"7", "line 4 of 'x' must be an object with a string `text`, got 7"),
        (b'{"text": null}', "must be an object with a string `text`"),
        (b'{"text": "a", "id": [1]}', "`id` of line 4 of 'x' must be a string or a number"),
        (b'{"text": "a", "time": true}', "`time` of line 4"),
    ]:
        with pytest.raises(BadLine, match=message):
            parse(line, True)


@pytest.mark.parametrize("name", ["news.txt", "news.txt.gz"])
def test_files_are_read_from_a_place_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb") if name.endswith("gz") else path.open("wb") as file:
        file.write(b"one\n\ntwo\nthree")
    warnings: list[str] = []

    def read(place: int | None) -> list[tuple[str, int]]:
        stop = threading.Event()
        items = streams.read_lines(path, as_json=False, bad=pytest.fail, place=place, stop=stop, warn=warnings.append)
        return [(item.text, item.place) for item in items]

    assert read(None) == [("one", 1), ("two", 3), ("three", 4)]
    assert read(1) == [("two", 3), ("three", 4)]
    assert read(4) == []
    assert warnings == []
    assert read(5) == []
    assert len(warnings) == 1
    assert "has 4 lines, but 5 of it were read before" in warnings[0]


class Following:
    """A file that is followed by a thread."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.items: list[Item] = []
        self.warnings: list[str] = []
        self.stop = threading.Event()
        items = streams.follow(
            path,
            as_json=False,
            bad=pytest.fail,
            poll=0.01,
            stop=self.stop,
            warn=self.warnings.append,
            **settings,
        )
        self._thread = threading.Thread(target=self._read, args=(items,), daemon=True)
        self._thread.start()

    def _read(self, items: Iterator[Item]) -> None:
        for item in items:
            self.items.append(item)

    def wait_for(self, *texts: str) -> None:
        until = time.monotonic() + 10
        while [item.text for item in self.items] != list(texts):
            assert time.monotonic() < until, ([item.text for item in self.items], texts)
            time.sleep(0.01)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_file_is_followed_through_cutting_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "news.log"
    path.write_text("old\n", encoding="utf-8")
    following = Following(path)
    time.sleep(0.1)  # until it has looked for the end
    append(path, "one\ntw")
    following.wait_for("one")
    append(path, "o\n")  # a line counts when its end is there
    following.wait_for("one", "two")
    path.write_text("cut\n", encoding="utf-8")
    following.wait_for("one", "two", "cut")
    append(path, "last")
    path.rename(tmp_path / "news.log.1")
    append(tmp_path / "news.log.1", " of the old\nunended")  # by a writer that still holds it
    following.wait_for("one", "two", "cut", "last of the old")
    path.write_text("new\n", encoding="utf-8")
    following.wait_for("one", "two", "cut", "last of the old", "unended", "new")
    following.end()
    assert len(following.warnings) == 2
    assert "was cut" in following.warnings[0]
    assert "was replaced" in following.warnings[1]


def test_a_file_is_followed_from_its_start_or_a_place_or_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "news.log"
    missing = Following(path)
    time.sleep(0.05)
    path.write_text("one\ntwo\nthr", encoding="utf-8")
    missing.wait_for("one", "two")
    missing.end()

    start = Following(path, from_start=True)
    start.wait_for("one", "two")
    start.end()

    place = missing.items[0].place
    assert place["offset"] == len("one\n")
    append(path, "ee\n")
    resumed = Following(path, place=place)
    resumed.wait_for("two", "three")
    resumed.end()
    assert resumed.warnings == []

    path.write_text("x\n", encoding="utf-8")  # cut meanwhile
    cut = Following(path, place=place)
    cut.wait_for("x")
    cut.end()
    assert "was cut or replaced since" in cut.warnings[0]


def atom(*entries: tuple[str, str, int]) -> bytes:
    return ATOM.format("".join(ENTRY.format(*entry) for entry in entries)).encode()


def test_a_feed_in_a_file_is_read_oldest_first(tmp_path: Path) -> None:
    pytest.importorskip("feedparser")
    path = tmp_path / "feed.xml"
    path.write_bytes(atom(("b", "Second &amp; last", 2), ("a", "First", 1), ("c", " ", 3)))
    warnings: list[str] = []
    items = streams.read_feed(str(path), poll=0.01, polls=1, stop=threading.Event(), warn=warnings.append)
    assert list(items) == [
        Item("a", "First", "2024-05-01T08:00:00Z"),
        Item("b", "Second & last", "2024-05-02T08:00:00Z"),
    ]
    path.write_text(
        "<rss version='2.0'><channel><title>t</title><item><title>New</title><link>http://x/2</link></item>"
        "<item><title>Old</title></item></channel></rss>",
        encoding="utf-8",
    )
    items = streams.read_feed(str(path), poll=0.01, polls=1, stop=threading.Event(), warn=warnings.append)
    named = [(item.text, item.id) for item in items]
    assert [text for text, _ in named] == ["Old", "New"]
    assert named[0][1].startswith("sha1:")
    assert named[1][1] == "http://x/2"
    assert warnings == []
    path.write_text("no feed at all", encoding="utf-8")
    assert collect(streams.read_feed(str(path), poll=0.01, polls=1, stop=threading.Event(), warn=warnings.append)) == []
    assert collect(streams.read_feed("gone", poll=0.01, polls=2, stop=threading.Event(), warn=warnings.append)) == []
    assert "is no RSS or Atom feed" in warnings[0]
    assert [warning.startswith("cannot fetch gone") for warning in warnings[1:]] == [True, True]


@pytest.fixture
def serve() -> Iterator[Callable[[list[tuple[int, bytes]]], tuple[str, list[str | None]]]]:
    """A function that serves answers one after the other, and gives the address and the validators that were sent."""
    servers: list[http.server.HTTPServer] = []

    def start(answers: list[tuple[int, bytes]]) -> tuple[str, list[str | None]]:
        validators: list[str | None] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                validators.append(self.headers["If-None-Match"])
                status, content = answers[min(len(validators), len(answers)) - 1]
                self.send_response(status)
                self.send_header("ETag", f'"{len(validators)}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/feed", validators

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_feed_is_polled_over_http(
    serve: Callable[..., tuple[str, list[str | None]]], classifier: Path, tmp_path: Path
) -> None:
    pytest.importorskip("feedparser")
    first, both = ("a", "w1 w2", 1), (("b", "w3", 2), ("a", "w1 w2", 1))
    url, validators = serve([(200, atom(first)), (304, b""), (500, b""), (200, atom(*both)), (200, atom(*both))])
    warnings: list[str] = []
    items = streams.read_feed(url, poll=0.01, polls=4, stop=threading.Event(), warn=warnings.append)
    assert collect(items) == ["w1 w2", "w1 w2", "w3"]  # what was seen is left out by the monitor
    assert validators == [None, '"1"', '"1"', '"1"']
    assert len(warnings) == 1
    assert "500" in warnings[0]

    url, _ = serve([(200, atom(first)), (200, atom(*both))])
    output = tmp_path / "records.jsonl"
    flags = [str(classifier), "--feed", url, "--poll", "0.01", "--polls", "3", "--output", str(output)]
    state = ["--state", str(tmp_path / "state.json")]
    assert monitor.main(flags + state) == 0
    assert [record["id"] for record in read_jsonl(output)] == ["a", "b"]
    assert monitor.main(flags + state) == 0  # nothing is scored again after a restart either
    assert [record["id"] for record in read_jsonl(output)] == ["a", "b"]


def test_an_address_without_a_host_cannot_be_fetched() -> None:
    with pytest.raises(OSError, match="host"):
        streams.fetch("http://", {})


# Batches


def batches(items: Iterator[Item] | list[Item], **settings: Any) -> Iterator[list[str]]:
    settings = {"batch_size": 3, "max_wait": 30.0, "stop": threading.Event(), **settings}
    for batch in monitor.in_batches(items, **settings):
        yield [item.text for item in batch]


def test_batches_are_full_but_the_last() -> None:
    assert list(batches([Item(None, str(number)) for number in range(7)])) == [list("012"), list("345"), ["6"]]
    assert list(batches([])) == []


def test_a_slow_stream_is_not_held_back() -> None:
    go_on = threading.Event()

    def slowly() -> Iterator[Item]:
        yield Item(None, "a")
        assert go_on.wait(10)  # comes only if the batch of one was handed on
        yield Item(None, "b")

    found = batches(slowly(), max_wait=0.05)
    assert next(found) == ["a"]
    go_on.set()
    assert list(found) == [["b"]]


def test_a_stream_that_falls_silent_ends_after_the_time_given() -> None:
    stop = threading.Event()

    def silent() -> Iterator[Item]:
        yield Item(None, "a")
        stop.wait(10)

    began = time.monotonic()
    assert list(batches(silent(), max_wait=0.05, idle=0.1, stop=stop)) == [["a"]]
    assert time.monotonic() - began < 5
    assert stop.is_set()


def test_what_came_before_an_error_is_scored_first() -> None:
    def broken() -> Iterator[Item]:
        yield Item(None, "a")
        raise BadLine("line 2")

    found = batches(broken())
    assert next(found) == ["a"]
    with pytest.raises(BadLine, match="line 2"):
        next(found)


# The program


def run(classifier: Path, *flags: Any) -> int:
    return monitor.main([str(classifier), *map(str, flags)])


SETTINGS = ["--reference", "30", "--window", "20", "--run_length", "50", "--confidence", "0.5"]


def test_records_do_not_depend_on_the_batches(classifier: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "news.jsonl", 150)
    topics = tmp_path / "topics.yaml"
    topics.write_text("one: [w1, w2, w3, w4, w5]\ntwo: [w2]\n", encoding="utf-8")
    found = []
    for size in (1, 7, 200):
        output = tmp_path / f"{size}" / "records.jsonl"
        flags = ["--topics", topics, "--batch_size", size, "--output", output, *SETTINGS]
        assert run(classifier, "--input", stream, *flags) == 0
        found.append(read_jsonl(output))
        alerts = read_jsonl(output.with_name("alerts.jsonl"))
        assert [alert["topic"] for alert in alerts] == [name for record in found[-1] for name in record["alerts"]]
    assert len(found[0]) == 150
    assert {record["label"] for record in found[0]} == set(LABELS)
    assert any("two" in record["topics"] for record in found[0])
    assert any(record["alerts"] for record in found[0])
    for other in found[1:]:
        assert without_scores(other) == without_scores(found[0])
        for one, two in zip(found[0], other, strict=True):
            for (
                label
            ) in LABELS:  # whole units of the sixth digit: of two roundings 2e-6 apart, binary makes 2.000000000002e-6
                assert abs(round(1e6 * one["scores"][label]) - round(1e6 * two["scores"][label])) <= 2
            assert sum(one["scores"].values()) == pytest.approx(1, abs=2e-6)


def test_a_stream_in_parts_gives_what_it_gives_at_once(classifier: Path, tmp_path: Path) -> None:
    whole = write_stream(tmp_path / "news.jsonl", 120)
    assert run(classifier, "--input", whole, "--output", tmp_path / "whole" / "o.jsonl", *SETTINGS) == 0
    part = tmp_path / "part" / "news.jsonl"
    part.parent.mkdir()
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    output = tmp_path / "part" / "o.jsonl"
    flags = ["--input", part, "--output", output, "--state", tmp_path / "state.json", "--batch_size", "8", *SETTINGS]
    for end in (0, 17, 64, 64, 120):
        part.write_text("".join(lines[:end]), encoding="utf-8")
        assert run(classifier, *flags) == 0
    expected = read_jsonl(tmp_path / "whole" / "o.jsonl")
    assert any(record["alerts"] for record in expected)
    assert without_scores(read_jsonl(output)) == without_scores(expected)
    alerts = [tmp_path / name / "alerts.jsonl" for name in ("whole", "part")]
    assert read_jsonl(alerts[0]) == read_jsonl(alerts[1])


def test_what_a_killed_run_wrote_after_its_state_comes_once(classifier: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "news.jsonl", 40)
    state, output = tmp_path / "state.json", tmp_path / "o.jsonl"
    flags = ["--input", stream, "--output", output, "--state", state, *SETTINGS]
    text = stream.read_text(encoding="utf-8")
    stream.write_text("".join(text.splitlines(keepends=True)[:25]), encoding="utf-8")
    assert run(classifier, *flags) == 0
    saved = state.read_bytes()
    stream.write_text(text, encoding="utf-8")
    assert run(classifier, *flags) == 0
    expected = output.read_bytes()
    state.write_bytes(saved)  # as if killed between the last record and its state
    output.write_bytes(expected[:-20])  # in the middle of a line
    assert run(classifier, *flags) == 0
    assert without_scores(read_jsonl(output)) == without_scores([json.loads(line) for line in expected.splitlines()])


def test_states_and_outputs_that_do_not_fit_are_refused(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = write_stream(tmp_path / "news.jsonl", 5)
    state, output = tmp_path / "state.json", tmp_path / "o.jsonl"
    flags = ["--input", stream, "--output", output, "--state", state]
    assert run(classifier, *flags) == 0
    assert run(classifier, *flags, "--window", "7") == 2
    assert "made with window = 100, got 7" in capsys.readouterr().err
    output.write_text("", encoding="utf-8")
    assert run(classifier, *flags) == 2
    assert "has 0 bytes, but had" in capsys.readouterr().err
    state.write_text("{}", encoding="utf-8")
    assert run(classifier, *flags) == 2
    assert "holds no state of this monitor" in capsys.readouterr().err
    state.write_bytes(b"\xff")
    assert run(classifier, *flags) == 2
    assert "holds no state of this monitor" in capsys.readouterr().err


def test_bad_lines_are_named_and_skipped_or_refused(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = tmp_path / "news.jsonl"
    stream.write_text('{"text": "w1"}\n\n{"text": \n{"text": "w2"}\n{"id": 1}\n', encoding="utf-8")
    output = tmp_path / "o.jsonl"
    assert run(classifier, "--input", stream, "--output", output) == 0
    errors = capsys.readouterr().err.splitlines()
    assert [record["text"] for record in read_jsonl(output)] == ["w1", "w2"]
    assert len(errors) == 2
    assert errors[0].startswith(f"warning: line 3 of '{stream}' is not JSON")
    assert errors[1].startswith(f"warning: line 5 of '{stream}' must be an object with a string `text`")
    output.unlink()
    assert run(classifier, "--input", stream, "--output", output, "--strict") == 2
    assert f"error: line 3 of '{stream}' is not JSON" in capsys.readouterr().err
    assert [record["text"] for record in read_jsonl(output)] == ["w1"]


def test_items_that_come_twice_count_once_and_late_ones_as_they_come(classifier: Path, tmp_path: Path) -> None:
    rows = [("a", "2024-02"), ("b", "2024-03"), ("a", "2024-02"), ("c", "2024-01"), ("b", "2024-03")]
    stream = tmp_path / "news.jsonl"
    lines = [json.dumps({"id": name, "time": when, "text": "w1"}) for name, when in rows]
    stream.write_text("\n".join(lines), encoding="utf-8")
    for size in ("1", "32"):
        output = tmp_path / size / "o.jsonl"
        assert run(classifier, "--input", stream, "--output", output, "--batch_size", size) == 0
        records = [(record["number"], record["id"], record["time"]) for record in read_jsonl(output)]
        assert records == [(1, "a", "2024-02"), (2, "b", "2024-03"), (3, "c", "2024-01")]


def test_hostile_texts_are_scored_like_others(classifier: Path, tmp_path: Path) -> None:
    texts = [
        "w1 " * 50_000,  # the model takes 16 tokens
        "\u202e\u0000\u200b w2",
        "\ud800",
        "(" * 5000 + "a*" * 5000,
        "</script>\u2028{'text': 1}",
        "🏦" * 1000,
        "w3",
    ]
    stream = tmp_path / "news.jsonl"
    stream.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    topics = tmp_path / "topics.yaml"
    topics.write_text("x: ['(a*)*', w3]\n", encoding="utf-8")
    output = tmp_path / "o.jsonl"
    assert run(classifier, "--input", stream, "--output", output, "--topics", topics) == 0
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [record["text"] for record in records] == [
        text.encode("utf-8", "replace").decode().strip() for text in texts
    ]
    assert [record["topics"] for record in records] == [[ALL]] * 6 + [[ALL, "x"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "gone.txt"], "There is no file 'gone.txt'"),
        (["--input", "{stream}", "--negative_label", "bad"], "but none 'bad'"),
        (["--input", "{stream}", "--odds_ratio", "1"], "`odds_ratio` must lie in"),
        (["--input", "{stream}", "--topics", "gone.yaml"], "gone.yaml"),
    ],
)
def test_bad_arguments_end_in_one_line(
    classifier: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = write_stream(tmp_path / "news.jsonl", 2)
    assert run(classifier, *[flag.format(stream=stream) for flag in flags]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    "flags", [[], ["--input", "a", "--feed", "b"], ["--input", "a", "--window", "0"], ["--input", "a", "--plot", "p"]]
)
def test_arguments_that_contradict_each_other_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        monitor.main(["model", *flags])
    assert error.value.code == 2


def test_without_an_output_records_go_to_standard_output(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = tmp_path / "news.txt"
    stream.write_text("w1\nw2 w3\n", encoding="utf-8")
    assert run(classifier, "--input", stream) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["w1", "w2 w3"]


def test_the_picture_is_drawn_with_and_without_alerts(classifier: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "news.jsonl", 100)
    for name, settings in (("with", SETTINGS), ("without", [])):
        output, picture = tmp_path / name / "o.jsonl", tmp_path / name / "p.png"
        assert run(classifier, "--input", stream, "--output", output, "--plot", picture, *settings) == 0
        assert any(record["alerts"] for record in read_jsonl(output)) == (name == "with")
        assert picture.read_bytes().startswith(b"\x89PNG")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    picture = tmp_path / "empty.svg"
    assert run(classifier, "--input", empty, "--output", tmp_path / "e.jsonl", "--plot", picture) == 0
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_the_sample_stream_raises_an_alert_where_the_bad_news_come() -> None:
    topics = monitor.read_topics(RECIPE / "sample_topics.yaml")
    lines = (RECIPE / "sample_news.txt").read_text(encoding="utf-8").splitlines()
    watch = Monitor(LABELS, topics=topics, window=10, reference=8, run_length=100.0)
    raised = []
    for number, line in enumerate(lines, 1):
        bad = 14 <= number <= 20
        raised += [
            (number, alert["topic"]) for alert in watch.take(Item(None, line), scores(LABELS[0 if bad else 1]))[1]
        ]
    assert raised
    assert all(14 <= number <= 20 for number, _ in raised)
    assert all(len(watch.shares[name].state_dict()["last"]) >= 4 for name in topics)


@pytest.mark.slow
def test_a_file_is_followed_until_the_program_is_told_to_end(classifier: Path, tmp_path: Path) -> None:
    news, output, state = tmp_path / "news.txt", tmp_path / "o.jsonl", tmp_path / "state.json"
    news.write_text("w1 w2\n", encoding="utf-8")
    flags = ["--follow", str(news), "--from_start", "--output", str(output), "--state", str(state), "--max_wait", "0.1"]
    command = [sys.executable, str(RECIPE / "monitor.py"), str(classifier), *flags, "--plot", str(tmp_path / "p.png")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not state.exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        process.terminate()
        assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    append(news, "w3\n")
    assert run(classifier, *flags, "--stop_after_idle", "0.5") == 0
    assert [record["text"] for record in read_jsonl(output)] == ["w1 w2", "w3"]


@pytest.mark.slow
def test_lines_on_a_pipe_are_scored_while_it_is_open(classifier: Path) -> None:
    command = [sys.executable, str(RECIPE / "monitor.py"), str(classifier), "--input", "-", "--max_wait", "0.1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdin is not None
    assert process.stdout is not None
    for text in ("w1 w2", "w3"):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text  # the pipe is still open
    process.stdin.write("no end of line")
    process.stdin.close()
    assert json.loads(process.stdout.read())["text"] == "no end of line"
    process.stdout.close()
    assert process.wait(30) == 0


# The recipe, and the stream that is made up


def test_a_stream_with_a_jump_has_the_shares_asked_for(tmp_path: Path) -> None:
    rows = [{"text": str(number), "label_name": LABELS[number % 3]} for number in range(300)]
    stream = made_up_jump.make_jump(rows, before=100, after=50, share_before=0.1, share_after=0.5)
    negative = [row["label_name"] == "negative" for row in stream]
    assert (sum(negative[:100]), sum(negative[100:])) == (10, 25)
    assert len({row["text"] for row in stream}) == 150
    with pytest.raises(ValueError, match="110 negative rows are wanted, but 100 are left"):
        made_up_jump.make_jump(rows, before=110, after=0, share_before=1.0, share_after=0.0)


@pytest.mark.slow
def test_the_recipe_trains_a_model_that_the_monitor_takes(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [{"text": text, "label": draw.choice(LABELS)} for text in sentences(40)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--model_name_or_path", str(write_classifier(tmp_path / "base", head=False)), "--max_steps", "2"]
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        flags += [f"--{group}.general.path", str(data), f"--{group}.general.config_name", "null"]
        flags += [f"--{group}.domain.path", str(data), f"--{group}.domain.text_column", "text"]
    flags += ["--max_length", "16", "--output_dir", str(tmp_path / "out"), "--alpha_search.alphas", "2"]
    flags += ["--use_cpu", "--disable_tqdm", "--report_to", "none"]
    results = run_recipe(load_recipe(RECIPE / "finance_monitor.yaml", flags))
    assert [entry["alpha"] for entry in results.plan["alpha"]] == [0.5, 0.5]
    news = tmp_path / "news.txt"
    news.write_text("w1 w2\n", encoding="utf-8")
    assert run(tmp_path / "out", "--input", news, "--output", tmp_path / "o.jsonl") == 0
    assert set(read_jsonl(tmp_path / "o.jsonl")[0]["scores"]) == set(LABELS)
