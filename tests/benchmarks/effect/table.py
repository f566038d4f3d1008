"""The results so far as tables and figures: EFFECT.md, PNG files beside this program, and a summary for the README.

python tests/benchmarks/effect/table.py
python tests/benchmarks/effect/table.py --results FOLDER --output FILE.md --figures FOLDER --summary FILE.md
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from effect.cells import Cell, Row, cells_of
from effect.frontier import CONSTANTS, gains
from effect.methods import BASE, METHODS, REFERENCES
from effect.order import CONTROLS, Gain, equal_rate_gains
from effect.pairs import DOMAIN, FULL, GENERAL, PAIRS, SIZES
from effect.schedule import SEEDS, load
from effect.stats import Interval, span
from effect.summary import VERDICTS, Summary, summarise, verdicts
from hf_interp.utils.console import format_table
from hf_interp.utils.files import new_file

HERE = Path(__file__).parent
RESULTS = HERE / "results"
OUTPUT = HERE.parent / "EFFECT.md"
*MIXTURES, PLAIN = CONSTANTS
AMOUNTS = [
    (size, method) for size in sorted(SIZES, key=lambda size: (size == FULL, size)) for method in (*MIXTURES, "linear")
]
"""The rows of the tables on the amount of domain data."""
SHORT = (
    (BASE, False),
    (PLAIN, False),
    (PLAIN, True),
    *((method, False) for method in MIXTURES),
    ("constant-0.5", True),
    ("linear", False),
    ("linear", True),
    *((method, False) for method in ("sequential", "falling", "gradual", "l2sp", "distill", "lora")),
    *((method, False) for method in ("constant-0.5-wsd", "linear-wsd", "late-wsd")),
)
"""The rows of the README's table: methods, and whether M_α."""

# Tables.


def summary_table(cells: Sequence[Cell]) -> str:
    """All methods over all cells."""
    rows = [
        [
            found.title,
            str(found.num_cells),
            *(["", "", ""] if found.rank is None else [f"{rank:.1f}" for rank in found.rank]),
            _volume(found),
            *(_counts(found.verdicts[reference]) for reference in REFERENCES),
            "" if found.time is None else f"{found.time:.2f}",
        ]
        for found in summarise(cells)
    ]
    header = ["method", "cells", "rank", "domain rank", "general rank", "hypervolume"]
    header += [f"against {METHODS[reference].title}" for reference in REFERENCES] + ["time"]
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
            rows.append([_size_text(size), METHODS[method].title, *columns])
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
            rows.append([_size_text(size), METHODS[method].title, str(len(known)), seeds, *means, counts])
    header = ["examples", "method", "cells", "seeds", "domain, points", "domain, nats", "better–unsure–worse"]
    return format_table(header, rows) if rows else NOTHING_YET


def _common_seeds(cell: Cell, method: str, other: str) -> set[int]:
    return set(cell.rows[method, False].seeds) & set(cell.rows[other, False].seeds)


def _size_text(size: int | str) -> str:
    return "all" if isinstance(size, str) else f"{size:,}"


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


def equal_rate_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The same at equal learning rates, over all runs that have one of the control."""
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
    error = "" if gain.error is None else f" ± {factor * gain.error:.{decimals}f}"
    return f"{factor * gain.value:+.{decimals}f}{error}"


def frontier_table(cells: Sequence[Cell]) -> str:
    """Every method against the best constant mixture at its general score, M_θ with M_θ and M_α with M_α."""
    rows = []
    for method in METHODS.values():
        row = [method.title]
        for is_interpolated in (False, True):
            found = [] if method.key in CONSTANTS else gains(cells, method.key, is_interpolated)
            for is_loss in (False, True):
                some = [gain.value for cell, gain in found if (PAIRS[cell.pair].metric == "loss") == is_loss]
                row.append("" if not some else f"{fmean(some):+.3f}" if is_loss else f"{100 * fmean(some):+.1f}")
            above, below = sum(gain.low > 0 for _, gain in found), sum(gain.high < 0 for _, gain in found)
            row.append(f"{above}–{len(found) - above - below}–{below}" if found else "")
        if any(row[1:]):
            rows.append(row)
    header = ["method", "points", "nats", "above–between–below"]
    header += [f"M_α: {name}" for name in header[1:]]
    return format_table(header, rows) if rows else "No cell has all constant mixtures and another method yet."


def cell_table(cell: Cell) -> str:
    """All methods in a cell; differences are turned so that above 0 is better."""
    base = cell.rows[BASE, False]
    rows = []
    for row in cell.rows.values():
        gains = [
            ""
            if row is cell.rows.get((reference, False))
            else _gain(cell, row, cell.rows.get((reference, False)), side)
            for reference in REFERENCES
            for side in (DOMAIN, GENERAL)
        ]
        kept = cell.gain(row, base, GENERAL)
        rows.append(
            [
                row.title,
                *(_interval(cell.interval(row, side)) for side in (DOMAIN, GENERAL)),
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


def _interval(found: Interval) -> str:
    return f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})"


def _gain(cell: Cell, row: Row, reference: Row | None, side: str) -> str:
    found = None if reference is None else cell.gain(row, reference, side)
    if found is None:
        return ""
    text = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def _counts(counts: Mapping[str, int]) -> str:
    return "–".join(str(counts[verdict]) for verdict in VERDICTS) if any(counts.values()) else ""


def missing_runs(cells: Sequence[Cell]) -> str:
    """Which cells have no runs, and how many seeds and methods the others have."""
    there = {(cell.pair, cell.size): cell for cell in cells}
    rows = []
    for pair in PAIRS.values():
        row = [pair.title]
        for size in SIZES:
            cell = there.get((pair.name, size))
            if cell is None:
                row.append("no runs" if size in pair.sizes else "as full")
                continue
            trained = [one for one in cell.rows.values() if one.method != BASE and not one.is_interpolated]
            seeds = span([len(one.seeds) for one in trained])
            row.append(f"{len(trained)} of {len(METHODS)} methods, {seeds} of {len(SEEDS)} seeds")
        rows.append(row)
    return format_table(["pair", *(str(size) for size in SIZES)], rows)


def edge_note(cells: Sequence[Cell]) -> str:
    """How often the best learning rate lies at an end of those tried, where a better one may lie beyond."""
    found = [one for cell in cells for one in cell.searches.values()]
    low, high = (sum(one.best == one.tried[end] for one in found) for end in (0, -1))
    return f"Of {len(found)} chosen learning rates {low} are the lowest and {high} the highest of those tried."


def precision_note(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How many runs were computed in which precision; the first ones did not say, all of them in bfloat16."""
    trained = [entry for entries in results.values() for entry in entries if entry["method"] != BASE]
    count = sum(entry.get("precision", "bf16") == "bf16" for entry in trained)
    return PRECISION.format(count=len(trained), bf16=count)


