"""One run: train a method on a pair, choose α of the weights on validation, note what every test example came to.

Base models and M₀ are made once and kept on disk under a hash of all that decides them.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PrinterCallback

from effect.methods import BASE, METHODS, Method
from effect.pairs import DATA, FULL, PAIRS, ROOT, Pair
from effect.store import Key, Outcomes, counts_of, key_of, outcomes_of, pack
from hf_interp.commands.compare import SILENT_ARGS, quiet_bar, train_quietly
from hf_interp.mixture.corpus import Corpus
from hf_interp.selection.scoring import predict
from hf_interp.tasks.build import RecipeData, build_trainer, check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.runs import search_run
from hf_interp.tasks.task import get_task
from hf_interp.utils.environment import describe_machine

sys.path += [str(ROOT / "tests" / "benchmarks"), str(ROOT / "recipes" / "image_digits")]

import prepare_digits
import tiny_lm
from overhead import minilm_folder

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]
SELF_ROWS = 2000
"""Texts that M₀ draws, or inputs of the domain whose labels it predicts."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a row of results is about.

    Args:
        pair, method: keys of `PAIRS` and `METHODS`; the method may be M₀.
        size: training examples of the domain, or "full".
        learning_rate: at its peak.
        seed: of the order, of dropout and of which domain examples there are.
    """

    pair: str
    size: int | str
    method: str
    learning_rate: float
    seed: int

    @property
    def key(self) -> Key:
        """What tells it from other runs."""
        return key_of(asdict(self))


@dataclass(frozen=True)
class Setup:
    """A pair's data, tokenised, and the fields that all of its runs share."""

    pair: Pair
    recipe: dict[str, Any]
    data: RecipeData


@cache
def open_pair(name: str, folder: Path, device: str) -> Setup:
    """Load and tokenise a pair, and make its M₀ if it is not there; once a process."""
    pair = PAIRS[name]
    recipe: dict[str, Any] = {
        "task": pair.task,
        "model_name_or_path": str(base_model(pair, folder, device)),
        "label_names": pair.label_names(),
        **pair.fields,
        "corpora": pair.corpora("train", folder),
        "eval_corpora": pair.corpora("test", folder),
        "validation_corpora": pair.corpora("validation", folder),
        "alpha_search": {
            "objective": "mean",
            "metric": pair.metric,
            "method": "grid",
            "alphas": ALPHAS,
            "one_standard_error": False,
        },
        "max_steps": pair.steps,
        "per_device_train_batch_size": pair.batch_size,
        "per_device_eval_batch_size": 50,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "bf16": multiplies_bf16(device),
        "use_cpu": device == "cpu",
        "log_corpus_loss": False,
        "logging_strategy": "no",
        **SILENT_ARGS,
    }
    parsed, args = parse_recipe({**recipe, "output_dir": "unused"})
    data = load_data(parsed, check_recipe(parsed, args))
    return Setup(
        pair,
        recipe,
        replace(
            data,
            eval_sets={side: pick(dataset, pair.test) for side, dataset in data.eval_sets.items()},
            validation_sets={side: pick(dataset, pair.validation) for side, dataset in data.validation_sets.items()},
        ),
    )


@cache
def self_corpus(name: str, folder: Path, device: str) -> Corpus:
    """Return the general corpus that M₀ makes: texts that it draws or, for a classifier, the domain without labels."""
    setup = open_pair(name, folder, device)
    general = {"path": "self", "max_examples": SELF_ROWS}
    corpora = {**setup.recipe["corpora"], "general": general}
    parsed, args = parse_recipe({**setup.recipe, "corpora": corpora, "output_dir": "unused"})
    return next(each for each in load_data(parsed, check_recipe(parsed, args)).corpora if each.side == "general")


def multiplies_bf16(device: str) -> bool:
    """Whether matrices of bfloat16 are multiplied by the hardware; without, they take ten times as long as float32."""
    if device == "cpu":
        return "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.cuda.is_bf16_supported(including_emulation=False)


def pick(dataset: datasets.Dataset, size: int | str, seed: int = 0) -> datasets.Dataset:
    """`size` rows drawn with a seed, all if there are no more; of a smaller size, rows that a larger one has too."""
    if size == FULL or int(size) >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[: int(size)]))


