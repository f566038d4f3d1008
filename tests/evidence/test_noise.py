"""The comparison under wrong labels: what is flipped, which runs there are, and runs from data to a page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effect import noise, pairs, run, training
from effect.store import Entry, Outcomes, Store, pack

from hf_interp.tasks.parsing import parse_recipe

LEAST = {"output_dir": "unused", "max_steps": 50, "use_cpu": True}


def test_flipped_labels_are_as_many_as_asked_and_always_other_classes() -> None:
    labels = np.arange(300) % 3
    before = np.zeros(300, dtype=bool)
    for share in sorted(noise.SHARES):
        found = noise.flip(labels, share, 3, seed=5)
        changed = found != labels
        assert changed.sum() == round(300 * share)
        assert set(found) <= {0, 1, 2}
        assert (changed >= before).all()  # what is flipped at a smaller share stays so
        before = changed
    assert labels.tolist() == (np.arange(300) % 3).tolist()


def test_flips_are_the_seeds_and_go_to_each_other_class_alike() -> None:
    labels = np.zeros(3000, dtype=np.int64)
    first, same, other = (noise.flip(labels, 0.5, 3, seed) for seed in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()
    counts = np.bincount(first, minlength=3)
    assert counts[0] == 1500
    assert counts[1] == pytest.approx(750, abs=4 * np.sqrt(1500 / 4))


@pytest.mark.parametrize("key", noise.NOISE_METHODS)
def test_every_method_under_noise_is_a_recipe(key: str) -> None:
    fields = noise.NOISE_METHODS[key].recipe_fields(100, 20, 50)
    _, args = parse_recipe({"model_name_or_path": "m", "corpora": {"domain": {"path": "p"}}, **fields, **LEAST})
    assert (args.label_smoothing_factor == 0.1) == key.endswith("-smooth")
    assert (args.anchor == "distill") == (key == "distill")


def test_every_run_under_noise_has_a_row_of_its_own() -> None:
    runs = list(noise.plan(noise.PAIRS, noise.SHARES, noise.SEEDS))
    assert len({one.key for one in runs}) == len(runs) == 2 * (1 + 3 * 4 * 5)
    assert [one.method for one in runs[:2]] == ["base", "domain"]
    assert {one.seed for one in runs[: 1 + 4 * 5]} == {0}  # a seed is whole before the next


def test_runs_under_noise_from_data_to_tables(
    toy_pair: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(noise, "SIZE", 10)
    table = tmp_path / "results" / "noise.tsv"
    trained: list[list[int]] = []
    train = training.train_method

    def noting(setup: Any, method: Any, corpora: Any, *args: Any) -> Any:
        trained.append([list(corpus.dataset["labels"]) for corpus in corpora])
        return train(setup, method, corpora, *args)

    monkeypatch.setattr(training, "train_method", noting)
    for method, share in (("base", 0.0), ("domain", 0.0), ("domain", 0.4), ("domain-smooth", 0.4)):
        key = noise.NoiseRun(pair=toy_pair, method=method, share=share)
        noise.work(key, table, tmp_path / "cache", "cpu")
        assert key.key in Store(table).rows()
    clean, noisy, smooth = trained
    assert noisy == smooth
    assert noisy[0] == clean[0]  # the general corpus
    assert len(clean[1]) == 10
    assert sum(one != other for one, other in zip(noisy[1], clean[1], strict=True)) == 4
    found = Store(table).load()
    assert sorted(entry["flipped"] for entry in found["toy"] if entry["method"] != "base") == [0, 4, 4]
    levels = noise.levels_of(found["toy"])
    assert list(levels) == [0.0, 0.4]
    assert list(levels[0.4].rows) == [
        ("base", False),
        ("domain", False),
        ("domain", True),
        ("domain-smooth", False),
        ("domain-smooth", True),
    ]
    monkeypatch.setattr(noise, "PAIRS", ("toy",))
    assert noise.main(["--table", "--results", str(table)]) == 0
    page = capsys.readouterr().out
    assert "| domain only, label smoothing 0.1 + M_α |" in page


def fake_noise(path: Path) -> Store:
    """Results of two seeds: with wrong labels domain only falls by half, and the robust loss by nothing."""
    store = Store(path / "noise.tsv")

    def packed(domain: int, general: int) -> dict[str, str]:
        hits = {"domain": domain, "general": general}
        return {
            side: pack("accuracy", Outcomes((np.arange(40) < value).astype(float), np.ones(40)))
            for side, value in hits.items()
        }

    pair = "sentiment-finance"
    base = {"pair": pair, "method": "base", "machine": "M", "test": packed(20, 30)}
    store.add({**base, "counts": {side: [1, 40] for side in pairs.SIDES}})
    for method, hits in {"domain": {0.0: 36, 0.4: 18}, "domain-gce": {0.0: 36, 0.4: 36}}.items():
        for share, domain in hits.items():
            for seed in (0, 1):
                key = noise.NoiseRun(pair=pair, method=method, share=share, seed=seed)
                own = {**vars(key), "size": noise.SIZE, "learning_rate": noise.LEARNING_RATE, "alpha": 0.5}
                store.add({**base, **own, "test": packed(domain, 30), "test_interpolated": None})
    return store


def one_of(store: Store, method: str, share: float, seed: int) -> Entry:
    """A run with all of its fields."""
    key = noise.NoiseRun(pair="sentiment-finance", method=method, share=share, seed=seed).key
    return {**store.rows()[key], **store.packed()[key]}


def cells_in(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_gains_are_shown_by_share_and_over_all(tmp_path: Path) -> None:
    levels = noise.levels_of(fake_noise(tmp_path).load()["sentiment-finance"])
    assert levels[0.4].rows["domain", False].seeds == (0, 1)
    gains = {row[0]: row[1:] for row in cells_in(noise.gain_table(levels, "domain"))}
    robust, plain = "domain only, generalised cross entropy", "domain only"
    assert plain not in gains  # which the others are held against
    assert gains[robust][0] == "+0.000 (+0.000 to +0.000)"
    assert gains[robust][1].startswith("**+0.450 (")
    assert gains[f"{robust} + M_α"][1].startswith("**+0.450 (")
    assert gains[f"{plain} + M_α"] == ["+0.000 (+0.000 to +0.000)"] * 2
    rows = cells_in(noise.summary_table({"sentiment-finance": levels}))
    assert [robust, "+45.0", "+0.0", "1–0–0–0"] in rows
    assert [plain, "", "", ""] in rows


def test_the_rise_is_held_against_the_constant_mixture(tmp_path: Path) -> None:
    store = fake_noise(tmp_path)
    levels = noise.levels_of(store.load()["sentiment-finance"])
    assert noise.order_table(levels) == "One of both has not been run yet."
    for method, hits in {"linear": 30, "constant-0.5": 20}.items():
        for seed in (0, 1):
            entry = one_of(store, "domain", 0.4, seed)
            entry["method"] = method
            entry["test"]["domain"] = pack("accuracy", Outcomes((np.arange(40) < hits).astype(float), np.ones(40)))
            store.add(entry)
    levels = noise.levels_of(store.load()["sentiment-finance"])
    rows = cells_in(noise.order_table(levels))
    assert rows[0] == ["side", "40%"]  # 0% has neither
    assert rows[2][0] == "domain"
    assert rows[2][1].startswith("**+0.250 (")
    assert rows[3] == ["general", "+0.000 (+0.000 to +0.000)"]


def test_m0_is_held_against_all_seeds(tmp_path: Path) -> None:
    store = fake_noise(tmp_path)
    entry = one_of(store, "domain", 0.4, 1)
    entry["test"]["domain"] = pack("accuracy", Outcomes((np.arange(40) < 10).astype(float), np.ones(40)))
    store.add(entry)
    cell = noise.levels_of(store.load()["sentiment-finance"])[0.4]
    base, plain = cell.rows["base", False], cell.rows["domain", False]
    for row, other, sign in ((base, plain, 1), (plain, base, -1)):
        gain = cell.gain(row, other, "domain")
        assert gain is not None
        assert gain.value == pytest.approx(sign * (20 - (18 + 10) / 2) / 40)


def test_all_runs_are_done_and_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    # 1 / 0 fails; what comes after it is still done
    assert run.do_all([0, 1], (1).__floordiv__, "run {}".format, minutes=1) == 1
    out = capsys.readouterr().out
    assert "FAILED run 0" in out
    assert "\nrun 1; " in out
    assert "1 runs done, 1 failed." in out


def test_no_run_is_begun_when_time_is_up() -> None:
    taken: list[int] = []
    assert run.do_all([1], taken.append, str, minutes=0.0) == 0
    assert taken == []


def test_a_list_of_runs_under_noise_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_noise(tmp_path)
    flags = ["--list", "--pairs", "sentiment-finance", "--shares", "0.4", "--seeds", "1"]
    assert noise.main([*flags, "--results", str(tmp_path / "noise.tsv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sentiment-finance domain-smooth 40% seed 1"
    assert lines[-1] == "4 runs to do"