def report(cells: Sequence[Cell], results: Mapping[str, Sequence[Mapping[str, Any]]], figures: Sequence[str]) -> str:
    """The whole page."""
    machines = sorted({machine for cell in cells for machine in cell.machines})
    parts = [
        INTRODUCTION.format(
            machines="; ".join(machines),
            edges=edge_note(cells),
            resample_note=RESAMPLE_NOTE,
            precision=precision_note(results),
        ),
        "## What has been run\n\n" + missing_runs(cells),
        "## All cells together\n\n" + SUMMARY_NOTE + "\n\n" + summary_table(cells),
        "## How much domain data?\n\n" + AMOUNT_NOTE + "\n\n" + amount_table(cells),
        DOMAIN_NOTE + "\n\n" + domain_table(cells_of(results, rate_sides=[DOMAIN])),
        "## Beyond constant mixtures?\n\n" + FRONTIER_NOTE + "\n\n" + frontier_table(cells),
        "## Does the order matter?\n\n" + ORDER_NOTE + "\n\n" + order_table(cells),
        EQUAL_RATE_NOTE + "\n\n" + equal_rate_table(results),
        *(f"![{name}](effect/{name})" for name in figures),
    ]
    for cell in cells:
        pair = PAIRS[cell.pair]
        parts.append(
            f"## {pair.title}, {_size_text(cell.size)} domain examples\n\n"
            f"{pair.steps} steps of {pair.batch_size}; metric: {METRICS[pair.metric]}.\n\n{cell_table(cell)}"
        )
    return "\n\n".join(parts) + "\n"


GAIN_COLUMNS = ("cells", "domain, points", "general, points", "domain, nats", "general, nats")
NOTHING_YET = "No method and its control have been run yet."
METRICS = {"accuracy": "accuracy", "f1": "F1 of entities", "loss": "loss in nats a token, of which less is better"}
RESAMPLE_NOTE = """Intervals hold the middle 95% of 2,000 resamples of seeds and of test examples, drawn alike for both
methods of a difference. With few seeds they are too narrow: the seeds that were not run are not in them."""
INTRODUCTION = """# Does it help?

Made by `python tests/benchmarks/effect/table.py` from the files in `effect/results`, which
`python tests/benchmarks/effect/run.py` writes. Machine: {machines}.

Every method starts from the same M₀ (the base model after training on the general corpus), takes the same number of
optimizer steps and examples, AdamW with bias correction, 10% warm-up and, where nothing else is said, a linear decay.
Its learning rate is the best by the mean of both sides on validation with seed 0, for every pair and number of domain
examples: of three, and of up to two more beyond an end at which the best lies.
{edges}
A seed decides the order, dropout and which domain examples there are. "+ M_α" is the same run with its weights
interpolated with M₀'s; α is the best of 0, 0.25, 0.5, 0.75 and 1 by the mean of both sides on half of the validation
examples. Classifiers are MiniLM with frozen embeddings, cut to three layers (but all six for intents); language models
are Llamas of three layers, 128 wide, pretrained on the general corpus alone. What the README concludes from all this is
under [Does it help?](../../README.md#does-it-help).

{resample_note}

What else a reader should know:

- A learning rate is chosen on validation with one seed. A high one that is best with it may break down with others, as
  domain only does on the intents and, where the domain chooses, on the airlines with 300 examples. The grids were moved
  once, and the rates beyond their ends added later, after runs whose test scores had been seen.
- With a linear decay of the learning rate a linear rise weighs the domain with 33%, not 50%: what is read last counts
  least. The tables under *Does the order matter?* have the same mixtures with other schedules of the rate.
- The strengths of L2-SP (30) and of distillation (1) were not tuned, nor LoRA's rank (8, learning rates ten times as
  high).
- Domain examples of language models are blocks of 64 tokens. Summaries are measured by their loss, not by ROUGE.
  Intents have one label set for both corpora. A model this small recommends books no better than by chance: that pair
  comes last.
- {precision}
- Seconds are of the processor, in the fastest of a method's runs: the processors differed in speed."""
PRECISION = """Of {count} runs {bf16} were computed with bfloat16 autocast, the others in float32, on processors that do
  not multiply bfloat16. The same runs in the other precision (`run.py --pairs sentiment-airlines lm-law --sizes 1000
  --seeds 0 --methods domain constant-0.5 --results FOLDER`) differed by 0.25 points on average and 1 at the most, and
  by at most 0.0004 nats, without a direction."""
