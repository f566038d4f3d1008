"""What the runs with flipped labels say so far, as tables; docs/evidence.md says what they mean.

python tests/benchmarks/effect/noise_table.py                              # over both pairs
python tests/benchmarks/effect/noise_table.py --pair sentiment-finance     # every number of a pair
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from effect.cells import Cell, Row, row_of, spread_counts
from effect.methods import BASE
from effect.noise import PAIRS as NOISE_PAIRS
from effect.noise import RESULTS, SEEDS, SHARES, SIZE, TITLES
from effect.pairs import PAIRS, SIDES
from effect.stats import Interval, judge, span
from effect.store import Store
from effect.summary import VERDICTS
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


def level_table(levels: Levels, show: Callable[[Cell, Row], str], *, leave_out: Iterable[Key] = ()) -> str:
    """A row for each method, a column for each share of flipped labels."""
    rows = []
    for key in keys_of(levels):
        if key not in leave_out:
            found = [(cell, cell.rows.get(key)) for cell in levels.values()]
            rows.append([title_of(key), *("" if row is None else show(cell, row) for cell, row in found)])
    return format_table(["method", *(f"{share:.0%}" for share in levels)], rows)


def accuracy_table(levels: Levels, side: str) -> str:
    """Accuracy on a side, with its interval."""

    def show(cell: Cell, row: Row) -> str:
        found = cell.interval(row, side)
        return f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})"

    return level_table(levels, show)


def gain_table(levels: Levels, side: str) -> str:
    """By how much methods are better than the reference at the same noise; what is sure is bold."""

    def show(cell: Cell, row: Row) -> str:
        reference = cell.rows.get(REFERENCE)
        return "" if reference is None else _signed(cell.gain(row, reference, side))

    return level_table(levels, show, leave_out=[REFERENCE])


def fall_table(levels: Levels) -> str:
    """By how much accuracy on the domain is worse than the same method's with clean labels; what is sure is bold."""
    clean = levels.get(0.0)
    noisy = {share: cell for share, cell in levels.items() if share > 0}
    if clean is None or not noisy:
        return "There are no runs with clean and with noisy labels yet."

    def show(cell: Cell, row: Row) -> str:
        before = clean.rows.get((row.method, row.is_interpolated))
        return "" if before is None else _signed(cell.gain(row, before, "domain"))

    return level_table(noisy, show, leave_out=[(BASE, False)])


def order_table(levels: Levels) -> str:
    """By how much the rise is better than the constant mixture that reads as much of the domain; sure ones are bold."""
    keys = ("linear", False), ("constant-0.5", False)
    found = {share: cell for share, cell in levels.items() if all(key in cell.rows for key in keys)}
    if not found:
        return "One of both has not been run yet."
    rows = [
        [side, *(_signed(cell.gain(cell.rows[keys[0]], cell.rows[keys[1]], side)) for cell in found.values())]
        for side in ("domain", "general")
    ]
    return format_table(["side", *(f"{share:.0%}" for share in found)], rows)


def _signed(found: Interval | None) -> str:
    if found is None:
        return ""
    text = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def summary_table(pairs: Mapping[str, Levels]) -> str:
    """Methods over all pairs at the most noise, and against the reference at any noise."""
    most = max(SHARES)
    keys = list(dict.fromkeys(key for levels in pairs.values() for key in keys_of(levels)))
    rows = []
    for key in keys:
        cells = [levels[most] for levels in pairs.values() if most in levels and key in levels[most].rows]
        gains = {side: [gain for cell in cells if (gain := _gain(cell, key, side)) is not None] for side in SIDES}
        rows.append(
            [
                title_of(key),
                *(_points([gain.value for gain in gains[side]]) for side in ("domain", "general")),
                _verdicts(pairs, key),
                *(_weights(pairs, key, share) for share in (0.0, most)),
            ]
        )
    header = ["method", f"domain gain at {most:.0%}", f"general gain at {most:.0%}", "with noise"]
    return format_table([*header, "α of weights, clean", f"α of weights, {most:.0%}"], rows)


def _gain(cell: Cell, key: Key, side: str) -> Interval | None:
    if key == REFERENCE or key not in cell.rows or REFERENCE not in cell.rows:
        return None
    return cell.gain(cell.rows[key], cell.rows[REFERENCE], side)


