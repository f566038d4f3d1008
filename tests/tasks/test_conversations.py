"""Texts with images among them: tokens, labels and losses are those of references by hand, and of TRL's collator."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_media import CHAT_KINDS, toy_png, write_toy_seer, write_toy_vit
from toy_recipes import toy_decoder, toy_tokenizer
from toys import SHORT
from transformers import AutoModelForImageTextToText

from hf_interp.commands.draft import draft_recipe
from hf_interp.commands.init import check_file, format_recipe
from hf_interp.commands.plan import plan_recipe
from hf_interp.reporting.hub import render_card
from hf_interp.tasks.build import build_trainer, check_recipe, load_data
from hf_interp.tasks.corpora.media import ConversationCollator, open_image
from hf_interp.tasks.encoding import encode_conversations
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.tokenizers import load_processor
from hf_interp.train import run_recipe
from hf_interp.utils.run_folder import INTERPOLATED_NAME
from hf_interp.weights.interpolate import interpolate_weights

SHOWN = {
    "llava": 5 * "<image>",
    "qwen": "<|vision_start|><|image_pad|><|vision_end|>",
    "idefics": f"<fake_token_around_image><global-img>{4 * '<image>'}<fake_token_around_image>",
    "gemma": f"\n\n<start_of_image>{4 * '<image_soft_token>'}<end_of_image>\n\n",
}
"""By the kind of the model: an image of 8×8 pixels, as its tokens are written."""
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
PLACE = {"type": "image"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_toy_seer(tmp_path_factory.mktemp(kind), kind) for kind in CHAT_KINDS}


Encoded = list[dict[str, Any]]


@pytest.fixture(scope="module")
def encode(models: dict[str, Path]) -> Callable[..., tuple[Any, Encoded]]:
    def made(kind: str, batch: dict[str, list[Any]], **fields: Any) -> tuple[Any, Encoded]:
        """The processor of a model, and rows as it takes them."""
        recipe = Recipe(model_name_or_path=str(models[kind]), corpora={}, task="image-text-to-text", **fields)
        processor = load_processor(recipe)
        found = encode_conversations(processor, recipe)(batch)
        names = [*found]
        return processor, [dict(zip(names, row, strict=True)) for row in zip(*found.values(), strict=True)]

    return made


def turns_of(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """A dialogue as a corpus keeps it."""
    parts = [(role, said, json.dumps({"content": said}) if isinstance(said, list) else "") for role, said in turns]
    return [{"role": role, "content": "" if more else said, "more": more} for role, said, more in parts]


def rows_of_all_kinds(encode: Callable[..., Any], kind: str, **fields: Any) -> tuple[Any, Encoded]:
    """Two texts, an image with a text, two images with an answer, and one between answers."""
    first, second = toy_png(0), toy_png(1)
    processor, texts = encode(kind, {"text": ["the model", "it falls"]}, **fields)
    _, captions = encode(kind, {"image": [[first]], "text": ["left"]}, **fields)
    _, pairs = encode(kind, {"image": [[first, second]], "prompt": ["Which?"], "target": ["The first."]}, **fields)
    said = [("user", "Hi"), ("assistant", "Yes?"), ("user", [PLACE, text_part("Where?")]), ("assistant", "Left.")]
    _, talks = encode(kind, {"image": [[second]], "messages": [turns_of(*said)]}, **fields)
    return processor, [*texts, *captions, *pairs, *talks]


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


# Tokens and labels.


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_labels_are_what_is_said_and_no_token_of_an_image(kind: str, encode: Callable[..., Any]) -> None:
    image = SHOWN[kind]
    written = [  # pieces of each row, and whether they are learnt; tokens are bytes and marks, none across pieces
        [("the model" + END, True)],
        [("it falls" + END, True)],
        [(f"{USER}{image}{END}\n{ASSISTANT}", False), ("left" + END, True), ("\n", False)],
        [(f"{USER}{image}{image}Which?{END}\n{ASSISTANT}", False), ("The first." + END, True), ("\n", False)],
        [
            (f"{USER}Hi{END}\n{ASSISTANT}", False),
            ("Yes?" + END, True),
            (f"\n{USER}{image}Where?{END}\n{ASSISTANT}", False),
            ("Left." + END, True),
            ("\n", False),
        ],
    ]
    processor, rows = rows_of_all_kinds(encode, kind)
    batch = ConversationCollator(processor)(rows)
    for number, pieces in enumerate(written):
        tokens = [(processor.tokenizer(text)["input_ids"], is_said) for text, is_said in pieces]
        ids = [token for piece, _ in tokens for token in piece]
        labels = [token if is_said else -100 for piece, is_said in tokens for token in piece]
        assert (rows[number]["input_ids"], rows[number]["labels"]) == (ids, labels)
        blank = batch["input_ids"].shape[1] - len(ids)
        assert batch["input_ids"][number].tolist() == ids + blank * [processor.tokenizer.pad_token_id]
        assert batch["labels"][number].tolist() == labels + blank * [-100]
        assert batch["attention_mask"][number].tolist() == len(ids) * [1] + blank * [0]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llava", "llava_next"),
        ("qwen", "qwen2_5_vl"),
        ("qwen", "qwen3_vl"),
        ("idefics", "smolvlm"),
        ("gemma", "gemma3"),
    ],
)
def test_a_batch_by_the_template_of_a_real_model_is_that_of_trls_collator(
    kind: str, name: str, models: dict[str, Path], encode: Callable[..., Any]
) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install hf_interp[trl]")
    sft = pytest.importorskip("trl.trainer.sft_trainer")
    folder = Path(trl.__file__).parent / "chat_templates"
    dialogues = [[("user", "What?"), ("assistant", "A square."), ("user", "Where?"), ("assistant", "Left.")]]
    dialogues += [[("user", "And here?"), ("assistant", "Another.")]]
    images, messages = [toy_png(0), toy_png(1, "domain")], [turns_of(*each) for each in dialogues]
    processor, _ = encode(kind, {"text": ["a"]})
    said, labels = [], []
    for template in (None, "trl"):
        processor.chat_template = processor.tokenizer.chat_template = (folder / f"{name}.jinja").read_text("utf-8")
        processor.tokenizer.bos_token = "<pad>"  # some templates begin with one
        fields: dict[str, Any] = {"task": "image-text-to-text", "max_length": 512, "chat_template": template}
        recipe = Recipe(model_name_or_path="", corpora={}, **fields)
        found = encode_conversations(processor, recipe)({"image": [[one] for one in images], "messages": messages})
        rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        labels.append([[label for label in row["labels"] if label != -100] for row in rows])
        said.append(["".join(processor.tokenizer.decode(each).split()) for each in labels[-1]])
    assert said[0] == said[1]  # but for white space, comparing turns tells what TRL's marks tell
    assert ["Another." in said[0][1], "A square." in processor.tokenizer.decode(labels[0][0])] == [True, True]
    processor.chat_template = (folder / f"{name}_training.jinja").read_text("utf-8")
    examples = [
        {"image": open_image(image), "messages": [{"role": role, "content": text} for role, text in each]}
        for image, each in zip(images, dialogues, strict=True)
    ]
    theirs = sft.DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)(examples)
    ours = ConversationCollator(processor)(rows)
    assert ours.keys() == theirs.keys()
    for part, tensor in theirs.items():
        assert torch.equal(ours[part], tensor), part


def test_a_text_may_say_where_its_images_are_and_is_cut_behind_them(encode: Callable[..., Any]) -> None:
    batch = {"image": [[toy_png(0), toy_png(1)]], "text": ["one <image> two <image> three and more"]}
    processor, (row,) = encode("llava", batch, max_length=22)
    shown = processor.tokenizer.decode([label for label in row["labels"] if label != -100])
    assert shown == "one  two  th"
    made = ConversationCollator(processor)([row])
    assert made["input_ids"].tolist() == [row["input_ids"]]
    assert made["pixel_values"].shape[0] == 2
    with pytest.raises(ValueError, match="images that end at token 19, beyond the 18 of `max_length`"):
        encode("llava", batch, max_length=18)


# Losses.


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_a_row_costs_the_same_alone_and_among_others(
    kind: str, models: dict[str, Path], encode: Callable[..., Any]
) -> None:
    processor, rows = rows_of_all_kinds(encode, kind)
    model, collate = AutoModelForImageTextToText.from_pretrained(models[kind]).eval(), ConversationCollator(processor)

    def losses(*places: int) -> list[float]:
        batch = collate([rows[place] for place in places])
        with torch.no_grad():
            outputs = model(**batch)
        each = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
        )
        counts = batch["labels"][:, 1:].ne(-100).sum(1)
        torch.testing.assert_close(outputs.loss, each.sum() / counts.sum())
        return (each.sum(1) / counts).tolist()

    alone = [losses(place)[0] for place in range(5)]
    assert losses(0, 1) == pytest.approx(alone[:2], rel=1e-5)  # texts alone
    assert losses(2, 3, 4) == pytest.approx(alone[2:], rel=1e-5)  # images in all
    assert losses(4, 0, 3, 1, 2) == pytest.approx([alone[place] for place in (4, 0, 3, 1, 2)], rel=1e-5)
    rows[2]["images"] = [toy_png(1)]
    assert abs(losses(2)[0] - alone[2]) > 1e-6


# Runs.


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Images with questions, and dialogues without images."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(24):
        (folder / f"{number}.png").write_bytes(toy_png(number))
    seen = [
        {"image": f"{number}.png", "question": "Where?", "answer": ["Left.", "Right."][number % 2]}
        for number in range(24)
    ]
    chat = [
        {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number + 1}."}]}
        for number in range(30)
    ]
    return {"domain": write_rows(folder / "seen.jsonl", seen), "general": write_rows(folder / "chat.jsonl", chat)}


def recipe_of(model: Path, files: dict[str, str], output_dir: Path, **fields: Any) -> dict[str, Any]:
    corpora = {
        "general": {"path": files["general"], "messages_column": "messages", "image_column": ""},
        "domain": {"path": files["domain"], "prompt_column": "question", "target_column": "answer"},
    }
    return {
        "task": "image-text-to-text",
        "model_name_or_path": str(model),
        "corpora": {name: {**corpus, "part": [0, 0.6]} for name, corpus in corpora.items()},
        "eval_corpora": {name: {**corpus, "part": [0.6, 1]} for name, corpus in corpora.items()},
        "output_dir": str(output_dir),
        "max_steps": 4,
        "alpha": 0.25,
        **SHORT,
        **fields,
    }


def state_of(place: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForImageTextToText.from_pretrained(place).state_dict()
    return state


@pytest.mark.parametrize("kind", ["qwen", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llava", "gemma"))])
def test_shares_are_exact_and_a_resumed_run_is_one_that_was_not_interrupted(
    kind: str, models: dict[str, Path], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"save_strategy": "steps", "save_steps": 2, "alpha_search": {"method": "grid", "alphas": 3}}
    results = run_recipe(recipe_of(models[kind], files, tmp_path / "out", **fields))
    logged = [entry for entry in results.log_history if "share_domain" in entry]
    assert [(entry["share_domain"], entry["share_general"]) for entry in logged] == 4 * [(0.25, 0.75)]
    assert {"loss", "perplexity", "token_accuracy"} <= results.final_metrics["domain"].keys()
    again = recipe_of(models[kind], files, tmp_path / "again", eval_corpora={})
    run_recipe({**again, "resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-2")})
    base, wanted, found, between = (
        state_of(place)
        for place in (models[kind], tmp_path / "out", tmp_path / "again", tmp_path / "out" / INTERPOLATED_NAME)
    )
    alpha = json.loads((tmp_path / "out" / "curve.json").read_text("utf-8"))["alpha"]
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
        mean = torch.lerp(base[name].double(), tensor.double(), alpha)
        torch.testing.assert_close(between[name].double(), mean, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(base[name], wanted[name]) for name in wanted if "visual" in name or "vision" in name)
    card = render_card(tmp_path / "out")
    assert "pipeline_tag: image-text-to-text\n" in str(card)
    monkeypatch.chdir(tmp_path)
    Path("an image.png").write_bytes(toy_png(0))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(card.text.partition("```python\n")[2].partition("```")[0], "card", "exec"), {})
    assert said.getvalue().startswith("['")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{"alpha": 0.5}, {"anchor": "distill", "alpha": 0.5}, {"distill": True, "alpha": 0.5}]
)
def test_a_step_is_the_same_however_its_rows_are_split(
    fields: dict[str, Any], models: dict[str, Path], files: dict[str, str], tmp_path: Path
) -> None:
    states = []
    for size in (4, 1):
        own = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 3}
        recipe = recipe_of(models["qwen"], files, tmp_path / str(size), eval_corpora={}, optim="sgd", **own, **fields)
        if recipe.pop("distill", False):
            recipe["corpora"]["domain"]["objective"] = "distill"
        results = run_recipe(recipe)
        states.append((results.log_history[2]["loss"], state_of(tmp_path / str(size))))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-5)
    for name, tensor in states[0][1].items():
        torch.testing.assert_close(states[1][1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_weights_in_between_are_those_of_float64(
    kind: str, models: dict[str, Path], encode: Callable[..., Any]
) -> None:
    base, tuned = (AutoModelForImageTextToText.from_pretrained(models[kind]) for _ in range(2))
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    processor, rows = rows_of_all_kinds(encode, kind)
    batch = ConversationCollator(processor)(rows)
    wanted = AutoModelForImageTextToText.from_pretrained(models[kind]).double().eval()
    ends = [each.double().state_dict() for each in (base, tuned)]
    wanted.load_state_dict({name: torch.lerp(ends[0][name], ends[1][name], 0.3) for name in ends[0]})
    found = AutoModelForImageTextToText.from_pretrained(models[kind])
    interpolate_weights(base.float(), tuned.float(), 0.3, into=found)
    batch64 = {name: each.double() if each.is_floating_point() else each for name, each in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            found.eval()(**batch).logits.double(), wanted(**batch64).logits, rtol=1e-4, atol=1e-5
        )


# Drafts.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "gemma"])
def test_a_recipe_is_drafted_and_planned(
    kind: str, models: dict[str, Path], files: dict[str, str], tmp_path: Path, write_recipe: Any
) -> None:
    draft = draft_recipe(str(models[kind]), {side: files[side] for side in ("domain", "general")}, {})
    domain = {"prompt_column": "question", "target_column": "answer"}
    general = {"image_column": "", "messages_column": "messages"}
    assert draft.fields["task"] == "image-text-to-text"
    for side, columns in (("domain", domain), ("general", general)):
        assert draft.fields["corpora"][side] == {"path": files[side], "part": [0.0, 0.6], **columns}
    assert 40 <= draft.fields["max_length"] <= 64
    recipe = {**yaml.safe_load(format_recipe(draft)), **SHORT, "output_dir": str(tmp_path / "out")}
    summary = plan_recipe(str(write_recipe(recipe)), num_samples=1).summary
    place = {"llava": "<image>", "gemma": "<start_of_image>"}[kind]
    assert f"{USER}{place}Where?{END}" in summary["samples"]["domain"][0]
    assert check_file(files["domain"], {})["task"] == "image-text-to-text"


def test_images_in_lists_beside_dialogues_with_their_places_are_found(
    models: dict[str, Path], files: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(files["domain"]).parent
    talks = [
        [{"role": "user", "content": [text_part("Same?"), PLACE, PLACE]}, {"role": "assistant", "content": "No."}],
        [{"role": "user", "content": [PLACE, text_part("Where?")]}, {"role": "assistant", "content": "Left."}],
    ]
    rows = [
        {"messages": talks[number % 2], "images": [f"{number}.png", f"{number + 1}.png"][: 2 - number % 2]}
        for number in range(20)
    ]
    path = write_rows(folder / "talks.jsonl", rows)
    found = check_file(path, {})
    assert (found["task"], found["uses"], found["wrong"]) == (
        "image-text-to-text",
        {"image": "images", "messages": "messages"},
        [],
    )
    draft = draft_recipe(str(models["qwen"]), {"domain": path}, {})
    recipe, args = parse_recipe({**yaml.safe_load(format_recipe(draft)), **SHORT, "output_dir": str(tmp_path / "out")})
    data = load_data(recipe, check_recipe(recipe, args))
    texts = [row["text"] for corpus in data.corpora for row in corpus.dataset]
    assert f"{USER}Same?{SHOWN['qwen']}{SHOWN['qwen']}{END}\n{ASSISTANT}No.{END}\n" in texts


# Refusals.


def refused(recipe: dict[str, Any]) -> str:
    """The one line that a recipe is refused with, before training."""

    def prepare() -> None:
        parsed, args = parse_recipe(recipe)
        task = check_recipe(parsed, args)
        build_trainer(parsed, task, args, load_data(parsed, task))

    with pytest.raises((ValueError, OSError)) as caught:
        prepare()
    assert "\n" not in str(caught.value)
    return str(caught.value)


PARTS: list[dict[str, Any]] = [
    {"role": "user", "content": [PLACE, PLACE, text_part("?")]},
    {"role": "assistant", "content": "No."},
]
OWN = [{"role": "user", "content": [{**PLACE, "path": "0.png"}]}, {"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        (
            {"image": "none.png", "text": "a"},
            {},
            "has the image 'none.png', which is not there: column 'image', line 2",
        ),
        ({"image": "broken.png", "text": "a"}, {}, "an image of 3 bytes that cannot be decoded"),
        ({"image": None, "text": "a"}, {}, "None where the file of an image belongs: column 'image', line 2"),
        ({"image": "0.png", "text": " "}, {}, "has an empty text: column 'text', line 2"),
        (
            {"image": "0.png", "text": "<image> and <image>"},
            {},
            "2 places for images ('<image>') and 1 images: column 'text', line 2",
        ),
        ({"image": "0.png", "messages": PARTS}, {"messages_column": "messages"}, "2 places for images"),
        (
            {"image": "0.png", "messages": OWN},
            {"messages_column": "messages"},
            "a file of its own in an image of turn 0",
        ),
        (
            {"image": "0.png", "messages": [PARTS[0] | {"role": None}]},
            {"messages_column": "messages"},
            "as turn 0, where",
        ),
        ({"text": "see <image>"}, {"image_column": ""}, "1 places for images ('<image>') and 0 images"),
        (
            {"text": "see"},
            {},
            "has no column 'image' of images; it has ['text']. Name its `image_column`; of texts alone",
        ),
        (
            {"image": "0.png", "text": "a"},
            {"path": "self"},
            "must be files for image-text-to-text, of which M₀ makes none",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    row: dict[str, Any],
    columns: dict[str, Any],
    words: str,
    models: dict[str, Path],
    files: dict[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "0.png").write_bytes(toy_png(0))
    (tmp_path / "broken.png").write_bytes(b"abc")
    good: dict[str, Any] = {"image": "0.png", "text": "a", "messages": [PARTS[0] | {"content": [PLACE]}, PARTS[1]]}
    rows = [{name: good[name] for name in row}, row]
    recipe = recipe_of(models["llava"], files, tmp_path / "out")
    recipe["corpora"]["domain"] = {"path": write_rows(tmp_path / "rows.jsonl", rows), **columns}
    assert words in refused(recipe)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"augmentation": {"flip": 0.5}}, "`augmentation` would change what texts speak of"),
        ({"max_seconds": 3}, "`max_seconds` is for sound"),
        ({"packing": "bfd"}, "or bfd for causal language models, got 'bfd' for image-text-to-text."),
        ({"chat_template": "chatml"}, "turns that the chat template refuses (can only concatenate str"),
        ({"chat_template": "plain.jinja"}, "a chat template that does not read the parts of a turn, as one for images"),
        ({"dp_epsilon": 8.0, "dp_delta": 1e-3}, "`dp_epsilon` needs batches that fall into rows"),
        ({"max_length": 30}, "no assistant's token within its first 30 tokens (`max_length`)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    fields: dict[str, Any],
    words: str,
    models: dict[str, Path],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.jinja").write_text("{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}")
    assert words in refused(recipe_of(models["llava"], files, tmp_path / "out", **fields))


def test_a_model_without_images_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(eos_token="[SEP]")
    toy_decoder(len(tokenizer)).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    for model, kind in ((tmp_path / "text", "Tokenizer"), (write_toy_vit(tmp_path / "image"), "ViTImageProcessor")):
        said = refused(recipe_of(model, files, tmp_path / "out"))
        assert f"The model {str(model)!r} takes no images among its texts: it brings a {kind}" in said