SUMMARY_NOTE = """A cell is a pair at a number of domain examples. *Rank*: the mean over cells of the rank by the mean
of both sides, among the rows that all cells have (1 is best). *Hypervolume*: area that the point (domain, general)
dominates where the worst row of a cell is 0 and the best 1 on each side; with "+ M_α" the area of M_θ and M_α together.
*Against*: wins–trades–ties–losses over cells; a win is surely better (the 95% interval lies above 0) on a side and
surely worse on none, a trade surely better on one side and surely worse on the other. *Time*: of the
processor in training, of the fastest run, as a multiple of domain only's."""
AMOUNT_NOTE = """Mean gains over domain only by the number of domain examples there are, above 0 better; points are
hundredths of accuracy or F1, nats are losses a token; wins–trades–ties–losses as above."""
DOMAIN_NOTE = """And if nothing but the domain counts: every learning rate is that which is best on the domain's
validation set (`run.py --sides domain`), the general side is not looked at. *Seeds*: those that both methods have at
these rates. *Better–unsure–worse*: cells whose 95% interval of the domain gain lies above 0, holds 0, lies below 0."""
FRONTIER_NOTE = """A method that reads more domain data is better on the domain and worse on the general side, for
which no method is needed. Constant mixtures with α = 0.25, 0.5, 0.75 and 1 trace a line of points (domain, general):
the gain is a method's domain score less the best on that line with at least its general score, mean over cells. What
constant mixtures reach bends outwards between the four, so that others of them, those "matched" below, may lie above
the line too. *Above–between–below*: cells whose 95% interval of the gain lies above 0, holds 0, lies below 0. The right
half compares M_α of the method with M_α of the constant mixtures."""
EQUAL_RATE_NOTE = """And at equal learning rates, over every rate, size and seed at which both have been run: mean over
pairs ± its standard error over pairs."""
ORDER_NOTE = """The control reads as many domain examples, evenly mixed. Columns as under *How much domain data?*"""


def summary_section(cells: Sequence[Cell]) -> str:
    """What the README says: some of the methods, without the columns of detail."""
    summaries = {found.key: found for found in summarise(cells)}
    rows = [
        [
            found.title,
            str(found.num_cells),
            *(_counts(found.verdicts[reference]) for reference in REFERENCES),
            _volume(found),
        ]
        for found in (summaries[key] for key in SHORT if key in summaries)
    ]
    counted = [cell for cell in cells if all((key, False) in cell.rows for key in REFERENCES)]
    seeds = [len(row.seeds) for cell in counted for row in cell.rows.values() if row.method != BASE]
    pairs = len({cell.pair for cell in counted})
    header = ["method", "cells", *(f"against {METHODS[reference].title}" for reference in REFERENCES), "hypervolume"]
    return f"{len(counted)} cells of {pairs} pairs, {span(seeds or [0])} seeds each.\n\n{format_table(header, rows)}\n"


def _volume(found: Summary) -> str:
    return "" if found.volume is None else f"{found.volume:.3f}"


# Figures.


def draw_figures(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Draw what there is; returns the names of the files."""
    from effect import figures

    drawn: list[str] = []
    for name, draw in figures.FIGURES.items():
        if draw(cells, folder / name):
            drawn.append(name)
    return drawn


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--figures", type=Path, default=HERE, help="folder of the figures")
    parser.add_argument("--summary", type=Path, help="also write the README's table here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    results = load(args.results)
    cells = cells_of(results)
    with new_file(args.output) as file:
        file.write(report(cells, results, draw_figures(cells, args.figures)))
    if args.summary is not None:
        with new_file(args.summary) as file:
            file.write(summary_section(cells))
    print(f"{len(cells)} cells; {args.output} is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
