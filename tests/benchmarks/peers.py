"""Our mixture beside those of other packages: speed and resuming. Each in its own environment, same rows.

    taskset -c 1 python tests/benchmarks/peers.py \\
        --python hf_interp=ENVS/hf_interp/bin/python --python datasets=ENVS/datasets/bin/python \\
        --python torchdata=ENVS/torchdata/bin/python --python streaming=ENVS/streaming/bin/python \\
        --python litdata=ENVS/litdata/bin/python --python grain=ENVS/grain/bin/python \\
        --python opustrainer=ENVS/opustrainer/bin/python

Any subset will do. This program needs the standard library only; a contestant is a class of `contestants.py`, which is
run by the interpreter given for it. `taskset` keeps all on one core; leave it out where there is none. The environments
(Python 3.11, torch first so that it is the CPU's where the registry has such a build):

    for name in hf_interp datasets torchdata streaming litdata grain; do
        python -m venv ENVS/$name && ENVS/$name/bin/pip install torch==2.13.0
    done
    ENVS/hf_interp/bin/pip install .
    ENVS/datasets/bin/pip install datasets==5.2.0
    ENVS/torchdata/bin/pip install torchdata==0.11.0 datasets==5.2.0
    ENVS/streaming/bin/pip install torch==2.13.0 mosaicml-streaming==0.13.0
    ENVS/litdata/bin/pip install torch==2.13.0 litdata==0.2.76
    ENVS/grain/bin/pip install grain==0.2.18 datasets==5.2.0
    python -m venv ENVS/opustrainer && ENVS/opustrainer/bin/pip install opustrainer==0.5 numpy

(torch is named again for those two because their torchvision would otherwise replace it by a newer one.)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().with_name("contestants.py")
CONTESTANTS = ("hf_interp", "datasets", "torchdata", "streaming", "litdata", "grain", "opustrainer")
LIMIT = 120  # seconds of a measured call; making data and states may take longer

Answer = dict[str, Any]
Entry = tuple[str, str]  # contestant, variant


class Peers:
    """Asks the contestants."""

    def __init__(self, pythons: dict[str, str], folder: Path) -> None:
        self.pythons = pythons
        self.folder = folder
        self.about = {name: self.ask((name, ""), task="describe") for name in pythons}

    def ask(self, entry: Entry, *, limit: float = 600, **task: Any) -> Answer:
        """Run one task of a contestant in a fresh process."""
        name, variant = entry
        text = json.dumps({"folder": str(self.folder), "variant": variant, **task})
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [self.pythons[name], "-W", "ignore", str(PROGRAM), name, text]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
        except subprocess.TimeoutExpired:
            return {"error": f"> {limit:.0f} s"}
        if done.returncode:
            print(f"{name} {text}\n{done.stderr}", file=sys.stderr)
            return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:60]}
        return json.loads(done.stdout.strip().splitlines()[-1])

    def entries(self) -> list[Entry]:
        """The contestants, each with its variants."""
        return [(name, variant) for name, about in self.about.items() for variant in about["variants"]]


def in_turns(entries: Sequence[Entry], rounds: int, ask: Callable[[Entry], Answer]) -> dict[Entry, list[Answer]]:
    """Every entry once, then every entry again, and so on: a noisy minute hits all alike."""
    found: dict[Entry, list[Answer]] = {entry: [] for entry in entries}
    for turn in range(rounds):
        for entry, answers in found.items():
            if turn and "error" in answers[0]:
                continue
            answers.append(ask(entry))
            print(f"round {turn + 1}: {entry}: {answers[-1]}", file=sys.stderr, flush=True)
    return found


def middle(answers: Sequence[Answer], key: str, scale: float = 1, digits: int = 0) -> str:
    """The median with the range, or the error."""
    values = [answer[key] * scale for answer in answers if key in answer]
    if not values:
        return str(answers[0].get("error", "–")) if answers else "–"
    text = f"{statistics.median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def compare_rates(peers: Peers, args: argparse.Namespace) -> str:
    found: dict[int, dict[Entry, list[Answer]]] = {}
    for workers in (0, 2):
        task = {"task": "rate", "workers": workers, "examples": args.examples, "limit": LIMIT}
        found[workers] = in_turns(peers.entries(), args.rounds, lambda entry, task=task: peers.ask(entry, **task))  # type: ignore[misc]
    rows = [[label(entry), *(middle(found[workers][entry], "rate") for workers in found)] for entry in found[0]]
    return table(["mixture", "0 workers", "2 workers"], rows)


def compare_resuming(peers: Peers, args: argparse.Namespace) -> str:
    entries = [entry for entry in peers.entries() if "rows" not in entry[1]]
    tasks = {
        entry: {"consumed": args.consumed, "state": str(peers.folder / f"{number}.state")}
        for number, entry in enumerate(entries)
    }
    states = {entry: peers.ask(entry, task="state", **tasks[entry]) for entry in entries}
    found = in_turns(entries, args.rounds, lambda entry: peers.ask(entry, task="resume", limit=LIMIT, **tasks[entry]))
    rows = [
        [label(entry), *(middle(answers, key, 1e3, 1) for key in ("build", "resume")), same(states[entry], answers)]
        for entry, answers in found.items()
    ]
    return table(["mixture", "build, ms", f"at {args.consumed:,}, ms", "right rows"], rows)


def same(state: Answer, answers: Sequence[Answer]) -> str:
    """Whether the first batch after resuming is the one that would have come."""
    if "digest" not in state:
        return state.get("error", "not checked")
    return "yes" if all(answer.get("digest") == state["digest"] for answer in answers) else "no"


def label(entry: Entry) -> str:
    return f"{entry[0]}: {entry[1]}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, metavar="NAME=PATH", help="a contestant")
    parser.add_argument("--examples", type=int, default=8_192, help="examples read in a round")
    parser.add_argument("--consumed", type=int, default=100_000, help="examples before a run is resumed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", choices=("rates", "resuming"), help="one of the two; by default both, in 15 minutes")
    args = parser.parse_args()
    pythons = dict(given.split("=", 1) for given in args.python)
    unknown = sorted(set(pythons) - set(CONTESTANTS))
    if unknown:
        parser.error(f"no such contestants: {unknown}; there are {', '.join(CONTESTANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(pythons, Path(folder))
        broken = {name: about["error"] for name, about in peers.about.items() if "error" in about}
        if broken:
            sys.exit(f"These contestants do not start: {broken}")
        print(", ".join(f"{name} {about['version']}" for name, about in peers.about.items()))
        for name in pythons:
            peers.ask((name, ""), task="write")
        if args.table != "resuming":
            print(f"\nExamples per second, batches of 32\n\n{compare_rates(peers, args)}", flush=True)
        if args.table != "rates":
            print(f"\nResuming: to the first batch\n\n{compare_resuming(peers, args)}", flush=True)


if __name__ == "__main__":
    main()
