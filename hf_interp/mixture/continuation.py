"""Going on with a run: what a checkpoint's plan has consumed, carried over into the plan of the present settings.

With the same settings the saved plan itself goes on. With others, the saved one is closed at the step of the checkpoint
and the new one opens at the counts it has consumed, so that inside a pass nothing is lost and nothing read twice.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan


class Continuation(NamedTuple):
    """The plan of a run that goes on, and in words how it differs from the checkpoint's settings."""

    plan: MixturePlan
    changes: list[str]


def continue_plan(fresh: MixturePlan, saved: Mapping[str, Any], step: int) -> Continuation:
    """Return the plan of a run that is resumed at `step`.

    Args:
        fresh: the plan of the present settings, from step 0.
        saved: the plan in the checkpoint (`MixturePlan.to_dict`).
        step: optimizer steps taken before the checkpoint.

    Raises:
        ValueError: if the change would lose or repeat examples: another seed, a corpus with other contents or another
            length, no step left, another order of reading, a step inside a window of lengths.
    """
    old = MixturePlan.from_dict(saved)
    if old.seed != fresh.seed:
        raise ValueError(
            f"The seed of the data was {old.seed} and is now {fresh.seed}: every corpus would be shuffled anew in the "
            f"middle of a pass, so that examples would be lost and others read twice. Set `data_seed` to {old.seed}."
        )
    _check_contents(old, fresh)
    changes = plan_changes(old, fresh)
    if not changes:
        kept = zip(old.corpora, fresh.corpora, strict=True)
        old.corpora = tuple(replace(was, max_passes=now.max_passes) for was, now in kept)  # which no plan is known by
        old.order = fresh.order  # with the lengths, which no plan holds
        return Continuation(old, [])
    if step >= fresh.max_steps:
        raise ValueError(
            f"The checkpoint is at step {step} and `max_steps` is now {fresh.max_steps}: no step is left. Raise "
            "`max_steps`, or start a new run from the checkpoint's weights (from_pretrained)."
        )
    _check_order(old, fresh, step)
    return Continuation(fresh.after(old, step), changes)


def _check_order(old: MixturePlan, fresh: MixturePlan, step: int) -> None:
    """Refuse a change at a place where what has been read of a pass is not its beginning in the new order."""
    if old.order.sampling != fresh.order.sampling:
        raise ValueError(
            f"The sampling of the mixture was {old.order.sampling!r} and is now {fresh.order.sampling!r}, which reads "
            "a pass in another order: examples would be lost and others read twice. Leave it as it was."
        )
    into = (step - old.start_step) % (old.order.window or 1)
    if into and step < old.max_steps:
        raise ValueError(
            f"The checkpoint is at step {step}, {into} steps into a window of {old.order.window} that share out their "
            "examples by length, and its settings change. Resume with the settings it had, or from a checkpoint at a "
            f"multiple of {old.order.window} steps."
        )


def _check_contents(old: MixturePlan, fresh: MixturePlan) -> None:
    """Refuse contents that have changed: a corpus is known by its name through all the plans of a run."""
    known: dict[str, CorpusSpec] = {}
    plan: MixturePlan | None = old
    while plan is not None:
        for corpus in plan.corpora:
            known.setdefault(corpus.name, corpus)
        plan = plan.previous
    for corpus in fresh.corpora:
        before = known.get(corpus.name)
        if before is None:
            continue
        if before.num_examples != corpus.num_examples:
            raise ValueError(
                f"Corpus {corpus.name!r} had {_length(before)} when the checkpoint was written and has "
                f"{_length(corpus)} now, so that what is left of its pass cannot be told. Restore the data, or give "
                "the changed corpus another name: it is then read from its beginning."
            )
        if None not in (before.content, corpus.content) and before.content != corpus.content:
            raise ValueError(
                f"Corpus {corpus.name!r} has as many examples as when the checkpoint was written, but others (content "
                f"{before.content} then, {corpus.content} now). Restore the data, or give the changed corpus another "
                "name: it is then read from its beginning."
            )


def plan_changes(old: MixturePlan, new: MixturePlan) -> list[str]:
    """Return in words in which settings two plans differ."""
    was, now = old.identity(), new.identity()
    found = []
    before = {corpus["name"]: corpus for corpus in was["corpora"]}
    after = {corpus["name"]: corpus for corpus in now["corpora"]}
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            found.append(f"corpus {name!r} removed")
        elif name not in before:
            found.append(f"corpus {name!r} added")
        else:
            for key in ("side", "num_examples", "share", "content"):
                # a share that moves is told with the path
                unknown = key in ("content", "share") and None in (before[name][key], after[name][key])
                if before[name][key] != after[name][key] and not unknown:
                    found.append(f"{key} of corpus {name!r}: {_show(before[name][key])} -> {_show(after[name][key])}")
    if not found and list(before) != list(after):
        found.append(f"order of the corpora: {list(before)} -> {list(after)}")
    titles = {"batch_size": "global batch", "max_steps": "`max_steps`", "unit": "unit of the mixture", "seed": "seed"}
    for key, title in titles.items():
        if was[key] != now[key]:
            found.append(f"{title}: {was[key]} -> {now[key]}")
    if was["alpha_sha256"] != now["alpha_sha256"] and was["max_steps"] == now["max_steps"]:
        found.append("the schedule of α")
    if old.order != new.order:
        found.append(f"order: {old.order} -> {new.order}")
    if was.get("path") != now.get("path"):
        found.append("the path of mixtures")
    if was["adaptive"] != now["adaptive"]:
        found.append("α adaptive: " + " -> ".join("yes" if state["adaptive"] else "no" for state in (was, now)))
    if was["mean_tokens"] != now["mean_tokens"] and was["unit"] == now["unit"] and list(before) == list(after):
        found.append(f"mean tokens: {was['mean_tokens']} -> {now['mean_tokens']}")
    return found


def _length(corpus: CorpusSpec) -> str:
    return "no length (a stream)" if corpus.num_examples is None else f"{corpus.num_examples:,} examples"


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
