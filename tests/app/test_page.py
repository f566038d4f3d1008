"""The page of the slider, in a real browser: what it shows, to whom, and what it asks of whom."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from architectures import make_model, make_tokenizer
from browser import MEASURE, chromium, requested, set_screen
from toys import alpha_curve, move

from hf_interp import cli
from hf_interp.app.models import MAX_CHARACTERS, AlphaSlider, describe_pair, open_slider
from hf_interp.app.page import import_gradio
from hf_interp.reporting.results import save_results
from hf_interp.utils.files import write_json
from hf_interp.utils.run_folder import CURVE_NAME, RESULTS_NAME

LABELS = ["<img src=x onerror=alert(1)>", "${alert(2)} {{7*7}} </script><script>alert(3)</script>"]
HOSTILE = "w4 <img src=x onerror=alert(4)> <svg onload=alert(5)> ${alert(6)} {{constructor.constructor('alert(7)')()}}"
WAIT = 20  # seconds, at most


class Served(NamedTuple):
    """A page that is served."""

    address: str
    slider: AlphaSlider


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of M₀ and M_θ, whose labels are hostile."""
    folder = tmp_path_factory.mktemp("pair")
    model = move(make_model("bert", "SEQ_CLS"), seed=0)
    model.config.id2label, model.config.label2id = dict(enumerate(LABELS)), {}
    for name in ("base", "finetuned"):
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
        move(model)
    return str(folder / "base"), str(folder / "finetuned")


pytestmark = pytest.mark.slow  # browsers and servers start

WATCHED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
HERE = (None, "127.0.0.1", b"127.0.0.1", "::1", "localhost", "0.0.0.0")
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in HERE:
        print("FOREIGN", arguments[1], flush=True)
    if event == "socket.getaddrinfo" and arguments[0] not in HERE:
        print("FOREIGN", arguments[0], flush=True)
