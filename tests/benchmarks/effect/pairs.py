"""The pairs (general → domain) of the comparison: data, base models, and the settings that all methods share."""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from hf_interp.utils.files import new_file

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("HF_INTERP_DATA", ROOT.parent / "shared" / "data"))
"""Folders `<task>/<name>` with train, validation and test as .jsonl.gz."""
SPLITS = ("train", "validation", "test")
GENERAL, DOMAIN = SIDES = ("general", "domain")
FULL = "full"
SIZES: tuple[int | str, ...] = (300, 100, 1000, FULL)
"""Training examples of the domain, of language models blocks; more than there are is all of them."""
FEW_SIZES: tuple[int | str, ...] = (300, 100, FULL)
"""Of a domain of about a thousand examples, of which 1,000 would count the same cell twice."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair of corpora, M₀ and what every run on them shares.

    Args:
        name: of the folder of its results.
        title: as tables call it.
        task: of the package.
        metric: accuracy, f1 (of entities) or loss (nats a token).
        general, domain: folders of the data, under `DATA` or absolute.
        base: "minilm", "lm" or "chat" (tiny Llamas, see `bases`), "vit" (a tiny one), or the folder of a model.
        layers: kept of MiniLM's six.
        base_steps: steps of `base_batch_size` on the general corpus that make M₀ of the base.
        base_batch_size, base_learning_rate: of these steps.
        fields: fields of the recipe.
        corpus: fields of every corpus.
        corpus_of: further fields of the corpora of one side.
        labels: the labels, or a function that finds them in the data.
        convert: makes other rows of a file's rows before they are loaded.
        steps, batch_size: of every run.
        learning_rates: the grid, rising.
        validation, test: most examples of a side.
        sizes: those of `SIZES` that it has.
        is_closed: whether no run can be added: long sentences of taggers were cut when the recorded runs were scored,
            and are scored whole now.
        ending: of the files of the data.
    """

    name: str
    title: str
    task: str
    metric: str
    general: str
    domain: str
    base: str = "minilm"
    layers: int = 3
    base_steps: int = 0
    base_batch_size: int = 32
    base_learning_rate: float = 5e-4
    fields: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    corpus_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: tuple[str, ...] | Callable[[], list[str]] | None = None
    convert: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    steps: int = 200
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (5e-5, 2e-4, 8e-4)
    validation: int = 200
    test: int = 400
    sizes: tuple[int | str, ...] = SIZES
    is_closed: bool = False
    ending: str = "jsonl.gz"

    def label_names(self) -> list[str] | None:
        """The labels in the order of their ids; `None` for language models."""
        return list(self.labels()) if callable(self.labels) else list(self.labels) if self.labels else None

    def file(self, side: str, split: str, cache_folder: Path) -> Path:
        """Where a split of a side is, converted if it has to be."""
        source = DATA / getattr(self, side) / f"{split}.{self.ending}"
        if self.convert is None:
            return source
        target = cache_folder / "converted" / self.name / f"{side}_{split}.jsonl"
        if not target.exists():
            with new_file(target) as file:
                file.writelines(json.dumps(self.convert(row), ensure_ascii=False) + "\n" for row in rows(source))
        return target

    def corpora(self, split: str, cache_folder: Path) -> dict[str, dict[str, Any]]:
        """The part of a recipe that names the corpora of a split."""
        return {
            side: {"path": str(self.file(side, split, cache_folder)), **self.corpus, **self.corpus_of.get(side, {})}
            for side in SIDES
        }


def size_text(size: int | str) -> str:
    """Return a number of domain examples as tables and figures call it."""
    return "all" if isinstance(size, str) else f"{size:,}"


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, compressed."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


CLINC_DOMAINS = [
    "auto_and_commute",
    "home",
    "kitchen_and_dining",
    "meta",
    "small_talk",
    "travel",
    "utility",
    "work",
]
"""All of clinc150 but banking, credit cards and what is out of scope."""


@cache
def intents() -> tuple[str, ...]:
    """The intents of both corpora, one label set; exchange_rate is in both."""
    general = (row["label_name"] for row in rows(DATA / CLINC / "train.jsonl.gz") if row["domain"] in CLINC_DOMAINS)
    domain = (row["label_name"] for row in rows(DATA / BANKING / "train.jsonl.gz"))
    return tuple(sorted({*general, *domain}))


