"""Model cards: what a run's results say, as the Hub shows it. They read results only. No torch.

Whatever comes from data or settings (names of corpora, labels, reasons) is escaped, so that it cannot add markup, links
or metadata; local paths are reduced to their last part, and secrets are blotted out.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_interp.reporting import audits
from hf_interp.reporting.curve import AlphaCurve, count_examples, curve_table, number, short_alpha
from hf_interp.reporting.results import MEAN_OF_MEANS, Comparison, RunResults
from hf_interp.utils.console import format_table
from hf_interp.utils.files import new_file
from hf_interp.utils.redaction import basename, is_local, redactor
from hf_interp.utils.task_info import TASK_INFOS, InputKind, TaskInfo, task_of_class

CARD_NAME, SPARE_CARD_NAME = "README.md", "MODEL_CARD.md"
MARK = "rendered from the run's results by `hf-interp card`"
"""In every card of ours."""
UNFILLED = "# Model Card for Model ID"
"""In the form that PEFT leaves beside an adapter."""
FINETUNED_REVISION = "finetuned"
"""The branch that holds M_θ where the default branch holds M_α."""
TAGS = ("hf_interp", "domain-adaptation")
UNNAMED_SET = "evaluation set"
MAX_TEXT = 500  # characters; names are shorter, and nothing from data should fill a card
MAX_LABELS = 30  # labels that are written out in a snippet

MAKERS: dict[InputKind, tuple[str, str]] = {
    "text": ("tokenizer", "A text."),
    "image": ("image_processor", "an image.png"),
    "audio": ("feature_extractor", "a recording.wav"),
    "image-text": ("processor", "an image.png"),
}
"""How a snippet calls what makes a model's inputs, and an input."""

TRAINING_FIELDS = ("learning_rate", "lr_scheduler_type", "optim", "seed")

Say = Callable[[Any], str]


class Markdown(str):
    """A text that is Markdown already, and goes into a card as it is."""


@dataclass(frozen=True, kw_only=True)
class CardMetadata:
    """Metadata of a card that a run does not tell.

    Args:
        base_model: name of M₀ on the Hub, where the run began from a local copy.
        tags: further tags.
        license: the licence of the model, as the Hub names it, such as apache-2.0.
        language: ISO 639 codes.
    """

    base_model: str | None = None
    tags: Sequence[str] = ()
    license: str | None = None
    language: str | Sequence[str] | None = None


def model_card(
    results: RunResults,
    curve: AlphaCurve | None = None,
    comparison: Comparison | None = None,
    *,
    name: str,
    repo_id: str | None = None,
    interpolated: bool = False,
    both: bool = False,
    pictures: Sequence[str] = (),
    metadata: CardMetadata | None = None,
) -> ModelCard:
    """Render the card of a trained model.

    Args:
        results: of the run.
        curve: its curve over α, if one was searched.
        comparison: the same data trained in other ways, with spread over seeds.
        name: what the model is called.
        repo_id: where it is on the Hub; the snippet shows it. By default the snippet says `name`.
        interpolated: whether the card is that of M_α; by default it is that of M_θ.
        both: whether the repository has both, M_α on the default branch and M_θ on the branch `finetuned`.
        pictures: names of pictures that lie beside the card, of `run.png` and `curve.png`.
        metadata: what the run does not tell.
    """
    metadata = metadata or CardMetadata()
    facts = _Facts(results, curve, metadata.base_model)
    place = repr(clean(repo_id) if repo_id else facts.plain(name))  # a folder from here tells nothing of others
    if both and not interpolated:
        place += f", revision={FINETUNED_REVISION!r}"
    maker, sample = MAKERS[facts.task_info.takes]
    given = f"{maker}={maker}"
    if facts.task_info.processor == "AutoProcessor":
        maker, given = "processor", f"tokenizer=processor.tokenizer, {maker}=processor.{maker}"
    context = {
        "name": name,
        "interpolated": interpolated,
        "both": both,
        "pictures": pictures,
        "alpha": f"α = {short_alpha(curve.alpha)}" if curve else "an α that the run does not tell",
        "place": Markdown(place),
        "model_given": Markdown(f"model, {given}" if facts.is_adapter else place),
        "maker": maker,
        "sample": Markdown(repr(sample)),
        "head": Markdown(_label_arguments(facts)),
        "facts": facts,
        "curve": curve,
        "metrics": _metrics(results),
        "mean_of_means": MEAN_OF_MEANS,
        "comparison": comparison,
        "compared": [] if comparison is None else _comparison(comparison),
        "schedule": _schedule(results),
        "corpora": _corpora(facts),
        "sets": _sets(facts),
        "training": _training(facts),
        "ways": _ways(facts),
        "groups": audits.accounts(results, curve),
        "pairs": audits.pair_table(results, curve),
    }
    data = _card_data(facts, curve, metadata, name=name, interpolated=interpolated)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_render(context)}")


