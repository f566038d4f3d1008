"""Images with texts: losses and metrics are those of transformers and of references by hand, and M_α is in between."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer
from toy_media import (
    PLACES,
    SIDES_SAID,
    toy_pixels,
    toy_png,
    write_table,
    write_toy_captioner,
    write_toy_clip,
    write_toy_pairs,
)
from toys import SHORT
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, EvalPrediction, pipeline

from hf_interp.commands.column_choice import choose_columns
from hf_interp.commands.curve import curve_run
from hf_interp.commands.draft import draft_recipe, look_at_model
from hf_interp.commands.file_facts import look_at
from hf_interp.commands.init import format_recipe
from hf_interp.commands.plan import format_plan, plan_recipe
from hf_interp.losses.per_example import ContrastiveLoss, have_same, pair_label
from hf_interp.reporting.hub import render_card
from hf_interp.tasks.build import build_trainer, check_recipe, load_data
from hf_interp.tasks.corpora.media import PairCollator, encode_images_texts
from hf_interp.tasks.metrics import image_text_metrics
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.task import get_task
from hf_interp.train import run_recipe
from hf_interp.utils.run_folder import INTERPOLATED_NAME
from hf_interp.weights.interpolate import interpolate_weights
from hf_interp.weights.merge import interpolate_checkpoints

SIDES = ("general", "domain")
KINDS = ("clip", "siglip", "dual")
SPLITS = {"train": range(24), "validation": range(24, 36), "test": range(36, 52)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_toy_clip(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Files of both sides by split."""
    folder = tmp_path_factory.mktemp("pairs")
    return {
        split: {side: str(write_toy_pairs(folder / f"{side}_{split}.jsonl", rows, side)) for side in SIDES}
        for split, rows in SPLITS.items()
    }


def recipe_of(model: Path, files: dict[str, dict[str, str]], output_dir: Path, **fields: Any) -> dict[str, Any]:
    judged = {"zero_shot_template": "the model {}", "label_map": dict(zip(PLACES, SIDES_SAID, strict=True))}
    sets = {split: {side: {"path": path, **judged} for side, path in files[split].items()} for split in files}
    return {
        "task": "image-text",
        "model_name_or_path": str(model),
        "label_names": SIDES_SAID,
        "corpora": {side: {"path": path} for side, path in files["train"].items()},
        "validation_corpora": sets["validation"],
        "eval_corpora": {**sets["test"], "pairs": {"path": files["test"]["domain"]}},
        "augmentation": {"shift": 0.1},
        "output_dir": str(output_dir),
        "max_steps": 4,
        **SHORT,
        **fields,
    }


