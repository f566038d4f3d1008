"""What a served page takes from whom, over HTTP: its own questions, at a bounded size and rate, and nothing else."""

import asyncio
import base64
import gc
import http.client
import json
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from architectures import make_model, make_tokenizer
from toy_media import toy_wav, write_toy_ctc
from toys import move
from transformers import AutoModelForCTC

from hf_interp.app import page as server
from hf_interp.app.examples import Example, Source
from hf_interp.app.models import MAX_CHARACTERS, NUM_KEPT, AlphaSlider, describe_pair, open_slider
from hf_interp.app.page import build_page, check_place, launch_page

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio's threads warn, and leave event loops open

Ask = Callable[..., tuple[int, bytes]]


@pytest.fixture(scope="module")
def slider(tmp_path_factory: pytest.TempPathFactory) -> AlphaSlider:
    folder = tmp_path_factory.mktemp("pair")
    model = make_model("bert", "SEQ_CLS")
    for name in ("base", "finetuned"):
        move(model).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return open_slider(describe_pair(str(folder / "base"), str(folder / "finetuned")), str(folder / "finetuned"))


@pytest.fixture(scope="module")
def address(slider: AlphaSlider) -> Iterator[str]:
    """The address of a page on this machine."""
    with serving(slider) as found:
        yield found


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> AlphaSlider:
    """A model that transcribes, and what it has become."""
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    base, finetuned = (write_toy_ctc(tmp_path_factory.mktemp("ctc")) for _ in range(2))
    move(AutoModelForCTC.from_pretrained(base)).save_pretrained(finetuned)
    return open_slider(describe_pair(str(base), str(finetuned)), str(finetuned))


@contextmanager
def serving(slider: AlphaSlider, *examples: Example) -> Iterator[str]:
    """Serve a page on this machine, and give its address."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.get_event_loop_policy().new_event_loop())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(asyncio, "new_event_loop", make)
        source = Source(recipe=slider.recipe, finetuned="there", title="title", examples=list(examples))
        page = build_page(slider, source)
        yield urlsplit(launch_page(page, blocks=False, takes_files=slider.takes != "text")).netloc
        page.close(verbose=False)
        for loop in made:  # Gradio leaves them open
            if not loop.is_running():
                loop.close()
        gc.collect()


@pytest.fixture
def ask(address: str, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A function that sends a request and gives its status and body; no request before counts for the rate."""
    return sender(address, monkeypatch)


