"""Images: every form of a corpus becomes the same pixels, and what is drawn depends on the place in the run alone."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from toy_media import (
    PLACES,
    TONES,
    toy_pixels,
    toy_png,
    toy_wav,
    write_folder,
    write_parquet,
    write_sounds,
    write_table,
    write_toy_ast,
    write_toy_vit,
)
from toys import SHORT, same_weights
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
    set_seed,
)

from hf_interp.app.examples import find_source
from hf_interp.app.models import open_slider
from hf_interp.commands.column_choice import choose_columns
from hf_interp.commands.curve import curve_run
from hf_interp.commands.draft import draft_recipe, look_at_model
from hf_interp.commands.file_facts import look_at
from hf_interp.commands.plan import format_plan, plan_recipe
from hf_interp.mixture.collators import collate
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.hub import render_card
from hf_interp.tasks.build import check_recipe, load_data, tokenise
from hf_interp.tasks.corpora.loading import load_corpus
from hf_interp.tasks.corpora.media import ImageCollator, augment, open_image
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.runs import load_run_recipe, open_run, over_alpha, parse_run
from hf_interp.train import run_recipe
from hf_interp.utils.run_folder import INTERPOLATED_NAME
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.model_folder import load_renamed

AUGMENTATION = {"shift": 0.3, "rotate": 30, "zoom": 0.2, "flip": 0.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_vit(tmp_path_factory.mktemp("vit"), PLACES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Files of both sides by split."""
    folder = tmp_path_factory.mktemp("images")
    numbers = {"train": range(24), "validation": range(24, 36), "test": range(36, 52)}
    return {
        split: {side: str(write_parquet(folder / f"{side}_{split}.parquet", rows, side)) for side in SIDES}
        for split, rows in numbers.items()
    }


SIDES = ("general", "domain")


def recipe_of(model: Path, files: dict[str, dict[str, str]], output_dir: Path, **fields: Any) -> dict[str, Any]:
    groups = {"corpora": "train", "validation_corpora": "validation", "eval_corpora": "test"}
    return {
        "task": "image-classification",
        "model_name_or_path": str(model),
        "label_names": PLACES,
        **{group: {side: {"path": path} for side, path in files[split].items()} for group, split in groups.items()},
        "augmentation": AUGMENTATION,
        "output_dir": str(output_dir),
        "max_steps": 4,
        **SHORT,
        **fields,
    }