def summary_turns(row: Mapping[str, Any], characters: int) -> dict[str, Any]:
    """A text and its summary as a dialogue of two turns, so that a causal model's loss is that of the summary."""
    turns = [("user", row["source"][:characters]), ("assistant", row["target"][: characters // 2])]
    return {"turns": [{"speaker": speaker, "text": text} for speaker, text in turns]}


SENTIMENTS = ("negative", "neutral", "positive")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI"))
TWEETS, CLINC, BANKING, WIKIGOLD, WIKITEXT = (
    "sentiment/tweeteval_sentiment",
    "intent/clinc150",
    "intent/banking77",
    "ner/wikigold",
    "lm/wikitext2_small",
)

_sentiment: dict[str, Any] = {
    "task": "sequence-classification",
    "metric": "accuracy",
    "general": TWEETS,
    "base_steps": 500,
    "fields": {"max_length": 24},
    "corpus": {"label_column": "label_name"},
    "labels": SENTIMENTS,
    "steps": 150,
}
_entities: dict[str, Any] = {
    "is_closed": True,
    "task": "token-classification",
    "metric": "f1",
    "general": WIKIGOLD,
    "base_steps": 400,
    "fields": {"max_length": 40},
    "labels": TAGS,
    "steps": 150,
    "test": 300,
}
_language: dict[str, Any] = {
    "task": "causal-lm",
    "metric": "loss",
    "general": WIKITEXT,
    "base": "lm",
    "fields": {"max_length": 64},
    "learning_rates": (1.5e-4, 5e-4, 1.5e-3),
    "validation": 150,
    "test": 200,
}

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair(
            name="sentiment-finance",
            title="sentiment: tweets → financial news",
            domain="sentiment/financial_phrasebank_50agree",
            **_sentiment,
        ),
        Pair(
            name="sentiment-airlines",
            title="sentiment: tweets → tweets to airlines",
            domain="sentiment/airline_tweets",
            **_sentiment,
        ),
        Pair(
            name="intent-banking",
            title="intent: an assistant's → a bank's",
            task="sequence-classification",
            metric="accuracy",
            general=CLINC,
            domain=BANKING,
            layers=6,
            base_steps=600,
            base_learning_rate=1e-3,
            fields={"max_length": 24},
            corpus={"label_column": "label_name"},
            corpus_of={"general": {"where": {"domain": CLINC_DOMAINS}}},
            labels=intents,
            learning_rates=(2e-4, 5e-4, 1.2e-3),
        ),
        Pair(name="lm-law", title="language: Wikipedia → law", domain="lm/dc_law", **_language),
        Pair(name="lm-medicine", title="language: Wikipedia → medicine", domain="lm/pubmed_abstracts", **_language),
        Pair(
            name="ner-finance",
            title="entities: Wikipedia → contracts",
            domain="ner/sec_fin",
            sizes=FEW_SIZES,
            **_entities,
        ),
        Pair(name="ner-tweets", title="entities: Wikipedia → tweets", domain="ner/broad_twitter", **_entities),
        Pair(
            name="summaries-medicine",
            title="summaries: computer science → medicine",
            task="causal-lm",
            metric="loss",
            general="summarization/scitldr_a",
            domain="summarization/pubmed_conclusion",
            base="chat",
            base_steps=200,
            base_batch_size=16,
            base_learning_rate=1e-3,
            fields={"max_length": 192},
            corpus={
                "messages_column": "turns",
                "role_key": "speaker",
                "content_key": "text",
                "roles": {"user": "user", "assistant": "assistant"},
            },
            convert=partial(summary_turns, characters=350),
            learning_rates=(1.5e-4, 5e-4, 1.5e-3),
            steps=150,
            validation=100,
            test=200,
            sizes=FEW_SIZES,
        ),
        Pair(
            name="sentiment-zh",
            title="sentiment, in Chinese: shops → take-away",
            task="sequence-classification",
            metric="accuracy",
            general="sentiment_zh/online_shopping",
            domain="sentiment_zh/waimai",
            base="lm",
            base_steps=500,
            fields={"max_length": 64},
            corpus={"label_column": "label_name"},
            labels=("negative", "positive"),
            learning_rates=(1.5e-4, 5e-4, 1.5e-3),
            steps=150,
        ),
        Pair(
            name="lm-zh",
            title="language, in Chinese: shops → take-away",
            **{**_language, "general": "sentiment_zh/online_shopping"},
            domain="sentiment_zh/waimai",
        ),
        Pair(
            name="image-digits",
            title="images: digits → digits of another scanner",
            task="image-classification",
            metric="accuracy",
            general="image/mnist10k",
            domain="image/optdigits",
            base="vit",
            base_steps=1500,
            base_learning_rate=1e-3,
            labels=tuple("0123456789"),
            learning_rates=(1.5e-4, 5e-4, 1.5e-3),
            steps=150,
            sizes=FEW_SIZES,
            ending="parquet",
        ),
    )
}
UNSEEN = ("sentiment-zh", "lm-zh", "image-digits")
"""Pairs on which no choice was made: they were added when the methods that are compared on them had been fixed."""
