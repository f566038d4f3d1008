"""Time from a move of the slider to the answer: α set in the weights, the model run, the page drawn.

    python tests/benchmarks/slider.py --base BASE --finetuned FINETUNED [--texts 5] [--moves 40]

Without models two are made: a MiniLM of 22.7 million parameters (6 layers of 384, 30,522 tokens) with random weights,
which takes the time that trained ones take. Each move goes to another α; the answers of M₀ and M_θ are kept after the
first for a text. "request" goes through the page's own HTTP interface on this machine, as a browser's do.
"""

import os

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from hf_interp.app.answers import AnswerView
from hf_interp.app.examples import find_source
from hf_interp.app.models import open_slider
from hf_interp.app.page import build_page, import_gradio, launch_page
from hf_interp.utils.console import format_table
from hf_interp.utils.environment import describe_machine

TEXT = "operating profit fell to eur 2.1 mn from eur 3.4 mn a year earlier , the company said on tuesday "


def write_pair(folder: Path) -> tuple[str, str]:
    """Two models of MiniLM's shape with random weights."""
    words = {f"w{number}": number for number in range(30_522)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", unk_token="w1")
    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    for seed, name in enumerate(("base", "finetuned")):
        set_seed(seed)
        BertForSequenceClassification(shape).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    return str(folder / "base"), str(folder / "finetuned")


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begin)


def row(name: str, times: Sequence[float]) -> list[str]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(times)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return [name, f"{statistics.median(ordered):.0f}", f"{high:.0f}", f"{ordered[-1]:.0f}", str(len(ordered))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base")
    parser.add_argument("--finetuned")
    parser.add_argument("--texts", type=int, default=5)
    parser.add_argument("--moves", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pair = (args.base, args.finetuned) if args.base and args.finetuned else write_pair(Path(folder))
        source = find_source(base=pair[0], finetuned=pair[1], task="sequence-classification")
        slider = open_slider(source.recipe, source.finetuned)
        texts = [TEXT * (1 + number) for number in range(args.texts)]
        alphas = [((7 * move) % 97 + 1) / 100 for move in range(args.moves)]
        size = sum(parameter.numel() for parameter in slider._model.parameters())
        machine = describe_machine()
        print(f"{size / 1e6:.1f} M parameters; {machine['processor']}, {machine['cores']} cores, "
              f"{torch.get_num_threads()} threads\n")  # fmt: skip
        rows = []
        first = [timed(lambda text=text: slider.compare(text, 0.5)) for text in texts]  # type: ignore[misc]
        rows.append(row("first time for a text: three models", first))
        live = slider._live
        rows.append(row("weights set to another α", [timed(lambda at=at: live.set_alpha(at)) for at in alphas]))  # type: ignore[misc]
        slider._at = None
        moves, drawn = [], []
        gradio = import_gradio()
        with gradio.Blocks():
            view = AnswerView(gradio, slider)
        for text in texts:
            for alpha in alphas:
                moves.append(timed(lambda text=text, alpha=alpha: slider.compare(text, alpha)))  # type: ignore[misc]
                found = slider.compare(text, alpha)
                drawn.append(timed(lambda found=found, alpha=alpha: view.show(found, alpha)))  # type: ignore[misc]
        rows.append(row("a move: weights and answer", moves))
        rows.append(row("drawing the answer", drawn))
        rows.append(row("a move by request", requests(slider, source, texts, alphas)))
        rows.append(row("a move, two users at once", two_users(slider, texts, alphas)))
        print(format_table(["ms", "median", "95 %", "most", "calls"], rows))


def requests(slider: object, source: object, texts: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """Milliseconds of moves that go through the page's server."""
    from gradio_client import Client

    page = build_page(slider, source)  # type: ignore[arg-type]
    client = Client(launch_page(page, blocks=False), verbose=False)
    try:
        client.predict(texts[0], 0.5, api_name="/predict")
        return [timed(lambda at=at: client.predict(texts[0], at, api_name="/predict")) for at in alphas]  # type: ignore[misc]
    finally:
        page.close(verbose=False)


def two_users(slider: object, texts: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """Milliseconds of moves of two who move at once, each at α of their own."""

    def move(text: str, order: Sequence[float]) -> list[float]:
        return [timed(lambda at=at: slider.compare(text, at)) for at in order]  # type: ignore[attr-defined, misc]

    with ThreadPoolExecutor(2) as pool:
        return list(chain.from_iterable(pool.map(move, (texts[0], texts[-1]), (alphas, alphas[::-1]))))


if __name__ == "__main__":
    main()