def do_run(run: Run, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and evaluate; returns what goes into the results.

    Args:
        run: what to do.
        folder: of the cache.
        device: "cpu", or anything else for the accelerator that torch finds.
    """
    with tempfile.TemporaryDirectory() as place, quiet_bar(0, shown=False):
        opened = run.pair, folder, device
        if run.method == BASE:
            return _evaluate_base(open_pair(*opened), place)
        return _train(run, opened, place)


def _evaluate_base(setup: Setup, place: str) -> dict[str, Any]:
    """M₀'s results, and what does not differ between runs of the pair."""
    trainer, _ = _trainer(setup, setup.data, {"output_dir": place})
    test, validation = (_outcomes(trainer, setup, sets) for sets in (setup.data.eval_sets, setup.data.validation_sets))
    counts = counts_of(setup.pair.metric, test)
    return {
        "pair": setup.pair.name,
        "method": BASE,
        "metric": setup.pair.metric,
        "steps": setup.pair.steps,
        "batch_size": setup.pair.batch_size,
        "num_train": {corpus.name: len(corpus.dataset) for corpus in setup.data.corpora},
        "machine": _machine(trainer),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")),
        "validation": {side: round(found.value, 5) for side, found in validation.items()},
        "counts": {side: found if len(set(found)) > 1 else [found[0], len(found)] for side, found in counts.items()},
        "test": {side: pack(setup.pair.metric, found) for side, found in test.items()},
    }


def _train(run: Run, opened: tuple[str, Path, str], place: str) -> dict[str, Any]:
    setup = open_pair(*opened)
    corpora = [
        replace(corpus, dataset=pick(corpus.dataset, run.size, run.seed)) if corpus.side == "domain" else corpus
        for corpus in setup.data.corpora
    ]
    method = METHODS[run.method]
    if method.is_self:
        made = self_corpus(*opened)
        corpora = [made if corpus.side == "general" else corpus for corpus in corpora]
    found = train_method(setup, method, corpora, run.learning_rate, run.seed, place)
    return {**asdict(run), **found}


def train_method(
    setup: Setup, method: Method, corpora: Sequence[Corpus], learning_rate: float, seed: int, place: str
) -> dict[str, Any]:
    """Train on some corpora and evaluate; returns what was found.

    Args:
        setup: the pair.
        method: how to train.
        corpora: the general corpus and that of the domain.
        learning_rate: at its peak.
        seed: of the order and of dropout.
        place: a folder for what the run writes.
    """
    pair = setup.pair
    if method.distills:
        corpora = [replace(each, objective="distill") if each.side == "general" else each for each in corpora]
    lengths = {corpus.side: len(corpus.dataset) for corpus in corpora}
    fields = method.recipe_fields(lengths["general"], lengths["domain"], pair.steps)
    own = {**fields, "learning_rate": learning_rate, "seed": seed, "output_dir": place}
    trainer, recipe = _trainer(setup, replace(setup.data, corpora=list(corpora)), own)
    begin = time.perf_counter(), time.process_time()
    trainer.train()
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    trained = _outcomes(trainer, setup, setup.data.eval_sets)
    curve = search_run(trainer, recipe, setup.data, apply=True)
    interpolated = None if curve.alpha == 1 else _outcomes(trainer, setup, setup.data.eval_sets)
    drawn = {corpus["side"]: corpus["drawn"] for corpus in trainer.plan.summary()["corpora"]}
    values = {
        side: [
            (one + other) / 2
            for one, other in zip(
                curve.selection[side][curve.metric]["values"], curve.report[side][curve.metric]["values"], strict=True
            )
        ]
        for side in ("domain", "general")
    }
    return {
        "num_domain": lengths["domain"],
        "drawn": drawn,
        "seconds": round(seconds[0], 2),
        "processor_seconds": round(seconds[1], 2),
        "machine": _machine(trainer),
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "validation": {side: round(found[-1], 5) for side, found in values.items()},
        "curve": {
            side: {f"{alpha:g}": round(value, 4) for alpha, value in zip(curve.alphas, found, strict=True)}
            for side, found in values.items()
        },
        "alpha": curve.alpha,
        "test": {side: pack(pair.metric, found) for side, found in trained.items()},
        "test_interpolated": interpolated and {side: pack(pair.metric, found) for side, found in interpolated.items()},
    }


def _trainer(setup: Setup, data: RecipeData, fields: dict[str, Any]) -> tuple[Any, Recipe]:
    """The package's trainer and its recipe, without what it prints and the evaluations that `_outcomes` does."""
    recipe, args = parse_recipe({**setup.recipe, **fields})
    trainer = build_trainer(recipe, get_task(recipe.task), args, data)
    trainer.args.eval_on_start = False
    trainer.remove_callback(PrinterCallback)
    if recipe.peft is None and setup.pair.base == "minilm":
        freeze_embeddings(trainer.model)
    return trainer, recipe


def _outcomes(trainer: Any, setup: Setup, sets: dict[str, datasets.Dataset]) -> dict[str, Outcomes]:
    names = setup.pair.label_names()
    return {side: outcomes_of(setup.pair.metric, predict(trainer, dataset), names) for side, dataset in sets.items()}


def _machine(trainer: Any) -> str:
    if trainer.args.device.type == "cuda":
        return torch.cuda.get_device_name(trainer.args.device)
    found = describe_machine()
    return f"{found['processor']}, {torch.get_num_threads()} thread of {found['cores']} cores"


# Base models.

BASE_SEED = 0


def base_model(pair: Pair, folder: Path, device: str = "cpu") -> Path:
    """M₀ of a pair: its base, trained on the general corpus alone.

    Args:
        pair: names the base, the corpus and the training.
        folder: of the cache.
        device: to train on, if it has to be; it decides nothing else.
    """
    start = untrained(pair, folder)
    if pair.base_steps == 0:
        return start
    corpus = pair.corpora("train", folder)["general"]
    recipe = {
        "task": pair.task,
        "model_name_or_path": str(start),
        "label_names": pair.label_names(),
        **pair.fields,
        "corpora": {"general": corpus},
        "alpha": 0.0,
        "max_steps": pair.base_steps,
        "per_device_train_batch_size": pair.base_batch_size,
        "learning_rate": pair.base_learning_rate,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "use_cpu": True,
        "seed": BASE_SEED,
    }

    def train(target: Path) -> None:
        placed = {**recipe, "output_dir": str(target), "use_cpu": device == "cpu"}
        parsed, args = parse_recipe(placed)
        data = load_data(parsed, check_recipe(parsed, args))
        with quiet_bar(args.max_steps, shown=False) as bar:
            train_quietly(placed, data, bar).save_model()

    return cached(folder, f"m0-{Path(pair.general).name}", recipe, train)


def untrained(pair: Pair, folder: Path) -> Path:
    """What M₀ is made of."""
    if pair.base == "minilm":
        return cached(folder, "minilm", {"layers": pair.layers}, lambda target: _cut_minilm(pair.layers, target))
    if pair.base == "lm":
        argv = ["--texts", str(DATA / pair.general / "train.jsonl.gz"), "--max_length", str(pair.fields["max_length"])]
        argv += ["--steps", "1500", "--batch_size", "32", "--vocab_size", "1000"]  # 4,000 double the time
    elif pair.base == "chat":
        argv = ["--texts", str(pair.file("general", "train", folder)), "--max_length", str(pair.fields["max_length"])]
        argv += ["--field", "turns", "--chat_template", "chatml", "--steps", "800"]
    elif pair.base == "vit":
        return cached(folder, "vit", prepare_digits.SHAPE, prepare_digits.write_model)
    else:
        return Path(pair.base)
    return cached(folder, pair.base, {"argv": argv}, lambda target: _pretrain(argv, target))


def freeze_embeddings(model: PreTrainedModel) -> None:
    """Leave an encoder's embeddings as they are: most of a small model's weights, and of the time to update them."""
    for parameter in model.base_model.embeddings.parameters():
        parameter.requires_grad_(False)


def cached(folder: Path, name: str, settings: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, made if it is not there for these settings; whole or not at all."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    target = folder / f"{name}-{digest}"
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".making-"))
        try:
            make(temporary)
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():  # nobody else has made it meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _cut_minilm(layers: int, target: Path) -> None:
    AutoModel.from_pretrained(minilm_folder(), num_hidden_layers=layers).save_pretrained(target)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(target)


def _pretrain(argv: list[str], target: Path) -> None:
    with redirect_stdout(sys.stderr):
        tiny_lm.main([*argv, "--output", str(target), "--seed", str(BASE_SEED)])
