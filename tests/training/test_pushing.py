"""`Trainer.push_to_hub` and cards: over a mixture ours, without one the host's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, Client, HubServer, Repo
from huggingface_hub import ModelCard, ModelCardData
from toys import config, corpus, mixture, number_tokenizer, tiny_model
from transformers import Trainer

from hf_interp import InterpolationTrainer
from hf_interp.training.pushing import beside, check_strategy

PUSH = """
import json, logging, os, sys
from concurrent.futures import Future
from pathlib import Path
import peft
from toys import config, corpus, mixture, number_tokenizer, tiny_model
from transformers import Trainer
from hf_interp import InterpolationTrainer

task = json.loads(sys.argv[1])
os.chdir(task["cwd"])
model = tiny_model(0.0)
if task.get("peft"):
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
trainer = (Trainer if task.get("host") else InterpolationTrainer)(
    model,
    config(task["folder"], max_steps=2, **task.get("args", {})),
    train_dataset=mixture() if task["mixes"] else corpus(0, 40),
    processing_class=number_tokenizer(),
)
trainer.train()
if task.get("card"):
    trainer.create_model_card(**task["card"])
elif task.get("saves"):
    trainer.save_model()
else:
    report = trainer.push_to_hub(**task.get("push", {}))
    if isinstance(report, Future):
        print("future")
        report = report.result()
    print(report)
"""


@pytest.fixture(scope="module")
def client(open_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A process that has imported the trainers."""
    home = tmp_path_factory.mktemp("people") / "jane"
    home.mkdir()
    with Client(open_hub, home, "peft", "toys") as client:
        yield client


def push(client: Client, cwd: Path, *, mixes: bool = True, **task: Any) -> tuple[str, str]:
    """Train in the folder `law` below a working directory and push; what was printed and logged."""
    given = {"mixes": mixes, "cwd": str(cwd), "folder": "law", **task}
    done = client.run(PUSH, json.dumps(given))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def metadata(repo: Repo) -> dict[str, Any]:
    return yaml.safe_load(repo.files()["README.md"].decode().split("---\n")[1])


# Over a mixture.


def test_a_push_over_a_mixture_takes_the_model_results_and_our_card(
    local_hub: HubServer, client: Client, tmp_path: Path
) -> None:
    args = {"hub_token": TOKEN, "hub_model_id": "jane/law", "save_strategy": "steps", "save_steps": 1}
    out, err = push(client, tmp_path, args=args, push={"tags": "law", "license": "mit", "language": "en"})
    repo = local_hub.repos["jane/law"]
    (commit,) = repo.log()
    assert commit.title == "End of training"
    assert commit.added == [
        "README.md",
        "config.json",
        "model.safetensors",
        "results.json",
        "run.png",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert f"\n{local_hub.url}/jane/law\nmain: " in out
    assert "Not pushed: checkpoint-1, checkpoint-2, training_args.bin." in out
    data = metadata(repo)
    assert (data["license"], data["language"]) == ("mit", "en")
    assert data["tags"] == ["hf_interp", "domain-adaptation", "law"]
    card = repo.files()["README.md"]
    assert card.startswith(b"---\n")
    assert b"\n# law\n\nMade with hf_interp from a pretrained model that the run does not name" in card
    told = json.loads(repo.files()["results.json"])
    assert told["config"]["output_dir"] in ("law", "./law")
    for name in ("README.md", "results.json"):
        assert TOKEN.encode() not in (tmp_path / "law" / name).read_bytes()
        assert TOKEN.encode() not in repo.files()[name]
    assert TOKEN not in out + err
    assert TOKEN.encode() not in local_hub.sent()
    for path in (client.home, tmp_path):
        assert str(path).encode() not in local_hub.sent()


def test_saving_pushes_where_the_arguments_say_so_and_checkpoints_are_not_pushed(
    local_hub: HubServer, client: Client, tmp_path: Path
) -> None:
    args = {"push_to_hub": True, "hub_private_repo": True, "save_strategy": "steps", "save_steps": 1}
    _, err = push(client, tmp_path, args={**args, "hub_strategy": "every_save"}, saves=True)
    assert "Over a mixture nothing is pushed before the end of training." in err
    assert "Set `hub_strategy` to end to say so too." in err
    repo = local_hub.repos["jane/law"]
    assert repo.private
    assert [commit.title for commit in repo.log()] == ["Model save"]
    assert "training_args.bin" not in repo.files()


def test_a_strategy_that_pushes_checkpoints_is_refused(local_hub: HubServer, client: Client, tmp_path: Path) -> None:
    task = {"mixes": True, "cwd": str(tmp_path), "folder": "law"}
    task["args"] = {"push_to_hub": True, "hub_strategy": "all_checkpoints"}
    done = client.run(PUSH, json.dumps(task))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "ValueError: `hub_strategy` must be end or every_save over a mixture, got all_checkpoints: a checkpoint holds"
    )
    assert "commit" not in local_hub.kinds()


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"^`hub_strategy` must be end or every_save over a mixture, got {strategy}: "):
        check_strategy(strategy)


