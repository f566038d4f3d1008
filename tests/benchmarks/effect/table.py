"""The results so far, as tables on the screen and as figures; docs/evidence.md says what they mean.

python tests/benchmarks/effect/table.py                            # every table over all cells
python tests/benchmarks/effect/table.py --table order rates        # some of them
python tests/benchmarks/effect/table.py --cell sentiment-finance/300 lm-law/full
python tests/benchmarks/effect/table.py --figures docs/img         # draw pairs.png, sizes.png and order.png
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from effect import side_weights
from effect.cells import Cell, cells_of
from effect.methods import BASE, CONSTANTS, METHODS, REFERENCES
from effect.pairs import DOMAIN, FULL, GENERAL, PAIRS, SIDES, SIZES, UNSEEN, size_text
from effect.run import RESULTS
from effect.stats import Interval, signed, span
from effect.store import Store
from effect.summary import CONTROLS, VERDICTS, Gain, equal_rate_gains, summarise, verdicts
from hf_interp.utils.console import format_table

Results = Mapping[str, Sequence[Mapping[str, Any]]]
*MIXTURES, PLAIN = CONSTANTS
MADE = "self-0.5"
AMOUNTS = [
    (size, method) for size in sorted(SIZES, key=lambda size: (size == FULL, size)) for method in (*MIXTURES, "linear")
]
"""The rows of the tables on the amount of domain data."""
# Tables.


def seen(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of pairs on which choices were made, which all tables but one are about."""
    return [cell for cell in cells if cell.pair not in UNSEEN]


def summary_table(cells: Sequence[Cell]) -> str:
    """All methods over all cells."""
    rows = [
        [
            found.title,
            str(found.num_cells),
            *(_counts(found.verdicts[reference]) for reference in REFERENCES),
            "" if found.volume is None else f"{found.volume:.3f}",
            *(["", "", ""] if found.rank is None else [f"{rank:.1f}" for rank in found.rank]),
        ]
        for found in summarise(cells)
    ]
    header = ["method", "cells", *(f"against {METHODS[reference].title}" for reference in REFERENCES)]
    header += ["hypervolume", "rank", "domain rank", "general rank"]
    return format_table(header, rows) if rows else "No cell has both references yet."


def order_table(cells: Sequence[Cell]) -> str:
    """Methods whose mixture moves against the constant mixture that reads as many domain examples."""
    rows = []
    for method, control in CONTROLS.items():
        columns = _gain_columns(cells, method, control)
        if columns is not None:
            rows.append([METHODS[method].title, METHODS[control].title, *columns])
    return format_table(["method", "control", *GAIN_COLUMNS, "against control"], rows) if rows else NOTHING_YET


def _mean_gain(cells: Sequence[Cell], method: str, control: str, side: str) -> str:
    gains = [cell.gain(cell.rows[method, False], cell.rows[control, False], side) for cell in cells]
    known = [gain.value for gain in gains if gain is not None]
    if not known:
        return ""
    return f"{fmean(known):+.3f}" if PAIRS[cells[0].pair].metric == "loss" else f"{100 * fmean(known):+.1f}"


def amount_table(cells: Sequence[Cell]) -> str:
    """Constant mixtures and the rise against domain only, by the number of domain examples."""
    rows = []
    for size, method in AMOUNTS:
        columns = _gain_columns([cell for cell in cells if cell.size == size], method, PLAIN)
        if columns is not None:
            rows.append([size_text(size), METHODS[method].title, *columns])
    return format_table(["examples", "method", *GAIN_COLUMNS, "against domain only"], rows) if rows else NOTHING_YET


