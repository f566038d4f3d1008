"""The embedded demo: two small corpora with a real shift between them, a small model, and a comparison. No network.

The general corpus is a toy language: neutral words, and words of praise and of blame that decide the label. The domain
speaks of other things (domain words that the general corpus never shows) and judges differently: some words of praise
are blame there and the other way round, and some domain words carry a judgement of their own. A model that learns the
domain alone learns the turned words at the price of their general sense; what keeps both apart is the context.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from hf_interp.commands.compare import BASE, PLOT_NAME, compare, format_comparison, quiet_bar, train_quietly
from hf_interp.mixture.apportionment import SIDES
from hf_interp.reporting.results import Comparison
from hf_interp.tasks.build import check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import with_alpha
from hf_interp.utils.run_folder import CURVE_NAME, CURVE_PLOT_NAME, RESULTS_NAME

LABEL_NAMES = ["negative", "positive"]
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@dataclass(frozen=True, kw_only=True)
class ToyShift:
    """A pair of toy corpora.

    Args:
        num_neutral: neutral words, shared by both corpora.
        num_judging: words of praise, and as many of blame.
        num_turned: how many of each mean the opposite in the domain.
        num_domain: neutral words of the domain, which the general corpus never shows.
        num_domain_judging: domain words of praise, and as many of blame.
        label_noise: share of training labels that are flipped.
        seed: of the random choices.
    """

    num_neutral: int = 150
    num_judging: int = 30
    num_turned: int = 15
    num_domain: int = 60
    num_domain_judging: int = 20
    label_noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise < 0.5:
            raise ValueError(f"`label_noise` must lie in [0, 0.5), got {self.label_noise}.")

    def vocabulary(self) -> list[str]:
        """Return all words of both corpora."""
        judging = [*self._judging("general", 0), *self._judging("general", 1)]
        judging += [*self._judging("domain", 0), *self._judging("domain", 1)]
        return [*_words("word", self.num_neutral), *_words("term", self.num_domain), *dict.fromkeys(judging)]

    def sentences(self, side: str, count: int, *, split: str, noisy: bool) -> Iterator[dict[str, Any]]:
        """Yield `count` rows with `text` and `label`; another `split` gives other rows."""
        draw = random.Random(f"{self.seed}/{side}/{split}")
        for _ in range(count):
            label = draw.randrange(2)
            words = draw.choices(self._judging(side, label), k=2)
            words += draw.choices(self._judging(side, 1 - label), k=draw.random() < 0.3)
            words += draw.choices(_words("word", self.num_neutral), k=draw.randint(4, 7))
            if side == "domain":
                words += draw.choices(_words("term", self.num_domain), k=draw.randint(1, 3))
            draw.shuffle(words)
            shown = 1 - label if noisy and draw.random() < self.label_noise else label
            yield {"text": " ".join(words), "label": LABEL_NAMES[shown]}

    def _judging(self, side: str, label: int) -> list[str]:
        """Return the words that speak for a label."""
        kind, other = ("bad", "good") if label == 0 else ("good", "bad")
        own = _words(kind, self.num_judging)
        if side == "general":
            return own
        return [*own[self.num_turned :], *_words(other, self.num_turned), *_words(f"d{kind}", self.num_domain_judging)]


def _words(kind: str, count: int) -> list[str]:
    return [f"{kind}{index}" for index in range(count)]


def run_demo(
    folder: str | os.PathLike[str] = "hf_interp_demo",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    max_steps: int = 300,
    label_noise: float = 0.1,
) -> Comparison:
    """Write corpora, M₀ and a recipe into `folder`, then compare the methods.

    Args:
        folder: made if it is not there; its files are written anew.
        seeds: seeds of the comparison, at least two.
        max_steps: optimizer steps of every method.
        label_noise: share of training labels that are flipped.

    Raises:
        ValueError: for fewer than two seeds, or settings out of range.
    """
    if len(seeds) < 2:
        raise ValueError(f"`seeds` must be at least two, to see a spread; got {list(seeds)}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums differ in their last bits between numbers of threads, and runs part from there
    try:
        recipe = write_demo(folder, max_steps=max_steps, label_noise=label_noise)
        return compare(recipe, seeds=seeds, methods=["domain only", "constant 0.5", "scheduled α"])
    finally:
        torch.set_num_threads(threads)


def describe_demo(comparison: Comparison, folder: str | os.PathLike[str], max_steps: int) -> str:
    """Return the table of the comparison, what lies where, and what to do next."""
    return f"""
