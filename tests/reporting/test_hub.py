"""Pushing to a hub on loopback with the real client, and loading back what it holds."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import READ_TOKEN, TOKEN, Client, HubServer, run_client
from safetensors.torch import load

from hf_interp.reporting import hub as hub_module
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.hub import check_name, check_run, left_out, render_card, stage_run
from hf_interp.reporting.results import load_run_results, save_results
from hf_interp.tasks.runs import save_curve
from hf_interp.train import run_recipe
from hf_interp.utils.model_files import model_files
from hf_interp.utils.model_files import weights_fingerprint as fingerprint

PLANTED = "hf_" + "pLaNtEdToKeNpLaNtEdToKeNpLaNtEdToK"
SEARCH = {"prefer_trained": False, "metric": "loss", "method": "grid", "alphas": [0.25, 0.75]}
MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
TOLD = {"README.md", "results.json", "run.png", "curve.json", "curve.png"}
JUNK = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "checkpoint-2/model.safetensors",
    "checkpoint-2/optimizer.pt",
    "runs/events",
    ".env",
    "_secret.json",
    "notes.txt",
    "emissions.csv",
    "emissions.safetensors.part",
)
"""What may lie in a run's folder and must stay there."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's home, in which everything lies."""
    folder = tmp_path_factory.mktemp("people") / "jane"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def finished(home: Path, make_recipe: Callable[[Path], dict[str, Any]]) -> Path:
    """A run with M_θ and M_α, with a recipe that holds a token, and what else may lie about."""
    recipe = {**make_recipe(home / "first" / "law"), "alpha_search": SEARCH, "hub_token": PLANTED}
    recipe["corpora"]["general"]["license"] = "cc-by-4.0"
    shutil.copytree(recipe["model_name_or_path"], home / "base")
    run_recipe({**recipe, "model_name_or_path": str(home / "base")})
    folder = home / "first" / "law"
    for name in JUNK:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"left behind")
    return folder


@pytest.fixture(scope="module")
def adapter(home: Path, finished: Path, make_recipe: Callable[[Path], dict[str, Any]]) -> Path:
    """A run with an adapter on a local base."""
    recipe = {**make_recipe(home / "adapter" / "law"), "model_name_or_path": str(home / "base"), "peft": "lora"}
    run_recipe({**recipe, "alpha_search": SEARCH, "learning_rate": 0.05})
    return home / "adapter" / "law"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(finished, tmp_path / "law"))


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[HubServer]:
    with HubServer() as server, Client(server, home, "hf_interp.cli", "hf_interp.reporting.hub") as server.pusher:
        yield server


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    """An empty hub."""
    server.reset()
    return server


@pytest.fixture(scope="module")
def client(server: HubServer, home: Path) -> Iterator[Client]:
    """A process for scripts that need torch."""
    with Client(server, home, "peft", "hf_interp.train") as client:
        yield client


@pytest.fixture(scope="module")
def whole(server: HubServer, home: Path, finished: Path) -> dict[str, dict[str, bytes]]:
    """What both branches hold after a push of the run without failures."""
    server.reset()
    push_well(server, home, finished, "--repo", "jane/law")
    return {branch: server.repos["jane/law"].files(branch) for branch in ("main", "finetuned")}


def push(hub: HubServer, home: Path, *arguments: Any, **environment: Any) -> subprocess.CompletedProcess[str]:
    """`hf-interp push` as a user runs it, but for the time that a new interpreter takes."""
    return command(hub, "push", *arguments, **environment)


def command(hub: HubServer, *arguments: Any, **environment: Any) -> subprocess.CompletedProcess[str]:
    """Any command of `hf-interp`, in a fork of a process that has imported what it needs."""
    script = "from hf_interp.cli import main; raise SystemExit(main())"
    return hub.pusher.run(script, *map(str, arguments), **environment)


def push_anew(hub: HubServer, home: Path, *arguments: Any, **environment: Any) -> subprocess.CompletedProcess[str]:
    """`hf-interp push` in an interpreter of its own."""
    return run_client(hub, home, "-m", "hf_interp.cli", "push", *map(str, arguments), **environment)


def push_well(hub: HubServer, home: Path, *arguments: Any, **environment: Any) -> dict[str, Any]:
    """The report of a push that must succeed."""
    done = push(hub, home, *arguments, "--json", **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What is pushed.


def test_both_models_are_pushed_and_load_back_bit_for_bit(
    hub: HubServer, home: Path, run: Path, client: Client
) -> None:
    before = contents(run)
    report = push_well(hub, home, run, "--repo", "jane/law", "--private")
    repo = hub.repos["jane/law"]
    assert repo.private
    assert report["url"] == f"{hub.url}/jane/law"
    (theta,), (alpha,) = repo.log("finetuned"), repo.log("main")
    assert (theta.title, alpha.title) == ("Push M_θ", "Push M_α")
    assert report["commits"] == {"finetuned": theta.oid, "main": alpha.oid}
    for commit in (theta, alpha):
        assert set(commit.added) == MODEL | TOLD | ({"interpolation.json"} & set(commit.added))
        assert commit.deleted == []
    assert report["files"] == {"finetuned": theta.added, "main": alpha.added}
    assert theta.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert alpha.files["model.safetensors"] == (run / "interpolated" / "model.safetensors").read_bytes()
    assert theta.files["model.safetensors"] != alpha.files["model.safetensors"]
    assert "**main (this card)**" in alpha.files["README.md"].decode()
    assert "**finetuned (this card)**" in theta.files["README.md"].decode()
    junk = {name.split("/")[0] for name in JUNK}
    assert set(report["left_out"]) == junk | {"training_args.bin", "progress.json"}
    assert contents(run) == before
    # as a user loads it, from the hub alone
    script = """