def test_strategies_that_are_taken() -> None:
    assert check_strategy("end") is None
    assert check_strategy("every_save") == (
        "Over a mixture nothing is pushed before the end of training. Set `hub_strategy` to end to say so too."
    )


def test_a_push_can_go_on_in_the_background(local_hub: HubServer, client: Client, tmp_path: Path) -> None:
    out, _ = push(client, tmp_path, push={"blocking": False, "commit_message": "Later", "private": True})
    assert f"\nfuture\n{local_hub.url}/jane/law\n" in out
    assert local_hub.repos["jane/law"].private
    assert [commit.title for commit in local_hub.repos["jane/law"].log()] == ["Later"]


def test_an_adapter_keeps_the_tags_of_peft(local_hub: HubServer, client: Client, tmp_path: Path) -> None:
    push(client, tmp_path, peft=True, push={"tags": ["law"], "finetuned_from": "google/bert"})
    repo = local_hub.repos["jane/law"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(repo.files())
    assert not any(name.startswith("model") or name == "training_args.bin" for name in repo.files())
    data = metadata(repo)
    assert (data["library_name"], data["base_model"]) == ("peft", "google/bert")
    assert data["tags"] == ["hf_interp", "domain-adaptation", "lora", "base_model:adapter:google/bert", "law"]
    assert json.loads(repo.files()["adapter_config.json"])["base_model_name_or_path"] == "google/bert"


# Without a mixture.


@pytest.mark.parametrize("has_peft", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "adapter"])
def test_without_a_mixture_a_push_is_the_hosts(
    local_hub: HubServer, client: Client, tmp_path: Path, has_peft: bool
) -> None:
    found = []
    for host in (True, False):
        local_hub.reset()
        (tmp_path / str(host)).mkdir()
        args = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 2}
        push(client, tmp_path / str(host), mixes=False, host=host, peft=has_peft, args=args)
        repo = local_hub.repos["jane/law"]
        log = [(commit.title, commit.added, commit.deleted) for commit in repo.log()]
        found.append((log, {name: content for name, content in repo.files().items() if comparable(name)}))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    assert {"README.md", "training_args.bin"} <= set(found[0][0][-1][1]) | set(found[0][0][0][1])
    for name, content in found[0][1].items():
        assert found[1][1][name] == content, name


def comparable(name: str) -> bool:
    """Whether a file must be the same in two runs: not those that tell times, or the classes of the arguments."""
    return not name.endswith(("trainer_state.json", ".bin", ".pt", ".pth"))


# Cards.


def test_the_hosts_card_has_our_tags_on_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = InterpolationTrainer(model, config(tmp_path, max_steps=1), train_dataset=mixture())
    assert model.model_tags == ["hf_interp", "domain-adaptation"]
    trainer.train()
    trainer.create_model_card(tags=["law"], license="mit", finetuned_from="google/bert", language="en", dataset="x")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.tags == ["hf_interp", "domain-adaptation", "law"]
    assert (data.license, data.base_model, data.language) == ("mit", "google/bert", "en")


def test_a_model_without_a_mixture_has_no_tags_of_ours(tmp_path: Path) -> None:
    model = tiny_model()
    cards = []
    for cls in (Trainer, InterpolationTrainer):
        trainer = cls(
            model,
            config(tmp_path / cls.__name__ / "law", max_steps=1),
            train_dataset=corpus(0, 8),
            processing_class=number_tokenizer(),
        )
        trainer.train()
        trainer.save_model()
        trainer.create_model_card(tags="law")
        cards.append((tmp_path / cls.__name__ / "law" / "README.md").read_text(encoding="utf-8"))
    assert cards[0] == cards[1]
    assert not getattr(model, "model_tags", None)


def test_a_hosts_card_stands_above_ours() -> None:
    host = ModelCard("---\nlicense: mit\ntags:\n- trl\n- sft\n---\n\n# Host\n\nIts text.\n")
    data = ModelCardData(license="apache-2.0", tags=["hf_interp", "sft"], base_model="google/bert")
    ours = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# law\n\nOur text.\n")
    found = beside(host, ours)
    assert found.data.to_dict() == {
        "license": "mit",
        "tags": ["trl", "sft", "hf_interp"],
        "base_model": "google/bert",
    }
    assert re.sub(r"\n+", "\n", found.text.strip()) == "# Host\nIts text.\n# Domain adaptation\nOur text."
