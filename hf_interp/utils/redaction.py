"""Redaction of what must stay on the machine: local paths become their last part, secrets a mask. No torch."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATH_KEYS = {
    *("_name_or_path", "name_or_path", "base", "base_model", "base_model_name_or_path", "model_name_or_path"),
    *("eval_harness", "include_path", "tasks"),
    *("chat_template", "config_file", "deepspeed", "finetuned", "fsdp_config", "logging_dir", "output_dir", "path"),
    *("resume_from_checkpoint", "run_name", "storage", "tokenizer_file", "vocab_file", "working_dir"),
}
"""Keys of settings and configurations whose values may be paths."""

LABEL_KEYS = {"label_names", "label_map", "id2label", "label2id"}
"""Keys below which a text such as /people/person is a label."""

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".jinja", ".yaml", ".yml", ".db")
MASK = "***"
MIN_SECRET = 8  # characters; shorter values of the environment would blot out ordinary words

_REST = r"[^\s\"'`,;:()\[\]<>]*"
_HOMES = re.compile(rf"(?<![\w.-])(?:/home/|/Users/|/root/|~/|[A-Za-z]:[\\/]Users[\\/]){_REST}")
_HUB_TOKEN = re.compile(r"\b(?:hf_|api_org_)[A-Za-z0-9]{30,}")
_TOKEN_KEYS = re.compile(r"(?:\w*_)?(?:hub|auth|api|access|secret)_(?:token|key)|token|password", re.IGNORECASE)
"""Keys of settings that hold secrets; those such as `eos_token` hold none."""
_SECRET_NAMES = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)


def is_local(text: str) -> bool:
    """Whether a text that may be a path or a name on the Hub is a path.

    It is one if it begins as paths do, has the suffix of a data file, has more than the two parts of a name, or if
    there is a file or folder of that name.
    """
    if "://" in text and not text.startswith("file://"):
        return False
    return (
        text.startswith((".", "/", "~", "\\", "file://"))
        or re.match(r"[A-Za-z]:[\\/]", text) is not None
        or text.lower().endswith(DATA_SUFFIXES)
        or len(re.split(r"[\\/]", text.rstrip("\\/"))) > 2
        or os.path.exists(text)
    )


def basename(text: str) -> str:
    """Return the last part of a path; a URL without what names a user or signs a request."""
    if "://" in text and not text.startswith("file://"):
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    name = re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return name if name.strip(".~") else "folder"


def local_paths(value: Any) -> set[str]:
    """Return the local paths that stand under `PATH_KEYS` anywhere in nested settings."""
    return {text for key, text in _texts(value, "") if key in PATH_KEYS and is_local(text)}


def redact_paths(value: Any, known: Collection[str] = ()) -> Any:
    """Nested settings, or a text, without local paths: only the last part of each is left.

    Texts under `PATH_KEYS` are paths as a whole, and stay recognisable as paths, lest a name on the Hub be read into
    them. In all others the `known` paths are replaced, those found under `PATH_KEYS`, and whatever lies in somebody's
    home. Labels are left alone but for the former.

    >>> redact_paths({"output_dir": "/data/jane/run", "reason": "Read from /data/jane/run/x.", "max_steps": 3})
    {'output_dir': './run', 'reason': 'Read from run/x.', 'max_steps': 3}
    """
    everything = {*known, *local_paths(value), str(Path.home()), os.getcwd()}
    # the longest first, so that a folder does not cut into what lies in it
    literals = sorted((path.rstrip("\\/") for path in everything), key=len, reverse=True)
    return _reduced(value, "", literals)


def find_secrets(*given: str | None) -> set[str]:
    """Return texts that must not be told: those given, and values of the environment that are secret by their names."""
    found = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
    return {value for value in (*given, *found) if value and len(value) >= MIN_SECRET}


def redact_secrets(value: Any, secrets: Iterable[str]) -> Any:
    """Nested settings, or a text, with `***` for every secret, and for all that looks like a token of the Hub."""
    ordered = sorted(secrets, key=len, reverse=True)
    if isinstance(value, str):
        for secret in ordered:
            value = value.replace(secret, MASK)
        return _HUB_TOKEN.sub(MASK, value)
    if isinstance(value, Mapping):
        return {redact_secrets(key, ordered): redact_secrets(inner, ordered) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_secrets(inner, ordered) for inner in value]
    return value


def without_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that hold a token, such as `hub_token`."""
    return {key: value for key, value in settings.items() if not _TOKEN_KEYS.fullmatch(key)}


def redactor(told: Any, *secrets: str | None) -> Callable[[Any], Any]:
    """Return a function that takes out of settings, or a text, the local paths that `told` tells, and all secrets.

    Paths are also those that it lists under `local_paths`. Secrets are the tokens in `told`, those given, and those of
    the environment (see `find_secrets`).

    >>> redactor({"path": "/data/jane/x.csv", "hub_token": "my-own-token"})("Read /data/jane/x.csv by my-own-token.")
    'Read x.csv by ***.'
    """
    known = {*local_paths(told), *(text for key, text in _texts(told, "") if key == "local_paths")}
    found = find_secrets(*secrets, *(text for key, text in _texts(told, "") if _TOKEN_KEYS.fullmatch(key)))
    return lambda value: redact_secrets(redact_paths(value, known), found)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for inner, part in value.items():
            yield from _texts(part, str(inner))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part, key)


def _reduced(value: Any, key: str, literals: list[str]) -> Any:
    if isinstance(value, str):
        if key in PATH_KEYS and (is_local(value) or value.rstrip("\\/") in literals or "://" in value):
            return basename(value) if "://" in value else f"./{basename(value)}"
        for path in literals:  # where it stands as a whole path or begins one
            if len(path) > 2 and re.search(r"[\\/]", path):
                value = re.sub(rf"(?<![\w.-]){re.escape(path)}(?![\w-])", basename(path), value)
        return value if key in LABEL_KEYS else _HOMES.sub(lambda match: basename(match[0].rstrip(".")), value)
    if isinstance(value, Mapping):
        # what lies below labels are labels, whatever their keys
        return {
            _reduced(inner, key, literals): _reduced(part, key if key in LABEL_KEYS else str(inner), literals)
            for inner, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_reduced(part, key, literals) for part in value]
    return value