@pytest.fixture(scope="module")
def run(model: Path, files: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps, its curve and its M_α."""
    folder = tmp_path_factory.mktemp("run")
    fields = {"alpha_search": {"method": "grid", "alphas": 3}, "save_strategy": "steps", "save_steps": 2}
    run_recipe(recipe_of(model, files, folder / "out", **fields))
    return folder / "out"


# Corpora.


def corpus(model: Path, config: CorpusConfig, **fields: Any) -> Any:
    """The inputs of a corpus' examples, all in one batch."""
    fields = {"task": "image-classification", "label_names": PLACES, **fields}
    recipe = Recipe(model_name_or_path=str(model), corpora={"general": config}, **fields)
    processor = AutoImageProcessor.from_pretrained(model)
    dataset = tokenise("general", config, recipe, processor).examples
    return ImageCollator(processor)(list(dataset))


@pytest.mark.parametrize("form", ["parquet", "table", "csv", "folder", "stream"])
def test_every_form_becomes_the_processors_pixels(form: str, model: Path, tmp_path: Path) -> None:
    numbers = [0, 2, 1, 3] if form == "folder" else range(4)  # a folder is read label by label
    write = {"table": write_table, "folder": write_folder}.get(form, write_parquet)
    path = write(tmp_path / {"table": "rows.jsonl", "folder": "rows"}.get(form, "rows.parquet"), numbers)
    if form == "csv":
        rows = json.loads(f"[{','.join(write_table(tmp_path / 'rows.jsonl', numbers).read_text().splitlines())}]")
        path = tmp_path / "rows.csv"
        path.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    found = corpus(model, CorpusConfig(path=str(path), streaming=form == "stream"))
    grey = np.stack([toy_pixels(number) for number in numbers]).astype(np.float32)  # 8×8, as the model has it
    wanted = torch.from_numpy(np.repeat(grey[:, None], 3, axis=1) / 255 * 2 - 1)
    torch.testing.assert_close(found["pixel_values"], wanted, rtol=0, atol=1e-6)
    assert found["labels"].tolist() == [number % 2 for number in numbers]


def test_a_column_of_another_name_and_rows_by_label(model: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_table(tmp_path / "rows.jsonl", range(6)).read_text().splitlines()]
    lines = [json.dumps({"file": row["image"], "place": row["label"]}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = CorpusConfig(
        path=str(tmp_path / "rows.jsonl"), image_column="file", label_column="place", where={"place": "right"}
    )
    assert corpus(model, config)["labels"].tolist() == [1, 1, 1]


def test_several_labels_and_numbers(model: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "rows.jsonl", range(2))
    for labels, kind, wanted in (
        ([["left"], ["left", "right"]], "multi_label_classification", [[1.0, 0.0], [1.0, 1.0]]),
        ([0.5, 2.0], "regression", [0.5, 2.0]),
    ):
        rows = [{"image": f"images/general_{row}.png", "label": label} for row, label in enumerate(labels)]
        (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {"problem_type": kind, "label_names": None if kind == "regression" else PLACES}
        found = corpus(model, CorpusConfig(path=str(tmp_path / "other.jsonl")), **fields)["labels"]
        assert (found.tolist(), found.dtype) == (wanted, torch.float32)


# Augmentation.


class Drawn:
    """Draws what it is told: the turn, the zoom, the shifts and the chance of a flip, each of [-1, 1]."""

    def __init__(
        self, turn: float = 0, zoom: float = 0, shifts: tuple[float, float] = (0, 0), chance: float = 1
    ) -> None:
        self.numbers = [turn, zoom, np.array(shifts)]
        self.chance = chance

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return self.numbers.pop(0) * high

    def random(self) -> float:
        return self.chance


@pytest.mark.parametrize(
    ("drawn", "settings", "change"),
    [
        (Drawn(), {}, lambda pixels: pixels),
        (Drawn(chance=0.4), {"flip": 0.5}, lambda pixels: pixels[:, ::-1]),
        (Drawn(chance=0.6), {"flip": 0.5}, lambda pixels: pixels),
        (Drawn(turn=1), {"rotate": 90}, lambda pixels: np.rot90(pixels, -1)),
        (Drawn(turn=-1), {"rotate": 180}, lambda pixels: np.rot90(pixels, 2)),
        (Drawn(shifts=(1, 0)), {"shift": 0.25}, lambda pixels: np.pad(pixels, ((0, 0), (2, 0)))[:, :-2]),
        (Drawn(shifts=(0, -0.5)), {"shift": 0.25}, lambda pixels: np.pad(pixels, ((0, 1), (0, 0)))[1:]),
    ],
)
def test_an_image_is_moved_as_it_is_drawn(drawn: Any, settings: dict[str, float], change: Any) -> None:
    pixels = toy_pixels(3)
    found = np.asarray(augment(Image.fromarray(pixels), drawn, **settings))
    np.testing.assert_allclose(found, change(pixels), atol=1)


def test_a_zoomed_image_is_larger_about_its_middle() -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[6:10, 6:10] = 200
    larger = np.asarray(augment(Image.fromarray(pixels), Drawn(zoom=1), zoom=0.5))  # 4 pixels become 6
    assert (larger[5:11, 5:11] >= 100).all()
    assert larger.sum() == pytest.approx(200 * 36, rel=0.1)
    assert np.array_equal(larger, larger[::-1, ::-1])


def test_what_is_drawn_depends_on_seed_and_slot_alone(model: Path) -> None:
    collator = ImageCollator(AutoImageProcessor.from_pretrained(model), AUGMENTATION)
    examples = [{"image": toy_png(0), "labels": 0}] * 6
    whole = collate(collator, examples, range(6), 3)["pixel_values"]
    parts = [collate(collator, examples[:2], range(first, first + 2), 3)["pixel_values"] for first in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert len({row.numpy().tobytes() for row in whole}) == 6
    assert not torch.equal(whole, collate(collator, examples, range(6), 4)["pixel_values"])
    plain = collator(examples)["pixel_values"]
    assert all(torch.equal(row, plain[0]) for row in plain)
    assert torch.equal(plain, ImageCollator(collator.processor).collate(examples, range(6), 3)["pixel_values"])


# Runs.


def test_a_resumed_run_has_the_weights_of_one_that_was_not_interrupted(
    run: Path, model: Path, files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    checkpoint = str(run / "checkpoint-2")
    run_recipe(recipe_of(model, files, tmp_path / "out", resume_from_checkpoint=checkpoint))
    wanted = AutoModelForImageClassification.from_pretrained(run).state_dict()
    found = AutoModelForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_weights_are_loaded_that_are_saved_by_older_names(model: Path) -> None:
    """As those of the best model, which `Trainer` loads by the names in the file."""
    loaded = AutoModelForImageClassification.from_pretrained(model)
    wanted = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    load_renamed(loaded, model)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in loaded.state_dict().items())


def test_the_metrics_are_those_of_the_pipeline(run: Path, files: dict[str, dict[str, str]]) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    classify = pipeline("image-classification", model=str(run))
    for side in SIDES:
        images = [Image.fromarray(toy_pixels(number, side)).convert("RGB") for number in range(36, 52)]
        best = [found[0]["label"] for found in classify(images)]
        right = np.mean([label == PLACES[number % 2] for number, label in zip(range(36, 52), best, strict=True)])
        assert results["final_metrics"][side]["accuracy"] == pytest.approx(right)
        assert {"f1", "matthews_correlation", "roc_auc"} <= results["final_metrics"][side].keys()


def test_the_curve_the_merge_and_the_card(run: Path, model: Path, tmp_path: Path) -> None:
    before = load_curve(run / "curve.json")
    curve, _ = curve_run(run)
    assert (curve.alphas, curve.alpha) == (before.alphas, before.alpha)
    notes = interpolate_checkpoints(model, run, tmp_path / "merged", before.alpha).notes
    assert not any("token" in note for note in notes)
    states = [AutoModelForImageClassification.from_pretrained(place).state_dict() for place in (model, run)]
    for place in (tmp_path / "merged", run / INTERPOLATED_NAME):
        found = AutoModelForImageClassification.from_pretrained(place).state_dict()
        for name, tensor in found.items():
            wanted = torch.lerp(states[0][name], states[1][name], before.alpha)
            torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)
        AutoImageProcessor.from_pretrained(place)
    card = render_card(run)
    assert card.data.pipeline_tag == "image-classification"
    assert "classify = pipeline('image-classification', model=" in card.text
    assert "print(classify('an image.png', top_k=None))" in card.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_gives_the_same_logits_in_onnx(run: Path, tmp_path: Path) -> None:
    """As docs/training.md says, for a batch of another size."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = AutoModelForImageClassification.from_pretrained(run / INTERPOLATED_NAME).eval()
    processor = AutoImageProcessor.from_pretrained(run / INTERPOLATED_NAME)
    images = [Image.fromarray(toy_pixels(number)).convert("RGB") for number in range(5)]
    few, many = (dict(processor(some, return_tensors="pt")) for some in (images[:2], images))
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    options = {"input_names": list(few), "output_names": ["logits"], "dynamic_shapes": shapes}
    torch.onnx.export(model, kwargs=few, dynamo=True, **options).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {name: value.numpy() for name, value in many.items()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**many).logits.numpy(), atol=1e-4)


def floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's weights and statistics, but for counts."""
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def test_a_run_measures_the_statistics_of_batch_norms_anew(files: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """At α = 0.5 they are those of float64 weights on the validation images, the mean over two batches."""
    names = {"id2label": dict(enumerate(PLACES)), "label2id": {name: place for place, name in enumerate(PLACES)}}
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    set_seed(0)
    ResNetForImageClassification(ResNetConfig(**sizes, **names)).save_pretrained(tmp_path / "model")
    AutoImageProcessor.from_pretrained(write_toy_vit(tmp_path / "vit", PLACES, 32)).save_pretrained(tmp_path / "model")
    fields = {"alpha_search": {"alphas": 3}, "learning_rate": 0.01, "per_device_eval_batch_size": 16}
    recipe = recipe_of(tmp_path / "model", files, tmp_path / "out", **fields)
    run_recipe(recipe)
    trainer, data = open_run(*parse_run(load_run_recipe(tmp_path / "out")), tmp_path / "out")
    parsed, _ = parse_run(load_run_recipe(tmp_path / "out"))
    states = {alpha: floats(trainer.model) for alpha in over_alpha(trainer, parsed, data)}
    ends = [AutoModelForImageClassification.from_pretrained(place) for place in (tmp_path / "model", tmp_path / "out")]
    assert same_weights(states[0.0], floats(ends[0]))
    assert same_weights(states[1.0], floats(ends[1]))
    model = ends[0].double().train()
    for parameter, other in zip(model.parameters(), ends[1].parameters(), strict=True):
        parameter.data.lerp_(other.double(), 0.5)
    found = []
    for rows in data.validation_sets.values():
        for norm in (part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0  # the statistics of the last batch
        model(ImageCollator(data.tokenizer)(list(rows))["pixel_values"].double())
        found.append(floats(model))
    for name, value in states[0.5].items():
        wanted = (found[0][name] + found[1][name]) / 2
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match="The page has no data on which to measure the statistics of batch norms"):
        open_slider(parsed, tmp_path / "out")


@pytest.mark.slow
def test_the_snippet_of_the_card_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    snippet = render_card(run).text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(run.parent)
    Path("an image.png").write_bytes(toy_png(1))
    exec(snippet.replace("model='out/interpolated'", "model='out'"), {})
    said = capsys.readouterr().out
    assert all(place in said for place in PLACES)


def test_a_plan_says_what_the_model_will_see(
    model: Path, files: dict[str, dict[str, str]], tmp_path: Path, write_recipe: Any
) -> None:
    text = format_plan(plan_recipe(str(write_recipe(recipe_of(model, files, tmp_path))), num_samples=1).summary)
    assert "an image of 8×8 pixels → left" in text
    assert "an image of 6×6 pixels → left" in text


# Refusals.


def refused(recipe: dict[str, Any]) -> str:
    """The one line that a recipe is refused with, before training."""
    with pytest.raises((ValueError, OSError)) as caught:
        run_recipe(recipe)
    assert not Path(recipe["output_dir"]).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_camera_was_held(orientation: int) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)).save(file, format="PNG", exif=exif)
    data = file.getvalue()
    found = open_image(data)
    assert found.size == ((3, 2) if orientation < 5 else (2, 3))
    expected = datasets.Image().decode_example({"bytes": data, "path": None})
    assert np.asarray(found).tolist() == np.asarray(expected).tolist()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "images/none.png"}, "has the image 'images/none.png', which is not there: column 'image', line 2 "),
        (
            {"image": "broken.png"},
            "has an image of 9 bytes that cannot be decoded (cannot identify image file): column",
        ),
        (
            {"image": "deep.png"},
            "(its pixels have more than 8 bits, mode I",
        ),
        ({"image": "empty.png"}, "'empty.png' where the file of an image belongs"),
        ({"image": ""}, "'' where the file of an image belongs"),
        ({"image": None}, "None where the file of an image belongs"),
        ({"picture": "images/general_0.png"}, "has no column 'image'; it has ['picture', 'label']"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(
    row: dict[str, Any], words: str, model: Path, files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    write_table(tmp_path / "rows.jsonl", range(1))
    (tmp_path / "broken.png").write_bytes(b"no image!")
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "empty.png").write_bytes(b"")
    lines = [{"image": "images/general_0.png", "label": "left"}, {**row, "label": "left"}]
    lines = lines[1:] if "picture" in row else lines
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = recipe_of(model, files, tmp_path / "out")
    recipe["corpora"] = {**recipe["corpora"], "domain": {"path": str(tmp_path / "rows.jsonl")}}
    message = refused(recipe)
    assert message.startswith("Corpus 'domain' ")
    assert words in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"augmentation": {"rotation": 3}}, "Unknown field 'rotation' in `augmentation`. Did you mean 'rotate'?"),
        ({"augmentation": {"shift": 2}}, "`augmentation.shift` must lie in [0, 1], got 2."),
        ({"augmentation": {"flip": True}}, "`augmentation.flip` must lie in [0, 1], got True."),
        ({"label_names": None}, "must list `label_names`"),
        ({"peft": "prompt_tuning"}, "put tokens before the input"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    fields: dict[str, Any], words: str, model: Path, files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    assert words in refused(recipe_of(model, files, tmp_path / "out", **fields))


def test_an_objective_of_text_is_refused(model: Path, files: dict[str, dict[str, str]], tmp_path: Path) -> None:
    recipe = recipe_of(model, files, tmp_path / "out")
    recipe["corpora"]["general"]["objective"] = "masked-lm"
    assert "The objective 'masked-lm' takes text and the task image-classification image" in refused(recipe)


def test_a_processor_of_another_model_is_refused(files: dict[str, dict[str, str]], tmp_path: Path) -> None:
    model = write_toy_vit(tmp_path / "model", PLACES)
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps({**settings, "size": {"height": 12, "width": 12}}))
    message = refused(recipe_of(model, files, tmp_path / "out"))
    assert message.startswith("The model does not take what its processor makes of `eval_corpora.general`")
    (model / "preprocessor_config.json").unlink()
    assert "cannot be read" in refused(recipe_of(model, files, tmp_path / "out"))