@pytest.fixture(scope="module")
def run(models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of CLIP of four steps, its curve and its M_α."""
    folder = tmp_path_factory.mktemp("run") / "out"
    fields = {"alpha_search": {"method": "grid", "alphas": 3}, "save_strategy": "steps", "save_steps": 2}
    run_recipe(recipe_of(models["clip"], files, folder, **fields))
    return folder


def batch_of(model: Path, texts: list[str], numbers: list[int]) -> dict[str, torch.Tensor]:
    """What a model takes of images and their texts, as training makes it."""
    processor = AutoProcessor.from_pretrained(model)
    recipe = Recipe(model_name_or_path=str(model), corpora={}, task="image-text")
    rows = {"image": [toy_png(number) for number in numbers], "text": texts}
    encoded = encode_images_texts(processor, recipe)(rows)
    examples = [{name: values[row] for name, values in encoded.items()} for row in range(len(texts))]
    return PairCollator(processor, recipe)(examples)


# The loss.


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_pairs_is_the_models_own(kind: str, models: dict[str, Path]) -> None:
    batch = batch_of(models[kind], ["the model falls", "a court rises slowly today", "the cell"], [0, 1, 2])
    labels = batch.pop("labels")
    outputs = AutoModel.from_pretrained(models[kind])(**batch, return_loss=True)
    loss = ContrastiveLoss(is_sigmoid=kind == "siglip")
    torch.testing.assert_close(loss(outputs, labels), outputs.loss)
    torch.testing.assert_close(loss(outputs, labels, num_items_in_batch=6), outputs.loss / 2)
    torch.testing.assert_close(loss.per_example(outputs, labels).mean(), outputs.loss.detach())


@pytest.mark.parametrize("is_sigmoid", [False, True])
def test_what_is_the_same_is_no_negative(is_sigmoid: bool) -> None:
    pairs = [(b"1", "a"), (b"2", "b"), (b"3", "a"), (b"2", "c")]
    labels = torch.tensor([pair_label(*pair) for pair in pairs])
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = []
    for own, (image, text) in enumerate(pairs):
        others = [at for at, pair in enumerate(pairs) if at != own and pair[0] != image and pair[1] != text]
        rows = [logits.numpy()[own], logits.numpy()[:, own]]
        if is_sigmoid:
            each = [-np.log(1 / (1 + np.exp(-row[own]))) + np.log1p(np.exp(row[others])).sum() for row in rows]
        else:
            each = [np.log(np.exp(row[[own, *others]]).sum()) - row[own] for row in rows]
        wanted.append(sum(each) / 2)
    found = ContrastiveLoss(is_sigmoid=is_sigmoid).per_example({"logits_per_image": logits}, labels)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert have_same(labels).sum() == 4 + 2 * 2


def test_an_image_with_a_class_costs_the_cross_entropy_of_the_classes_texts() -> None:
    logits, labels = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([1, 2])
    found = ContrastiveLoss().per_example((logits, None), labels)  # a tuple, as an evaluation has it
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


def test_pairs_divided_among_gpus_of_one_process_are_refused() -> None:
    labels = torch.tensor([pair_label(b"1", "a"), pair_label(b"2", "b")])
    with pytest.raises(ValueError, match="one process for each GPU"):
        ContrastiveLoss()({"logits_per_image": torch.zeros(2, 1)}, labels)


def test_texts_are_as_long_as_their_model_wants_them(models: dict[str, Path]) -> None:
    texts, long = ["the model", "the model falls"], "the model " * 20
    assert [batch_of(models[kind], texts, [0, 1])["input_ids"].shape[1] for kind in KINDS] == [5, 12, 5]
    assert batch_of(models["clip"], [long, "a"], [0, 1])["input_ids"].shape == (2, 12)


# Runs.


@pytest.mark.slow
def test_the_loss_is_the_mean_over_the_pairs_of_all_micro_batches(
    models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1, "augmentation": None}
    results = run_recipe(recipe_of(models["clip"], files, tmp_path / "out", learning_rate=0.0, **fields))
    logged = next(entry for entry in results.log_history if "loss_general" in entry)
    assert logged["loss"] == pytest.approx((logged["loss_general"] + logged["loss_domain"]) / 2, rel=1e-5)
    assert logged["share_domain"] == 0.5


def test_a_resumed_run_has_the_weights_of_one_that_was_not_interrupted(
    run: Path, models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    checkpoint = str(run / "checkpoint-2")
    run_recipe(recipe_of(models["clip"], files, tmp_path / "out", resume_from_checkpoint=checkpoint))
    wanted, found = (AutoModel.from_pretrained(place).state_dict() for place in (run, tmp_path / "out"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_zero_shot_is_that_of_the_pipeline(run: Path, files: dict[str, dict[str, str]]) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    classify = pipeline("zero-shot-image-classification", model=str(run))
    for side in SIDES:
        right = []
        for number in SPLITS["test"]:
            image = Image.fromarray(toy_pixels(number, side)).convert("RGB")
            found = classify(image, candidate_labels=SIDES_SAID, hypothesis_template="the model {}")
            right.append(found[0]["label"] == SIDES_SAID[number % 2])
        assert results["final_metrics"][side]["accuracy"] == pytest.approx(np.mean(right))
        assert {"loss", "f1", "roc_auc"} <= results["final_metrics"][side].keys()


def test_retrieval_is_that_of_a_search_by_hand(run: Path, files: dict[str, dict[str, str]]) -> None:
    rows = [json.loads(line) for line in Path(files["test"]["domain"]).read_text("utf-8").splitlines()]
    processor, model = AutoProcessor.from_pretrained(run), AutoModel.from_pretrained(run).eval()
    images = [Image.fromarray(toy_pixels(number, "domain")).convert("RGB") for number in SPLITS["test"]]
    texts = [row["text"] for row in rows]
    with torch.no_grad():
        near = model(
            **processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
        ).logits_per_image.numpy()
    found = json.loads((run / "results.json").read_text("utf-8"))["final_metrics"]["pairs"]
    pixels = [image.tobytes() for image in images]
    for way, scores in (("text", near), ("image", near.T)):
        for most in (1, 5):
            hits = []
            for own, row in enumerate(scores):
                same = [at for at in range(16) if texts[at] == texts[own] or pixels[at] == pixels[own]]
                ahead = sum(row[at] >= max(row[same]) for at in range(16) if at not in same)
                hits.append(ahead < most)
            assert found[f"{way}_recall_at_{most}"] == pytest.approx(np.mean(hits))
    assert found["recall_at_1"] == pytest.approx((found["text_recall_at_1"] + found["image_recall_at_1"]) / 2)


@pytest.mark.slow
def test_the_general_side_may_be_zero_shot_alone(
    models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    recipe = recipe_of(models["siglip"], files, tmp_path / "out", alpha=1.0, max_steps=2)
    del recipe["corpora"]["general"]
    results = run_recipe({**recipe, "alpha_search": {"method": "grid", "alphas": 3}})
    curve = json.loads((tmp_path / "out" / "curve.json").read_text("utf-8"))
    assert (curve["alphas"], len(curve["report"]["general"]["accuracy"]["values"])) == ([0.0, 0.5, 1.0], 3)
    assert results.final_metrics["general"].keys() == results.final_metrics["domain"].keys()
    assert "accuracy" in results.forgetting


def test_all_alike_find_nothing() -> None:
    labels = np.array([pair_label(bytes([number]), str(number)) for number in range(8)])
    found = image_text_metrics()(EvalPrediction((np.ones((8, 3)), np.ones((8, 3))), labels))
    assert set(found.values()) == {0.0}


def test_the_curve_the_merge_the_card_and_the_plan(
    run: Path, models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path: Path, write_recipe: Any
) -> None:
    curve, _ = curve_run(run)
    assert curve.metric == "accuracy"
    interpolate_checkpoints(models["clip"], run, tmp_path / "merged", curve.alpha)
    states = [AutoModel.from_pretrained(place).state_dict() for place in (models["clip"], run)]
    for place in (tmp_path / "merged", run / INTERPOLATED_NAME):
        for name, tensor in AutoModel.from_pretrained(place).state_dict().items():
            wanted = torch.lerp(states[0][name].double(), states[1][name].double(), curve.alpha)
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-7)
        AutoProcessor.from_pretrained(place)
    card = render_card(run)
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "processor = AutoProcessor.from_pretrained(" in card.text
    plan = plan_recipe(str(write_recipe(recipe_of(models["clip"], files, tmp_path))), num_samples=1)
    assert "an image of 6×6 pixels: [CLS] the model falls a [SEP]" in format_plan(plan.summary)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_between_are_those_of_float64(kind: str, models: dict[str, Path]) -> None:
    base, tuned = (AutoModel.from_pretrained(models[kind]) for _ in range(2))
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = batch_of(models[kind], ["the model falls", "a court rises"], [0, 1])
    batch.pop("labels")
    wanted = AutoModel.from_pretrained(models[kind]).double().eval()
    ends = [each.double().state_dict() for each in (base, tuned)]
    wanted.load_state_dict({name: torch.lerp(ends[0][name], ends[1][name], 0.3) for name in ends[0]})
    found = AutoModel.from_pretrained(models[kind])
    interpolate_weights(base.float(), tuned.float(), 0.3, into=found)
    batch64 = {name: each.double() if each.is_floating_point() else each for name, each in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            found.eval()(**batch).logits_per_image.double(), wanted(**batch64).logits_per_image, rtol=1e-4, atol=1e-4
        )


# Captions.


@pytest.mark.parametrize("decoder", ["bert", "gpt2"])
def test_captions_end_and_begin_as_the_decoder_has_it(
    decoder: str, files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    model = write_toy_captioner(tmp_path / "model", decoder)
    recipe, args = parse_recipe(captions_of(model, files, tmp_path / "out"))
    data = load_data(recipe, check_recipe(recipe, args))
    known, row = data.tokenizer.tokenizer, data.corpora[0].dataset[0]
    assert known.decode(row["labels"]).removeprefix("[CLS] ") == "the model falls a [SEP]"
    trainer = build_trainer(recipe, get_task(recipe.task), args, data)
    begin = known.cls_token_id
    assert (
        trainer.model.config.decoder_start_token_id == trainer.model.generation_config.decoder_start_token_id == begin
    )
    inputs = trainer.data_collator([row, {**row, "labels": row["labels"][:2]}])
    logits = trainer.model.eval()(**inputs).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    torch.testing.assert_close(trainer.model(**inputs).loss, wanted)
    assert inputs["labels"][1, 2:].eq(-100).all()


def captions_of(model: Path, files: dict[str, dict[str, str]], output_dir: Path, **fields: Any) -> dict[str, Any]:
    groups = {"corpora": "train", "validation_corpora": "validation", "eval_corpora": "test"}
    return {
        "task": "image-to-text",
        "model_name_or_path": str(model),
        **{group: {side: {"path": path} for side, path in files[split].items()} for group, split in groups.items()},
        "augmentation": {"shift": 0.1},
        "max_target_length": 8,
        "output_dir": str(output_dir),
        "max_steps": 4,
        **SHORT,
        **fields,
    }


@pytest.mark.slow
def test_captions_are_measured_resumed_and_interpolated(files: dict[str, dict[str, str]], tmp_path: Path) -> None:
    model, run = write_toy_captioner(tmp_path / "model"), tmp_path / "run"
    search = {"method": "grid", "alphas": 3, "metric": "rougeL"}
    fields = {"alpha_search": search, "save_strategy": "steps", "save_steps": 2}
    found = run_recipe(captions_of(model, files, run, **fields)).final_metrics["domain"]
    run_recipe(captions_of(model, files, tmp_path / "again", resume_from_checkpoint=str(run / "checkpoint-2")))
    places = (model, run, tmp_path / "again", run / INTERPOLATED_NAME)
    states = [AutoModelForImageTextToText.from_pretrained(place).state_dict() for place in places]
    alpha = json.loads((run / "curve.json").read_text("utf-8"))["alpha"]
    for name, tensor in states[1].items():
        assert torch.equal(states[2][name], tensor)
        torch.testing.assert_close(states[3][name], torch.lerp(states[0][name], tensor, alpha), rtol=1e-6, atol=1e-7)
    tuned, processor = AutoModelForImageTextToText.from_pretrained(run).eval(), AutoProcessor.from_pretrained(run)
    score = RougeScorer(["rougeL"], use_stemmer=True).score
    scores = []
    for row in map(json.loads, Path(files["test"]["domain"]).read_text("utf-8").splitlines()):
        image = Image.open(Path(files["test"]["domain"]).parent / row["image"]).convert("RGB")
        tokens = tuned.generate(**processor(images=image, return_tensors="pt"), max_length=8)
        said = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        scores.append(score(row["text"], said)["rougeL"].fmeasure)
    assert found["rougeL"] == pytest.approx(np.mean(scores))
    assert {"bleu", "chrf", "rouge1", "loss"} <= found.keys()
    assert "outputs = model.generate(**processor(images=image" in render_card(run).text


# Drafts.


@pytest.mark.parametrize("kind", ["image-text", "image-to-text"])
def test_a_recipe_is_drafted_for_images_with_texts(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    model = models["clip"] if kind == "image-text" else write_toy_captioner(tmp_path / "model")
    rows = [json.loads(line) for line in write_toy_pairs(tmp_path / "rows.jsonl", range(60)).read_text().splitlines()]
    mine = tmp_path / "mine.jsonl"
    renamed = [{"photo": row["image"], "caption": row["text"], "place": row["label"]} for row in rows]
    mine.write_text("".join(json.dumps(row) + "\n" for row in renamed), "utf-8")
    draft = draft_recipe(str(model), {"domain": str(mine)}, {})
    columns = {"image_column": "photo", "text_column": "caption"}
    assert draft.fields["task"] == kind
    assert draft.fields["corpora"]["domain"] == {"path": str(mine), "part": [0.0, 0.8], **columns}
    loaded = AutoModel if kind == "image-text" else AutoModelForImageTextToText
    assert look_at_model(str(model)).parameters == loaded.from_pretrained(model).num_parameters()
    own = {"max_target_length": 16, "output_dir": str(tmp_path / "out"), "max_steps": 1}  # all that a toy decoder has
    run_recipe({**yaml.safe_load(format_recipe(draft)), **SHORT, **own})
    facts = look_at("file", CorpusConfig(path=str(mine)))
    assert choose_columns(facts, {"text_column": "caption"}) == ("image-text", columns, {})
    assert choose_columns(facts, {"text_column": "caption"}, task=kind) == (kind, columns, {})


def test_captions_longer_than_the_decoder_are_refused(files: dict[str, dict[str, str]], tmp_path: Path) -> None:
    model = write_toy_captioner(tmp_path / "model")
    recipe = captions_of(model, files, tmp_path / "out", max_target_length=500)
    assert "`max_target_length` (500) is more than the " in refused(recipe)


def test_a_text_for_each_label_is_not_taken_for_the_label(tmp_path: Path) -> None:
    """A classifier whose head calls them by number would have them in another order."""
    rows = [json.loads(line) for line in write_toy_pairs(tmp_path / "rows.jsonl", range(20)).read_text().splitlines()]
    lines = [{**row, "label": str(place % 2), "text": ["no", "yes"][place % 2]} for place, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = look_at("file", CorpusConfig(path=str(tmp_path / "rows.jsonl")))
    found = choose_columns(facts, {}, family="image")
    assert found == ("image-classification", {"image_column": "image", "label_column": "label"}, {})


# Refusals.


def refused(recipe: dict[str, Any]) -> str:
    """The one line that a recipe is refused with, before training."""
    with pytest.raises((ValueError, OSError)) as caught:
        run_recipe(recipe)
    assert "\n" not in str(caught.value)
    assert not Path(recipe["output_dir"], "results.json").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"zero_shot_template": "a photo"}, "`zero_shot_template` needs `{}` where the name of a label belongs"),
        ({"label_names": None}, "`zero_shot_template` needs `label_names`"),
        ({"label_names": ["falls", "falls"]}, "must be different labels, got 'falls' twice"),
        ({"anchor": "distill"}, "Distilling and `log_loss_gap` need logits over classes"),
        ({"max_seconds": 3}, "`max_seconds` is for sound"),
        ({"task": "image-to-text"}, "`label_names` of one set, are for image-text, got them for image-to-text."),
        ({"corpora": {"objective": "distill"}}, "are not for it. Leave them out."),
        ({"corpora": {"zero_shot_template": "a {}"}}, "are not for it. Leave them out."),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    fields: dict[str, Any], words: str, models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    recipe = recipe_of(models["clip"], files, tmp_path / "out", **{k: v for k, v in fields.items() if k != "corpora"})
    recipe["corpora"]["domain"] |= fields.get("corpora", {})
    if "zero_shot_template" in fields:
        for name in SIDES:
            del recipe["eval_corpora"][name]["zero_shot_template"]
    assert words in refused(recipe)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "  "}, "Corpus 'domain' has an empty text: column 'text', line 2"),
        ({"text": None}, "None where a text belongs: column 'text', line 2"),
        ({"image": None}, "None where the file of an image belongs: column 'image', line 2"),
        ({"image": "images/none.png"}, "has the image 'images/none.png', which is not there: column 'image', line 2"),
    ],
)
def test_a_caption_without_an_image_and_an_empty_one_are_named(
    row: dict[str, Any], words: str, models: dict[str, Path], files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    write_table(tmp_path / "rows.jsonl", range(1))
    whole = {"image": "images/general_0.png", "text": "the model"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (whole, {**whole, **row})))
    recipe = recipe_of(models["clip"], files, tmp_path / "out")
    recipe["corpora"]["domain"]["path"] = str(tmp_path / "rows.jsonl")
    assert words in refused(recipe)