def domain_table(cells: Sequence[Cell]) -> str:
    """The same for the domain alone.

    Args:
        cells: with the learning rates that the domain's validation set chooses.
    """
    rows = []
    for size, method in AMOUNTS:
        both = [cell for cell in cells if cell.size == size and {(method, False), (PLAIN, False)} <= set(cell.rows)]
        gains = [cell.gain(cell.rows[method, False], cell.rows[PLAIN, False], DOMAIN) for cell in both]
        known = [gain for gain in gains if gain is not None]
        if known:
            means = [
                _mean_gain(
                    [cell for cell in both if (PAIRS[cell.pair].metric == "loss") == is_loss], method, PLAIN, DOMAIN
                )
                for is_loss in (False, True)
            ]
            better, worse = sum(gain.low > 0 for gain in known), sum(gain.high < 0 for gain in known)
            counts = f"{better}–{len(known) - better - worse}–{worse}"
            seeds = span([len(_common_seeds(cell, method, PLAIN)) for cell in both])
            rows.append([size_text(size), METHODS[method].title, str(len(known)), seeds, *means, counts])
    header = ["examples", "method", "cells", "seeds", "domain, points", "domain, nats", "better–unsure–worse"]
    return format_table(header, rows) if rows else NOTHING_YET


def _common_seeds(cell: Cell, method: str, other: str) -> set[int]:
    return set(cell.rows[method, False].seeds) & set(cell.rows[other, False].seeds)


def _gain_columns(cells: Sequence[Cell], method: str, control: str) -> list[str] | None:
    """Mean gains of a method over another, and its verdicts; `None` if no cell has both."""
    both = [cell for cell in cells if (method, False) in cell.rows and (control, False) in cell.rows]
    if not both:
        return None
    means = [
        _mean_gain([cell for cell in both if (PAIRS[cell.pair].metric == "loss") == is_loss], method, control, side)
        for is_loss in (False, True)
        for side in (DOMAIN, GENERAL)
    ]
    return [str(len(both)), *means, _counts(verdicts(both, (method, False), (control, False)))]


def equal_rate_table(results: Results) -> str:
    """The same at equal learning rates, over all runs that have one of the control.

    A cell is the mean over pairs of corpora, with its standard error over pairs in brackets.
    """
    rows = []
    for method, control in CONTROLS.items():
        found = [equal_rate_gains(results, method, control, is_loss=is_loss) for is_loss in (False, True)]
        if any(found):
            row = [METHODS[method].title, METHODS[control].title]
            for sides, factor in zip(found, (100, 1), strict=True):
                row += [f"{sides[DOMAIN].num_pairs} pairs, {sides[DOMAIN].num_runs} runs" if sides else ""]
                row += [_gain_text(sides[side], factor) if sides else "" for side in (DOMAIN, GENERAL)]
            rows.append(row)
    header = ["method", "control", "by accuracy or F1", "domain, points", "general, points"]
    header += ["by loss", "domain, nats", "general, nats"]
    return format_table(header, rows) if rows else NOTHING_YET


def _gain_text(gain: Gain, factor: int) -> str:
    decimals = 1 if factor == 100 else 3
    error = "" if gain.error is None else f" ({factor * gain.error:.{decimals}f})"
    return f"{factor * gain.value:+.{decimals}f}{error}"


def trade_off_table(cells: Sequence[Cell]) -> str:
    """Every method's trade-off, M_θ or M_α of one run, against constant mixtures (see `side_weights`)."""
    rows = []
    for method in METHODS.values():
        row = [method.title]
        for reference in side_weights.REFERENCES.values():
            found = [(cell, side_weights.gain(cell, method.key, reference)) for cell in cells]
            row += _kinds([(cell, gain) for cell, gain in found if gain is not None])
        if any(row[1:]):
            rows.append(row)
    header = [
        "method",
        *(f"{name}{title}" for title in side_weights.REFERENCES for name in ("points over ", "nats over ", "against ")),
    ]
    return format_table(header, rows) if rows else "No cell has all constant mixtures yet."


def _kinds(found: Sequence[tuple[Cell, Interval]]) -> list[str]:
    """Return the mean gain in points and in nats, and how many are surely better, level and surely worse."""
    columns = []
    for is_loss in (False, True):
        some = [gain.value for cell, gain in found if (PAIRS[cell.pair].metric == "loss") == is_loss]
        columns.append("" if not some else f"{fmean(some):+.3f}" if is_loss else f"{100 * fmean(some):+.1f}")
    above, below = sum(gain.low > 0 for _, gain in found), sum(gain.high < 0 for _, gain in found)
    return [*columns, f"{above}–{len(found) - above - below}–{below}" if found else ""]


