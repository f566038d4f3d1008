"""Adapters: PEFT configurations by name. They limit what training updates; `peft` is an optional dependency."""

from collections.abc import Mapping
from typing import Any

from hf_interp.schedules import did_you_mean

PRESETS: dict[str, dict[str, Any]] = {
    # Every linear layer, scaling lora_alpha / r = 2 (Biderman et al. 2024, arXiv 2405.09673).
    "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"},
}


def get_peft_config(adapter: str | Mapping[str, Any], task_type: str) -> Any:
    """A PEFT configuration from a preset's name or a mapping.

    Args:
        adapter: a name in `PRESETS`, or a mapping with `peft_type` (LORA, IA3, ...) and the fields of its
            configuration.
        task_type: PEFT's name for the task, such as "SEQ_CLS"; for classification PEFT then trains the head in full.

    Raises:
        ImportError: if `peft` is not installed.
        ValueError: for an unknown preset, type or field (the nearest is named).
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "`peft` is set, but PEFT is not installed. Install it with `pip install hf_interp[peft]`."
        ) from error
    if isinstance(adapter, str):
        if adapter not in PRESETS:
            raise ValueError(
                f"`peft` must be one of {', '.join(PRESETS)} or a mapping with `peft_type`, got {adapter!r}."
                + did_you_mean(adapter, PRESETS)
            )
        adapter = PRESETS[adapter]
    fields = {"task_type": task_type, **adapter}
    kinds = {kind.value: cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(fields.pop("peft_type", None)).upper()
    if kind not in kinds:
        raise ValueError(
            f"`peft_type` must be one of {', '.join(sorted(kinds))}, got {kind!r}." + did_you_mean(kind, kinds)
        )
    known = kinds[kind].__dataclass_fields__
    for name in fields:
        if name not in known:
            raise ValueError(f"Unknown field {name!r} for PEFT type {kind}." + did_you_mean(name, known))
    return kinds[kind](**fields)