def test_a_model_of_images_is_looked_at_without_a_tokenizer(model: Path, tmp_path: Path) -> None:
    found = look_at_model(str(model))
    assert found[:3] == ("image", "image-classification", PLACES)
    assert look_at_model(str(write_toy_vit(tmp_path)))[:3] == ("image", None, [])  # as a backbone has it
    assert look_at_model(str(write_toy_ast(tmp_path / "ast", TONES)))[:3] == ("audio", "audio-classification", TONES)


@pytest.mark.parametrize("write", [write_table, write_folder, write_parquet])
def test_a_recipe_is_drafted_for_images_of_every_kind(tmp_path: Path, write: Any) -> None:
    place = {write_table: "t.jsonl", write_parquet: "a.parquet"}.get(write, "photos")
    paths = {"domain": str(write(tmp_path / place, range(60)))}
    draft = draft_recipe(str(write_toy_vit(tmp_path / "vit")), paths, {})
    assert draft.fields["task"] == "image-classification"
    assert draft.fields["label_names"] == PLACES
    assert draft.fields["corpora"]["domain"] == {"path": paths["domain"], "part": [0.0, 0.8]}
    trained = load_corpus("domain", CorpusConfig(**draft.fields["corpora"]["domain"]), {"image": "image"})
    assert draft.examples["domain"] == len(trained)  # the recipe reads the rows that it promises
    assert len(trained) in range(40, 56)
    assert "max_length" not in draft.fields


