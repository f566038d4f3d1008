"""Break a working recipe, its files, its model and a trained run by the thousand, and sort what the commands say of it.

    python tests/outside/fuzz.py --seed 0 --count 1000     # several a second
    python tests/outside/fuzz.py --seed 0 --only 17 31     # some of them again

Each is made in a fresh folder, where a command of `hf-interp` runs on it in a fork. It should be *done*, or refused
in one *line*. Sorted apart: a *traceback*, a *hang*, a *raw* line (in Python's own words), files that a refused
command *left*, and what was *accepted* though it cannot have been meant.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="fuzz-home-"))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import document_files
import yaml

from hf_interp.cli import main as hf_interp_main
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.training.config import InterpolationConfig

SECONDS = 120.0
BAD = ("traceback", "hang", "raw", "left", "accepted")
RAW = re.compile(
    r"object (is not|has no|cannot)|object of type|positional argument|unexpected keyword|unsupported operand"
    r"|argument (of type|after)|not supported between|list index|string indices|unhashable type|has no attribute"
)
NAMES = re.compile(r"`\w|(?<!: )'(?!utf-8)|--\w|\w\.(yaml|json|jsonl|safetensors|pt)\b|[Cc]orpus|[Rr]ecipe")
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2.5, 1e308, float("nan"), float("inf"), 2**63, 10**30, "", " ", "no", "nan", "x" * 300),
    *("../..", "~nobody/x", "ünï\u202e", "a\0b", "1e-3", [], {}, [[]], [None], [1, "a"], {"a": 1}, {1: {2: None}}),
]
RECIPE, RUN = "recipe.yaml", "runs/mine"
DATA = ("general.jsonl", "domain.jsonl", "general_test.jsonl", "domain_validation.jsonl")
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
RESULTS = ("results.json", "curve.json", *MODEL)
STATE = ("trainer_state.json", "mixture_state_0.json", "config.json", "model.safetensors", "optimizer.pt")
FIELDS = [*Recipe.__dataclass_fields__, *InterpolationConfig.__dataclass_fields__]
PLAN = ("plan", RECIPE)
TRAIN = ("train", RECIPE, "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--output_dir", "out")
ON_FOLDERS = (
    *(PLAN, TRAIN, TRAIN, TRAIN, TRAIN),
    *(("verify", RUN), ("card", RUN, "--output", "card.md"), ("report", RUN, "--output", "report.html")),
    *(("curve", RUN), ("plan", RECIPE, "--resume", RUN)),
    ("merge", "toy-models/classifier", RUN, "merged", "--alpha", "0.5"),
)

Mutation = tuple[str, bool, tuple[str, ...]]
"""What was broken, in words; whether it cannot have been meant; the command that is to notice."""


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything inside a nested mapping or list."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def break_tree(draw: random.Random, tree: Any) -> str:
    """Put something hostile, or nothing, into a place of a nested value."""
    *path, key = draw.choice(list(leaves(tree)))
    place = reduce(getitem, path, tree)
    if draw.random() < 0.2:
        del place[key]
        return f"without {path} {key}"
    place[key] = draw.choice(HOSTILE)
    return f"{path} {key} = {str(place[key])[:40]!r}"


def break_bytes(draw: random.Random, path: Path) -> str:
    """Damage a file as disks, downloads and editors do."""
    content = path.read_bytes()
    place = draw.randrange(max(1, len(content)))
    before, after = content[:place], content[place:]
    flipped = bytes([after[0] ^ (1 << draw.randrange(8))]) if after else b""
    ways = {
        "cut": before,
        "empty": b"",
        "a byte flipped": before + flipped + after[1:],
        "latin-1": before + "é".encode("latin-1") + after,
        "NUL bytes": before + bytes(40) + after,
        "a byte-order mark": b"\xef\xbb\xbf" + content,
        "null": b"null",
        "a list": b"[]",
        "other text": b"<html>404</html>\n",
    }
    way = draw.choice([*ways, "gone"])
    path.unlink()
    if way in ways:
        path.write_bytes(ways[way])
    return f"{path}: {way} at {place}"


def break_recipe(draw: random.Random) -> Mutation:
    """Change a recipe as people mistype it."""
    recipe = yaml.safe_load(Path(RECIPE).read_text("utf-8"))
    way, is_fault = draw.choice(["value", "value", "field", "corpus", "misspelt", "twice", "bytes"]), False
    if way == "value":
        text = break_tree(draw, recipe)
    elif way in ("field", "corpus"):
        place = recipe if way == "field" else recipe["corpora"][draw.choice(["general", "domain"])]
        name = draw.choice(FIELDS if way == "field" else list(CorpusConfig.__dataclass_fields__))
        place[name] = draw.choice(HOSTILE)
        text = f"{name} = {str(place[name])[:40]!r}"
    elif way == "misspelt":
        *path, word = draw.choice([path for path in leaves(recipe) if isinstance(path[-1], str)])
        place, letter = reduce(getitem, path, recipe), draw.choice(word)
        wrong = word.replace(letter, draw.choice(["", "q", 2 * letter]), 1)
        place[wrong] = place.pop(word)
        text, is_fault = f"{word} misspelt {wrong}", path not in (["eval_corpora"], ["validation_corpora"])
    if way == "bytes":
        return break_bytes(draw, Path(RECIPE)), False, PLAN
    lines = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if way == "twice":
        line = draw.choice([line for line in lines.splitlines() if re.match(r"\w+: \S", line)])
        lines, text, is_fault = f"{lines}{line}\n", f"{line!r} twice", True
    Path(RECIPE).write_text(lines, encoding="utf-8")
    return text, is_fault, PLAN if draw.random() < 0.8 else TRAIN


def break_data(draw: random.Random) -> Mutation:
    """Damage a file of texts, or a row in it."""
    path = Path(draw.choice(DATA))
    if draw.random() < 0.4:
        return break_bytes(draw, path), False, PLAN
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    some = rows if draw.random() < 0.3 else [draw.choice(rows)]
    name, value = draw.choice(["text", "label"]), draw.choice([*HOSTILE, "gone"])
    for row in some:
        row.pop(name)
        row.update({} if value == "gone" else {name: value})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"{path}: {name} = {str(value)[:40]!r} in {len(some)} rows", False, PLAN


def break_folder(draw: random.Random) -> Mutation:
    """Damage a file of the model or of what a run has left, or put something hostile into its JSON."""
    command = draw.choice(ON_FOLDERS)
    folder, names = ("toy-models/classifier", MODEL) if command in (PLAN, TRAIN) else (RUN, RESULTS)
    path = Path(*(RUN, "checkpoint-8", draw.choice(STATE)) if "--resume" in command else (folder, draw.choice(names)))
    if path.suffix != ".json" or draw.random() < 0.4:
        return break_bytes(draw, path), False, command
    tree = json.loads(path.read_text("utf-8"))
    text = break_tree(draw, tree)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"{path}: {text}", False, command


KINDS = (break_recipe, break_recipe, break_recipe, break_data, break_data, break_folder, break_folder)


def run_forked(command: tuple[str, ...], folder: Path, log: Path) -> int | None:
    """Run a command in a fork, with its output in a file; return its exit status, or `None` if it hangs."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setsid()
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1), os.dup2(target, 2)
            os.chdir(folder)
            try:
                status = hf_interp_main(list(command))
            except SystemExit as ending:
                status = ending.code if isinstance(ending.code, int) else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    end = time.monotonic() + SECONDS
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def sort_outcome(is_fault: bool, status: int | None, said: str, has_left: bool) -> str:
    """Name what came out."""
    if status is None:
        return "hang"
    if "Traceback (most recent call last)" in said or status not in (0, 1, 2):
        return "traceback"
    if status != 2:
        return "accepted" if is_fault else "done"
    errors = [line for line in said.splitlines() if line.startswith("hf-interp: error: ")]
    if len(errors) != 1 or RAW.search(errors[0].partition(" cannot be ")[0]) or not NAMES.search(errors[0]):
        return "raw"
    return "left" if has_left else "line"


