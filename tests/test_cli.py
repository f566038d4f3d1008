"""The command line: what it prints, what it returns, and one line for bad input."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hf_interp import cli
from hf_interp.commands.plan import plan_recipe
from hf_interp.tasks.build import check_recipe
from hf_interp.tasks.parsing import parse_recipe

COMMANDS = ("demo", "train", "plan", "compare", "tune", "curve", "merge", "app", "card", "push", "report")


def exit_of(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


# Help.


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(["--version"]) == 0
    assert capsys.readouterr().out == f"hf_interp {metadata.version('hf_interp')}\n"


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: hf-interp ")
    assert all(f"    {command} " in out for command in COMMANDS)
    assert err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: hf-interp {command} ")
    assert "--traceback" in out
    takes_fields = "Any other flag sets a field of the recipe" in " ".join(out.split())
    assert takes_fields == (command not in ("demo", "app", "card", "push", "report"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: recipe"),
        (["demo", "--learning_rate", "1"], "unrecognized arguments: --learning_rate 1"),
        (["demo", "--seeds", "a"], "argument --seeds: invalid int value: 'a'"),
        (["compare", "recipe.yaml", "--seeds"], "argument --seeds: expected at least one argument"),
        (["tune", "recipe.yaml", "--trials", "many"], "argument --trials: invalid int value: 'many'"),
    ],
)
def test_misused_commands_show_their_usage(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: hf-interp")
    assert message in err


def loaded_after(argv: list[str]) -> set[str]:
    """Return the names of the modules that a command has loaded in a process of its own."""
    script = (
        "import gc, sys, hf_interp.cli\n"
        f"try: hf_interp.cli.main({argv})\nfinally: print(*sys.modules, file=sys.stderr)\nassert gc.isenabled()"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout
    return set(ran.stderr.split())


@pytest.mark.parametrize("argv", [[], ["--help"], ["plan", "--help"]])
def test_help_waits_for_no_library(argv: list[str]) -> None:
    assert not {"torch", "transformers", "datasets", "numpy", "matplotlib"} & loaded_after(argv)


@pytest.mark.slow
def test_a_plan_waits_for_no_trainer(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    loaded = loaded_after(["plan", str(write_recipe(toy_recipe))])
    assert {"transformers.training_args", "hf_interp.training.mixture_run"} <= loaded  # what it does need
    assert not {"transformers.trainer", "hf_interp.training.mixin", "hf_interp.selection.search"} & loaded
    assert not {"evaluate", "sklearn.metrics", "matplotlib", "hf_interp.commands.distance"} & loaded


# plan


@pytest.mark.parametrize("change", [{}, {"where": {"label": "a"}}, {"objective": "distill"}])
def test_the_same_rows_on_both_sides_are_told(
    toy_recipe: dict[str, Any], caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    corpora = toy_recipe["corpora"]
    corpora["domain"] = {**corpora["general"], "side": "domain", **change}
    check_recipe(*parse_recipe(toy_recipe))
    told = f"`corpora.general` and `corpora.domain` read the same rows: {corpora['general']['path']}. Is that meant?"
    assert (told in caplog.text) == (not change)


def test_plan_as_text(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe({**toy_recipe, "max_steps": 40}))
    assert cli.main(["plan", path, "--alpha_end", "0.5"]) == 0
    out, err = capsys.readouterr()
    plan, *_ = plan_recipe(path, ["--alpha_end", "0.5"])
    assert out.splitlines()[0].startswith("40 steps of 4 examples: 160 examples, about ")
    assert f"fingerprint: {plan.fingerprint()}\n" in out
    assert "| α    | 0.000 |" in out
    assert f" {plan.exhausted_at(1)} |\n" in out
    assert "\nWarning: Corpus 'domain' is read " not in out
    assert err == ""


def test_plan_as_json(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe({**toy_recipe, "max_steps": 100}))
    assert cli.main(["plan", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    planned = plan_recipe(path)
    assert found == planned.summary
    for corpus in found["corpora"]:
        assert corpus.pop("tokens") == round(corpus["drawn"] * planned.mean_tokens[corpus["name"]])
    found.pop("epochs")
    assert found.pop("rate_weighted_alpha") == planned.summary["rate_weighted_alpha"]
    sizes = {corpus["name"]: corpus["num_examples"] for corpus in found["corpora"]}
    assert {name: sum(counts.values()) for name, counts in found.pop("labels").items()} == sizes
    assert {rows for rows, _ in found.pop("shared").values()} == {0}
    assert found.pop("few")[0].startswith("Few rows to measure by: `eval_corpora.general` 16, ")
    assert found == planned.plan.summary()
    assert found["warnings"][0].startswith("Corpus 'general' is read 5.0 times")


def test_plan_as_picture(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "plan.png"
    assert cli.main(["plan", str(write_recipe(toy_recipe)), "--json", "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(out)["max_steps"] == 4
    assert err == f"Drawn into {picture}.\n"


def test_a_plan_that_goes_on_from_a_checkpoint(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe({**toy_recipe, "save_strategy": "steps", "save_steps": 2}))
    assert cli.main(["train", path]) == 0
    folder = toy_recipe["output_dir"]
    capsys.readouterr()
    same = ["plan", path, "--resume", f"{folder}/checkpoint-2"]
    assert cli.main(same) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "goes on from step 2; changes: none, so the order stays that of the first run"
    assert lines[1].startswith("4 steps of 4 examples: 16 examples")
    assert [line for line in lines if line.startswith("| corpus") and "| read before |" in line]
    assert cli.main([*same, "--json", "--max_steps", "6", "--num_processes", "2", "--data_seed", "42"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["resumed"] == {"step": 2, "changes": ["global batch: 4 -> 8", "`max_steps`: 4 -> 6"]}
    assert [corpus["read_before"] for corpus in found["corpora"]] == [7, 1]
    assert (found["start_step"], found["num_examples"]) == (2, 2 * 4 + 4 * 8)
    assert sum(corpus["drawn"] for corpus in found["corpora"]) == 40
    # the last whole checkpoint of a folder, and what cannot be resumed
    (Path(folder) / "checkpoint-4" / "trainer_state.json").unlink()
    assert cli.main(["plan", path, "--resume", folder]) == 0
    assert capsys.readouterr().out.startswith("goes on from step 2;")
    for resume, message in (
        (f"{folder}/checkpoint-4", "is no checkpoint and holds no whole one"),
        (f"{folder}/checkpoint-9", "is no checkpoint and holds no whole one"),
    ):
        assert cli.main(["plan", path, "--resume", resume]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*same, "--seed", "7"]) == 2
    assert "seed of the data was 42 and is now 7" in capsys.readouterr().err


# verify


def test_two_runs_are_verified(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe(toy_recipe))
    for name, flags in (("a", []), ("b", ["--gradient_accumulation_steps=2", "--per_device_train_batch_size=2"])):
        assert cli.main(["train", path, "--output_dir", str(tmp_path / name), *flags]) == 0
    assert cli.main(["train", path, "--output_dir", str(tmp_path / "c"), "--data_seed", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == "The runs read the same examples in the same order up to step 4 (of 4).\n"
    assert cli.main(["verify", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == "The run read what its plan says up to step 4 (4 records).\n"
    assert cli.main(["verify", str(tmp_path / "a"), str(tmp_path / "c")]) == 1
    assert "part before step 1. By their plans it is at step 0, slot 0" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "There is no" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "a"), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict == {
        "agrees": True,
        "until": 4,
        "text": "The run read what its plan says up to step 4 (4 records).",
    }


# Bad input.


def corpus(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the recipe's domain corpus."""
    return lambda recipe: recipe["corpora"]["domain"].update(fields)