def test_sound_is_told_from_images_and_texts(tmp_path: Path) -> None:
    sounds = write_sounds(tmp_path / "s.jsonl", range(40))
    facts = look_at("file", CorpusConfig(path=str(sounds)))
    assert {name: column.kind for name, column in facts.columns.items()} == {"audio": "audio", "label": "label"}
    named = {"audio_column": "audio", "label_column": "label"}
    assert choose_columns(facts, {}) == ("audio-classification", named, {})
    with pytest.raises(ValueError, match="has audio \\(audio\\), label \\(label\\), and the model is one for images"):
        choose_columns(facts, {}, family="image")
    rows = [{"bytes": toy_wav(number), "path": None} for number in range(40)]
    for column in ("sound", "image"):  # whatever it is called
        datasets.Dataset.from_dict({column: rows}).to_parquet(tmp_path / "plain.parquet")
        facts = look_at("file", CorpusConfig(path=str(tmp_path / "plain.parquet")))
        assert facts.columns[column][1:4] == ("audio", [], 0)


def test_the_page_shows_images_of_both_sides(run: Path) -> None:
    source = find_source(run)
    assert [example.side for example in source.examples] == ["general"] * 5 + ["domain"] * 5
    sets = {side: [toy_png(number, side) for number in range(60)] for side in ("general", "domain")}
    for example in source.examples:
        data = Path(example.text).read_bytes()
        assert example.text.endswith(".png")
        assert example.label == PLACES[sets[example.side].index(data) % 2]
    slider = open_slider(source.recipe, source.finetuned)
    assert slider.labels == PLACES
    assert len({*slider.compare(data, 0.5)[1].probabilities[0], *slider.compare(data, 0.5)[3].probabilities[0]}) == 4


@pytest.mark.slow
def test_examples_of_several_kinds_train(model: Path, files: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """Distilling, a head for other labels, and LoRA on a backbone of images."""
    headless = write_toy_vit(tmp_path / "headless")
    recipe = recipe_of(model, files, tmp_path / "out", max_steps=1)
    recipe["corpora"]["general"]["objective"] = "distill"
    run_recipe(recipe)
    recipe = recipe_of(headless, files, tmp_path / "lora", max_steps=1, peft="lora")
    parsed, args = parse_recipe(recipe)
    assert len(load_data(parsed, check_recipe(parsed, args)).corpora) == 2
    results = run_recipe(recipe)
    assert 0 <= results.final_metrics["domain"]["accuracy"] <= 1
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