def _verdicts(pairs: Mapping[str, Levels], key: Key) -> str:
    counts = dict.fromkeys(VERDICTS, 0)
    for cell in (cell for levels in pairs.values() for share, cell in levels.items() if share > 0):
        gains = {side: gain for side in SIDES if (gain := _gain(cell, key, side)) is not None}
        if len(gains) == len(SIDES):
            counts[judge(gains)] += 1
    return "–".join(map(str, counts.values())) if any(counts.values()) else ""


def _points(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):+.1f}" if values else ""


def _weights(pairs: Mapping[str, Levels], key: Key, share: float) -> str:
    found = [levels[share].rows[key] for levels in pairs.values() if share in levels and key in levels[share].rows]
    alphas = [alpha for row in found for alpha in row.alphas]
    return f"{fmean(alphas):.2f}" if alphas else ""


def what_holds(pairs: Mapping[str, Levels]) -> str:
    """Which rows are surely better or worse on the domain at the most noise than the reference and than M₀, by pair."""
    most = max(SHARES)
    lines = []
    for pair, levels in pairs.items():
        if most not in levels or REFERENCE not in levels[most].rows:
            continue
        seeds = len(levels[most].rows[REFERENCE].seeds)
        lines.append(f"{PAIRS[pair].title[0].upper()}{PAIRS[pair].title[1:]} ({seeds} seed{'s' if seeds > 1 else ''}):")
        lines += ["", *(_sides_of(levels[most], reference) for reference in (REFERENCE, (BASE, False))), ""]
    return "\n".join(lines).rstrip() if lines else f"There are no runs at {most:.0%} yet."


def _sides_of(cell: Cell, reference: Key) -> str:
    """Which rows of a cell are surely better than another on the domain, and which surely worse."""
    found: dict[str, list[str]] = {"surely better": [], "surely worse": [], "no sure difference": []}
    for key in keys_of({0.0: cell}):
        gain = None if key == reference else cell.gain(cell.rows[key], cell.rows[reference], "domain")
        if gain is not None:
            verdict = "surely better" if gain.low > 0 else "surely worse" if gain.high < 0 else "no sure difference"
            found[verdict].append(f"*{title_of(key)}*")
    said = "; ".join(f"{verdict}: {', '.join(titles) or 'none'}" for verdict, titles in found.items())
    return f"- than *{title_of(reference)}*: {said}."


def summary(pairs: Mapping[str, Levels]) -> str:
    """The tables over all pairs."""
    machines = sorted({machine for levels in pairs.values() for cell in levels.values() for machine in cell.machines})
    return "\n\n".join(
        [
            f"Machine: {'; '.join(machines)}.",
            "## What has been run\n\n" + count_table(pairs),
            f"## What holds on the domain at {max(SHARES):.0%} noise\n\n{what_holds(pairs)}",
            "## Gains over domain only, in points\n\n" + summary_table(pairs),
        ]
    )


def show_pair(pair: str, levels: Levels) -> str:
    """The tables of a pair."""
    return "\n\n".join(
        [
            f"## {PAIRS[pair].title}",
            "### Accuracy on the domain\n\n" + accuracy_table(levels, "domain"),
            "### Accuracy on the general side\n\n" + accuracy_table(levels, "general"),
            "### Gain over domain only, on the domain\n\n" + gain_table(levels, "domain"),
            "### Gain over domain only, on the general side\n\n" + gain_table(levels, "general"),
            "### Change of the domain's accuracy from clean labels\n\n" + fall_table(levels),
            "### Gain of the rise over constant 0.5\n\n" + order_table(levels),
        ]
    )


def count_table(pairs: Mapping[str, Levels]) -> str:
    """How many methods and seeds there are."""
    rows = []
    for pair in NOISE_PAIRS:
        row = [PAIRS[pair].title]
        for share in sorted(SHARES):
            cell = pairs.get(pair, {}).get(share)
            trained = [] if cell is None else [one for one in cell.rows.values() if not one.is_interpolated]
            seeds = [len(one.seeds) for one in trained if one.method != BASE]
            row.append(
                f"{len(seeds)} of {len(TITLES)} methods, {span(seeds)} of {len(SEEDS)} seeds" if seeds else "no runs"
            )
        rows.append(row)
    return format_table(["pair", *(f"{share:.0%}" for share in sorted(SHARES))], rows)


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
