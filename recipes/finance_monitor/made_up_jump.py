"""Make a stream with a jump out of labelled texts: `made_up_jump.py test.jsonl.gz stream.jsonl`.

The texts are real, their order is not: it is drawn so that the share of negative ones jumps in the middle.
"""

import argparse
import gzip
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_interp.utils.console import run_command


def make_jump(
    rows: Sequence[dict[str, Any]], *, before: int, after: int, share_before: float, share_after: float, seed: int = 0
) -> list[dict[str, Any]]:
    """`before` rows with a share `share_before` of negative ones, then `after` rows with `share_after`.

    Args:
        rows: with `label_name`, of which "negative" counts.
        before, after: numbers of rows.
        share_before, share_after: shares in [0, 1]; rounded to whole rows.
        seed: decides which rows, and their order within each part.

    Raises:
        ValueError: if there are too few rows of a kind.
    """
    draw = random.Random(seed)
    kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in rows:
        kinds[row["label_name"] == "negative"].append(row)
    for kind in kinds.values():
        draw.shuffle(kind)
    stream = []
    for count, share in ((before, share_before), (after, share_after)):
        negatives = round(count * share)
        part = []
        for is_negative, wanted in ((True, negatives), (False, count - negatives)):
            left = kinds[is_negative]
            if wanted > len(left):
                name = "negative" if is_negative else "other"
                raise ValueError(f"{wanted} {name} rows are wanted, but {len(left)} are left; ask for fewer.")
            part += [left.pop() for _ in range(wanted)]
        draw.shuffle(part)
        stream += part
    return stream


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make a stream whose share of negative texts jumps.")
    parser.add_argument("source", type=Path, help="JSON lines with text and label_name, also .gz")
    parser.add_argument("target", type=Path, help="JSON lines to write")
    parser.add_argument("--before", type=int, default=300)
    parser.add_argument("--after", type=int, default=100)
    parser.add_argument("--share_before", type=float, default=0.06)
    parser.add_argument("--share_after", type=float, default=0.36)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def run() -> None:
        source = args.source
        with gzip.open(source, "rt", encoding="utf-8") if source.suffix == ".gz" else source.open("rt") as file:
            rows = [json.loads(line) for line in file]
        shares = {"share_before": args.share_before, "share_after": args.share_after}
        stream = make_jump(rows, before=args.before, after=args.after, seed=args.seed, **shares)
        args.target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in stream), encoding="utf-8")
        print(f"{len(stream)} texts are in {args.target}; the jump is made up, and comes after text {args.before}.")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
