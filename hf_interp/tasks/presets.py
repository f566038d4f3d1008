"""Adapters: what training updates, by name. Some are PEFT's, which is optional; others are parts of the model itself.

In every preset of a classifier the head is trained in full, as is whatever else the pretrained checkpoint lacks.
"""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from hf_interp.losses.per_example import is_ctc
from hf_interp.tasks.adalora import AdaLoraCallback, prepare_adalora
from hf_interp.tasks.freezing import PARTS, freeze_except, head_names
from hf_interp.utils.errors import check_choice, check_known, did_you_mean, import_extra
from hf_interp.utils.task_info import TASK_INFOS, task_of_class
from hf_interp.weights.adapter_kinds import FACTORS, KEEPING_INITS, no_former_names

if TYPE_CHECKING:  # a plan loads no model
    from transformers import PreTrainedModel

_LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}

PRESETS: dict[str, dict[str, Any]] = {
    # Low-rank updates ΔW = BA·lora_alpha/r (Hu et al. 2021, arXiv 2106.09685) of every linear layer, with lora_alpha =
    # 2r (Biderman et al. 2024, arXiv 2405.09673).
    "lora": _LORA,
    # LoRA scaled by lora_alpha/√r, with which higher ranks learn as fast (Kalajdzievski 2023, arXiv 2312.03732).
    "rslora": {**_LORA, "use_rslora": True, "r": 32},
    # The norms of columns are trained apart from their directions (Liu et al. 2024, arXiv 2402.09353).
    "dora": {**_LORA, "use_dora": True},
    # ΔW = PΛQ, of which the least important ranks are taken away, from 12 to 8 a layer on average (Zhang et al. 2023,
    # arXiv 2303.10512). The steps of its schedule are shares of `max_steps`, see `_adalora_schedule`.
    "adalora": {
        **{name: _LORA[name] for name in ("lora_dropout", "target_modules")},
        **{"peft_type": "ADALORA", "init_r": 12, "target_r": 8, "lora_alpha": 24, "orth_reg_weight": 0.1},
    },
    # Factors on keys, values and the inner activations (Liu et al. 2022, arXiv 2205.05638); see `_ia3_targets`.
    "ia3": {"peft_type": "IA3"},
    # Trained tokens before the input (Lester et al. 2021, arXiv 2104.08691), which start as words of the vocabulary.
    "prompt_tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20, "prompt_tuning_init": "SAMPLE_VOCAB"},
    # Biases and the head (Ben Zaken et al. 2022, arXiv 2106.10199).
    "bitfit": {},
    # The last n layers and the head; n of the encoder and n of the decoder, where there are both.
    "last_layers": {"n": 2},
    # What lies outside the backbone.
    "head": {},
}
"""Name → the fields of a PEFT configuration, or the options of a part of the model (see `hf_interp.tasks.freezing`)."""

IA3_TARGETS = (
    ("key", "value", "output.dense"),
    ("k_lin", "v_lin", "lin2"),
    ("k_proj", "v_proj", "down_proj"),
    ("k_proj", "v_proj", "fc2"),
    ("k_proj", "v_proj", "output_dense"),
    ("k", "v", "wo"),
    ("Wqkv", "Wqkv", "mlp.Wo"),
)
"""Linear layers of keys and of values, and the one that takes the inner activations, for models that PEFT has no entry
for. The first of which a model has all is taken."""

_HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def check_adapter(
    adapter: str | Mapping[str, Any], task_type: str | None, *, max_steps: int, is_interpolated: bool = False
) -> None:
    """Refuse what is no adapter, before there is a model; for the arguments see `adapt`."""
    name, fields = _resolve(adapter)
    if name in PARTS:
        return
    config = _build_config(fields, task_type, max_steps)
    if is_interpolated and not _is_scalable(config):
        shown = repr(name) if name else f"of type {config.peft_type.value}"
        raise ValueError(
            f"`alpha_search` needs an adapter that is linear in one of its factors, which {shown} is not as it is set. "
            "Leave `alpha_search` out, or use lora, rslora, adalora or ia3 (or a part of the model, such as bitfit)."
        )