Accuracy on unseen sentences after {max_steps} steps, mean ± standard deviation over seeds:

{format_comparison(comparison)}

In {folder}/:
  comparison/{PLOT_NAME}   α and realised share over steps; both metrics over steps
  comparison/*/seed-*/         of every run: its results, and M_α over α ({CURVE_NAME}, {CURVE_PLOT_NAME})
  comparison/{RESULTS_NAME}     every number, with settings and versions
  recipe.yaml, *.jsonl, base/  what was run: the recipe, the corpora, M₀

Next: change the recipe, look at what it would read, and train:
  hf-interp plan {folder}/recipe.yaml
  hf-interp train {folder}/recipe.yaml --output_dir {folder}/mine --alpha_end 0.75"""


def write_demo(folder: str | os.PathLike[str], *, max_steps: int = 300, label_noise: float = 0.1) -> dict[str, Any]:
    """Write corpora, M₀ and `recipe.yaml` into a folder, and return the recipe; see `run_demo`."""
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    folder = Path(folder)
    shift = ToyShift(label_noise=label_noise)
    recipe = _write_data(folder, shift)
    with quiet_bar(0, shown=False):
        _write_untrained_model(folder / "untrained", shift)
    _train_base_model(folder, recipe, max_steps)
    recipe |= {
        "model_name_or_path": str(folder / "base"),
        "output_dir": str(folder / "comparison"),
        "max_steps": max_steps,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return recipe


def _write_data(folder: Path, shift: ToyShift) -> dict[str, Any]:
    """Write the corpora, and return the part of the recipe that names them."""
    sizes = {"train": {"general": 4000, "domain": 300}}
    sizes |= {"validation": dict.fromkeys(SIDES, 500), "test": dict.fromkeys(SIDES, 1000)}
    folder.mkdir(parents=True, exist_ok=True)
    for split, side in product(sizes, SIDES):
        rows = shift.sentences(side, sizes[split][side], split=split, noisy=split == "train")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{side}_{split}.jsonl").write_text(text, encoding="utf-8")
    groups = {"corpora": "train", "eval_corpora": "test", "validation_corpora": "validation"}
    return {
        "task": "sequence-classification",
        "label_names": LABEL_NAMES,
        "max_length": 24,
        **{
            group: {side: {"path": str(folder / f"{side}_{split}.jsonl")} for side in SIDES}
            for group, split in groups.items()
        },
        "alpha_search": {"objective": "mean"},
        "alpha_schedule_type": "linear",
        "alpha_start": 0.0,
        "alpha_end": 1.0,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 250,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 50,
        "logging_steps": 10,
    }


def _write_untrained_model(folder: Path, shift: ToyShift) -> None:
    words = [*SPECIAL_TOKENS.values(), *shift.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **SPECIAL_TOKENS).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        type_vocab_size=1,
        num_labels=2,
    )
    set_seed(shift.seed)
    BertForSequenceClassification(config).save_pretrained(folder)


def _train_base_model(folder: Path, recipe: dict[str, Any], max_steps: int) -> None:
    """Train M₀, the small model, on the general corpus."""
    changes = {
        "model_name_or_path": str(folder / "untrained"),
        "output_dir": str(folder / "base"),
        "corpora": {"general": recipe["corpora"]["general"]},
        "eval_corpora": {},
        "validation_corpora": {},
        "alpha_search": False,
        "alpha": 0.0,
        "max_steps": 2 * max_steps,
        "eval_strategy": "no",
    }
    general_only = with_alpha(recipe, changes)
    parsed, args = parse_recipe(general_only)
    data = load_data(parsed, check_recipe(parsed, args))
    with quiet_bar(args.max_steps) as bar:
        bar.set_description(BASE)
        train_quietly(general_only, data, bar).save_model()