def save_card(card: ModelCard | str, place: str | Path) -> Path:
    """Write a card, whole or not at all, and return where it is.

    Args:
        card: what to write.
        place: a file, or a folder: then `README.md` in it, or, where that is a user's own, `MODEL_CARD.md` beside it.
    """
    path = Path(place)
    if path.is_dir():
        path = path / CARD_NAME
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else MARK
        if MARK not in text and UNFILLED not in text:
            path = path.with_name(SPARE_CARD_NAME)
    with new_file(path) as file:
        file.write(str(card))
    return path


def escape(value: Any) -> str:
    r"""Return a text that stands for itself in Markdown: one line, without markup, links and characters that hide.

    >>> print(escape("[a](https://b)<img src=x> | *c*\n# d"))
    \[a\](https&#58;//b)&lt;img src=x&gt; \| \*c\* \# d
    """
    if isinstance(value, Markdown):
        return value
    text = clean(value)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    # an underscore inside a word is no markup
    text = re.sub(r"([\\`*{}\[\]#|~$!]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    # bare addresses become links even without brackets
    text = text.replace("://", "&#58;//").replace("@", "&#64;")
    return re.sub(r"\bwww\.", "www&#46;", text, flags=re.IGNORECASE)


def clean(value: Any) -> str:
    """Return a text as one short line, without control characters and those that turn the direction of writing.

    >>> clean("a\\n---\\nb\\u202e")
    'a --- b'
    """
    text = "".join(character if character.isprintable() else " " for character in str(value))
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


class _Facts:
    """Facts that several sections need: what was adapted to what, and how to say it."""

    def __init__(self, results: RunResults, curve: AlphaCurve | None, base_model: str | None) -> None:
        self.results = results
        self.recipe: dict[str, Any] = results.recipe or {}
        redact = redactor([asdict(results), asdict(curve) if curve is not None else None])
        self.plain: Say = lambda value: clean(redact(str(value)))
        self.say: Say = lambda value: value if isinstance(value, Markdown) else escape(self.plain(value))
        base = self.recipe.get("model_name_or_path") or results.model.get("base")
        self.base_id = base_model or (base if base and self.is_on_hub(base) else None)
        self.base_text = self.base_id or (
            f"the local model {basename(base)}" if base else "a pretrained model that the run does not name"
        )
        self.is_adapter = self.recipe.get("peft") is not None or bool(results.model.get("is_adapter"))
        self.task = self.recipe.get("task") or (
            "sequence-classification" if self.recipe else task_of_class(str(results.model.get("class", "")))
        )
        self.task_info = TASK_INFOS.get(self.task or "", TaskInfo(auto_class="AutoModel"))
        has_decoder = not str(results.model.get("class", "")).endswith("ForCTC")
        self.auto_class = self.task_info.class_of(has_decoder=has_decoder)
        corpora = (self.recipe.get("corpora") or {}).values()
        columns = ("messages_column", "prompt_column")
        self.is_chat = any(isinstance(corpus, Mapping) and any(map(corpus.get, columns)) for corpus in corpora)

    def is_on_hub(self, name: str) -> bool:
        """Whether a name is one on the Hub; the run knows what was a folder where it was."""
        return is_hub_id(name) and name not in self.results.local_paths

    def place(self, group: str, name: str) -> dict[str, Any]:
        """Return what the recipe says of a corpus; nothing for runs without a recipe."""
        found = (self.recipe.get(group) or {}).get(name)
        return found if isinstance(found, dict) else {}

    def source(self, group: str, name: str) -> str:
        """Say in words where a corpus comes from."""
        entry = self.place(group, name)
        paths = entry.get("path")
        if not paths:
            return "not told"
        if (made := self.results.made.get(f"{group}.{name}")) is not None:
            return f"synthetic: {made}"
        paths = [paths] if isinstance(paths, str) else list(paths)
        if len(paths) == 1 and self.is_on_hub(paths[0]):
            more = [str(entry[key]) for key in ("config_name", "revision") if entry.get(key)]
            return ", ".join([paths[0], *more, f"split {entry.get('split', 'train')}"])
        shown = ", ".join(basename(path) for path in paths)
        return shown if "://" in paths[0] else f"{shown} (local)"

    def dataset_ids(self) -> list[str]:
        """Return the training corpora that are on the Hub."""
        found = []
        for name in self.recipe.get("corpora") or {}:
            path = self.place("corpora", name).get("path")
            path = path[0] if isinstance(path, list) and len(path) == 1 else path
            if isinstance(path, str) and self.is_on_hub(path) and f"corpora.{name}" not in self.results.made:
                found.append(path)
        return list(dict.fromkeys(found))


def is_hub_id(text: str) -> bool:
    """Whether a text can be a name on the Hub and is no local path.

    >>> is_hub_id("google/bert_uncased"), is_hub_id("./base"), is_hub_id("a b/c")
    (True, False, False)
    """
    return re.fullmatch(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]{0,95}", text, flags=re.ASCII) is not None and not is_local(text)


def _render(context: Mapping[str, Any]) -> str:
    """Fill in the template; whatever is put in is escaped, but for what is `Markdown`."""
    return re.sub(r"\n{3,}", "\n\n", _template().render(context)).strip() + "\n"


@cache
def _template() -> jinja2.Template:
    """Return the template of all cards, which takes longer to compile than to fill in."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, finalize=_say, trim_blocks=True)
    functions = {"table": _table, "curve_table": curve_table, "count_examples": count_examples}
    environment.globals |= {"audits": audits, **functions}
    environment.filters |= {"literal": _literal, "number": number, "short_alpha": short_alpha}
    text = resources.files("hf_interp.reporting").joinpath("model_card.md").read_text(encoding="utf-8")
    return environment.from_string(text)


@jinja2.pass_context
def _say(context: jinja2.runtime.Context, value: Any) -> str:
    return str(context["facts"].say(value))


@jinja2.pass_context
def _table(context: jinja2.runtime.Context, rows: Sequence[Sequence[Any]]) -> Markdown:
    header, *cells = [[_say(context, value) for value in row] for row in rows]
    return Markdown(format_table(header, cells))


@jinja2.pass_context
def _literal(context: jinja2.runtime.Context, value: Any) -> Markdown:
    return Markdown(repr(context["facts"].plain(value)))


def _label_arguments(facts: _Facts) -> str:
    """Return what the base of an adapter must be told of its head, which the adapter brings."""
    labels = facts.recipe.get("label_names")
    if not labels:
        return ", num_labels=1" if facts.recipe.get("problem_type") == "regression" else ""
    if len(labels) > MAX_LABELS:
        return f", num_labels={len(labels)}"
    return f", id2label={ {index: facts.plain(label) for index, label in enumerate(labels)}!r}"


def _metrics(results: RunResults) -> list[list[str]]:
    """Return header and rows of every metric of M₀ and M_θ; without rows where nothing was evaluated."""
    rows = [["set", "metric", "M₀", "M_θ", "forgetting"]]
    for name, final in results.final_metrics.items():
        base = results.base_metrics.get(name, {})
        for metric, value in final.items():
            lost = results.forgetting.get(metric) if name == "general" else None
            rows.append([name or UNNAMED_SET, metric, *map(number, (base.get(metric), value, lost))])
    return rows if results.forgetting else [row[:-1] for row in rows]


def _comparison(comparison: Comparison) -> list[list[str]]:
    """Return the rows of a comparison's table."""
    try:
        return comparison.shown(digits_of_alpha=3)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"The comparison has no {error} in its rows. Give the results.json that `hf-interp compare` wrote."
        ) from error


