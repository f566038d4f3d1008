"""Someone new: the demo, and then every command of the README on what it has left."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from hub_server import HubServer

from hf_interp.cli import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
DEMO, RECIPE, RUN = "hf_interp_demo", "hf_interp_demo/recipe.yaml", "runs/mine"
BASE, DATA = f"{DEMO}/base", f"{DEMO}/domain_train.jsonl"
SHORT = ("--max_steps", 8, "--save_steps", 4, "--eval_steps", 4)


@pytest.mark.slow
def test_every_command_of_the_readme_works_on_the_demo(user: Callable[..., object], tmp_path: Path) -> None:
    listed = re.findall(r"^- `(\w+)`: ", README, re.MULTILINE)
    assert listed == [*sorted(COMMANDS, key=listed.index)], "the README lists the commands that there are"
    with HubServer() as hub:
        jane = user(**hub.environment(tmp_path))
        typed = {words[0]: words for words in commands_in_order()}
        assert set(typed) | {"app"} == set(listed)
        for words in typed.values():
            jane.type(*words)
        assert (tmp_path / DEMO / "comparison" / "comparison.png").is_file()
        for name in ("run.png", "curve.png", "README.md", "interpolated/model.safetensors", "report.html"):
            assert (tmp_path / RUN / name).is_file(), name
        assert (tmp_path / "merged" / "model.safetensors").is_file()
        assert (tmp_path / "runs" / "tuned" / "tuned.yaml").is_file()
        repo = hub.repos["jane/mine"]
        assert repo.files()["model.safetensors"] == (tmp_path / RUN / "interpolated" / "model.safetensors").read_bytes()
        assert "model.safetensors" in repo.files("finetuned")
        check_page(jane)


def commands_in_order() -> list[tuple[object, ...]]:
    """The commands but `app`, which serves until it is ended."""
    return [
        ("demo", "--max_steps", 8, "--seeds", 0, 1),
        ("check", DATA),
        ("init", "--model", BASE, "--domain", DATA, "--output", "own.yaml"),
        ("adapt", "--model", BASE, "--domain", DATA, "--output", "alone.yaml", "--max_steps", 4),
        ("plan", RECIPE, "--distance", "--distance_examples", 20, "--samples", 1, "--plot", "plan.png"),
        ("train", RECIPE, "--output_dir", RUN, *SHORT),
        ("watch", RUN, "--once"),
        ("verify", RUN),
        ("compare", RECIPE, "--output_dir", "runs/comparison", "--seeds", 0, "--methods", "constant 0.5", *SHORT),
        ("tune", RECIPE, "--output_dir", "runs/tuned", "--trials", 2, *SHORT),
        ("curve", RUN, "--save_model"),
        ("audit", RUN, "--alpha_search.alphas", 3),
        ("merge", f"{DEMO}/base", RUN, "merged", "--alpha", 0.5),
        ("card", RUN, "--comparison", "runs/comparison/results.json", "--license", "mit"),
        ("report", RUN, "runs/comparison"),
        ("push", RUN, "--repo", "jane/mine"),
    ]


def check_page(jane: object) -> None:
    """The page of the run answers, and ends when it is told to."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    with jane.start(*jane.command, "app", RUN) as page:
        try:
            lines = iter(page.stdout.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://\S+\d", line)))
            with urlopen(address, timeout=60) as answer:
                assert answer.status == 200
        finally:
            page.terminate()  # not Ctrl-C, which a shell's background jobs ignore
            page.communicate(timeout=60)