import sys
from safetensors.torch import save
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for revision in ("main", "finetuned"):
    model = AutoModelForSequenceClassification.from_pretrained("jane/law", revision=revision)
    AutoTokenizer.from_pretrained("jane/law", revision=revision)
    open(f"{sys.argv[1]}/{revision}.loaded", "wb").write(save(model.state_dict()))
    assert model.config.id2label == {0: "negative", 1: "positive"}
"""
    done = client.run(script, str(run.parent))
    assert done.returncode == 0, done.stderr
    for revision, folder in (("main", run / "interpolated"), ("finetuned", run)):
        loaded = load((run.parent / f"{revision}.loaded").read_bytes())
        saved = load((folder / "model.safetensors").read_bytes())
        assert loaded.keys() == saved.keys()
        assert all(loaded[name].equal(saved[name]) for name in saved)


def test_an_adapter_is_pushed_and_loads_back(
    hub: HubServer, home: Path, adapter: Path, client: Client, tmp_path: Path
) -> None:
    hub.add_repo("jane/base").files().update(
        {path.name: path.read_bytes() for path in (home / "base").iterdir() if path.is_file()}
    )
    report = push_well(hub, home, adapter, "--repo", "jane/law-lora")
    assert report["notes"] == [
        "The adapter's base model 'base' was a local folder, which others do not have. If it is on the Hub, push again "
        "and name it (base_model)."
    ]
    files = hub.repos["jane/law-lora"].files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "./base"
    report = push_well(hub, home, adapter, "--repo", "jane/law-lora", "--base_model", "jane/base")
    assert report["notes"] == []
    repo = hub.repos["jane/law-lora"]
    assert repo.log("finetuned")[-1].added == ["README.md", "adapter_config.json"]
    assert "base_model: jane/base" in repo.files()["README.md"].decode()
    script = """
import re, sys
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import save
for revision in ("main", "finetuned"):
    model = AutoPeftModelForSequenceClassification.from_pretrained("jane/law-lora", revision=revision)
    adapter = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name or "classifier" in name}
    open(f"{sys.argv[1]}/{revision}.loaded", "wb").write(save(adapter))