def _schedule(results: RunResults) -> str:
    config, plan = results.config, results.plan
    total = f"over {plan['max_steps']} steps of {plan['batch_size']} examples" if "max_steps" in plan else ""
    if config.get("alpha_controller"):
        return f"; it answered to training (controller {config['alpha_controller']}) {total}"
    if "alpha_schedule_type" not in config:
        return f", {total}"
    more = config.get("alpha_schedule_kwargs")
    phases = [
        f"{name} phase of " + (f"{config[key]:g} steps" if config[key] >= 1 else f"{config[key]:.0%} of them")
        for name, key in (("initial", "alpha_initial_steps"), ("target", "alpha_target_steps"))
        if config.get(key)
    ]
    settings = ", ".join([*([str(more)] if more else []), *phases])
    ends = f"schedule {config['alpha_schedule_type']} from {config['alpha_start']:g} to {config['alpha_end']:g}"
    if config["alpha_schedule_type"] == "constant":
        ends = f"constant at {config['alpha_end']:g}"
    return f": {ends}{f' ({settings})' if settings else ''}, {total}"


def _corpora(facts: _Facts) -> list[list[Any]]:
    return [
        [
            corpus["name"],
            corpus["side"],
            facts.source("corpora", corpus["name"]),
            _count_rows(corpus, facts.results.packed),
            f"{corpus['drawn']:,}",
            "" if corpus.get("passes") is None else f"{corpus['passes']:.2f}",
            facts.place("corpora", corpus["name"]).get("license") or "unknown",
        ]
        for corpus in facts.results.plan.get("corpora", [])
    ]


