"""Break a working recipe, its files, its model and a trained run by the thousand, and sort what the commands say of it.

    python tests/outside/fuzz.py --seed 0 --count 1000               # several a second
    python tests/outside/fuzz.py --seed 0 --only 17 --keep /tmp/f    # one of them again, whose folder is kept

Each mutation is made in a fresh folder, and a command of `hf-interp` is run on it in a fork of a process that has
imported everything. What should come out is exit status 0, or status 2 with one line that says what is wrong. Sorted
apart: a *traceback*, a *hang*, a *raw* line (Python's own words for what is wrong inside), files that a refused command
*left*, and what was *accepted* though it cannot have been meant. A line a mutation, `seed/number`, goes to stdout.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "HF_HOME" not in os.environ:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="fuzz-home-")
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import document_files
import yaml

from hf_interp.cli import main as hf_interp_main
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.training.config import InterpolationConfig

SECONDS = 30.0
BAD = ("traceback", "hang", "raw", "left", "accepted")
RAW = re.compile(
    r"object (is not|has no|cannot)|object of type|positional argument|unexpected keyword|unsupported operand"
    r"|argument of type|not supported between|invalid literal|list index|expected str|string indices|codec can't decode"
    r"|unhashable type|has no attribute|takes no arguments|error: '[^']*'$|error: \w+Error$|Error while deserializing"
)
"""Words of Python or of a library that name neither a field nor a file of the user's."""
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2.5, 1e308, float("nan"), float("inf"), 2**63, 10**30, "", " ", "no", "nan", "x" * 300),
    *("../..", "~nobody/x", "ünï\u202e", "a\0b", "1e-3", [], {}, [[]], [None], [1, "a"], {"a": 1}, {1: {2: None}}),
]
RECIPE, RUN = "recipe.yaml", "runs/mine"
DATA = ("general.jsonl", "domain.jsonl", "general_test.jsonl", "domain_validation.jsonl")
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
STATE = ("trainer_state.json", "mixture_state_rank0.json", "config.json", "model.safetensors", "optimizer.pt")
FIELDS = [*Recipe.__dataclass_fields__, *InterpolationConfig.__dataclass_fields__]
PLAN = ("plan", RECIPE)
TRAIN = ("train", RECIPE, "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--output_dir", "out")
ON_RUN = (
    *(("verify", RUN), ("card", RUN, "--output", "card.md"), ("report", RUN, "--output", "report.html")),
    *(("curve", RUN), ("plan", RECIPE, "--resume", RUN)),
    ("merge", "toy-models/classifier", RUN, "merged", "--alpha", "0.5"),
)


class Mutation(NamedTuple):
    """What was broken, in words; whether it cannot have been meant; the command that is to notice."""

    text: str
    is_fault: bool
    command: tuple[str, ...]


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything inside a nested mapping or list."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def inside(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def misspell(draw: random.Random, word: str) -> str:
    place = draw.randrange(len(word))
    return draw.choice(
        [word[:place] + word[place + 1 :], word[: place + 1] + word[place:], word[:place] + "q" + word[place:]]
    )


def break_tree(draw: random.Random, tree: Any) -> str:
    """Put something hostile, or nothing, into a place of a nested value."""
    path = draw.choice(list(leaves(tree)))
    place, key = inside(tree, path[:-1]), path[-1]
    if draw.random() < 0.2:
        del place[key]
        return f"without {'.'.join(map(str, path))}"
    place[key] = draw.choice(HOSTILE)
    return f"{'.'.join(map(str, path))} = {str(place[key])[:40]!r}"


def break_bytes(draw: random.Random, path: Path) -> str:
    """Damage a file as disks, downloads and editors do."""
    content = path.read_bytes()
    place = draw.randrange(max(1, len(content)))
    ways: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[:place],
        "empty": lambda: b"",
        "a byte flipped": lambda: (
            content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
        ),
        "latin-1": lambda: content[:place] + "é".encode("latin-1") + content[place:],
        "NUL bytes": lambda: content[:place] + bytes(40) + content[place:],
        "a byte-order mark": lambda: b"\xef\xbb\xbf" + content,
        "null": lambda: b"null",
        "a list": lambda: b"[]",
        "other text": lambda: b"<html>404</html>\n",
    }
    way = draw.choice([*ways, "gone", "a folder"])
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way in ways:
        path.write_bytes(ways[way]())
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
        path = draw.choice([path for path in leaves(recipe) if isinstance(path[-1], str)])
        place, wrong = inside(recipe, path[:-1]), misspell(draw, path[-1])
        place[wrong] = place.pop(path[-1])
        text, is_fault = f"{'.'.join(path)} misspelt {wrong}", path[0] not in ("eval_corpora", "validation_corpora")
    if way == "bytes":
        return Mutation(break_bytes(draw, Path(RECIPE)), False, PLAN)
    lines = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if way == "twice":
        line = draw.choice([line for line in lines.splitlines() if re.match(r"\w+: \S", line)])
        lines, text, is_fault = f"{lines}{line}\n", f"{line!r} twice", True
    Path(RECIPE).write_text(lines, encoding="utf-8")
    return Mutation(text, is_fault, PLAN if draw.random() < 0.8 else TRAIN)


