"""Merges of several models: each method against its definition, and mergekit's configurations.

mergekit itself is compared by `tests/benchmarks/merge.py --check`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from toys import move
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_interp.cli import main
from hf_interp.commands.merge import read_mergekit
from hf_interp.weights import streaming
from hf_interp.weights.alpha_spec import Alpha, AlphaByDepth
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.merge_methods import METHODS, MergeMethod

Array = np.ndarray
Tensors = dict[str, torch.Tensor]
DENSITIES = {"density": [0.3, 0.8]}
WEIGHTS = {"weights": [0.25, 0.5]}


def draw(seed: int, *, coarse: bool = False) -> torch.Tensor:
    """Numbers of which, if coarse, many are equal in size."""
    numbers = np.random.default_rng(seed).normal(size=(9, 7))
    return torch.tensor(np.round(numbers) / 2 if coarse else numbers, dtype=torch.float32)


def save(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def merge(tmp_path: Path, models: Sequence[Tensors], method: Any, alpha: Alpha = 1.0, **settings: Any) -> Tensors:
    """Merge state dicts on disk, of which the first is M₀."""
    folder = tmp_path / str(len([*tmp_path.iterdir()]))
    folder.mkdir()
    base, *others = (save(folder / str(index), tensors) for index, tensors in enumerate(models))
    interpolate_checkpoints(base, others, folder / "out", alpha, method=method, **settings)
    return {name: tensor for path in (folder / "out").glob("*.safetensors") for name, tensor in load_file(path).items()}


def keep(vector: Array, method: str, density: float, gamma: float) -> Array:
    """What a method keeps of a task vector, found by sorting; of equal sizes the earlier counts as larger in TIES and
    as smaller in Breadcrumbs, as in mergekit."""
    count, sizes = int(density * vector.size), np.abs(vector)
    if method == "ties":
        chosen = np.argsort(-sizes, kind="stable")[: max(1, count)]
    else:
        below = max(0, vector.size - count - int(gamma * vector.size))
        chosen = np.argsort(sizes, kind="stable")[below : below + count]
    kept = np.zeros_like(vector)
    kept[chosen] = vector[chosen]
    return kept


def reference(
    method: str, base: Array, models: Sequence[Array], alpha: float, settings: Mapping[str, Any], normalize: bool
) -> Array:
    """The definition of the papers, number by number in float64."""
    weights, densities = settings["weights"], settings.get("density", [1.0] * len(models))
    vectors = [model - base for model in models]
    if method not in ("task_arithmetic", "linear"):
        kind = method.removesuffix("_ties")
        gammas = settings.get("gamma", [0.01] * len(models))
        vectors = [keep(vector, kind, *pair) for vector, *pair in zip(vectors, densities, gammas, strict=True)]
    merged = np.zeros_like(base)
    for place in range(base.size):
        parts = [(weight, weight * vector[place]) for weight, vector in zip(weights, vectors, strict=True)]
        if method.endswith("ties"):
            sign = 1 if sum(part for _, part in parts) >= 0 else -1
            parts = [(weight, part) for weight, part in parts if np.sign(part) == sign]
        total = sum(part for _, part in parts)
        merged[place] = total / sum(weight for weight, _ in parts) if normalize and parts else total
    return base + alpha * merged


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(
    ("method", "more", "normalize"),
    [
        ("linear", {}, True),
        ("task_arithmetic", {}, False),
        ("task_arithmetic", {"normalize": True}, True),
        ("ties", DENSITIES, True),
        ("ties", {**DENSITIES, "normalize": False}, False),
        ("breadcrumbs", {**DENSITIES, "gamma": [0.1, 0.4]}, False),
        ("breadcrumbs_ties", {**DENSITIES, "gamma": [0.05, 0.1], "normalize": True}, True),
    ],
)
def test_methods_are_what_the_papers_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, Any], normalize: bool, coarse: bool
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 20)
    base, *models = (draw(seed, coarse=coarse) for seed in range(3))
    settings = {**WEIGHTS, **more}
    found = merge(tmp_path, [{"w": one} for one in (base, *models)], MergeMethod(name=method, **settings), 0.75)["w"]
    flat = [tensor.double().numpy().ravel() for tensor in (base, *models)]
    expected = reference(method, flat[0], flat[1:], 0.75, settings, normalize).reshape(9, 7)
    assert np.abs(found.numpy() - expected).max() < 1e-6


def test_an_arc_keeps_the_angle_and_a_line_is_taken_where_there_is_none(tmp_path: Path) -> None:
    base, model = draw(0), draw(1)
    found = merge(tmp_path, [{"w": base}, {"w": model}], "slerp", 0.25)["w"].double().ravel()
    one, other = (tensor.double().ravel() / tensor.double().norm() for tensor in (base, model))
    angle = torch.arccos(one @ other)
    # Shoemake's form by an orthogonal basis: lengths go linearly in the two factors, directions along the arc
    normal = (other - one * (one @ other)) / torch.sin(angle)
    unit = merge(tmp_path, [{"w": one.float()}, {"w": other.float()}], "slerp", 0.25)["w"].double()
    assert torch.allclose(unit, one * torch.cos(angle / 4) + normal * torch.sin(angle / 4), atol=1e-6)
    factors = torch.sin(0.75 * angle) / torch.sin(angle), torch.sin(0.25 * angle) / torch.sin(angle)
    assert torch.allclose(found, (factors[0] * base + factors[1] * model).ravel().double(), atol=1e-6)
    near = base + 0.001 * model
    assert torch.allclose(merge(tmp_path, [{"w": base}, {"w": near}], "slerp", 0.25)["w"], torch.lerp(base, near, 0.25))
    assert torch.equal(merge(tmp_path, [{"w": base}, {"w": model}], "slerp", 0.0)["w"], base)


class TestDare:
    """What is drawn cannot equal what another generator draws, so DARE is tested by its definition."""

    MODELS: Sequence[Tensors] = [
        {name: torch.full((200, 100), value) for name in ("a", "b")} for value in (1.0, 1.0 + 1.0, 1.0 + 3.0)
    ]

    def merge(self, tmp_path: Path, models: Sequence[Tensors] = MODELS, **settings: Any) -> Tensors:
        options = {key: settings.pop(key) for key in ("max_shard_size", "extrapolate") if key in settings}
        how = MergeMethod(name="dare", **{"density": 0.2, "weights": [0.5, 0.5], **settings})
        return merge(tmp_path, models, how, **options)

    def test_the_share_that_is_kept_is_rescaled_so_that_the_mean_stays(self, tmp_path: Path) -> None:
        found = self.merge(tmp_path, self.MODELS[:2], weights=[1.0], density=0.2)["a"]
        assert set(found.flatten().tolist()) == {1.0, 6.0}  # nothing, or 1 / 0.2
        share = float((found > 1).double().mean())
        assert abs(share - 0.2) < 4 * (0.2 * 0.8 / found.numel()) ** 0.5
        two = self.merge(tmp_path)["a"]
        assert set(two.flatten().tolist()) == {1.0, 3.5, 8.5, 11.0}  # the models' draws are independent
        assert abs(float(two.double().mean()) - 3.0) < 4 * (0.25 * (1 + 9) * 4 / two.numel()) ** 0.5

    def test_without_rescaling_what_is_kept_stays_as_it_is(self, tmp_path: Path) -> None:
        found = self.merge(tmp_path, self.MODELS[:2], weights=[1.0], rescale=False)["a"]
        assert set(found.flatten().tolist()) == {1.0, 2.0}

    def test_the_draw_depends_on_seed_and_name_and_not_on_files_or_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.merge(tmp_path)
        monkeypatch.setattr(streaming, "BLOCK", 999)
        again = self.merge(tmp_path, max_shard_size=60_000)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["a"], first["b"])
        assert not torch.equal(first["a"], self.merge(tmp_path, seed=1)["a"])

    def test_all_that_is_kept_is_task_arithmetic(self, tmp_path: Path) -> None:
        models = [{"w": draw(seed)} for seed in range(3)]
        found = merge(tmp_path, models, MergeMethod(name="dare", density=1.0))
        assert torch.equal(found["w"], merge(tmp_path, models, "task_arithmetic")["w"])


def test_weights_below_0_or_beyond_1_need_to_be_asked_for(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 2.0])}, {"w": torch.tensor([1.0, 5.0])}]
    found = merge(tmp_path, models, MergeMethod(name="task_arithmetic", weights=[2, -1]), extrapolate=True)["w"]
    assert found.tolist() == [3.0, -1.0]
    for weights in ([0.5, -0.1], [0.7, 0.4]):
        with pytest.raises(
            ValueError, match=r"`weights` must be 0 or more, and sum to 1 at most, .* Set `extrapolate`"
        ):
            merge(tmp_path, models, MergeMethod(name="task_arithmetic", weights=weights))
    ties = MergeMethod(name="ties", weights=[3, 5], density=1)  # whose weights are normalised
    assert merge(tmp_path, models, ties)["w"].tolist() == [2.0, 5.0]


def test_settings_may_go_by_name_and_depth(tmp_path: Path) -> None:
    names = ["layers.0.w", "layers.1.w", "layers.2.w", "head"]
    base, model = ({name: torch.full((2,), value) for name in names} for value in (0.0, 1.0))
    weights: Alpha = {"layers.*": AlphaByDepth(0.0, 0.5, (1.0,)), "*": 0.125}
    found = merge(tmp_path, [base, model], MergeMethod(name="task_arithmetic", weights=weights))
    assert [found[name][0].item() for name in names] == [0.0, 1.0, 0.5, 0.125]


def test_rows_that_the_base_lacks_are_the_mean_and_masks_are_copied(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    mask = torch.tensor([0.0, -torch.inf])
    base = {name: torch.zeros(3, 2), "mask": mask, "ids": torch.arange(3)}
    models = [{name: torch.full((4, 2), value), "mask": mask, "ids": torch.arange(3)} for value in (1.0, 3.0)]
    found = merge(tmp_path, [base, *models], MergeMethod(name="ties", density=1.0), 0.5)
    assert found[name].tolist() == [[1.0, 1.0]] * 3 + [[2.0, 2.0]]
    assert torch.equal(found["mask"], mask)
    assert found["ids"].tolist() == [0, 1, 2]


def test_nan_that_a_method_would_leave_out_is_refused(tmp_path: Path) -> None:
    models = [{"w": torch.arange(10.0)} for _ in range(3)]
    models[2]["w"][9] = torch.nan
    with pytest.raises(ValueError, match="'w' of M_θ holds NaN: its training has diverged"):
        merge(tmp_path, models, MergeMethod(name="breadcrumbs", density=0.5, gamma=0.2))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("teis", "`method` must be one of linear, slerp, .*Did you mean 'ties'"),
        ("slerp", "`method` slerp takes one model beside M₀, got 2"),
        ("ties", "`density` must be given for ties"),
        (MergeMethod(density=0.5), "`density` is not a setting of linear, which has weights"),
        (MergeMethod(name="slerp", seed=1), "`seed` is not a setting of slerp"),
        (MergeMethod(name="ties", density=1.5), r"`density` must lie in \[0, 1\], got 1.5.$"),
        (MergeMethod(name="dare", density=0.5, seed=-1), "`seed` must be 0 or more, got -1"),
        (MergeMethod(name="dare", density=0), r"`density` must lie in \(0, 1\], got 0"),
        (MergeMethod(name="dare", density=[0.1, 0.2, 0.3]), "`density` must be one .* for each of the 2, got 3"),
        (MergeMethod(weights=[1, -1]), "`weights` must not sum to 0"),
        (MergeMethod(weights=[2, -1]), "`weights` must be 0 or more, got .* Set `extrapolate`"),
        (MergeMethod(name="task_arithmetic", weights={"x*": 0.5}), "`weights` has no pattern for 'w'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, method: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        merge(tmp_path, [{"w": draw(seed)} for seed in range(3)], method)
    assert not (tmp_path / "0" / "out").exists()


def test_adapters_are_to_be_written_as_whole_models_first(tmp_path: Path) -> None:
    base, adapter = (save(tmp_path / name, {"w": draw(0)}) for name in ("base", "adapter"))
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"`method` ties takes whole models\. Write the adapter as one: `merge_adapter`"
    ):
        interpolate_checkpoints(base, adapter, tmp_path / "out", 1.0, method=MergeMethod(name="ties", density=0.5))


def write(tmp_path: Path, config: Mapping[str, Any]) -> Path:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return tmp_path / "config.yml"


TIES = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "base"},
        {"model": "a", "parameters": {"density": [0.1, 0.5, 0.9], "weight": "5e-1"}},
        {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": [0.1, 0.3]}, {"value": 0.4}]}},
    ],
    "parameters": {"density": 0.7, "normalize": False, "rescale": False, "lambda": 0.9, "int8_mask": True},
    "dtype": "float32",
    "out_dtype": "bfloat16",
}


def test_mergekits_parameters_gradients_and_filters_are_read(tmp_path: Path) -> None:
    assert read_mergekit(write(tmp_path, TIES)) == {
        "base_dir": "base",
        "finetuned_dir": ["a", "b"],
        "alpha": 0.9,
        "method": MergeMethod(
            name="ties",
            weights=[0.5, {"*mlp*": AlphaByDepth(0.1, 0.3), "*": 0.4}],
            density=[AlphaByDepth(0.1, 0.9, (0.5,)), 0.7],
            normalize=False,
        ),
        "dtype": torch.bfloat16,
    }


def test_mergekits_means_and_arcs_are_read(tmp_path: Path) -> None:
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a", 1), ("b", 3))]
    found = read_mergekit(write(tmp_path, {"merge_method": "linear", "models": models}))
    assert (found["base_dir"], found["finetuned_dir"], found["alpha"], found["dtype"]) == ("a", ["a", "b"], 1.0, None)
    assert found["method"] == MergeMethod(weights=[1.0, 3.0])
    rules = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]
    arc = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    found = read_mergekit(write(tmp_path, {**arc, "parameters": {"t": rules}}))
    assert (found["base_dir"], found["finetuned_dir"], found["method"]) == ("a", ["b"], MergeMethod(name="slerp"))
    assert found["alpha"] == {"*self_attn*": AlphaByDepth(0.0, 1.0, (0.5,)), "*": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slices": []}, "has the field 'slices', which is not offered. Offered: merge_method, models, base_model"),
        ({"tokenizer_source": "base"}, "has the field 'tokenizer_source', which is not offered"),
        ({"merge_method": "della"}, "has the merge_method 'della', which is not offered. Offered: linear, slerp, task"),
        ({"merge_method": None}, "has the merge_method None, which is not offered"),
        (
            {"parameters": {"epsilon": 0.1}},
            "has the parameter of ties 'epsilon', .* Offered: weight, density, normalize",
        ),
        ({"parameters": {"normalize": [0, 1]}}, r"must give `normalize` as true or false, got \[0, 1\]"),
        ({"parameters": {"lambda": "much"}}, "must give `lambda` as numbers, got 'much'"),
        ({"models": [{"model": "a"}]}, "must give the parameter `weight`, of every model if not of all"),
        ({"models": [{"model": {"path": "a"}}]}, "must name a `base_model`, and in `models` at least one other"),
        ({"models": ["a"]}, "must have a mapping such as {'model': ...}, got 'a'"),
        ({"base_model": None}, "must name a `base_model`"),
        ({"models": []}, "must name a `base_model`, and in `models` at least one other"),
    ],
)
def test_what_of_mergekit_is_not_offered_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mergekit(write(tmp_path, {**TIES, **changes}))


@pytest.fixture
def models(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of M₀ and two classifiers made from it; they are where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    for seed, name in enumerate("ab"):
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir)
        move(model, 0.1, seed).save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / name)
    return [tmp_path / name for name in ("base", "a", "b")]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "slerp"])
def test_the_command_leaves_a_model_with_a_card(models: list[Path], method: str) -> None:
    options = ["--density", "0.2", "0.9"] if "density" in METHODS[method] else []
    options += ["--alpha", "1"] if method == "linear" else []
    assert main(["merge", *map(str, models), "out", "--method", method, "--weights", "0.25", "0.5", *options]) == 0
    found, loading = AutoModelForSequenceClassification.from_pretrained("out", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.isfinite(found.classifier.weight).all()
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "- merge" in card
    lines = {tuple(cell.strip().replace("\\", "") for cell in line.split("|")[1:3]) for line in card.splitlines()}
    assert {("M₀", "base"), ("M_θ", "a"), ("M_θ", "b"), ("method", method), ("weights", "[0.25, 0.5]")} <= lines
    assert json.loads(Path("out/interpolation.json").read_text())["method"]["name"] == method


def test_a_configuration_of_mergekit_is_the_same_as_the_flags(models: list[Path]) -> None:
    parts = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a", 0.25), ("b", 0.5))]
    config = {"merge_method": "dare_linear", "base_model": "base", "models": parts, "parameters": {"density": 0.5}}
    assert main(["merge", "one", "--mergekit", str(write(Path(), config))]) == 0
    flags = ["--method", "dare", "--density", "0.5", "--weights", "0.25", "0.5"]
    assert main(["merge", "base", "a", "b", "other", *flags]) == 0
    one, other = (load_file(Path(name, "model.safetensors")) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base", "out"], "Give M₀, at least one M_θ and OUT, or --mergekit FILE and OUT, got 2."),
        (
            ["a", "out", "--mergekit", "c.yml"],
            "`mergekit` names models and settings itself, got ['base_dir'] beside it.",
        ),
        (["out", "--mergekit", "c.yml"], "c.yml"),
        (["base", "a", "out", "--method", "slerp"], "`alpha` must be given for slerp"),
        (["base", "a", "b", "out", "--method", "ties", "--density", "x"], "`density` must be a number such as 0.6"),
        (
            ["base", "a", "b", "out", "--method", "ties", "--density", "1", "--soup", "greedy"],
            "`soup` greedy goes with",
        ),
        (["base", "a", "b", "out", "--method", "ties", "--density", "1", "--recipe", "r"], "r"),
    ],
)
def test_bad_input_is_one_line(
    models: list[Path], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["merge", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()
