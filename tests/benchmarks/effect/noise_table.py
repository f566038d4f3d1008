"""What the runs with flipped labels say so far, as tables; docs/evidence.md says what they mean.

python tests/benchmarks/effect/noise_table.py                              # over both pairs
python tests/benchmarks/effect/noise_table.py --pair sentiment-finance     # every number of a pair
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from effect.cells import Cell, Row, row_of, spread_counts
from effect.methods import BASE
from effect.noise import PAIRS as NOISE_PAIRS
from effect.noise import RESULTS, SHARES, SIZE, TITLES
from effect.pairs import PAIRS, SIDES
from effect.stats import Interval, signed
from effect.store import Store
from effect.summary import verdicts
from hf_interp.commands.compare import BASE as BASE_TITLE
from hf_interp.commands.compare import INTERPOLATED_SUFFIX
from hf_interp.utils.console import format_table

REFERENCE = ("domain", False)
"""What the others are compared with: plain fine-tuning."""
Key = tuple[str, bool]
Levels = Mapping[float, Cell]


def levels_of(entries: Sequence[Mapping[str, Any]]) -> Levels:
    """The cells of a pair by the share of flipped labels, rising; M₀ is in each.

    Args:
        entries: all results of the pair, of which M₀'s is one.
    """
    base = next(entry for entry in entries if entry["method"] == BASE)
    counts = {side: spread_counts(found) for side, found in base["counts"].items()}
    levels = {}
    for share in sorted(SHARES):
        rows: dict[Key, Row] = {(BASE, False): row_of(BASE, False, [base], counts, "test")}
        machines = {base["machine"]}
        for method in TITLES:
            found = [entry for entry in entries if (entry["method"], entry.get("share")) == (method, share)]
            found.sort(key=lambda entry: entry["seed"])
            if found:
                rows[method, False] = row_of(method, False, found, counts, "test")
                rows[method, True] = row_of(method, True, found, counts, "test_interpolated")
                machines |= {entry["machine"] for entry in found}
        if len(rows) > 1:
            levels[share] = Cell(base["pair"], SIZE, rows, machines)
    return levels


def keys_of(levels: Levels) -> list[Key]:
    """All rows of a pair in the order of the methods."""
    keys = {key for cell in levels.values() for key in cell.rows}
    return sorted(keys, key=lambda key: ([BASE, *TITLES].index(key[0]), key[1]))


def title_of(key: Key) -> str:
    """A row as tables call it."""
    method, is_interpolated = key
    return (BASE_TITLE if method == BASE else TITLES[method]) + (INTERPOLATED_SUFFIX if is_interpolated else "")


# Tables.


def gain_table(levels: Levels, side: str) -> str:
    """By how much methods are better than the reference at the same noise: a column for each share of flips."""
    rows = [
        [title_of(key), *(signed(_gain(cell, key, side)) for cell in levels.values())]
        for key in keys_of(levels)
        if key != REFERENCE
    ]
    return format_table(["method", *(f"{share:.0%}" for share in levels)], rows)


def order_table(levels: Levels) -> str:
    """By how much the rise is better than the constant mixture that reads as much of the domain; sure ones are bold."""
    keys = ("linear", False), ("constant-0.5", False)
    found = {share: cell for share, cell in levels.items() if all(key in cell.rows for key in keys)}
    if not found:
        return "One of both has not been run yet."
    rows = [[side, *(signed(_gain(cell, keys[0], side, keys[1])) for cell in found.values())] for side in SIDES[::-1]]
    return format_table(["side", *(f"{share:.0%}" for share in found)], rows)


def _gain(cell: Cell, key: Key, side: str, reference: Key = REFERENCE) -> Interval | None:
    if key == reference or key not in cell.rows or reference not in cell.rows:
        return None
    return cell.gain(cell.rows[key], cell.rows[reference], side)


def summary_table(pairs: Mapping[str, Levels]) -> str:
    """Methods over all pairs: mean gains in points at the most noise, and verdicts at any noise."""
    most = max(SHARES)
    rows = []
    for key in dict.fromkeys(key for levels in pairs.values() for key in keys_of(levels)):
        cells = [levels[most] for levels in pairs.values() if most in levels]
        noisy = [cell for levels in pairs.values() for share, cell in levels.items() if share > 0]
        counts = verdicts(noisy, key, REFERENCE).values()
        row = [title_of(key)]
        for side in SIDES[::-1]:
            gains = [gain.value for cell in cells if (gain := _gain(cell, key, side)) is not None]
            row.append(f"{100 * fmean(gains):+.1f}" if gains else "")
        rows.append([*row, "–".join(map(str, counts)) if any(counts) else ""])
    return format_table(["method", *(f"{side} gain at {most:.0%}" for side in SIDES[::-1]), "with noise"], rows)


def summary(pairs: Mapping[str, Levels]) -> str:
    """The table over all pairs."""
    machines = sorted({machine for levels in pairs.values() for cell in levels.values() for machine in cell.machines})
    return f"Machine: {'; '.join(machines)}.\n\n## Gains over domain only, in points\n\n{summary_table(pairs)}"


def show_pair(pair: str, levels: Levels) -> str:
    """The tables of a pair."""
    return "\n\n".join(
        [
            f"## {PAIRS[pair].title}",
            "### Gain over domain only, on the domain\n\n" + gain_table(levels, "domain"),
            "### Gain over domain only, on the general side\n\n" + gain_table(levels, "general"),
            "### Gain of the rise over constant 0.5\n\n" + order_table(levels),
        ]
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pair", nargs="+", choices=NOISE_PAIRS, help="all tables of some pairs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    found = Store(args.results).load()
    pairs = {pair: levels for pair in NOISE_PAIRS if pair in found and (levels := levels_of(found[pair]))}
    if args.pair is None:
        print(summary(pairs))
    else:
        print("\n\n".join(show_pair(pair, pairs[pair]) for pair in args.pair))
    return 0


if __name__ == "__main__":
    sys.exit(main())