def field(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the recipe itself."""
    return lambda recipe: recipe.update(fields)


BAD_RECIPES = {
    "unknown field": (
        field(lerning_rate=1),
        "Unknown field 'lerning_rate' in the recipe. Did you mean 'learning_rate'?",
    ),
    "unknown column": (
        corpus(columns={"txt": "text"}),
        "Unknown field 'txt' in `corpora.domain.columns`. Did you mean 'text'?",
    ),
    "metric of the guard": (
        field(alpha_controller="guard", alpha_controller_kwargs={"metric": "general_los"}),
        "must be a metric of which less is better, such as general_loss, domain_loss, eval_general_loss, "
        "eval_domain_loss, got 'general_los'. Did you mean 'general_loss'?",
    ),
    "direction of the guard": (
        field(alpha_controller="guard", alpha_controller_kwargs={"metric": "eval_general_accuracy"}),
        "must be a metric of which less is better, such as general_loss",
    ),
    "no number": (
        field(logging_steps=float("inf")),
        "`logging_steps` must be a finite number, got inf.",
    ),
    "metric of the best": (
        field(metric_for_best_model="accuracy"),
        "`metric_for_best_model` must be a metric of one of the `eval_corpora` (general, domain), such as "
        "eval_domain_loss, got 'eval_accuracy'.",
    ),
    "direction of the best": (
        field(metric_for_best_model="domain_f1", greater_is_better=False),
        "`greater_is_better` must be true of the metric 'f1', got False.",
    ),
    "metric of the search": (
        field(alpha_search={"metric": "acuracy"}),
        "metric 'acuracy' is better. Set `greater_is_better` beside it to true or false. Did you mean 'accuracy'?",
    ),
    "number for a column": (
        corpus(columns={"text": 3}),
        "`columns` in `corpora.domain` must be dict[str, str]",
    ),
    "expression of an adapter": (
        field(peft={"preset": "lora", "target_modules": "(("}),
        "`target_modules` must be names or a regular expression, got '((': missing ), unterminated subpattern",
    ),
    "unknown schedule": (field(alpha_schedule_type="linaer"), "got 'linaer'. Did you mean 'linear'?"),
    "alpha out of range": (field(alpha_end=1.5), "`alpha_end` must be an α in [0, 1], got 1.5."),
    "no max_steps": (field(max_steps=0), "`max_steps` must be at least 1, got 0."),
    "unknown task": (field(task="sequence-clasification"), "Did you mean 'sequence-classification'?"),
    "unknown adapter": (field(peft="lorra"), "got 'lorra'. Did you mean 'lora'?"),
    "missing file": (corpus(path="/absent/law.csv"), "There is no file '/absent/law.csv' (corpus 'domain')."),
    "missing column": (corpus(text_column="txt"), "Corpus 'domain' has no column 'txt'; it has ['text', 'label']."),
    "unknown label": (corpus(label_map={"negative": "bad"}), "has the label 'bad', which is not in `label_names`"),
    "no rows": (
        corpus(where={"label": "meh"}),
        "has no rows left. Check its split, `where` ({'label': 'meh'}) and `label_map`.",
    ),
    "shares": (corpus(share=0.5), "shares of the domain corpora must lie in [0, 1] and sum to 1, got {'domain': 0.5}."),
    "passes": (corpus(max_passes=0.5), "times, but its `max_passes` is 0.5. Take fewer steps"),
    "side": (lambda recipe: recipe["corpora"].pop("general"), "α is 0 at step 0, which asks for general examples"),
    "head": (field(label_names=["negative", "positive", "mixed"]), "does not fit the 3 labels"),
    "model": (field(model_name_or_path="absent/model"), "couldn't find them in the cached files"),
    "labels": (field(label_names=[False, True]), "`label_names` must be texts, got [False, True]. Put those into quot"),
    "folder": (field(model_name_or_path="./nowhere"), "There is no folder './nowhere' (`model_name_or_path`)"),
}


def error_line(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    out, err = capfd.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line and "Loading weights" not in line]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("hf-interp: error: ")
    return lines[0]


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_are_refused_in_one_line_before_training(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str], case: str
) -> None:
    change, message = BAD_RECIPES[case]
    change(toy_recipe)
    path = str(write_recipe(toy_recipe))
    assert cli.main(["train", path]) == 2
    assert message in error_line(capfd)
    assert not Path(toy_recipe["output_dir"]).exists()
    if case != "head":  # a plan needs no model
        assert cli.main(["plan", path]) == cli.main(["compare", path]) == 2
        assert capfd.readouterr().err.count(message) == 2
    assert not Path(toy_recipe["output_dir"]).exists()


@pytest.mark.parametrize("command", ["train", "plan", "compare"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no recipe "),
        ("- a\n- b\n", "must be a mapping of fields, got a list."),
        ("", "must be a mapping of fields, got nothing."),
        ("a: [1,\nb: 2\n", "is not YAML: "),
        ("seed: 1\nseed: 2\n", "is not YAML: the key 'seed' is given twice, again in line 2."),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, text: str | None, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    assert cli.main([command, str(path)]) == 2
    line = error_line(capfd)
    assert message in line
    assert str(path) in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha_end", "1.5"], "`alpha_end` must be an α in [0, 1], got 1.5."),
        (["--corpora.domain.pth", "a"], "Unknown field 'pth' in `corpora.domain`. Did you mean 'path'?"),
        (
            ["--eval_corpora.domian.path", "a"],
            "--eval_corpora.domian names none of `eval_corpora` (general, domain). Did you mean 'domain'? Write a new",
        ),
        (["--alpha", "0.5", "--alpha_end", "0.75"], "`alpha` (0.5) holds α constant, which `alpha_end` (0.75) contra"),
        (["--learning_rate", "1", "2"], "Expected a flag such as --learning_rate 1e-4, got '2'."),
        (["--max_steps", "many"], "invalid int value: 'many'."),
        (["tune", "--trials", "0"], "`trials` must be a whole number of at least 1, got 0."),
        (["tune", "--space", "alpha_end"], "`space` must be such as alpha_end=0.5..1.0"),
        (["tune", "--space", "alpha_edn=1"], "Did you mean 'alpha_end'?"),
        (["tune", "--alpha_search.objective", "knee"], "must not be 'knee' here"),
        (["plan", "--distance_examples", "50"], "--distance_examples belongs to --distance"),
        (["plan", "--distance", "--distance_examples", "5"], "at least 10 examples of each side, got 5"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    command, *given = flags if flags[0] in ("tune", "plan") else ["train", *flags]
    assert cli.main([command, str(write_recipe(toy_recipe)), *given]) == 2
    assert message in error_line(capfd)
    assert not Path(toy_recipe["output_dir"]).exists()


@pytest.mark.parametrize("command", [name for name, one in cli.COMMANDS.items() if one.takes_fields])
def test_an_unknown_flag_is_refused_before_anything_is_told(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str], command: str
) -> None:
    recipe = str(write_recipe({**toy_recipe, "method": "balanced"}))
    model, data, out = toy_recipe["model_name_or_path"], toy_recipe["corpora"]["domain"]["path"], f"{recipe}.new"
    draft = ["--model", model, "--domain", data, "--output", out]
    others = {"check": [data], "init": draft, "adapt": draft, "merge": [model, model, out, "--recipe", recipe]}
    assert cli.main([command, *others.get(command, [recipe]), "--text_colum", "a"]) == 2
    told, refused = capfd.readouterr()
    assert told == ""
    assert re.fullmatch(r"hf-interp: error: Unknown field 'text_colum' in .*\n", refused)
    assert not Path(out).exists()


def test_traceback_shows_where_an_error_comes_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="There is no recipe"):
        cli.main(["plan", str(tmp_path / "absent.yaml"), "--traceback"])
    assert capfd.readouterr().err == ""


def test_an_interruption_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_interp.commands.plan.plan_recipe", interrupt)
    assert cli.main(["plan", "recipe.yaml"]) == 130
    assert capfd.readouterr().err == "hf-interp: interrupted\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyError("alpha")

    monkeypatch.setattr("hf_interp.commands.plan.plan_recipe", fail)
    with pytest.raises(KeyError, match="alpha"):
        cli.main(["plan", "recipe.yaml"])


def test_the_command_is_installed() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="hf-interp")
    assert entry.load() is cli.main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_examples_that_parse(command: str) -> None:
    for example in cli.COMMANDS[command].examples:
        args, _ = cli._parser().parse_known_args(shlex.split(example))
        assert args.command == command


@pytest.mark.parametrize("flag", ["--search_space", "--space"])
def test_a_search_space_is_given_by_its_name_or_its_former_one(flag: str) -> None:
    args, flags = cli._parser().parse_known_args(["tune", "recipe.yaml", flag, "alpha_end=0.5..1.0", flag, "a=1"])
    assert (args.search_space, flags) == (["alpha_end=0.5..1.0", "a=1"], [])


def test_without_an_output_dir_results_are_where_transformers_puts_them(toy_recipe: dict[str, Any]) -> None:
    assert cli._folder_of(toy_recipe) == Path(toy_recipe.pop("output_dir"))
    assert cli._folder_of(toy_recipe) == Path(parse_recipe(toy_recipe)[1].output_dir or "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_completion_script_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_flags() -> None:
    script = subprocess.run(
        [sys.executable, "-m", "hf_interp.cli", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ask = 'COMP_WORDS=({words}); COMP_CWORD={last}; _shtab_hf_interp; echo "${{COMPREPLY[@]}}"'

    def complete(*words: str) -> list[str]:
        line = ask.format(words=" ".join(map(repr, words)), last=len(words) - 1)
        found = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
        return found.stdout.split()

    assert complete("hf-interp", "re") == ["report"]
    assert complete("hf-interp", "plan", "--pl") == ["--plot"]


@pytest.mark.slow
def test_a_training_can_be_read_by_programs_and_leaves_no_bars_in_logs(
    toy_recipe: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hf_interp.cli", "train", str(write_recipe(toy_recipe)), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    written = Path(toy_recipe["output_dir"], "results.json").read_text(encoding="utf-8")
    assert done.stdout == written
    assert json.loads(done.stdout)["plan"]["max_steps"] == toy_recipe["max_steps"]
    assert "\r" not in done.stderr
    assert "it/s]" not in done.stderr
    assert "{'" not in done.stderr
    last = r"^trained \| step 4 of 4 \(100%\) \| α 1\.000 \| loss (general|domain) \d\.\d{4}"
    assert re.search(last, done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("output_dir", "message"),
    [
        ("file", "`output_dir` must be a folder, but '{folder}/file' is a file. Choose another."),
        ("file/run", "`output_dir` must be a folder, but '{folder}/file' is a file. Choose another."),
        ("x" * 256, "`output_dir` has a part of more than 255 bytes: 'xxx"),
        ("/proc/run", "`output_dir` '/proc/run' cannot be written: "),
    ],
)
def test_an_output_dir_that_cannot_be_written_is_refused_before_training(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    output_dir: str,
    message: str,
) -> None:
    (tmp_path / "file").touch()
    path = str(write_recipe({**toy_recipe, "output_dir": str(tmp_path / output_dir)}))
    for command in ("train", "compare", "tune"):
        assert cli.main([command, path]) == 2
        assert message.format(folder=tmp_path) in error_line(capfd)
    assert sorted(os.listdir(tmp_path)) == ["file", "recipe.yaml"]


def test_a_metric_that_the_evaluation_does_not_bring_is_refused_before_training(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe({**toy_recipe, "alpha_search": {"metric": "bleu"}}))
    assert cli.main(["train", path]) == 2
    err = capfd.readouterr().err
    assert "hf-interp: error: `alpha_search.metric` must be one of loss, accuracy, f1, " in err
    assert "which both sides have, got 'bleu'." in err
    assert list(Path(toy_recipe["output_dir"]).iterdir()) == []  # the trainer makes it


def test_a_home_is_found_in_recipes_and_flags(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(toy_recipe["model_name_or_path"], tmp_path / "model")
    toy_recipe["corpora"]["domain"]["path"] = shutil.copy(toy_recipe["corpora"]["domain"]["path"], tmp_path)
    toy_recipe["corpora"]["domain"]["path"] = f"~/{Path(toy_recipe['corpora']['domain']['path']).name}"
    path = str(write_recipe({**toy_recipe, "model_name_or_path": "~/model", "output_dir": "~/elsewhere"}))
    assert cli.main(["train", "~/recipe.yaml", "--output_dir=~/out", "--run_name", "x" * 300]) == 0
    assert cli.main(["verify", "~/out"]) == 0
    assert cli.main(["card", "~/out", "--output=~/card.md"]) == 0
    assert (tmp_path / "card.md").is_file()
    assert path == str(tmp_path / "recipe.yaml")
    assert not Path("~").exists()