def self_table(cells: Sequence[Cell]) -> str:
    """What a general side made by M₀ keeps, beside real general data, distillation on the domain alone, and nothing."""
    chosen = [cell for cell in cells if (MADE, False) in cell.rows]
    rows = []
    for method in (PLAIN, "distill", "constant-0.5", MADE, "kl-0.25-mean", "self-0.25-mean"):
        row = [METHODS[method].title]
        for is_loss in (False, True):
            group = [cell for cell in chosen if (PAIRS[cell.pair].metric == "loss") == is_loss]
            known = bool(group) and all((method, False) in cell.rows for cell in group)
            for side, reference, sign in ((DOMAIN, PLAIN, 1), (GENERAL, BASE, -1)):
                gains = [sign * _seeded_gain(cell, method, reference, side) for cell in group] if known else []
                row.append("" if not gains else f"{fmean(gains):+.3f}" if is_loss else f"{100 * fmean(gains):+.1f}")
        both = [cell for cell in chosen if (method, False) in cell.rows]
        counts = [_counts(verdicts(both, (method, False), (key, False))) for key in (PLAIN, "distill")]
        rows.append([*row, *counts])
    header = [f"{name}, {unit}" for unit in ("points", "nats") for name in ("domain gain", "general lost")]
    against = [f"against {METHODS[key].title}" for key in (PLAIN, "distill")]
    return format_table(["method", *header, *against], rows) if chosen else NOTHING_YET


def _seeded_gain(cell: Cell, method: str, reference: str, side: str) -> float:
    """Return the gain of a method by the seeds that the general side made by M₀ has."""
    ours, other = (cell.rows[key, False].of_seeds(cell.rows[MADE, False].seeds) for key in (method, reference))
    return cell.sign * (ours.value(side) - other.value(side))


def cell_table(cell: Cell) -> str:
    """All methods in a cell; differences are turned so that above 0 is better."""
    base = cell.rows[BASE, False]
    rows = []
    for row in cell.rows.values():
        others = [other if (other := cell.rows.get((key, False))) is not row else None for key in REFERENCES]
        gains = [
            signed(None if other is None else cell.gain(row, other, side))
            for other in others
            for side in (DOMAIN, GENERAL)
        ]
        kept = cell.gain(row, base, GENERAL)
        rows.append(
            [
                row.title,
                *("{:.3f} ({:.3f}–{:.3f})".format(*cell.interval(row, side)) for side in (DOMAIN, GENERAL)),
                "" if row.method == BASE or kept is None else f"{0.0 - kept.value:+.3f}",
                *gains,
                f"{fmean(row.alphas):.2f}" if row.alphas else "",
                f"{row.rate:g}" if row.rate else "",
                "" if row.method == BASE else str(len(row.seeds)),
                f"{min(row.seconds):.0f}" if row.seconds and not row.is_interpolated else "",
            ]
        )
    header = ["method", "domain", "general", "forgetting"]
    header += [f"{side} gain over {METHODS[key].title}" for key in REFERENCES for side in (DOMAIN, GENERAL)]
    return format_table([*header, "α of weights", "rate", "seeds", "processor, s"], rows)


def _counts(counts: Mapping[str, int]) -> str:
    return "–".join(str(counts[verdict]) for verdict in VERDICTS) if any(counts.values()) else ""


GAIN_COLUMNS = ("cells", "domain, points", "general, points", "domain, nats", "general, nats")
NOTHING_YET = "No method and its control have been run yet."
METRICS = {"accuracy": "accuracy", "f1": "F1 of entities", "loss": "loss in nats a token, of which less is better"}