def adapt(
    model: "PreTrainedModel",
    adapter: str | Mapping[str, Any],
    *,
    task_type: str | None,
    max_steps: int,
    new_names: Sequence[str] = (),
) -> nn.Module:
    """Limit what training updates: return a `PeftModel`, or the model itself with the rest frozen.

    Args:
        model: to be trained; it is changed.
        adapter: a name in `PRESETS`; a mapping with `preset` and fields laid over it; or a mapping with `peft_type`
            (LORA, IA3, ...) and the fields of its configuration. Add its `adapter_callbacks` to the trainer.
        task_type: PEFT's name for the task, such as "SEQ_CLS", if it has one.
        max_steps: optimizer steps of the run, by which AdaLoRA's schedule goes.
        new_names: parameters that the pretrained checkpoint lacks.

    Raises:
        ImportError: if PEFT is needed and not installed.
        ValueError: see `check_adapter`; or if the model has nothing of the kind that is to be trained.
    """
    name, fields = _resolve(adapter)
    if name in PARTS:
        return freeze_except(model, name, new_names=new_names, **fields)
    config = _build_config(fields, task_type, max_steps)
    _check_task(model, config)
    _fit_to_model(config, model, fields, new_names)
    import peft

    head = set(_head_of(model, task_type))
    with no_former_names():
        adapted = peft.get_peft_model(model, config)
    _check_head(adapted, head, name or config.peft_type.value)
    if config.peft_type.value == "ADALORA":
        prepare_adalora(adapted)
    return adapted


def load_adapter(model: "PreTrainedModel", folder: str | os.PathLike[str]) -> Any:
    """Load a trained adapter on its model, as `PeftModel.from_pretrained`, whose AdaLoRA cannot take labels."""
    import peft

    with no_former_names():
        loaded = peft.PeftModel.from_pretrained(model, folder)
    if loaded.active_peft_config.peft_type.value == "ADALORA":
        loaded.base_model.trainable_adapter_name = loaded.active_adapter  # its penalty is looked up by this
        prepare_adalora(loaded)
    return loaded


def adapter_callbacks(adapter: str | Mapping[str, Any] | None) -> list[TrainerCallback]:
    """Return the callbacks that an adapter needs."""
    kind = None if adapter is None else _resolve(adapter)[1].get("peft_type")
    return [AdaLoraCallback()] if str(kind).upper() == "ADALORA" else []


