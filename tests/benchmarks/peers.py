"""Our mixture beside those of other packages: speed, resuming, starting. Each in its own environment, same rows.

    taskset -c 1 python tests/benchmarks/peers.py \\
        --python hf_interp=ENVS/hf_interp/bin/python --python datasets=ENVS/datasets/bin/python \\
        --python torchdata=ENVS/torchdata/bin/python --python streaming=ENVS/streaming/bin/python \\
        --python litdata=ENVS/litdata/bin/python --python grain=ENVS/grain/bin/python

Any subset will do. One table a question is printed. This program needs the standard library only; a contestant is
`peers/run_<name>.py`, which runs in the interpreter given for it. `taskset` keeps all on one core; leave it out where
there is none. The environments (Python 3.11, torch first so that it is the CPU's where the registry has such a build):

    for name in hf_interp datasets torchdata streaming litdata grain; do
        python -m venv ENVS/$name && ENVS/$name/bin/pip install torch==2.13.0
    done
    ENVS/hf_interp/bin/pip install .
    ENVS/datasets/bin/pip install datasets==5.2.0
    ENVS/torchdata/bin/pip install torchdata==0.11.0 datasets==5.2.0
    ENVS/streaming/bin/pip install torch==2.13.0 mosaicml-streaming==0.13.0
    ENVS/litdata/bin/pip install torch==2.13.0 litdata==0.2.76
    ENVS/grain/bin/pip install grain==0.2.18 datasets==5.2.0

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

HERE = Path(__file__).resolve().parent / "peers"
CONTESTANTS = ("hf_interp", "datasets", "torchdata", "streaming", "litdata", "grain")
LIMIT = 120  # seconds of a measured call; making data and states may take longer
SLOW = 30  # seconds after which a measurement is not repeated

Answer = dict[str, Any]
Entry = tuple[str, str]  # contestant, variant


class Peers:
    """Asks the contestants."""

    def __init__(self, pythons: dict[str, str], folder: Path) -> None:
        self.pythons = pythons
        self.folder = folder
        self.about = {name: self.ask(name, task="describe") for name in pythons}

    def ask(self, name: str, *, limit: float = 600, **task: Any) -> Answer:
        """Run one task of a contestant in a fresh process."""
        text = json.dumps({"folder": str(self.folder), **task})
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [self.pythons[name], "-W", "ignore", str(HERE / f"run_{name}.py"), text]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
        except subprocess.TimeoutExpired:
            return {"error": f"> {limit:.0f} s"}
        if done.returncode:
            print(f"{name} {text}\n{done.stderr}", file=sys.stderr)
            return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:60]}
        return json.loads(done.stdout.strip().splitlines()[-1])

    def entries(self, question: str) -> list[Entry]:
        """The contestants of a question, each with its variants."""
        return [
            (name, variant) for name, about in self.about.items() for variant in about["variants"].get(question, [])
        ]


def in_turns(entries: Sequence[Entry], rounds: int, ask: Callable[[Entry], Answer]) -> dict[Entry, list[Answer]]:
    """Every entry once, then every entry again, and so on: a noisy minute hits all alike."""
    found: dict[Entry, list[Answer]] = {entry: [] for entry in entries}
    for turn in range(rounds):
        for entry, answers in found.items():
            if turn and ("error" in answers[0] or answers[0].get("seconds", 0) > SLOW):
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


def question_rate(peers: Peers, args: argparse.Namespace) -> str:
    entries = peers.entries("rate")
    found = {
        workers: in_turns(
            entries,
            args.rounds,
            lambda entry, workers=workers: peers.ask(  # type: ignore[misc]
                entry[0], task="rate", variant=entry[1], workers=workers, examples=args.examples, limit=LIMIT
            ),
        )
        for workers in (0, 2)
    }
    rows = [
        [
            label(entry),
            str(found[0][entry][0].get("form", "–")),
            middle(found[0][entry], "rate"),
            middle(found[2][entry], "rate"),
            str(peers.about[entry[0]]["workers"]),
        ]
        for entry in entries
    ]
    return table(["mixture", "a batch reaches the collator as", "0 workers", "2 workers", "the workers are"], rows)


def question_resume(peers: Peers, args: argparse.Namespace, long: bool = False) -> str:
    entries = peers.entries("long" if long else "resume")
    marks = [10_000_000] if long else [100_000, 10_000_000]
    states: dict[int, dict[Entry, Answer]] = {}
    found: dict[int, dict[Entry, list[Answer]]] = {}
    for consumed in marks:

        def about(entry: Entry, consumed: int = consumed) -> dict[str, Any]:
            file = peers.folder / f"{entries.index(entry)}-{consumed}-{long}.state"
            return {"variant": entry[1], "consumed": consumed, "long": long, "state": str(file)}

        states[consumed] = {entry: peers.ask(entry[0], task="state", **about(entry)) for entry in entries}
        found[consumed] = in_turns(
            entries,
            args.rounds,
            lambda entry, about=about: peers.ask(entry[0], task="resume", **about(entry), limit=LIMIT),  # type: ignore[misc]
        )
    rows = [
        [
            label(entry),
            middle(found[marks[-1]][entry], "build", 1e3, 1),
            *(middle(found[consumed][entry], "resume", 1e3, 1) for consumed in marks),
            same(states[marks[0]][entry], found[marks[0]][entry]),
            str(states[marks[-1]][entry].get("how", states[marks[-1]][entry].get("error", "–"))),
        ]
        for entry in entries
    ]
    header = [
        "mixture",
        "build, ms",
        *(f"at 10^{len(str(consumed)) - 1}, ms" for consumed in marks),
        f"right rows at 10^{len(str(marks[0])) - 1}",
        "state at 10^7",
    ]
    return table(header, rows)


def same(state: Answer, answers: Sequence[Answer]) -> str:
    """Whether the first batch after resuming is the one that would have come."""
    if "digest" not in state:
        return "not checked"
    return "yes" if all(answer.get("digest") == state["digest"] for answer in answers) else "no"


def question_start(peers: Peers, args: argparse.Namespace) -> str:
    entries = peers.entries("start")
    found = in_turns(
        entries, args.rounds, lambda entry: peers.ask(entry[0], task="start", variant=entry[1], limit=2 * LIMIT)
    )
    rows = [
        [
            label(entry),
            middle(answers, "seconds", 1, 3),
            middle(answers, "memory", 1, 1),
            str(answers[0].get("what", "–")),
        ]
        for entry, answers in found.items()
    ]
    return table(["mixture", "seconds", "peak memory, MiB", "to"], rows)


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
    parser.add_argument("--questions", nargs="+", choices=("rate", "resume", "long", "start"))
    parser.add_argument("--examples", type=int, default=8_192, help="examples read in a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pythons = dict(given.split("=", 1) for given in args.python)
    unknown = sorted(set(pythons) - set(CONTESTANTS))
    if unknown:
        parser.error(f"no such contestants: {unknown}; there are {', '.join(CONTESTANTS)}")
    questions: dict[str, tuple[str, Callable[[], str]]] = {
        "rate": ("Examples per second, batches of 32", lambda: question_rate(peers, args)),
        "resume": ("Resuming: to the first batch, corpora of 20,000 rows", lambda: question_resume(peers, args)),
        "long": ("Resuming within one pass, virtual corpora of 10^7 rows", lambda: question_resume(peers, args, True)),
        "start": ("Starting as rank 999 of 1,000 with 10^8 rows", lambda: question_start(peers, args)),
    }
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(pythons, Path(folder))
        broken = {name: about["error"] for name, about in peers.about.items() if "error" in about}
        if broken:
            sys.exit(f"These contestants do not start: {broken}")
        print(", ".join(f"{name} {about['version']}" for name, about in peers.about.items()))
        for name in pythons:
            peers.ask(name, task="write")
        for question in args.questions or questions:
            title, answer = questions[question]
            print(f"\n{title}\n\n{answer()}", flush=True)


if __name__ == "__main__":
    main()