def notes(results: Results, cells: Sequence[Cell]) -> str:
    """What the runs have in common: machines, precision, and whether the grids of learning rates were wide enough."""
    machines = sorted({machine for cell in cells for machine in cell.machines})
    trained = [entry for entries in results.values() for entry in entries if entry["method"] != BASE]
    # The first runs did not say; all of them were computed in bfloat16.
    bf16 = sum(entry.get("precision", "bf16") == "bf16" for entry in trained)
    return "\n".join(
        [
            f"{len(trained)} runs, {bf16} of them with bfloat16 autocast, the others in float32. "
            f"Machine: {'; '.join(machines)}.",
            edge_note(cells),
        ]
    )


def edge_note(cells: Sequence[Cell]) -> str:
    """How often the best learning rate lies at an end of those tried, where a better one may lie beyond."""
    found = [one for cell in cells for one in cell.searches.values()]
    low, high = (sum(one.best == one.tried[end] for one in found) for end in (0, -1))
    return f"Of {len(found)} chosen learning rates {low} are the lowest and {high} the highest of those tried."


TABLES: dict[str, tuple[str, Callable[[Results, Sequence[Cell]], str]]] = {
    "notes": ("What the runs have in common", notes),
    "all": ("All cells together", lambda results, cells: summary_table(cells)),
    "amount": ("How much domain data?", lambda results, cells: amount_table(cells)),
    "domain": (
        "How much, if nothing but the domain counts?",
        lambda results, cells: domain_table(seen(cells_of(results, rate_sides=[DOMAIN]))),
    ),
    "trade-off": (
        "Is one run's trade-off better? With 300 domain examples",
        lambda results, cells: trade_off_table([cell for cell in cells if cell.size == 300]),
    ),
    "trade-off-full": (
        "The same with all domain examples",
        lambda results, cells: trade_off_table([cell for cell in cells if cell.size == FULL]),
    ),
    "unseen": (
        "The same on pairs on which no choice was made",
        lambda results, cells: trade_off_table([cell for cell in cells_of(results) if cell.pair in UNSEEN]),
    ),
    "self": ("Can M₀ make the general side?", lambda results, cells: self_table(cells)),
    "order": ("Does the order matter?", lambda results, cells: order_table(cells)),
    "rates": (
        "Does the order matter at equal learning rates? (Standard errors over pairs in brackets)",
        lambda results, cells: equal_rate_table(results),
    ),
}
"""Name on the command line → title, and what makes the table."""


def show_cell(cell: Cell) -> str:
    """All methods in a cell, with its title."""
    pair = PAIRS[cell.pair]
    return (
        f"## {pair.title}, {size_text(cell.size)} domain examples\n\n"
        f"{pair.steps} steps of {pair.batch_size}; metric: {METRICS[pair.metric]}.\n\n{cell_table(cell)}"
    )


def draw_figures(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Draw what there is; returns the names of the files."""
    from effect import figures

    return [name for name, draw in figures.FIGURES.items() if draw(cells, folder / name)]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="whose validation sets choose the learning rates"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--table", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    shown.add_argument("--cell", nargs="+", metavar="PAIR/SIZE", help="all methods of some cells")
    shown.add_argument("--figures", type=Path, metavar="FOLDER", help="draw the figures into a folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    results = Store(args.results).load()
    cells = cells_of(results, args.sides)
    if args.figures is not None:
        print(f"Drawn in {args.figures}: {', '.join(draw_figures(seen(cells), args.figures)) or 'nothing'}.")
    elif args.cell is not None:
        by_name = {f"{cell.pair}/{cell.size}": cell for cell in cells}
        if unknown := [name for name in args.cell if name not in by_name]:
            raise SystemExit(f"There are no runs of {', '.join(unknown)}. Choose from {', '.join(by_name)}.")
        print("\n\n".join(show_cell(by_name[name]) for name in args.cell))
    else:
        chosen = (TABLES[name] for name in args.table)
        print("\n\n".join(f"## {title}\n\n{make(results, seen(cells))}" for title, make in chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
