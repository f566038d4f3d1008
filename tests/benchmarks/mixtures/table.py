"""The results so far as MIXTURES.md, with its figure.

python tests/benchmarks/mixtures/table.py
python tests/benchmarks/mixtures/table.py --results FOLDER --output FILE.md --figure FILE.png
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from effect.pairs import PAIRS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_interp.reporting.curve import short_alpha
from hf_interp.utils.console import format_table
from hf_interp.utils.files import new_file
from mixtures.schedule import ALPHAS, DEFAULT_PAIRS, SEEDS, plan
from mixtures.scores import (
    MAX_FORGETTING,
    SIDES,
    Array,
    both,
    constrained_regret,
    error,
    rank_correlation,
    regret,
    seed_error,
)
from mixtures.ways import WAYS, Found, Prediction, load

HERE = Path(__file__).parents[1]
RESULTS = HERE / "mixtures_results"
OUTPUT = HERE / "MIXTURES.md"
FIGURE = RESULTS / "curves.png"
COLOURS = {
    "law-4": "#0072B2",
    "matched-4": "#56B4E9",
    "law-2": "#7F7F7F",
    "law-3": "#009E73",
    "adapters": "#D55E00",
    "adapters-4": "#CC79A7",
    "weights": "#E69F00",
}
"""The ways that the figure shows, in colours that colour-blind readers can tell apart (Okabe and Ito's)."""


INTRODUCTION = """# Does the search for a mixture predict?

Made by `python tests/benchmarks/mixtures/table.py` from the files in `mixtures_results`, which
`python tests/benchmarks/mixtures/run.py` writes; {missing} of its runs have not been done. Machine: {machine}.

The pairs, base models and settings are those of [EFFECT.md](EFFECT.md): 300 domain examples, which are the same in all
runs of a pair, and the middle learning rate. All losses are nats a token or a text, for classifiers too.

The *sweep* trains at {num_alphas} constant α and is judged on the test sets. Every way sees validation losses only.

- *Law*: `hf_interp.selection.mixing_law` through runs at 5 α (0, 0.25, 0.5, 0.75, 1) or 3 (0, 0.5, 1), and what it
  chooses; where seeds show that the law misses, and for the domain alone, it takes lines between the means. With all
  steps the runs are the sweep's own.
- *A fourth of the steps and of the data*: what `hf-interp tune --mixture` does. Each run is on a fourth of both
  corpora, other examples for every seed, so that examples are repeated as often as in a full run. *The same runs,
  without the law*: the best of the five α by the mean losses.
- *OP-Mix* (arXiv 2605.15220): LoRA on each side alone with ten times the learning rate, and all steps or a fourth;
  ΔW = (1 − α)·ΔW_general + α·ΔW_domain, exactly, and a classifier's head likewise. The losses of what this gives at the
  sweep's α are the prediction.
- *Two full fine-tunings, merged*: the same with all weights.

*Error*: mean over α of the absolute difference from the sweep, after one constant a side (the median difference);
*raw*: without it, so that it has in it the difference between validation and test sets. *Ranks*: Spearman's correlation
over α. *Regret*: the sweep's loss at the chosen α less its least; between the sweep's α on a straight line.
*Constrained*: the least domain loss with a general loss of at most M₀'s + {most}, of the least + as much where no α
keeps that; *over the limit* is by how much the choice breaks it on the test set, *domain gap* its domain loss less that
of the best α that keeps it. Steps and processor seconds (training, and evaluation on validation) are shares of a
sweep's with as many seeds.

The first two pairs are no independent test of the package's search: the fourth of the data was introduced because the
whole data failed on sentiment-finance, and two rules (for the domain alone the measured losses; where no α keeps the
limit, the least loss sets it) after both pairs had been seen. lm-law and ner-tweets played no part."""


def predictions(found: Found) -> dict[str, Prediction]:
    """What the ways say of a pair, of which the runs are there."""
    said = {key: way.predict(found) for key, way in WAYS.items()}
    return {key: prediction for key, prediction in said.items() if prediction is not None}


def describe_sweep(found: Found) -> str:
    """What is true of a pair, by the sweep."""
    curves = found.curves("test")
    mean = both(curves)
    best = {**{side: ALPHAS[int(np.argmin(curves[side]))] for side in SIDES}, "mean": ALPHAS[int(np.argmin(mean))]}
    lines = [
        [short_alpha(alpha), *(f"{value:.4f}" for value in values)]
        for alpha, *values in zip(ALPHAS, curves["domain"], curves["general"], mean, strict=True)
    ]
    base = found.base["test"]
    lines.insert(0, ["M₀", *(f"{value:.4f}" for value in (base["domain"], base["general"], fmean(base.values())))])
    num_seeds = len(found.seed_curves("test", "domain"))
    own = [(one + other) / 2 for one, other in zip(*(found.seed_curves("test", side) for side in SIDES), strict=True)]
    noise = seed_error(own)
    return "\n\n".join(
        [
            f"{found.steps} steps, {num_seeds} seed{'s' * (num_seeds > 1)}. The sweep, on the test sets:",
            format_table(["α", "domain loss", "general loss", "mean of both"], lines),
            f"Best for the domain at {short_alpha(best['domain'])}, for the general side at "
            f"{short_alpha(best['general'])}, for the mean at {short_alpha(best['mean'])}. The mean of both ranges "
            f"over {np.ptp(mean):.4f}; the standard error of its points, by seeds, is "
            f"{'unknown' if noise is None else format(noise, '.4f')}. An α "
            f"drawn blindly from the sweep's costs {mean.mean() - mean.min():.4f} more than the best.",
        ]
    )


def shape_table(found: Found, said: dict[str, Prediction]) -> str:
    """How well the predicted curves agree with the sweep's."""
    true = found.curves("test")
    rows = []
    for key, prediction in said.items():
        if prediction.curves is not None:
            cells = [f"{error(prediction.curves[side], true[side], shifted=True):.4f}" for side in SIDES]
            cells += [f"{error(prediction.curves[side], true[side], shifted=False):.4f}" for side in SIDES]
            cells += [f"{rank_correlation(prediction.curves[side], true[side]):+.2f}" for side in SIDES]
            cells.append(f"{rank_correlation(both(prediction.curves), both(true)):+.2f}")
            rows.append([WAYS[key].title, *cells])
    header = ["way", "domain error", "general error", "domain, raw", "general, raw", "domain ranks", "general ranks"]
    return format_table([*header, "ranks of the mean"], rows)


def choice_table(found: Found, said: dict[str, Prediction]) -> str:
    """What the ways cost, what they choose, and what the choice costs."""
    curves, whole = found.curves("test"), said["sweep"]
    base = found.base["test"]["general"]
    rows = []
    for key, prediction in said.items():
        breach, gap = constrained_regret(ALPHAS, curves, base, prediction.alphas["constrained"])
        interval = "" if prediction.interval is None else "–".join(map(short_alpha, prediction.interval))
        rows.append(
            [
                WAYS[key].title,
                str(prediction.seeds or ""),
                f"{prediction.steps / whole.steps:.0%}",
                f"{prediction.seconds / whole.seconds:.0%}",
                short_alpha(prediction.alphas["mean"]),
                interval,
                f"{regret(ALPHAS, both(curves), prediction.alphas['mean']):.4f}",
                short_alpha(prediction.alphas["domain"]),
                f"{regret(ALPHAS, curves['domain'], prediction.alphas['domain']):.4f}",
                short_alpha(prediction.alphas["constrained"]),
                f"{breach:.4f}",
                f"{gap:+.4f}",
            ]
        )
    header = ["way", "seeds", "steps", "processor", "α, mean", "95%", "regret", "α, domain", "regret", "α, constrained"]
    return format_table([*header, "over the limit", "domain gap"], rows)


def summary_table(pairs: Sequence[tuple[Found, dict[str, Prediction]]]) -> str:
    """Means over the pairs that have all ways."""
    rows = []
    for key, way in WAYS.items():
        if not all(key in said for _, said in pairs):
            continue
        cases = [(found.curves("test"), said[key], said["sweep"]) for found, said in pairs]
        shapes = [(prediction.curves, true) for true, prediction, _ in cases if prediction.curves is not None]
        own = ["", "", ""]
        if shapes:
            errors = [error(curves[side], true[side], shifted=True) for curves, true in shapes for side in SIDES]
            ranks = [rank_correlation(curves[side], true[side]) for curves, true in shapes for side in SIDES]
            means = [rank_correlation(both(curves), both(true)) for curves, true in shapes]
            own = [f"{fmean(errors):.4f}", f"{fmean(ranks):+.2f}", f"{fmean(means):+.2f}"]
        rows.append(
            [
                way.title,
                f"{fmean(prediction.steps / whole.steps for _, prediction, whole in cases):.0%}",
                f"{fmean(prediction.seconds / whole.seconds for _, prediction, whole in cases):.0%}",
                *own,
                *_mean_and_worst([regret(ALPHAS, both(true), said.alphas["mean"]) for true, said, _ in cases]),
                *_mean_and_worst([regret(ALPHAS, true["domain"], said.alphas["domain"]) for true, said, _ in cases]),
            ]
        )
    blind = [both(true) for true in (found.curves("test") for found, _ in pairs)]
    costs = _mean_and_worst([float(curve.mean() - curve.min()) for curve in blind])
    rows.append(["no search: any of the sweep's α", "0%", "0%", "", "", "", *costs, "", ""])
    header = ["way", "steps", "processor", "error", "ranks", "ranks of the mean", "regret, mean", "worst"]
    return format_table([*header, "regret, domain", "worst"], rows)


def _mean_and_worst(values: Sequence[float]) -> list[str]:
    return [f"{fmean(values):.4f}", f"{max(values):.4f}"]


def draw(pairs: Sequence[tuple[Found, dict[str, Prediction]]], path: Path) -> None:
    """The swept losses, and the predicted curves moved onto them by one constant each."""
    figure = Figure(figsize=(13, 3.2 * len(pairs) + 0.8), layout="constrained")
    panels = figure.subplots(len(pairs), 3, squeeze=False)
    for line, (found, said) in zip(panels, pairs, strict=True):
        true = found.curves("test")
        for axes, name in zip(line, [*SIDES, "mean of both"], strict=True):
            swept = true[name] if name in true else both(true)
            axes.plot(ALPHAS, swept, "ko-", linewidth=1.5, markersize=4, label="the sweep, on test")
            for key, colour in COLOURS.items():
                if key in said:
                    curves = said[key].curves
                    assert curves is not None
                    _moved(axes, curves[name] if name in curves else both(curves), swept, colour, WAYS[key].title)
                    if name not in true:
                        axes.axvline(said[key].alphas["mean"], color=colour, linewidth=0.8, linestyle=":")
            axes.set_title(f"{PAIRS[found.pair].title}: {name}", fontsize=9)
            axes.set_xlabel("α, the domain's share", fontsize=8)
            axes.set_ylabel("loss, nats", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "predicted curves, moved by a constant each; dotted: the α that they choose for the mean", fontsize=10
    )
    figure.savefig(path, dpi=80)


def _moved(axes: Axes, predicted: Array, swept: Array, colour: str, title: str) -> None:
    axes.plot(ALPHAS, predicted - np.median(predicted - swept), "--", color=colour, linewidth=1.2, label=title)


def render(pairs: Sequence[tuple[Found, dict[str, Prediction]]], missing: int, figure: str) -> str:
    """The page."""
    machines = sorted({run["machine"] for found, _ in pairs for run in found.runs})
    parts = [
        INTRODUCTION.format(missing=missing, machine=", ".join(machines), num_alphas=len(ALPHAS), most=MAX_FORGETTING),
        f"## {len(pairs)} pair{'s' * (len(pairs) > 1)} together",
        "Means over pairs (error and ranks also over sides), and the worst pair.",
        summary_table(pairs),
        f"![predicted against swept losses]({figure})",
    ]
    for found, said in pairs:
        parts += [f"## {PAIRS[found.pair].title}", describe_sweep(found), "The curves:", shape_table(found, said)]
        parts += ["The choices:", choice_table(found, said)]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args(argv)
    loaded = [load(pair, args.results) for pair in DEFAULT_PAIRS]
    pairs = [(found, predictions(found)) for found in loaded if found is not None]
    if not pairs:
        raise SystemExit(f"{args.results} has no pair with a whole sweep. Run tests/benchmarks/mixtures/run.py first.")
    missing = sum(not run.path(args.results).exists() for run in plan(DEFAULT_PAIRS, SEEDS))
    draw(pairs, args.figure)
    with new_file(args.output) as file:
        file.write(render(pairs, missing, os.path.relpath(args.figure, args.output.parent)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