sys.addaudithook(watch)
"""
"""Says of every connection, and of every name that is looked up, if it is not of this machine."""


@contextmanager
def serving(script: str, log: Path) -> Iterator[str]:
    """A page in a process of its own; gives its address, and sees to it that it asked no other machine."""
    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED + script], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        end = time.monotonic() + 120
        while "The page is at" not in log.read_text("utf-8"):
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < end, log.read_text("utf-8")
            time.sleep(0.1)
        assert f"The page is at http://127.0.0.1:{port}/" in log.read_text("utf-8")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert "FOREIGN" not in log.read_text("utf-8")
    assert "Traceback" not in log.read_text("utf-8")


def ask(address: str, text: str, alpha: float) -> Any:
    """What a program gets for a text: an answer, or an error's message."""
    url = f"{address}/gradio_api/call/predict"
    body = json.dumps({"data": [text, alpha, ""]}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT) as reply:
        event = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=WAIT) as reply:
        lines = reply.read().decode().splitlines()
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return data[-1][0] if "event: complete" in lines else data[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def run(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from M₀ to M_θ, with a curve and a recipe whose data are not there any more."""
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(pair[1], folder)
    corpora = {"domain": {"path": "gone/domain.jsonl"}, "general": {"path": "gone/general.jsonl"}}
    recipe = {"model_name_or_path": pair[0], "label_names": LABELS, "corpora": corpora, "max_steps": 4}
    write_json(folder / RESULTS_NAME, {"recipe": recipe})
    save_results(alpha_curve({"accuracy": [0.5, 0.75, 0.625]}, {"accuracy": [0.75, 0.875, 0.25]}), folder / CURVE_NAME)
    return folder


@pytest.fixture(scope="module")
def served(run: Path, pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `hf-interp app RUN` serves, with examples of both sides; it must speak with nobody else meanwhile."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("served")
    examples = [
        {"text": "w9 w11", "side": "general", "label": LABELS[0]},
        {"text": HOSTILE, "side": "domain", "label": LABELS[1]},
    ]
    lines = "".join(f"{json.dumps(example)}\n" for example in examples)
    (folder / "examples.jsonl").write_text(lines, encoding="utf-8")
    flags = ["app", str(run), "--examples", str(folder / "examples.jsonl"), "--title", f"Title {HOSTILE}"]
    slider = open_slider(describe_pair(*pair), pair[1])
    with serving(f"from hf_interp import cli\nsys.exit(cli.main({flags!r}))", folder / "log") as address:
        yield Served(address, slider)


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Any]]:
    """A function from a number to a browser with a profile of its own."""
    with ExitStack() as stack:
        opened: list[Any] = []

        def get(number: int) -> Any:
            while len(opened) <= number:
                opened.append(stack.enter_context(chromium(tmp_path_factory.mktemp("chromium"))))
            return opened[number]

        yield get


def until(check: Callable[[], Any], what: str) -> Any:
    """Wait until a check holds; returns what it gave."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            if found := check():
                return found
        except Exception as error:  # the page is being drawn anew
            if "stale" not in str(error) and "no such element" not in str(error):
                raise
        time.sleep(0.05)
    raise AssertionError(f"It took more than {WAIT} seconds until {what}.")


BARS = """
return [...document.querySelectorAll('#answers .answer')].map(card => Object.fromEntries(
  [...card.querySelectorAll('button')].map(choice => [choice.querySelector('dt').textContent,
    [choice.querySelector('meter').value.toFixed(4), choice.querySelector('dd').textContent]])));
"""


def shares(browser: Any) -> list[dict[str, list[str]]]:
    """Return what the bars of each model show: label → the length of its bar, and the number beside it."""
    found = browser.execute_script(BARS)
    return found if found and all(found) else []


def wanted(slider: AlphaSlider, text: str, alpha: Any) -> list[dict[str, list[str]]]:
    """Return what belongs there."""
    return [
        {label: [f"{share:.4f}", f"{share:.0%}"] for label, share in zip(LABELS, outcome.probabilities[0], strict=True)}
        for outcome in slider.compare(text, alpha)[1:]
    ]


def visit(browser: Any, served: Served, *, text: str | None = None) -> Any:
    """Open the page anew and, if there is a text, type it."""
    set_screen(browser, 1280)
    browser.get(served.address)
    until(lambda: shares(browser), "there are answers")
    if text is not None:
        write(browser, text)
        until(lambda: shares(browser) == wanted(served.slider, text, 0.5), "the text is answered")
    return browser


def write(browser: Any, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    box = browser.find_element("css selector", "#text textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text or Keys.DELETE)


def press(browser: Any, key: str, times: int = 1, slider: str = "alpha") -> None:
    from selenium.webdriver.common.keys import Keys

    handle = browser.find_element("css selector", f"#{slider} input[type=range]")
    for _ in range(times):
        handle.send_keys(getattr(Keys, key))


MARKER = """
const chart = document.querySelector('#curve svg');
const [grid] = [...chart.querySelectorAll('path.background')].map(e => e.getBoundingClientRect());
const [line] = [...chart.querySelectorAll('path[stroke="#8A6FD1"]')].map(e => e.getBoundingClientRect())
  .filter(box => box.height > 50);
return (line.x + line.width / 2 - grid.x) / grid.width;
"""


def marker(browser: Any) -> float:
    """Return where the line of the slider's α stands, from 0 at the left edge of the chart to 1 at the right one."""
    return browser.execute_script(MARKER)


# In a browser


def test_typing_and_sliding_change_the_answers(browsers: Callable[[int], Any], served: Served) -> None:
    browser = visit(browsers(0), served, text="w4 w5 w17")
    assert until(lambda: marker(browser), "there is a chart") == pytest.approx(0.5, abs=0.01)
    press(browser, "ARROW_RIGHT", 10)
    until(lambda: shares(browser) == wanted(served.slider, "w4 w5 w17", 0.6), "α = 0.6 is answered")
    until(lambda: marker(browser) == pytest.approx(0.6, abs=0.01), "the marker has moved")
    assert "general: accuracy 0.750" in browser.find_element("css selector", "#curve").text  # 0.875 at 0.5, 0.25 at 1
    assert "between measured points" in browser.find_element("css selector", "#curve").text
    press(browser, "END")
    until(lambda: shares(browser)[1] == shares(browser)[2], "M_α is M_θ at α = 1")
    press(browser, "HOME")
    until(lambda: shares(browser)[1] == shares(browser)[0], "M_α is M₀ at α = 0")
    assert shares(browser) == wanted(served.slider, "w4 w5 w17", 0.0)
    assert "as measured" in browser.find_element("css selector", "#curve").text


def test_the_slider_can_be_dragged(browsers: Callable[[int], Any], served: Served) -> None:
    from selenium.webdriver import ActionChains

    browser = visit(browsers(0), served, text="w4 w5 w17")
    handle = browser.find_element("css selector", "#alpha input[type=range]")
    ActionChains(browser).drag_and_drop_by_offset(handle, round(handle.size["width"] * 0.3), 0).perform()
    alpha = until(lambda: float(handle.get_attribute("value")) - 0.5, "the handle has moved") + 0.5
    assert alpha == pytest.approx(0.8, abs=0.05)
    until(lambda: shares(browser) == wanted(served.slider, "w4 w5 w17", alpha), "its α is answered")


def test_two_visitors_have_their_own_alpha(browsers: Callable[[int], Any], served: Served) -> None:
    first, second = (visit(browsers(number), served, text="w4 w5 w17") for number in (0, 1))
    press(first, "END")
    press(second, "HOME")
    for number in range(1, 6):  # in turns, so that each comes after the other
        press(first, "ARROW_LEFT")
        press(second, "ARROW_RIGHT")
        for browser, alpha in ((first, 1 - number / 100), (second, number / 100)):
            expected = wanted(served.slider, "w4 w5 w17", round(alpha, 2))
            until(lambda browser=browser, expected=expected: shares(browser) == expected, f"α = {alpha} is answered")
    write(second, "w30 w31")
    until(lambda: shares(second) == wanted(served.slider, "w30 w31", 0.05), "the other text is answered")
    assert shares(first) == wanted(served.slider, "w4 w5 w17", 0.95)


def test_hostile_texts_and_labels_are_shown_and_do_not_run(browsers: Callable[[int], Any], served: Served) -> None:
    browser = visit(browsers(0), served)
    write(browser, HOSTILE)
    until(lambda: shares(browser) == wanted(served.slider, HOSTILE, 0.5), "it is answered")
    shown = browser.find_element("css selector", "#answers").text
    assert all(label in shown for label in LABELS)
    whole = browser.find_element("css selector", "body").text
    assert f"Title {HOSTILE}" in whole
    rows = browser.find_elements("css selector", ".slider-examples tbody tr")
    assert [LABELS[0] in rows[0].text, LABELS[1] in rows[1].text] == [True, True]
    rows[1].find_element("css selector", "td").click()
    until(lambda: shares(browser) == wanted(served.slider, HOSTILE, 0.5), "the example is answered")
    box = browser.find_element("css selector", "#text textarea")
    assert box.get_attribute("value") == HOSTILE
    rows[0].find_element("css selector", "td").click()
    until(lambda: box.get_attribute("value") == "w9 w11", "the other example is in the box")
    until(lambda: shares(browser) == wanted(served.slider, "w9 w11", 0.5), "the other example is answered")
    # an alert that was open would have raised an error at every step before
    assert browser.execute_script("return document.querySelectorAll('img[src=x], [onerror], [onload]').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_empty_text_is_answered_with_a_remedy(browsers: Callable[[int], Any], served: Served) -> None:
    browser = visit(browsers(0), served, text="w4")
    write(browser, "")
    message = until(lambda: browser.find_element("css selector", "#message").text, "there is a message")
    assert "Write one, or choose an example." in message
    write(browser, "w4 w7")
    until(lambda: shares(browser) == wanted(served.slider, "w4 w7", 0.5), "the next text is answered")


LOOK = (
    MEASURE
    + """
return {texts: measureTexts(), width: document.documentElement.scrollWidth,
  bars: [...document.querySelectorAll('#answers .answer button')].map(e => e.getBoundingClientRect().width),
  chart: document.querySelector('#curve svg').getBoundingClientRect().width};
"""
)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read(browsers: Callable[[int], Any], served: Served, width: int, theme: str) -> None:
    browser = browsers(0)
    browser.get_log("browser")
    requested(browser)
    set_screen(browser, width, theme)
    browser.get(served.address)
    until(lambda: shares(browser), "there are answers")
    found = until(lambda: browser.execute_script(LOOK), "it is drawn")
    # Gradio's own chart says on every page that it was written for another version of Vega-Lite
    assert [
        entry for entry in browser.get_log("browser") if "current version of Vega-Lite" not in entry["message"]
    ] == []
    assert found["width"] == width
    assert min(found["bars"]) > 100
    assert found["chart"] > 250
    assert len(found["texts"]) > 40
    # WCAG 2.2, of all that is written
    assert [text for text in found["texts"] if text[0] < 4.5] == []
    assert [text for text in found["texts"] if text[1] < 9] == []
    asked = [address for address in requested(browser) if not address.startswith(("data:", "blob:"))]
    assert len(asked) > 10
    assert [address for address in asked if not address.startswith(served.address)] == []


# Without a browser


def test_programs_ask_at_once_and_get_their_own_answers(served: Served) -> None:
    alphas = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

    def ask_often(alpha: float) -> list[Any]:
        return [ask(served.address, "w4 w5", alpha) for _ in range(5)]

    with ThreadPoolExecutor(len(alphas)) as pool:
        found = dict(zip(alphas, pool.map(ask_often, alphas), strict=True))
    for alpha, answers in found.items():
        assert [answer["alpha"] for answer in answers] == [alpha] * 5
        outcomes = served.slider.compare("w4 w5", alpha)[1:]
        for answer in answers:
            rows = answer["places"][0]["base, interpolated, finetuned"]
            for index, label in enumerate(LABELS):
                assert rows[label] == pytest.approx([float(one.probabilities[0, index]) for one in outcomes], rel=1e-5)
    assert len({str(answers[0]["places"]) for answers in found.values()}) == len(alphas)


@pytest.mark.parametrize(
    ("text", "alpha", "message"),
    [
        ("w4", 1.5, "`alpha` must lie in [0, 1], got 1.5"),
        ("", 0.5, "The text must not be empty"),
        ("w" * (MAX_CHARACTERS + 1), 0.5, "The text must have at most 20,000 characters, got 20,001"),
    ],
)
def test_programs_are_told_what_is_wrong(text: str, alpha: float, message: str, served: Served) -> None:
    assert message in str(ask(served.address, text, alpha))


def test_it_listens_on_this_machine_alone(served: Served) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    port = int(served.address.rsplit(":", 1)[1].strip("/"))
    for host, answers in (("127.0.0.1", True), ("127.0.0.2", False)):
        with socket.socket() as visitor:
            visitor.settimeout(5)
            assert (visitor.connect_ex((host, port)) == 0) == answers


def test_without_gradio_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install hf_interp\[app\]"):
        import_gradio()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--base", "BASE"], "`finetuned` must be given: name the folder of a run, or both M₀ (--base)"),
        (["nothing"], "There is no folder of a run 'nothing'"),
        (["--base", "BASE", "--finetuned", "FINETUNED", "--task", "ner"], "`task` must be one of"),
        (["--base", "BASE", "--finetuned", "FINETUNED", "--max_length", "0"], "`max_length` must be at least 1"),
        (["--base", "BASE", "--finetuned", "FINETUNED", "--examples", "none.jsonl"], "There is no file of examples"),
        (["--base", "BASE", "--finetuned", "FINETUNED", "--max_new_tokens", "0"], "`max_new_tokens` must be at least"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    places = dict(zip(("BASE", "FINETUNED"), pair, strict=True))
    assert cli.main(["app", *(places.get(word, word) for word in argv)]) == 2
    assert message in capsys.readouterr().err


def test_a_space_that_was_written_answers(run: Path, pair: tuple[str, str], served: Served, tmp_path: Path) -> None:
    space = tmp_path / "space"
    names = ["--base", "org/base", "--finetuned", "user/finetuned"]
    assert cli.main(["app", str(run), *names, "--space", str(space)]) == 0
    shutil.move(space, tmp_path / "elsewhere")
    for name, folder in zip(("org/base", "user/finetuned"), pair, strict=True):  # stand for the Hub
        shutil.copytree(folder, tmp_path / "elsewhere" / name)
    program = str(tmp_path / "elsewhere" / "app.py")
    script = f"import runpy\nrunpy.run_path({program!r}, run_name='__main__')"
    with serving(script, tmp_path / "log") as address:
        found = ask(address, "w4 w5", 0.5)
    rows = found["places"][0]["base, interpolated, finetuned"]
    outcomes = served.slider.compare("w4 w5", 0.5)[1:]
    assert rows[LABELS[1]] == pytest.approx([float(one.probabilities[0, 1]) for one in outcomes], rel=1e-5)