exec(re.findall("```python\\n(.*?)```", ModelCard.load("jane/law-lora").text, flags=re.DOTALL)[0])
"""
    done = client.run(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "'label': 'positive'" in done.stdout
    for revision, folder in (("main", adapter / "interpolated"), ("finetuned", adapter)):
        saved = load((folder / "adapter_model.safetensors").read_bytes())
        loaded = load((tmp_path / f"{revision}.loaded").read_bytes())
        found = {re.sub(r"\.(default|modules_to_save\.default)\b", "", name): loaded[name] for name in loaded}
        assert saved
        assert all(found[name].equal(saved[name]) for name in saved)


def test_a_run_without_an_interpolated_model_has_one_branch(hub: HubServer, home: Path, run: Path) -> None:
    shutil.rmtree(run / "interpolated")
    for name in ("curve.json", "curve.png"):
        (run / name).unlink()
    report = push_well(hub, home, run, "--repo", "law", "--commit_message", "Try", "--tags", "law", "--license", "mit")
    repo = hub.repos["jane/law"]  # under the name of the token's user
    assert not repo.private
    assert report["url"].endswith("/jane/law")
    assert list(repo.branches) == ["main"]
    (commit,) = repo.log()
    assert commit.title == "Try"
    assert set(commit.added) == MODEL | (TOLD - {"curve.json", "curve.png"})
    data = yaml.safe_load(commit.files["README.md"].decode().split("---\n")[1])
    assert (data["license"], data["tags"]) == ("mit", ["hf_interp", "domain-adaptation", "law"])


def test_a_second_push_sends_only_what_is_new_and_removes_what_is_gone(hub: HubServer, home: Path, run: Path) -> None:
    push_well(hub, home, run, "--repo", "jane/law", "--training_args")
    repo = hub.repos["jane/law"]
    assert "training_args.bin" in repo.files()
    assert "training_args.bin" in repo.files("finetuned")
    repo.files().update({"model-00001-of-00002.safetensors": b"old", "objective_heads/x.safetensors": b"old"})
    repo.files().update({"adapter_config.json": b"{}", "mine.md": b"by hand"})
    hub.forget()
    shutil.copy(run / "model.safetensors", run / "interpolated" / "model.safetensors")
    save_curve(load_curve(run / "curve.json"), run, saved=True)
    push_well(hub, home, run, "--repo", "jane/law")
    assert hub.kinds().count("put") == 0  # M_θ's weights are there already
    told = ["README.md", "curve.json", "curve.png"]
    assert [sorted({*commit.added} - {*told}) for commit in repo.log("main")[1:]] == [["model.safetensors"]]
    assert repo.log("main")[-1].deleted == [
        "adapter_config.json",
        "model-00001-of-00002.safetensors",
        "objective_heads/x.safetensors",
        "training_args.bin",
    ]
    assert set(repo.files()) == MODEL | TOLD | {".gitattributes", "mine.md"}
    (last,) = repo.log("finetuned")[1:]
    assert ({*last.added} - {*told}, last.deleted) == (set(), ["training_args.bin"])
    hub.forget()
    done = push(hub, home, run, "--repo", "jane/law")
    assert done.returncode == 0
    assert {"put", "commit"}.isdisjoint(hub.kinds())


def test_a_public_repository_is_refused_where_it_should_be_private(hub: HubServer, home: Path, run: Path) -> None:
    hub.add_repo("jane/law")
    done = push(hub, home, run, "--repo", "jane/law", "--private")
    assert done.returncode == 2
    assert done.stderr == (
        "hf-interp: error: jane/law is there already and is public, so nothing was pushed. Make it private on the Hub, "
        "or push without `private`.\n"
    )
    assert hub.kinds() == ["create", "info"]
    hub.repos["jane/law"].private = True
    push_well(hub, home, run, "--repo", "jane/law", "--private")


def test_another_branch_and_a_card_of_ones_own(hub: HubServer, home: Path, run: Path, tmp_path: Path) -> None:
    repo = hub.add_repo("jane/law")
    repo.branches["v2"] = list(repo.branches["main"])
    (tmp_path / "card.md").write_text(f"---\nlicense: mit\n---\n# Mine\n\nTrained in {run}.\n", encoding="utf-8")
    push_well(hub, home, run, "--repo", "jane/law", "--revision", "v2", "--card", tmp_path / "card.md")
    assert repo.log("main") == []
    assert repo.files("v2")["README.md"].decode() == "---\nlicense: mit\n---\n# Mine\n\nTrained in law.\n"
    done = push(hub, home, run, "--repo", "jane/law", "--revision", "v3")
    assert done.returncode == 2
    assert "v3" in done.stderr


# Failures.


def check_failure(done: subprocess.CompletedProcess[str], run: Path, *expected: str) -> None:
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("hf-interp: error: ")]
    assert len(lines) == 1
    assert done.stderr.endswith(lines[0] + "\n")
    assert lines[0].startswith("hf-interp: error: jane/law was not pushed")
    for text in expected:
        assert text in lines[0]
    assert f"ush '{run}' again (`hf-interp push`)" in lines[0]
    for text in ("Traceback", TOKEN, "Bearer", "signature="):
        assert text not in done.stderr + done.stdout


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "at", "status", "expected"),
    [
        pytest.param("create", 0, 500, "500 Internal Server Error", marks=SLOW),
        pytest.param("create", 0, 0, "was not pushed whole: ", marks=SLOW),
        pytest.param("branch", 0, 500, "500 Internal Server Error", marks=SLOW),
        ("preupload", 1, 400, "Bad request"),
        ("put", 2, 403, "Error while uploading '"),
        pytest.param("commit", 0, 500, "/commit/finetuned", marks=SLOW),
        ("commit", 1, 500, "/commit/main"),
        pytest.param("commit", 1, 0, "was not pushed whole: ", marks=SLOW),
    ],
)
def test_after_a_failure_the_same_call_goes_on(
    whole: dict[str, dict[str, bytes]],
    hub: HubServer,
    home: Path,
    run: Path,
    kind: str,
    at: int,
    status: int,
    expected: str,
) -> None:
    before = contents(run)
    hub.fail(kind, at=[at], status=status)
    done = push(hub, home, run, "--repo", "jane/law")
    check_failure(done, run, expected, ": the run is as it was, and what has been uploaded is not sent twice.")
    assert contents(run) == before
    there = set(hub.objects)
    hub.forget()
    done = push(hub, home, run, "--repo", "jane/law")
    assert done.returncode == 0, done.stderr
    sent = {request.path.partition("?")[0].rpartition("/")[2] for request in hub.requests if request.kind == "put"}
    assert sent.isdisjoint(there)
    assert sent | there == set(hub.objects)
    repo = hub.repos["jane/law"]
    assert [len(repo.log(branch)) for branch in ("main", "finetuned")] == [1, 1]
    assert {branch: repo.files(branch) for branch in ("main", "finetuned")} == whole


@pytest.mark.slow
def test_a_connection_that_breaks_in_an_upload_is_taken_up_or_told_of(hub: HubServer, home: Path, run: Path) -> None:
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    hub.fail("put", at=[0], status=0)
    done = push(hub, home, run, "--repo", "jane/law")
    assert done.returncode == 0
    assert "Retrying in 1s" in done.stderr
    assert "signature" not in done.stdout
    assert hub.objects[weights] == (run / "model.safetensors").read_bytes()
    hub.forget()
    hub.repos.clear()
    hub.objects.clear()
    before = contents(run)
    hub.fail("put", at=range(3), status=0)
    hub.fail("put", at=range(3, 99), status=400)  # as storage answers when it has waited too long
    done = push(hub, home, run, "--repo", "jane/law")
    assert done.returncode == 2
    assert "Error while uploading '" in done.stderr.splitlines()[-1]
    assert contents(run) == before
    hub.failures.clear()
    push_well(hub, home, run, "--repo", "jane/law")


@pytest.mark.slow  # the client waits longer and longer between its tries
def test_a_connection_that_always_breaks_is_told_of(hub: HubServer, home: Path, run: Path) -> None:
    hub.fail("put", at=range(999), status=0)
    done = push(hub, home, run, "--repo", "jane/law")
    assert done.returncode == 2
    assert "Error while uploading '" in done.stderr.splitlines()[-1]
    assert hub.repos["jane/law"].log("finetuned") == []


@pytest.mark.parametrize(
    ("token", "status"), [("hf_" + "x" * 34, "401"), (READ_TOKEN, "403"), (None, "401")], ids=["wrong", "read", "none"]
)
def test_a_token_that_may_not_write(hub: HubServer, home: Path, run: Path, token: str | None, status: str) -> None:
    before = contents(run)
    done = push(hub, home, run, "--repo", "jane/law", token=token)
    check_failure(done, run, status, "Log in with a token that may write there (`hf auth login`, or HF_TOKEN), then")
    assert token is None or token not in done.stderr
    assert contents(run) == before
    assert hub.repos == {}
    assert hub.objects == {}
    push_well(hub, home, run, "--repo", "jane/law")


def test_somebody_elses_name_is_refused(hub: HubServer, home: Path, run: Path) -> None:
    done = push(hub, home, run, "--repo", "acme/law")
    assert done.returncode == 2
    assert "403" in done.stderr
    assert hub.repos == {}


def test_offline_is_told(hub: HubServer, home: Path, run: Path) -> None:
    done = push_anew(hub, home, run, "--repo", "jane/law", HF_HUB_OFFLINE="1")
    check_failure(done, run, "HF_HUB_OFFLINE is set. Unset it, then push")
    assert hub.requests == []


def test_no_hub_is_told(home: Path, run: Path) -> None:
    with HubServer() as gone:
        pass
    check_failure(push_anew(gone, home, run, "--repo", "jane/law"), run, "Connection refused")


def test_metadata_that_the_hub_does_not_take(hub: HubServer, home: Path, run: Path) -> None:
    done = push(hub, home, run, "--repo", "jane/law", "--license", "my own")
    assert done.returncode == 2
    assert done.stderr.startswith('hf-interp: error: Invalid metadata in README.md. - "license" must be one of ')
    assert len(done.stderr.splitlines()) == 1
    assert hub.objects == {}


# Bad input, before anything is sent.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("absent", "--repo", "jane/law"), "There is no folder 'absent'. Give the `output_dir` of a trained run."),
        ((".", "--repo", "jane/law"), "The folder '.' has no results.json. Give the `output_dir` of a trained run."),
        (("RUN", "--repo", "jane/law/x"), "`repo_id` must be such as user/name, got 'jane/law/x': "),
        (("RUN", "--repo", "jane/law", "--revision", "finetuned"), "`revision` must not be 'finetuned'"),
        (("RUN", "--repo", "jane/law", "--comparison", "absent.json"), "There is no 'absent.json'."),
        (("RUN", "--repo", "jane/law", "--card", "absent.md"), "absent.md"),
    ],
)
def test_bad_input_is_refused(
    hub: HubServer, home: Path, finished: Path, arguments: tuple[str, ...], expected: str
) -> None:
    done = push(hub, home, *(str(finished) if text == "RUN" else text for text in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr
    assert hub.requests == []


def test_a_run_without_weights_is_refused(run: Path) -> None:
    (run / "interpolated" / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"interpolated' has no weights \(\*\.safetensors\)\. Train the run to its end"
    ):
        check_run(run)


@pytest.mark.parametrize("name", ["law", "jane/law", "jane/law.v2_x-y"])
def test_names_that_the_hub_takes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "jane/law/x", "jane/-law", "jane/law..x", "a b", "jane/" + "x" * 97])
def test_names_that_the_hub_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`repo_id` must be such as user/name, got {name!r}: ")):
        check_name(name)


# Card, curve and weights are of one α.


def test_card_curve_and_weights_tell_of_each_other(hub: HubServer, home: Path, run: Path) -> None:
    curve, account = load_curve(run / "curve.json"), json.loads((run / "interpolated/interpolation.json").read_text())
    assert account == {"alpha": curve.alpha, "weights": curve.weights}
    assert curve.weights == {"finetuned": fingerprint(run), "interpolated": fingerprint(run / "interpolated")}
    line = f"- weights: M_θ {fingerprint(run)}, M_α {fingerprint(run / 'interpolated')} at α = {curve.alpha:g}"
    assert line in (run / "README.md").read_text(encoding="utf-8").splitlines()
    save_curve(dataclasses.replace(curve), run)  # searched again, with the same outcome
    assert load_curve(run / "curve.json").weights == curve.weights
    save_curve(dataclasses.replace(curve, alpha=0.75), run)  # with another, which was not saved
    before = contents(run)
    for name in ("card", "push"):
        done = command(hub, name, run, "--repo", "jane/law")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert f"curve.json with α = 0.75 is not of the weights in '{run}/interpolated'" in done.stderr
        assert f"Run `hf-interp curve {run} --save_model`." in done.stderr
    assert (contents(run), hub.requests) == (before, [])


@pytest.mark.parametrize("place", [".", "interpolated"])
def test_weights_of_another_run_are_not_pushed(hub: HubServer, home: Path, run: Path, place: str) -> None:
    path = run / place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = push(hub, home, run, "--repo", "jane/law")
    assert (done.returncode, len(done.stderr.splitlines()), hub.requests) == (2, 1, [])
    assert f"is not of the weights in '{run / place}', which are of another α or another run" in done.stderr


@pytest.mark.parametrize("name", ["vocab.txt", "run.png", "interpolated/model.safetensors", "interpolated"])
def test_links_that_lead_out_of_the_folder_are_not_pushed(
    hub: HubServer, home: Path, run: Path, name: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    if (run / name).exists():
        shutil.move(run / name, outside)
    else:
        outside.write_text("secret", encoding="utf-8")
    (run / name).symlink_to(outside)
    (tmp_path / "linked").symlink_to(run)  # a link to the whole run is none of these
    done = push(hub, home, tmp_path / "linked", "--repo", "jane/law")
    assert (done.returncode, len(done.stderr.splitlines()), hub.requests) == (2, 1, [])
    assert "is or lies behind a link that leads out of" in done.stderr
    assert f"error: {name}" in done.stderr


def test_a_card_of_ones_own_stays(hub: HubServer, home: Path, run: Path) -> None:
    (run / "README.md").write_text("# My notes\n", encoding="utf-8")
    for _ in range(2):
        done = command(hub, "card", run)
        assert done.stdout == f"The card is in {run}/MODEL_CARD.md.\n"
    assert (run / "README.md").read_text(encoding="utf-8") == "# My notes\n"
    assert "# law" in (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    push_well(hub, home, run, "--repo", "jane/law")
    assert "# law" in hub.repos["jane/law"].files()["README.md"].decode()


# What must not be told.


def test_a_folder_is_no_name_on_the_hub_wherever_one_stands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[[Path], dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(Path("out"))
    shutil.copytree(recipe["model_name_or_path"], "models/base")
    run_recipe({**recipe, "model_name_or_path": "models/base", "output_dir": "out", "alpha_search": SEARCH})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    card = hub_module.render_card(tmp_path / "out", repo_id="jane/law")
    assert card.data.base_model is None
    assert "models/base" not in str(card)
    assert "from the local model base (M₀)" in card.text
    stage_run(tmp_path / "out", tmp_path / "stage", repo_id="jane/law", interpolated=True)
    told = json.loads((tmp_path / "stage" / "results.json").read_text(encoding="utf-8"))
    assert (told["recipe"]["model_name_or_path"], told["config"]["output_dir"]) == ("./base", "./out")
    told = json.loads((tmp_path / "stage" / "curve.json").read_text(encoding="utf-8"))
    assert (told["base"], told["finetuned"]) == ("./base", "./out")


def test_neither_tokens_nor_paths_are_sent_or_told(
    hub: HubServer, home: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert PLANTED not in (run / "results.json").read_text(encoding="utf-8")  # new runs do not hold it
    results["recipe"]["hub_token"] = PLANTED  # those of old ones may
    results["log_history"].append({"step": 4, "note": f"logged in with {PLANTED} from {home}/x and {run}/y"})
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["_name_or_path"] = str(home / "base")
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    secret = "correct-horse-battery"
    done = push(hub, home, run, "--repo", "jane/law", OTHER_API_KEY=secret)
    assert done.returncode == 0, done.stderr
    hub.fail("commit", at=range(9))
    (run / "run.png").write_bytes(b"another")
    failed = push(hub, home, run, "--repo", "jane/law", OTHER_API_KEY=secret)
    assert failed.returncode == 2
    sent = hub.sent()
    for text in (PLANTED, TOKEN, secret):
        assert text.encode() not in sent
        assert text not in done.stdout + done.stderr + failed.stdout + failed.stderr
    for path in (str(home), str(run), str(run.parent), str(Path.cwd())):
        assert path.encode() not in sent
    told = load_run_results_of(hub, "finetuned")
    assert told["config"]["output_dir"] == "./law"
    assert told["recipe"]["model_name_or_path"] == "./base"
    assert "hub_token" not in told["recipe"]
    assert told["log_history"][-1]["note"] == "logged in with *** from jane/x and law/y"
    assert json.loads(hub.repos["jane/law"].files("finetuned")["config.json"])["_name_or_path"] == "./base"


def load_run_results_of(hub: HubServer, revision: str) -> dict[str, Any]:
    return json.loads(hub.repos["jane/law"].files(revision)["results.json"])


def test_no_file_of_a_run_holds_the_token_of_its_recipe(finished: Path) -> None:
    for path in finished.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path
    assert "hub_token" not in (load_run_results(finished / "results.json").recipe or {})


def test_a_file_with_a_secret_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    (run / "tokenization_law.py").write_text("KEY = 'correct-horse-battery'\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^tokenization_law\.py holds a token or another secret of the environment"):
        stage_run(run, tmp_path / "stage", repo_id="jane/law", secrets=["correct-horse-battery"])


# Which files are a model's.


def test_files_of_a_model_and_of_its_parts(tmp_path: Path) -> None:
    wanted = [
        "adapter_config.json",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_law.py",
        "modules.json",
        "sentence_bert_config.json",
        "spiece.model",
        "vocab.txt",
        "1_Pooling/config.json",
        "additional_chat_templates/chat_template.jinja",
        "second/adapter_config.json",
        "second/adapter_model.safetensors",
        "objective_heads/mlm.safetensors",
    ]
    others = [
        *JUNK,
        "1_Pooling/notes.txt",
        "README.md",
        "corpora/config.json",
        "interpolated/adapter_config.json",
        "interpolated/model.safetensors",
        "pytorch_model.bin",
        "training_args.bin",
        ".hidden/adapter_config.json",
    ]
    for name in [*wanted, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('[{"path": ""}, {"path": "1_Pooling"}]' if name == "modules.json" else "{}")
    assert [str(path.relative_to(tmp_path)) for path in model_files(tmp_path)] == sorted(wanted)
    assert "training_args.bin" in left_out(tmp_path)
    assert "training_args.bin" not in left_out(tmp_path, training_args=True)


def test_a_comparison_is_pushed_without_paths(run: Path, tmp_path: Path) -> None:
    rows = [{"method": "mixed", "seed": 0, "metrics": {}, "forgetting": {}}]
    for row in rows:
        row["metrics"] = {side: {"accuracy": 0.5} for side in ("domain", "general")}
    (tmp_path / "comparison").mkdir()
    written = {"rows": rows, "settings": {"output_dir": "/srv/jane/comparison"}, "versions": {}, "machine": {}}
    (tmp_path / "comparison" / "results.json").write_text(json.dumps(written), encoding="utf-8")
    stage_run(run, tmp_path / "stage", repo_id="jane/law", comparison=tmp_path / "comparison")
    told = json.loads((tmp_path / "stage" / "comparison.json").read_text(encoding="utf-8"))
    assert told == {**written, "settings": {"output_dir": "./comparison"}}
    assert "Compared with other ways of training" in (tmp_path / "stage" / "README.md").read_text(encoding="utf-8")


def test_broken_results_are_told(run: Path) -> None:
    (run / "results.json").write_text('{"config": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json' was written by another version of hf_interp"):
        hub_module.render_card(run)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("results.json", "final_metrics", {"domain": 3}, "`final_metrics.domain` in "),
        ("results.json", "recipe", "x", "`recipe` in "),
        ("results.json", "plan", {"corpora": [{}]}, "cannot be shown (KeyError: "),
        ("curve.json", "alpha", None, "`alpha` in "),
        (
            "curve.json",
            "report",
            {"domain": {"loss": {"values": ["x"], "std_errors": []}}},
            "report.domain.loss.values.0",
        ),
        ("curve.json", "num_examples", {"domain": {}}, "cannot be shown (KeyError: "),
    ],
)
def test_damaged_files_are_named_in_one_line(
    hub: HubServer, home: Path, run: Path, name: str, place: str, value: Any, message: str
) -> None:
    found = json.loads((run / name).read_text(encoding="utf-8"))
    (run / name).write_text(json.dumps({**found, place: value}), encoding="utf-8")
    for arguments in (("card", run), ("push", run, "--repo", "jane/law")):
        done = command(hub, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr
        assert str(run / name) in done.stderr
    assert hub.requests == []


def test_unknown_metrics_are_told_as_such(hub: HubServer, home: Path, run: Path) -> None:
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for part in ("base_metrics", "final_metrics"):
        found[part] = {name: dict.fromkeys(metrics) for name, metrics in found[part].items()}
    found["forgetting"] = dict.fromkeys(found["forgetting"])
    (run / "results.json").write_text(json.dumps(found), encoding="utf-8")
    for arguments in (("card", run), ("report", run)):
        assert (command(hub, *arguments).returncode, command(hub, *arguments).stderr) == (0, "")


# The commands.


def test_the_snippet_of_a_card_finds_the_model_from_here(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "runs" / "law")
    results = load_run_results(run / "results.json")
    assert results.recipe is not None
    results.recipe["output_dir"] = results.config["output_dir"] = "runs/law"  # a path, as a recipe has it
    save_results(results, tmp_path / "runs" / "law" / "results.json")
    monkeypatch.chdir(tmp_path)
    for given in ("runs/law", tmp_path / "runs" / "law"):
        (place,) = re.findall("model='(.+?)'", render_card(given).text)
        assert place == "runs/law/interpolated"
        assert fingerprint(Path(place)) == fingerprint(run / "interpolated") != fingerprint(run)
    monkeypatch.chdir(tmp_path / "runs" / "law")
    assert "model='interpolated'" in render_card(".").text
    monkeypatch.chdir(run)  # from elsewhere a path would tell whose it is
    assert "model='law/interpolated'" in render_card(tmp_path / "runs" / "law").text


def test_the_card_command(hub: HubServer, home: Path, run: Path) -> None:
    def card(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return command(hub, "card", *arguments)

    done = card(run, "--repo", "jane/law", "--license", "mit", "--language", "en", "de", "--tags", "law")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"The card is in {run}/README.md.\n")
    text = (run / "README.md").read_text(encoding="utf-8")
    data = yaml.safe_load(text.split("---\n")[1])
    assert (data["license"], data["language"], data["tags"][-1]) == ("mit", ["en", "de"], "law")
    assert "pipeline('text-classification', model='jane/law')" in text
    licences = re.findall(r"_train\.jsonl \(local\) .* (\S+) \|$", text, flags=re.MULTILINE)
    assert licences == ["cc-by-4.0", "unknown"]
    assert card(run, "--output", run / "other.md").returncode == 0
    text = (run / "other.md").read_text(encoding="utf-8")
    assert "model='law/interpolated'" in text  # without a repository it is the folder of the weights that are told of
    assert "in the folder of the run M_θ lies at the top, and M_α in `interpolated`" in text
    done = card(home)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("hf-interp: error: There is no ")
    assert hub.requests == []


def test_the_push_command_tells_what_it_did(hub: HubServer, home: Path, run: Path) -> None:
    done = push_anew(hub, home, run, "--repo", "jane/law")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{hub.url}/jane/law"
    theta, alpha = (hub.repos["jane/law"].log(branch)[-1].oid[:12] for branch in ("finetuned", "main"))
    assert lines[1].startswith(f"finetuned: {theta}, README.md, config.json, ")
    assert lines[2].startswith(f"main: {alpha}, README.md, config.json, ")
    assert lines[3].startswith("Not pushed: .env, ")


# Recipes that push.

TRAIN = """
import json, os, sys
del os.environ["HF_TOKEN"]
from hf_interp.tasks.runs import save_curve
from hf_interp.train import run_recipe
run_recipe(json.loads(sys.argv[1]))
"""


def test_a_recipe_pushes_when_all_is_there(
    hub: HubServer, client: Client, tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]]
) -> None:
    recipe = {**make_recipe(tmp_path / "law"), "alpha_search": SEARCH, "push_to_hub": True}
    recipe |= {"hub_model_id": "jane/law", "hub_token": TOKEN, "hub_private_repo": True}
    done = client.run(TRAIN, json.dumps(recipe))
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/jane/law\n" in done.stdout
    assert hub.kinds()[:2] == ["create", "info"]
    repo = hub.repos["jane/law"]
    assert repo.private
    assert [[commit.title for commit in repo.log(branch)] for branch in ("main", "finetuned")] == [
        ["Push M_α"],
        ["Push M_θ"],
    ]
    assert repo.files()["README.md"] == (tmp_path / "law" / "README.md").read_bytes()
    for text in (done.stdout, done.stderr):
        assert TOKEN not in text
    assert TOKEN.encode() not in hub.sent()
    for path in (tmp_path / "law").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_recipe_that_cannot_push_trains_nothing(
    tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]], write_recipe: Callable[..., Path]
) -> None:
    recipe = {**make_recipe(tmp_path / "law"), "push_to_hub": True}
    with pytest.raises(OSError, match=r"^law was not pushed: HF_HUB_OFFLINE is set\. Unset it, then start again\.$"):
        run_recipe(recipe)
    with pytest.raises(ValueError, match=r"`repo_id` must be such as user/name, got 'jane/law/x'"):
        run_recipe({**recipe, "hub_model_id": "jane/law/x"})
    with pytest.raises(ValueError, match=r"`hub_strategy` must be end or every_save over a mixture, got checkpoint"):
        run_recipe({**recipe, "hub_strategy": "checkpoint"})
    assert not (tmp_path / "law").exists()
