"""A recipe as a text with comments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_interp.tasks.draft import Draft
from hf_interp.utils.files import new_file

WIDTH = 44  # of a line before its comment


def write_recipe(draft: Draft, path: Path) -> None:
    """Write a recipe."""
    if path.exists():
        raise ValueError(f"{str(path)!r} exists. Say another --output, or remove it.")
    with new_file(path) as file:
        file.write(format_recipe(draft))


def format_recipe(draft: Draft) -> str:
    """Return a recipe in YAML, a field a line with why it is so; corpora that differ in little refer to one another."""
    lines = ["# Written by `hf-interp init`. Paths are relative to the folder in which hf-interp is started."]
    trained = draft.fields["corpora"]
    for name, value in draft.fields.items():
        why = draft.why.get(name, "")
        if name.endswith("corpora"):
            lines += ["", _commented(f"{name}:", why)]
            lines += [
                f"  {side}: {_entry(side, entry, None if value is trained else trained)}"
                for side, entry in value.items()
            ]
            lines += [""] * (name == "eval_corpora")
        else:
            lines.append(_commented(f"{name}: {_flow(value)}", why))
    return "\n".join(lines) + "\n"


def _entry(side: str, entry: Mapping[str, Any], trained: Mapping[str, Any] | None) -> str:
    if trained is None:
        return f"&{side} {_flow(entry)}"
    base = trained[side]
    changed = {key: value for key, value in {**dict.fromkeys(base), **entry}.items() if base.get(key) != value}
    return f"{{<<: *{side}, {_flow(changed).strip('{}')}}}" if changed else f"*{side}"


def _commented(text: str, comment: str) -> str:
    return f"{text:<{WIDTH}}  # {comment}" if comment else text


def _flow(value: Any) -> str:
    """Return a value in one line of YAML."""
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return str(dumped).removesuffix("...\n").strip()