def sender(address: str, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setattr(server, "WINDOW", 0.0)

    def send(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json", **named})
        reply = connection.getresponse()
        found = reply.status, reply.read()
        connection.close()
        return found

    return send


def answer(ask: Ask, text: str, alpha: float = 0.5) -> Any:
    """What a program gets for a text: the answer, or an error."""
    status, body = ask("POST", "/gradio_api/call/predict", json.dumps({"data": [text, alpha, ""]}).encode())
    assert status == 200, body
    _, stream = ask("GET", f"/gradio_api/call/predict/{json.loads(body)['event_id']}")
    data = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: ")]
    return json.loads(data[-1])


def test_the_page_and_its_questions_are_open(ask: Ask, address: str) -> None:
    for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
        assert ask("GET", path)[0] == 200, path
    assert [place["name"] for place in answer(ask, "w4 w5")[0]["places"]] == [""]
    body = json.dumps({"data": ["w4", 0.5, ""]}).encode()
    assert ask("POST", "/gradio_api/call/predict", body, Origin=f"http://{address}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/upload?upload_id=1"),
        ("POST", "/upload"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/stream/1"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/run-history/connect"),
        ("POST", "/gradio_api/call/answer"),
        ("POST", "/login"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.com/"),
        ("GET", "/gradio_api/upload_progress"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
    ],
)
def test_uploads_files_and_other_routes_are_closed(ask: Ask, method: str, path: str, tmp_path: Path) -> None:
    boundary = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nkept\r\n--b--\r\n'
    status, body = ask(method, path, boundary, Content_Type="multipart/form-data; boundary=b")
    assert status == 404
    assert body in (b"Nothing but questions is taken here.", b"There are no files here.")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1:1", "null", "http://localhost.evil.example"]
)
def test_foreign_origins_are_refused(ask: Ask, slider: AlphaSlider, origin: str) -> None:
    before = list(slider._kept)
    body = json.dumps({"data": ["w9 w9 w9", 0.5, ""]}).encode()
    for path in ("/gradio_api/call/predict", "/gradio_api/queue/join"):
        # as a page's form can send it, without asking first
        assert ask("POST", path, body, Origin=origin, Content_Type="text/plain")[0] == 403
    assert ask("GET", "/config", Origin=origin)[0] == 403
    assert list(slider._kept) == before


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost:7860", 200), ("[::1]:7860", 200)])
def test_names_that_are_not_this_machines_are_refused(ask: Ask, host: str, status: int) -> None:
    assert ask("GET", "/config", Host=host)[0] == status


def test_a_page_of_sound_takes_one_file_and_gives_back_its_own(
    ears: AlphaSlider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "3.wav").write_bytes(toy_wav(3))
    with serving(ears, Example(text=str(tmp_path / "3.wav"), side="domain", label="high")) as address:
        ask = sender(address, monkeypatch)
        found = answer(ask, base64.b64encode(toy_wav(3)).decode(), 0.4)[0]
        assert found["texts"] == [outcome.text for outcome in ears.compare(toy_wav(3), 0.4)[1:]]
        assert found["texts"][0] != found["texts"][2]
        assert "cannot be decoded" in json.dumps(answer(ask, base64.b64encode(b"no sound").decode()))
        assert "error" in json.dumps(answer(ask, "no Base64!")).lower()
        assert "must be the bytes of a file in Base64, got 'hello'" in json.dumps(answer(ask, "hello"))
        form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n' + toy_wav(3)
        form += b"\r\n--x--\r\n"
        status, body = ask("POST", "/gradio_api/upload", form, Content_Type="multipart/form-data; boundary=x")
        assert status == 200
        (path,) = json.loads(body)
        assert ask("GET", f"/gradio_api/file={path}") == (200, toy_wav(3))
        (shown,) = [part for part in json.loads(ask("GET", "/config")[1])["components"] if part["type"] == "audio"]
        assert ask("GET", f"/gradio_api/file={shown['props']['value']['path']}") == (200, toy_wav(3))
        for other in ("/etc/passwd", str(tmp_path / "4.wav"), str(Path(__file__)), "https://example.com"):
            assert ask("GET", f"/gradio_api/file={other}")[0] in (403, 404), other
        assert ask("POST", "/gradio_api/upload", b"", Content_Length=str(server.MAX_FILE_REQUEST + 1))[0] == 413
        assert ask("POST", "/gradio_api/component_server", b"{}")[0] == 404


def test_long_texts_and_requests_are_refused(ask: Ask) -> None:
    assert "at most 20,000 characters, got 20,001" in str(answer(ask, "w" * (MAX_CHARACTERS + 1)))
    assert answer(ask, "\N{GRINNING FACE}" * MAX_CHARACTERS)[0]["alpha"] == 0.5  # of the greatest length in bytes
    assert ask("POST", "/gradio_api/call/predict", b" " * (server.MAX_BYTES + 1))[0] == 413
    assert ask("POST", "/gradio_api/call/predict", iter([b"{}"]))[0] == 413  # without a length


def test_questions_come_at_a_bounded_rate(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WINDOW", 1000.0)
    monkeypatch.setattr(server, "MAX_QUESTIONS", 20)
    body = json.dumps({"data": ["w4", 0.5, ""]}).encode()
    found = [ask("POST", "/gradio_api/call/predict", body)[0] for _ in range(40)]
    assert sorted(set(found)) == [200, 429]
    assert found.index(429) <= 20
    assert ask("GET", "/")[0] == 200  # the page can be read all the same
    monkeypatch.setattr(server, "WINDOW", 0.0)
    assert ask("POST", "/gradio_api/call/predict", body)[0] == 200


def test_nothing_of_ours_grows_with_the_questions(ask: Ask, slider: AlphaSlider) -> None:
    def held(begin: int) -> int:
        for number in range(begin, begin + NUM_KEPT + 10):
            answer(ask, f"w{4 + number % 50} " * (1 + number // 50), 0.3)
        outcomes = [outcome for ends in slider._kept.values() for outcome in ends]
        return len(outcomes) + sum(outcome.probabilities.nbytes for outcome in outcomes)

    assert held(0) == held(100)
    assert len(slider._kept) == NUM_KEPT


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ((None, 99999, "cpu"), ValueError, r"`port` must lie in \[1, 65535\], got 99999"),
        ((None, 0, "cpu"), ValueError, r"`port` must lie in \[1, 65535\], got 0"),
        (("192.0.2.1", None, "cpu"), OSError, "Nothing can be served at '192.0.2.1'"),
        (("no host", 7860, "cpu"), OSError, "Nothing can be served at 'no host'"),
        ((None, None, "cudaa"), ValueError, "`device` must be there, such as cpu, got 'cudaa'"),
        ((None, None, "privateuseone"), ValueError, "`device` must be there, such as cpu, got 'privateuseone'"),
    ],
)
def test_places_and_devices_that_are_not_there_are_refused(
    place: tuple[str | None, int | None, str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_place(*place)


def test_a_port_that_is_taken_is_told(address: str) -> None:
    host, port = address.split(":")
    with pytest.raises(OSError, match=f"port {port}: .*Address already in use.* Take another --host or --port"):
        check_place(host, int(port), "cpu")
    with socket.socket() as probe:
        probe.bind((host, 0))
        free = probe.getsockname()[1]
    check_place(host, free, "cpu")