def _count_rows(corpus: Mapping[str, Any], packed: Mapping[str, int]) -> str:
    """Say how many examples a corpus has, and of how many rows they are packed."""
    if corpus.get("num_examples") is None:
        return "a stream"
    rows = packed.get(corpus["name"])
    return f"{corpus['num_examples']:,}" + ("" if rows is None else f", packed of {rows:,} rows")


def _sets(facts: _Facts) -> list[list[Any]]:
    return [
        [name, use, facts.source(group, name), facts.place(group, name).get("license") or "unknown"]
        for use, group in (("test", "eval_corpora"), ("choice of α", "validation_corpora"))
        for name in facts.recipe.get(group) or {}
    ]


def _ways(facts: _Facts) -> list[str]:
    """Say in a few sentences what the recipe's method was, and what else is not told by a setting's name."""
    method, begin = facts.results.method, facts.results.config.get("average_from")
    corpora = facts.results.plan.get("corpora", [])
    distilled = [corpus["name"] for corpus in corpora if corpus.get("objective") == "distill"]
    fields = ", ".join(f"{name} {value}" for name, value in method.get("sets", {}).items())
    found = [f"The recipe's method is {method['name']}, which sets {fields or 'nothing more'}."] if method else []
    if distilled:
        found.append(f"The predictions of M₀ were the targets of {', '.join(distilled)} (objective distill).")
    planted = {name: corpus.get("canaries") for name, corpus in (facts.recipe.get("corpora") or {}).items()}
    found += [
        f"{count:,} random sequences (canaries) were planted in {name}, to measure what is learned by heart."
        for name, count in planted.items()
        if count
    ]
    if begin is not None:
        found.append(f"M_θ is the mean of the weights after each step from {begin:.0%} of the run on (average_from).")
    return found


def _training(facts: _Facts) -> list[tuple[str, Any]]:
    """Return the settings of the training that are known."""
    results, config, model, machine = facts.results, facts.results.config, facts.results.model, facts.results.machine
    seconds = [entry["train_runtime"] for entry in results.log_history if "train_runtime" in entry]
    trained, total = model.get("trained_parameters"), model.get("parameters")
    adapter, emissions = facts.recipe.get("peft"), results.emissions
    hardware = [machine.get("accelerator"), machine.get("processor"), f"{machine.get('cores')} cores"]
    rows: list[tuple[str, Any]] = [
        ("trained parameters", f"{trained:,} of {total:,}" if trained is not None and total else "unknown"),
        ("adapter", adapter.get("peft_type", "PEFT") if isinstance(adapter, Mapping) else adapter),
        ("objectives beside the task", ", ".join(facts.recipe.get("objectives") or {})),
        ("hardware", ", ".join(str(part) for part in hardware if part)),
        ("processes", machine.get("num_processes")),
        ("training time", f"{seconds[-1]:,.0f} s, with evaluations on the way" if seconds else None),
        (
            "emissions",
            f"{emissions['emissions']:.3g} kg CO₂e of {emissions['energy']:.3g} kWh, at the electricity of "
            f"{emissions['country'] or 'an unknown country'} ({emissions['source']})"
            if emissions
            else None,
        ),
        *((name.replace("_", " "), config.get(name)) for name in TRAINING_FIELDS),
        ("precision", next((kind for kind in ("bf16", "fp16") if config.get(kind)), "float32 or the model's own")),
        (
            "differential privacy",
            f"ε = {config['dp_epsilon']:g}, δ = {config['dp_delta']:g} for replacing one domain row, gradients clipped "
            f"at {config['dp_max_grad_norm']:g}"
            if config.get("dp_epsilon")
            else None,
        ),
        (
            "anchor to M₀",
            f"{config['anchor']}, strength {config['anchor_strength']:g}" if config.get("anchor") else None,
        ),
        (
            "adversarial training",
            f"{config['adversarial']}, strength {config['adversarial_strength']:g} × "
            f"{'α' if config['adversarial_follows'] == 'alpha' else '(1 − α)'}"
            if config.get("adversarial")
            else None,
        ),
    ]
    return [row for row in rows if row[1] not in (None, "")]


