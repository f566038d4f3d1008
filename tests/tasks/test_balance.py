"""Groups of a corpus that are read equally often."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from toy_recipes import write_toy_models

from hf_interp.commands.plan import plan_recipe
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.tasks.balance import balance, check_balance
from hf_interp.tasks.recipe import GROUP, CorpusConfig, Recipe


def corpus(name: str, groups: list[Any] | None, rows: int = 0, side: Any = "domain", **fields: Any) -> Corpus:
    columns: dict[str, Any] = {"n": list(range(len(groups or []) or rows))}
    columns |= {f"{GROUP}of": groups} if groups else {}
    return Corpus(name, datasets.Dataset.from_dict(columns), side, **fields)


def test_a_group_is_a_corpus_with_an_equal_share() -> None:
    given = [corpus("ours", ["b", "a", "b", "b"]), corpus("more", None, 12), corpus("old", None, 5, "general")]
    found = balance(given, {"ours": "of", "more": None, "old": None})
    assert [(each.name, each.dataset["n"][:], each.share) for each in found[:2]] == [
        ("ours/a", [1], 0.125),
        ("ours/b", [0, 2, 3], 0.125),
    ]
    assert [(each.name, each.share) for each in found[2:]] == [("more", 0.75), ("old", None)]
    assert found[0].dataset.column_names == ["n"]


def test_shares_that_are_given_are_divided() -> None:
    (one, two, three) = balance([corpus("ours", [3, 1, 2], share=0.6)], {"ours": "of"})
    assert [each.name for each in (one, two, three)] == ["ours/1", "ours/2", "ours/3"]
    assert [each.share for each in (one, two, three)] == [pytest.approx(0.2)] * 3
    moving = balance([corpus("ours", [True, False], share={"general": 0.5, "domain": 1.0})], {"ours": "of"})
    assert [each.share for each in moving] == [{"general": 0.25, "domain": 0.5}] * 2


def test_every_batch_has_as_many_of_each_group() -> None:
    given = [corpus("ours", ["a"] * 3 + ["b"] * 90 + ["c"] * 7), corpus("old", None, 40, "general")]
    found = balance(given, {"ours": "of", "old": None})
    plan = MixturePlan(
        [each.spec() for each in found], alpha_schedule=lambda t: 0.75, max_steps=50, batch_size=8, seed=1
    )
    for step in range(50):
        counts = Counter(plan.locate(range(8 * step, 8 * step + 8)).corpus.tolist())
        assert [counts[index] for index in range(4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", None, "b"], "1 rows without one value"),
        (["a", "", ""], "2 rows without one value"),
        (["a", "a"], "1 different values"),
        ([str(number) for number in range(101)], "101 different values"),
    ],
)
def test_columns_that_are_no_groups_are_refused(groups: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"`balance_by` of corpus 'ours' must be .* got 'of' with {message}"):
        balance([corpus("ours", groups)], {"ours": "of"})


@pytest.mark.parametrize(
    ("group", "task", "fields"),
    [
        ("eval_corpora", "sequence-classification", {}),
        ("corpora", "sequence-classification", {"streaming": True}),
        ("corpora", "causal-lm", {}),
    ],
)
def test_what_has_no_groups_to_read_is_refused(group: str, task: str, fields: dict[str, Any]) -> None:
    given: dict[str, Any] = {"corpora": {}, group: {"domain": CorpusConfig(path="a.jsonl", balance_by="of", **fields)}}
    with pytest.raises(ValueError, match=rf"^`{group}\.domain\.balance_by` must be of a training corpus"):
        check_balance(Recipe(model_name_or_path="m", task=task, **given))


def test_a_recipe_reads_its_groups_equally_often(tmp_path: Path) -> None:
    rows = [{"text": f"so {n}", "label": "good" if n % 2 else "bad", "who": "f" if n < 6 else "m"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe: dict[str, Any] = {
        "model_name_or_path": str(write_toy_models(tmp_path)["encoder"]),
        "label_names": ["bad", "good"],
        "corpora": {"domain": {"path": str(tmp_path / "a.jsonl"), "balance_by": "who"}},
        "output_dir": str(tmp_path / "run"),
        "alpha": 1,
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    found = plan_recipe(str(tmp_path / "recipe.yaml"))
    assert [(each.name, each.num_examples) for each in found.plan.corpora] == [("domain/f", 6), ("domain/m", 54)]
    assert found.plan.consumed(5) == {"domain/f": 10, "domain/m": 10}