def break_data(draw: random.Random) -> Mutation:
    """Damage a file of texts, or a row in it."""
    path = Path(draw.choice(DATA))
    if draw.random() < 0.4:
        return Mutation(break_bytes(draw, path), False, PLAN)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    some = rows if draw.random() < 0.3 else [draw.choice(rows)]
    name, value = draw.choice(["text", "label"]), draw.choice([*HOSTILE, "gone"])
    for row in some:
        row.pop(name)
        row.update({} if value == "gone" else {name: value})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Mutation(f"{path}: {name} = {str(value)[:40]!r} in {len(some)} rows", False, PLAN)


def break_file(draw: random.Random, folder: str, names: tuple[str, ...]) -> str:
    """Damage one of the files of a folder, or put something hostile into its JSON."""
    found = [path for name in names if (path := Path(folder, name)).is_file()]
    path = draw.choice(found)
    if path.suffix != ".json" or draw.random() < 0.4:
        return break_bytes(draw, path)
    tree = json.loads(path.read_text("utf-8"))
    text = break_tree(draw, tree)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"{path}: {text}"


def break_model(draw: random.Random) -> Mutation:
    return Mutation(break_file(draw, "toy-models/classifier", MODEL), False, draw.choice([PLAN, TRAIN, TRAIN]))


def break_run(draw: random.Random) -> Mutation:
    """Damage what a run has left, and open it again."""
    command = draw.choice(ON_RUN)
    if "--resume" in command:
        return Mutation(break_file(draw, f"{RUN}/checkpoint-8", STATE), False, command)
    return Mutation(break_file(draw, RUN, ("results.json", "curve.json", *MODEL)), False, command)


KINDS = (break_recipe, break_recipe, break_recipe, break_data, break_data, break_model, break_run)


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


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def sort_outcome(mutation: Mutation, status: int | None, said: str, new: set[str]) -> str:
    """Name what came out."""
    if status is None:
        return "hang"
    if "Traceback (most recent call last)" in said or status not in (0, 1, 2):
        return "traceback"
    if status != 2:
        return "accepted" if mutation.is_fault else "done"
    errors = [line for line in said.splitlines() if line.startswith("hf-interp: error: ")]
    if len(errors) != 1 or RAW.search(errors[0]):
        return "raw"
    return "left" if new else "line"


def try_one(base: Path, seed: int, number: int, keep: Path | None = None) -> tuple[str, str]:
    """Make mutation `number`, run its command; return the kind of outcome and a line about it."""
    draw = random.Random(f"{seed}/{number}")
    with tempfile.TemporaryDirectory() as place:
        folder = keep or Path(place, "work")
        shutil.copytree(base, folder, dirs_exist_ok=True)
        with document_files.inside(folder):
            mutation = draw.choice(KINDS)(draw)
        before = files_in(folder)
        status = run_forked(mutation.command, folder, Path(place, "log"))
        said = Path(place, "log").read_text("utf-8", "replace")
        kind = sort_outcome(mutation, status, said, files_in(folder) - before)
    last = (said.strip().splitlines() or [""])[-1].removeprefix("hf-interp: error: ")
    return kind, f"{kind:9} {seed}/{number} {mutation.command[0]}: {mutation.text} -> {last[:200]}"


def fuzz(seed: int, numbers: range, keep: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield the kind of outcome of each mutation, and a line about it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        document_files.lay_run(Path(place))
        for number in numbers:
            yield try_one(Path(place), seed, number, keep)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, help="this mutation alone")
    parser.add_argument("--keep", type=Path, help="make it in this folder, and leave it")
    parser.add_argument("--all", action="store_true", help="show what is as it should be, too")
    args = parser.parse_args()
    numbers = range(args.count) if args.only is None else range(args.only, args.only + 1)
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    for kind, line in fuzz(args.seed, numbers, args.keep):
        counts[kind] += 1
        if args.all or args.only is not None or kind in BAD:
            print(line, flush=True)
    print(f"{dict(counts)} in {time.monotonic() - begin:.0f} s")
    return int(any(counts[kind] for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
