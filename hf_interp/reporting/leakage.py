"""What is told of an audit: what M_α tells of its training rows, and what it is worth, over α. No torch."""

from collections.abc import Mapping
from typing import Any

from hf_interp.reporting.charts import Chart, Series
from hf_interp.reporting.colours import DOMAIN, other_style
from hf_interp.reporting.curve import number, short_alpha

AUDIT_PLOT_NAME = "audit.png"
ATTACKS = {"loss": "loss", "calibrated": "loss against M₀'s"}
TITLES = {"auc": "AUC", "tpr_at_1_percent": "TPR at 1% FPR", "tpr_at_0.1_percent": "TPR at 0.1% FPR"}


def leak_table(audit: Mapping[str, Any]) -> list[list[str]]:
    """Return by α the metric on rows that were not trained on, and how well each attack finds those that were."""
    rows = [["α", f"{audit['set']} {audit['metric']}", "attack by", *TITLES.values()]]
    for point in audit["points"]:
        for attack, words in ATTACKS.items():
            cells = [point[attack][key] for key in TITLES]
            shown = [f"{number(one['value'])} ({number(one['low'])} to {number(one['high'])})" for one in cells]
            rows.append([short_alpha(point["alpha"]), number(point["utility"]["value"]), words, *shown])
    return rows


def describe_audit(audit: Mapping[str, Any]) -> str:
    """Return in a sentence which rows were told apart."""
    sizes = audit["num_examples"]
    share = "1%" if sizes["others"] < 100 else "0.1%" if sizes["others"] < 1000 else ""
    fewest = f"; {share} of {sizes['others']:,} is less than one row, so that none may be a false positive there"
    return (
        f"{sizes['members']:,} rows of {audit['corpus']} that the run has read against {sizes['others']:,} of the set "
        f"{audit['set']} that it has not ({sizes['left_out']:,} stand in both and are left out); an AUC of 0.5 is "
        f"guessing{fewest if share else ''}."
    )


def leak_charts(audit: Mapping[str, Any]) -> list[Chart]:
    """Return the AUC of each attack over α, and the metric against that of the better attack."""
    points = audit["points"]
    over = Chart(title="What M_α tells of its training rows", x_name="α", y_name="AUC of membership inference")
    for index, (attack, words) in enumerate(ATTACKS.items()):
        found = [(point["alpha"], point[attack]["auc"]) for point in points]
        series = Series(
            label=f"by the {words}, with 95% intervals",
            points=[(alpha, one["value"]) for alpha, one in found],
            low=[one["low"] for _, one in found],
            high=[one["high"] for _, one in found],
            style=other_style(index),
        )
        over.series.append(series)
    against = Chart(title="What it is worth against what it tells", x_name="AUC of the better attack", y_name="")
    against.y_name = f"{audit['set']} {audit['metric']}"
    best = [max(point[attack]["auc"]["value"] for attack in ATTACKS) for point in points]
    path = [(leak, point["utility"]["value"]) for leak, point in zip(best, points, strict=True)]
    against.series = [
        Series(label="M_α along α", points=path, style={"color": DOMAIN, "linestyle": "-", "marker": "o"})
    ]
    against.notes = [(path[0], "M₀"), (path[-1], "M_θ")]
    against.spare_notes = [(place, short_alpha(point["alpha"])) for place, point in zip(path, points, strict=True)]
    return [over, against]
