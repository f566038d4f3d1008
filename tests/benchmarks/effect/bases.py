"""Base models and M₀, made once and kept on disk under a hash of all that decides them."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from effect.pairs import DATA, ROOT, Pair
from hf_interp.commands.compare import quiet_bar, train_quietly
from hf_interp.tasks.build import check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe

sys.path += [str(ROOT / "tests" / "benchmarks"), str(ROOT / "recipes" / "image_digits")]

import prepare_digits
import tiny_lm
from overhead import minilm_folder

SEED = 0


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
        "seed": SEED,
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
        tiny_lm.main([*argv, "--output", str(target), "--seed", str(SEED)])