def _card_data(
    facts: _Facts, curve: AlphaCurve | None, metadata: CardMetadata, *, name: str, interpolated: bool
) -> ModelCardData:
    found = list(_interpolated_results(facts, curve) if interpolated else _final_results(facts))
    found += _harness_results(facts, (curve.alpha if curve else None) if interpolated else 1.0)
    tags = [*TAGS, *(["interpolated"] if interpolated else [])]
    if facts.is_adapter:  # by which PEFT's own cards are found
        kind = facts.results.model.get("peft_type")
        tags += [kind.lower()] if kind else []
        tags += [f"base_model:adapter:{facts.base_id}"] if facts.base_id else []
    language, emissions = metadata.language, facts.results.emissions
    grams = emissions and {
        "emissions": emissions["emissions"] * 1000,
        "source": facts.plain(emissions["source"]),
        "training_type": "fine-tuning",
        "geographical_location": facts.plain(emissions["country"]),
    }
    return ModelCardData(
        base_model=facts.base_id,
        co2_eq_emissions=grams or None,
        datasets=facts.dataset_ids() or None,
        eval_results=found or None,
        language=language if language is None or isinstance(language, str) else list(language),
        library_name="peft" if facts.is_adapter else "transformers",
        license=facts.plain(metadata.license) if metadata.license else None,
        metrics=list(dict.fromkeys(result.metric_type for result in found)) or None,
        model_name=facts.plain(name),
        pipeline_tag=facts.task_info.pipeline_tag,
        tags=[facts.plain(tag) for tag in dict.fromkeys([*tags, *metadata.tags])],
    )


def _final_results(facts: _Facts) -> Iterator[EvalResult]:
    """Give metrics of M_θ on the evaluation sets, for the card's metadata."""
    for name, metrics in facts.results.final_metrics.items():
        for metric, value in metrics.items():
            if number(value) and math.isfinite(value):
                yield _eval_result(facts, "eval_corpora", name, metric, value)


def _interpolated_results(facts: _Facts, curve: AlphaCurve | None) -> Iterator[EvalResult]:
    """Give metrics of M_α on the half of the validation sets that the choice of α has not seen."""
    group = "validation_corpora" if facts.recipe.get("validation_corpora") else "eval_corpora"
    if curve is None or curve.alpha not in curve.alphas:
        return
    for side, metrics in curve.report.items():
        for metric in metrics:
            value = curve.at(curve.alpha, side, metric)
            if value is not None and math.isfinite(value):
                name = str(curve.settings.get(side, side))
                yield _eval_result(facts, group, name, metric, value, part="half not used to choose α")


def _harness_results(facts: _Facts, alpha: float | None) -> Iterator[EvalResult]:
    """Give what lm-eval has found at an α."""
    for entry in facts.results.harness:
        for point in entry["points"]:
            if point["alpha"] == alpha and number(point["value"]):
                shots = f"{entry['num_fewshot']}-shot"
                yield _eval_result(facts, "lm-eval", entry["task"], entry["metric"], point["value"], part=shots)


def _eval_result(facts: _Facts, group: str, name: str, metric: str, value: Any, part: str | None = None) -> EvalResult:
    entry, shown = facts.place(group, name), facts.plain(name) or UNNAMED_SET
    path = entry.get("path")
    is_hub = isinstance(path, str) and facts.is_on_hub(path) and f"{group}.{name}" not in facts.results.made
    split = str(entry.get("split", "train")) if is_hub else None
    config = entry.get("config_name") if is_hub else None
    return EvalResult(
        task_type=facts.task_info.pipeline_tag or "text2text-generation",
        dataset_type=str(path) if is_hub else re.sub(r"[^\w.-]+", "-", shown, flags=re.ASCII).strip("-") or "local",
        dataset_name=f"{shown} ({part})" if part else shown,
        dataset_config=facts.plain(config) if config else None,
        dataset_split=facts.plain(split) if split else None,
        metric_type=facts.plain(metric),
        metric_name=facts.plain(metric),
        metric_value=value,
    )