def _resolve(adapter: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a preset ("" for none), and all fields."""
    given = {"preset": adapter} if isinstance(adapter, str) else dict(adapter)
    if "preset" not in given:
        return "", given
    name = given.pop("preset")
    if name not in PRESETS:
        raise ValueError(
            f"`peft` must be one of {', '.join(PRESETS)} or a mapping with `preset` or `peft_type`, got {name!r}."
            + did_you_mean(str(name), PRESETS)
        )
    if name in PARTS:
        check_known(given, list(inspect.signature(PARTS[name]).parameters)[1:], f"for the preset {name}")
    return name, {**PRESETS[name], **given}


def _build_config(fields: Mapping[str, Any], task_type: str | None, max_steps: int | None) -> Any:
    peft = import_extra("peft", "`peft` is set, but PEFT is not installed", "peft")
    fields = {"task_type": task_type, **fields}
    kinds = {kind.value: cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(fields.pop("peft_type", None)).upper()
    check_choice("peft_type", kind, sorted(kinds))
    check_known(fields, kinds[kind].__dataclass_fields__, f"for PEFT type {kind}")
    if kind == "ADALORA":
        fields = _adalora_schedule(fields, max_steps)
    if isinstance(targets := fields.get("target_modules"), str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(
                f"`target_modules` must be names or a regular expression, got {targets!r}: {error}."
            ) from error
    return kinds[kind](**fields)


def _adalora_schedule(fields: dict[str, Any], max_steps: int | None) -> dict[str, Any]:
    """Return the fields with AdaLoRA's schedule: no rank goes in the first tenth and the last half of the run."""
    # The shares are those of the paper's largest task (its table 8: 8,000 and 50,000 of 85,000 steps, every 100 steps).
    total = fields.get("total_step") or max_steps
    if not total:
        raise ValueError("AdaLoRA needs the number of steps of the run. Give `max_steps`, or `total_step`.")
    if max_steps and total != max_steps:
        raise ValueError(
            f"AdaLoRA's `total_step` must be the number of steps of the run, {max_steps}, got {total}. Leave it out."
        )
    steps = {"tinit": total // 10, "tfinal": total // 2, "deltaT": max(1, total // 1000)}
    fields = {**steps, **fields, "total_step": total}
    ranks = fields.get("init_r", 12), fields.get("target_r", 8)
    if not ranks[0] > ranks[1] > 0:
        raise ValueError(
            f"AdaLoRA must begin with more ranks than it ends with: `init_r` > `target_r` > 0, got {ranks[0]} and "
            f"{ranks[1]}."
        )
    return fields


def _is_scalable(config: Any) -> bool:
    """Whether M_α of an adapter of this configuration is such an adapter, and M₀ is in its model."""
    kind = config.peft_type.value
    is_other = kind == "LORA" and (config.use_dora or config.init_lora_weights not in KEEPING_INITS)
    return kind in FACTORS and not is_other and getattr(config, "bias", "none") == "none"


def _check_task(model: "PreTrainedModel", config: Any) -> None:
    """Refuse trained tokens where PEFT does not put them before the input, or not before the labels."""
    refused = (None, "TOKEN_CLS", "SEQ_CLS") if model.config.is_encoder_decoder else (None, "TOKEN_CLS")
    if config.is_prompt_learning and config.task_type in refused:
        raise ValueError(
            f"Adapters of the type {config.peft_type.value} put tokens before the input, which PEFT does not do for "
            f"{type(model).__name__}. Use another preset, such as lora."
        )


def _fit_to_model(config: Any, model: "PreTrainedModel", fields: Mapping[str, Any], new_names: Sequence[str]) -> None:
    """Set what depends on the model and was not said."""
    known = type(config).__dataclass_fields__
    if "fan_in_fan_out" in known and "fan_in_fan_out" not in fields:
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    if is_ctc(model):
        _fit_to_ctc(config, model)
    if "modules_to_save" in known and "modules_to_save" not in fields:
        config.modules_to_save = _whole_modules(model, config.task_type, new_names) or None
    if config.is_prompt_learning:  # PEFT knows a few names of these
        config.token_dim = config.token_dim or model.get_input_embeddings().embedding_dim
        for ours, theirs in (("num_layers", "num_hidden_layers"), ("num_attention_heads", "num_attention_heads")):
            setattr(config, ours, getattr(config, ours) or getattr(model.config, theirs, None))
    if config.peft_type.value == "IA3" and config.target_modules is None:
        _ia3_targets(config, model)


def _head_of(model: "PreTrainedModel", task_type: str | None) -> list[str]:
    """Return the parameters of a classifier's head; PEFT has no name for tasks of images and sound."""
    task = task_of_class(type(model).__name__)
    is_labelled = is_ctc(model) or (task is not None and TASK_INFOS[task].has_labels)
    return head_names(model) if task_type in _HEADED or is_labelled else []


def _fit_to_ctc(config: Any, model: "PreTrainedModel") -> None:
    """Leave CTC's head out of all linear layers, which PEFT would take for a table of words, and fail when it saves.

    So it would if the vocabulary were another than M₀'s configuration says.
    """
    origin, size = model.name_or_path, model.config.vocab_size
    known = type(model.config).from_pretrained(origin).vocab_size if origin else size
    if known != size:
        raise ValueError(
            f"`peft` needs a CTC model whose configuration has the {size} characters of its vocabulary, got {known} in "
            f"{origin!r}. Save it with such a head first: `AutoModelForCTC.from_pretrained(..., vocab_size={size}, "
            "ignore_mismatched_sizes=True)`."
        )
    if getattr(config, "target_modules", None) == "all-linear":
        linear = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
        config.target_modules = linear - {"lm_head"}


def _whole_modules(model: "PreTrainedModel", task_type: str | None, new_names: Sequence[str]) -> list[str]:
    """Return the modules trained in full, none inside another: a classifier's head, and what the checkpoint lacks."""
    paths = [name.partition(".")[0] for name in _head_of(model, task_type)]
    paths += [name.rpartition(".")[0] for name in new_names]
    found = [path for path in dict.fromkeys(paths) if _is_apart(model, path)]
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def _is_apart(model: nn.Module, path: str) -> bool:
    """Whether a module below the model shares no parameter with others, so that a copy of it can be trained."""
    owners: dict[int, set[bool]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.startswith(f"{path}."))
    return bool(path) and {True, False} not in owners.values()


def _ia3_targets(config: Any, model: "PreTrainedModel") -> None:
    """Set PEFT's own targets if it knows the model, else the first of `IA3_TARGETS` that the model has."""
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    if model.config.model_type in KNOWN:
        return
    linear = [f".{name}" for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    for targets in IA3_TARGETS:
        if all(any(name.endswith(f".{target}") for name in linear) for target in targets):
            config.target_modules, config.feedforward_modules = set(targets), {targets[-1]}
            return
    raise ValueError(
        f"`peft: ia3` has no targets for {type(model).__name__}. Set `target_modules` (layers of keys and values, and "
        "those that take the inner activations) and, of these, the last in `feedforward_modules`."
    )


def _check_head(adapted: Any, head: set[str], adapter: str) -> None:
    """Refuse an adapter beside which a classifier's new head would stay as it is."""
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    trained = {
        re.sub(r"^(base_model\.)?(model\.)?", "", name).replace(".modules_to_save.default.", ".") for name in names
    }
    if missing := sorted(head - trained):
        raise ValueError(
            f"`peft: {adapter}` would leave the head untrained ({missing[0]!r} of {type(adapted).__name__}): PEFT does "
            "not know it. Use another preset, such as lora."
        )
