"""The results on disk: what is added comes out again, in any order and from several processes at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from effect import noise, run
from effect.store import Store, key_of


def entry(seed: int, size: int | str = 300, rate: float = 5e-05) -> dict[str, Any]:
    return {
        "pair": "lm-law",
        "size": size,
        "method": "domain",
        "learning_rate": rate,
        "seed": seed,
        "alpha": 1.0,
        "validation": {"domain": 3.25, "general": float("-inf")},
        "curve": {"domain": {"0": 3.5, "1": 3.25}},
        "machine": "a processor, 1 thread of 2 cores",
        "test": {"domain": "ff", "general": "a0"},
        "test_interpolated": None,
    }


def test_what_is_added_comes_out_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "effect.tsv")
    base = {
        "pair": "lm-law",
        "method": "base",
        "versions": "torch 2.13.0+cpu",
        "test": {},
        "counts": {"domain": [1, 8]},
    }
    assert store.load() == {}
    for found in (entry(1), entry(0, "full"), base, entry(0, 1000, 1e-4)):
        store.add(found)
    assert store.load() == {"lm-law": [base, entry(1), entry(0, 1000, 1e-4), entry(0, "full")]}
    assert "test" not in store.rows()[key_of(entry(1))]
    lines = store.table.read_text().splitlines()
    assert lines[0].split("\t")[:7] == ["pair", "size", "method", "learning_rate", "seed", "alpha", "validation/domain"]
    assert lines[2].split("\t")[:7] == ["lm-law", "300", "domain", "5e-05", "1", "1.0", "3.25"]


def test_a_run_that_is_done_again_replaces_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "effect.tsv")
    store.add(entry(0))
    store.add({**entry(0), "alpha": 0.5})
    assert [found["alpha"] for found in store.load()["lm-law"]] == [0.5]


def test_files_do_not_depend_on_the_order_in_which_runs_end(tmp_path: Path) -> None:
    stores = [Store(tmp_path / folder / "effect.tsv") for folder in ("first", "second")]
    for store, seeds in zip(stores, ((0, 1, 2), (2, 0, 1)), strict=True):
        for seed in seeds:
            store.add(entry(seed))
    first, second = ([store.table.read_bytes(), store.predictions("lm-law").read_bytes()] for store in stores)
    assert first == second


def test_runs_that_end_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "effect.tsv")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.add, map(entry, range(24))))
    assert [found["seed"] for found in store.load()["lm-law"]] == list(range(24))


def test_the_recorded_results_are_whole_and_written_as_the_store_writes_them(tmp_path: Path) -> None:
    for table in (run.RESULTS, noise.RESULTS):
        recorded, copy = Store(table), Store(tmp_path / table.name)
        rows = recorded.rows()
        assert rows
        copy.write_rows(rows.values())
        assert copy.table.read_bytes() == table.read_bytes()
        for pair in {found["pair"] for found in rows.values()}:
            assert set(recorded.packed(pair)) == {key for key, found in rows.items() if found["pair"] == pair}