def fuzz(seed: int, numbers: Iterable[int]) -> Iterator[tuple[str, str]]:
    """Make each mutation in a fresh folder, and run its command; yield the kind of outcome, and a line about it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
        with contextlib.redirect_stdout(sys.stderr):
            document_files.lay_run(Path(base))
        for number in numbers:
            draw = random.Random(f"{seed}/{number}")
            with tempfile.TemporaryDirectory() as place:
                folder, log = Path(place, "work"), Path(place, "log")
                shutil.copytree(base, folder)
                with document_files.inside(folder):
                    text, is_fault, command = draw.choice(KINDS)(draw)
                before = set(folder.rglob("*"))
                status = run_forked(command, folder, log)
                said = log.read_text("utf-8", "replace")
                kind = sort_outcome(is_fault, status, said, set(folder.rglob("*")) != before)
            last = (said.strip().splitlines() or [""])[-1].removeprefix("hf-interp: error: ")
            yield kind, f"{kind:9} {seed}/{number} {command[0]}: {text} -> {last[:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", help="these mutations alone")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    for kind, line in fuzz(args.seed, args.only or range(args.count)):
        counts[kind] += 1
        if args.only or kind in BAD:
            print(line, flush=True)
    print(dict(counts))
    return int(any(counts[kind] for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
