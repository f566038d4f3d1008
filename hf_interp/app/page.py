"""The page of the slider, in Gradio: a text, an α, and what M₀, M_α and M_θ make of the text.

Nothing of a visitor is kept: α and texts come with every question and go back with its answer. The page speaks with
nobody but its own server, which listens on this machine alone unless it is asked not to.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_interp.app.examples import Example, Source
from hf_interp.app.html import Html, Writer
from hf_interp.app.models import AlphaSlider, Answers, SliderAlpha, open_slider
from hf_interp.app.predictions import GENERATING, best_choices
from hf_interp.app.space import load_space
from hf_interp.app.views import STYLE, alpha_words, answers_html, curve_html, notes_html, problem_html
from hf_interp.reporting.curve import AlphaCurve

LOOPBACK = "127.0.0.1"
MAX_CHARACTERS = 20_000
"""Of a text; longer ones are refused before they are tokenised."""
NUM_ROWS = 5
"""Choices at each place in what the API gives."""

FORMULA = Html("M<sub>α</sub> = α·M<sub>θ</sub> + (1 − α)·M₀")
GROUP_NAMES = {
    "embeddings": "Embeddings",
    "lower": "Lower third of the layers",
    "middle": "Middle third of the layers",
    "upper": "Upper third of the layers",
    "rest": "The rest: head, pooler, last norm",
}

PAGE_STYLE = """
.gradio-container { width: 100% !important; max-width: 72rem !important; margin: 0 auto !important; }
.gradio-container { --body-text-color-subdued: #4d5660; --block-label-text-color: #4d5660;
  --block-title-text-color: #1b1f23; }
.dark .gradio-container, .gradio-container.dark { --body-text-color-subdued: #aab2ba; --block-label-text-color: #aab2ba;
  --block-title-text-color: #e6e8ea; }
#alpha input[type="range"]::-webkit-slider-thumb { background: #5b5bd6; }
#alpha input[type="range"]::-moz-range-thumb { background: #5b5bd6; }
.hfi-examples td, .hfi-examples th { white-space: normal !important; text-align: left !important; }
footer { display: none !important; }
"""


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
        source: what the page is about.
        max_new_tokens: the longest answer of a model that generates.
        chats: see `AlphaSlider`.
        device: where the model runs.
        host: the address to listen at; `None` leaves it to `GRADIO_SERVER_NAME`, and is else this machine alone.
        port: by default the first that is free from 7860 on.
        share: open a tunnel through Gradio's servers, by which anybody who knows the address can use the page.

    Raises:
        ImportError: if Gradio is not installed.
        ValueError: if the models cannot be opened.
        OSError: if the port is taken.
    """
    import_gradio()  # before anything is loaded
    slider = open_slider(source.recipe, source.finetuned, max_new_tokens=max_new_tokens, chats=chats, device=device)
    page = build_page(slider, source)
    launch_page(page, host=host, port=port, share=share)


def serve_space(folder: Path) -> None:
    """Serve the page of a Space; where it listens is the environment's to say, as on the Hub.

    Args:
        folder: what `hf_interp.app.space.write_space` wrote.

    Raises:
        ImportError, ValueError, OSError: see `serve_source`.
    """
    source, options = load_space(folder)
    serve_source(source, host=None, **options)


def launch_page(
    page: Any, *, host: str | None = LOOPBACK, port: int | None = None, share: bool = False, blocks: bool = True
) -> str:
    """Serve a page; returns its address, at once if it does not block. See `serve_source`."""
    gradio = import_gradio()
    _, address, shared = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=gradio.themes.Base(
            primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=STYLE + PAGE_STYLE,
        footer_links=[],
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        prevent_thread_lock=True,
    )
    if blocks:
        print(f"The page is at {address}" + (f" and {shared}" if shared else "") + "; Ctrl-C ends it.", flush=True)
        page.block_thread()
    return str(address)


def import_gradio() -> Any:
    """Gradio, told not to report to anybody.

    Raises:
        ImportError: if it is not installed, saying how to.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "The page needs Gradio, which is not installed. Install it with `pip install hf_interp[app]`."
        ) from error
    return gradio


def build_page(slider: AlphaSlider, source: Source) -> Any:
    """The page as `gradio.Blocks`.

    Args:
        slider: the models.
        source: what they are, their curve, and texts to try.
    """
    gradio = import_gradio()
    answer = _answerer(slider, source.curve)
    start = source.curve.alpha if source.curve is not None and 0 <= source.curve.alpha <= 1 else 0.5
    first = source.examples[0] if source.examples else Example(text="")
    with gradio.Blocks(title=f"α: {source.title}", analytics_enabled=False) as page:
        gradio.HTML(_heading(slider, source), apply_default_css=False, js_on_load=None)
        with gradio.Row():
            with gradio.Column(scale=5, min_width=280):
                text = gradio.Textbox(
                    first.text, label="Text", lines=4, max_lines=12, max_length=MAX_CHARACTERS, elem_id="text"
                )
                pair = gradio.Textbox(
                    first.text_pair,
                    label="Second text",
                    lines=2,
                    max_length=MAX_CHARACTERS,
                    visible=source.has_pairs,
                    elem_id="pair",
                )
                writes = slider.recipe.task in GENERATING
                button = gradio.Button("Ask", variant="primary", visible=writes, elem_id="ask")
                alpha = gradio.Slider(
                    0,
                    1,
                    start,
                    step=0.01,
                    label="α, from M₀ at 0 to M_θ at 1",
                    elem_id="alpha",
                )
                by_group, groups = _group_sliders(gradio, slider, source.curve, start)
            with gradio.Column(scale=6, min_width=280):
                shown = gradio.HTML(label="Answers", apply_default_css=False, js_on_load=None, elem_id="answers")
        with gradio.Row():
            if source.curve is not None:
                with gradio.Column(scale=5, min_width=280):
                    curve = gradio.HTML(apply_default_css=False, js_on_load=None, elem_id="curve")
            else:
                curve = gradio.HTML(visible=False)
            with gradio.Column(scale=6, min_width=280):
                tables = _example_tables(gradio, source)
        inputs, outputs = [text, pair, alpha, by_group, *groups], [shown, curve]
        options: dict[str, Any] = {
            "fn": answer,
            "inputs": inputs,
            "outputs": outputs,
            "show_progress": "hidden",
            "concurrency_limit": 4,
            "api_visibility": "private",
        }
        moves = [alpha.change, by_group.change, *(group.change for group in groups)]
        typed = [text.submit, text.blur, pair.blur, button.click] if writes else [text.change, pair.change]
        gradio.on([*moves, *typed], trigger_mode="always_last", **options)
        page.load(**options)
        for table, examples in tables:
            _fill_in(table, examples, text, pair, options if writes else None)
        gradio.api(_api(slider), api_name="predict", concurrency_limit=4)
    return page


def _heading(slider: AlphaSlider, source: Source) -> str:
    write = Writer()
    return write.tag(
        "div",
        write.tag("h1", "The α slider", style="font-size: 1.5rem; font-weight: 700; margin: 0"),
        write.tag("p", f"{source.title} · {slider.recipe.task} · ", FORMULA, style="margin: .2rem 0"),
        notes_html(slider.notes),
        class_="hfi",
    )


def _group_sliders(gradio: Any, slider: AlphaSlider, curve: AlphaCurve | None, start: float) -> tuple[Any, list[Any]]:
    """A switch, and a slider for every group of weights; those that the search has found, where it has."""
    with gradio.Accordion("An α for each group of weights", open=False, elem_id="groups"):
        by_group = gradio.Checkbox(False, label="Use these in place of the one α", elem_id="by_group")
        sliders = [
            gradio.Slider(
                0,
                1,
                min(max(start, 0.0), 1.0),
                step=0.01,
                label=f"{GROUP_NAMES[group]} ({len(names)} tensors)",
                elem_id=f"group_{group}",
            )
            for group, names in slider.groups.items()
        ]
    return by_group, sliders


def _example_tables(gradio: Any, source: Source) -> list[tuple[Any, list[Example]]]:
    """Tables of examples by side."""
    titles = {"general": "Examples: general side", "domain": "Examples: domain side", "": "Examples"}
    found = []
    for side, title in titles.items():
        examples = [example for example in source.examples if example.side == side]
        if not examples:
            continue
        columns = ["Text", "Second text"][: 1 + source.has_pairs]
        has_labels = any(example.label for example in examples)
        rows = [
            [example.text, example.text_pair][: 1 + source.has_pairs] + [example.label] * has_labels
            for example in examples
        ]
        columns += ["In the data"] * has_labels
        table = gradio.Dataset(
            components=[gradio.Textbox(visible=False) for _ in columns],
            samples=rows,
            headers=columns,
            label=title,
            layout="table",
            type="index",
            elem_classes="hfi-examples",
        )
        found.append((table, examples))
    return found


def _fill_in(table: Any, examples: Sequence[Example], text: Any, pair: Any, asks: Mapping[str, Any] | None) -> None:
    """Let a click on an example put it in and, where a changed text does not do so by itself, ask."""

    def take(index: int) -> tuple[str, str]:
        return examples[index].text, examples[index].text_pair

    chosen = table.click(take, table, [text, pair], show_progress="hidden", api_visibility="private")
    if asks is not None:
        chosen.then(**asks)


def _answerer(slider: AlphaSlider, curve: AlphaCurve | None) -> Any:
    """The function behind the page: what stands in it → the two parts of it that change."""
    names = list(slider.groups)

    def answer(text: str, pair: str, alpha: float, by_group: bool, *groups: float) -> tuple[str, str]:
        at: SliderAlpha = dict(zip(names, groups, strict=True)) if by_group else alpha
        drawn = "" if curve is None else curve_html(curve, None if by_group else alpha)
        try:
            return _show(slider, slider.compare(_checked(text), at, _checked(pair) or None), at), drawn
        except (TypeError, ValueError) as error:
            return problem_html(str(error)), drawn

    return answer


def _show(slider: AlphaSlider, answers: Answers, alpha: SliderAlpha) -> str:
    return answers_html(
        answers.places,
        answers[1:],
        slider.choice,
        alpha=alpha_words(alpha),
        has_labels=slider.labels is not None,
        is_number=slider.settings.problem_type == "regression",
        is_tagged=slider.recipe.task == "token-classification",
    )


def _api(slider: AlphaSlider) -> Any:
    """What programs ask: `gradio_client.Client(address).predict(text, alpha, api_name="/predict")`."""

    def predict(text: str, alpha: float, text_pair: str = "") -> dict[str, Any]:
        """What M₀, M_α and M_θ make of a text."""
        try:
            answers = slider.compare(_checked(text), alpha, _checked(text_pair) or None)
        except (TypeError, ValueError) as error:
            raise import_gradio().Error(str(error), print_exception=False) from error
        outcomes = answers[1:]
        found: dict[str, Any] = {"alpha": alpha, "places": []}
        for place, name in enumerate(answers.places):
            rows = {
                slider.choice(index): [float(outcome.probabilities[place, index]) for outcome in outcomes]
                for index in best_choices(outcomes, place, NUM_ROWS)
            }
            found["places"].append({"name": name, "base, interpolated, finetuned": rows})
        if outcomes[0].text is not None:
            found["texts"] = [outcome.text for outcome in outcomes]
        return found

    return predict


def _checked(text: Any) -> str:
    """A text of a length that can be read.

    Raises:
        ValueError: if it is longer.
    """
    text = "" if text is None else str(text)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text must have at most {MAX_CHARACTERS:,} characters, got {len(text):,}.")
    return text
