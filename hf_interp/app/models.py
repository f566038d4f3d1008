"""M_α at any α, asked for any text or file: the models behind a slider. Safe to be asked by several threads at once.

M₀ is mapped into memory, M_θ is held once, and M_α is written into the one model that answers. A question sets α and
runs the model under one lock, so that nobody gets the answer of somebody else's α.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer

from hf_interp.app.predictions import (
    FORMS,
    Form,
    Outcome,
    Question,
    Settings,
    ask_file,
    has_likeliest,
    likeliest,
    restrict,
    settings_of,
)
from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.tasks.models import load_model
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.task import get_task
from hf_interp.tasks.tokenizers import load_processor, prepare_tokenizer
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.files import read_json
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME
from hf_interp.utils.task_info import COMPONENTS, TASK_INFOS, AnswerKind, InputKind, task_of_adapter, task_of_class
from hf_interp.weights.adapters import merge_adapter
from hf_interp.weights.alpha_spec import check_alpha
from hf_interp.weights.checkpoint_names import check_common_tokens, has_tokenizer
from hf_interp.weights.interpolate import open_interpolation
from hf_interp.weights.live import batch_norms
from hf_interp.weights.matching import some_of
from hf_interp.weights.merge_adapter import find_base, open_adapter
from hf_interp.weights.model_folder import find_folder, open_base
from hf_interp.weights.tensors import Weights

SHOWN = [name for name, info in TASK_INFOS.items() if info.answer is not None and info.takes in COMPONENTS]
"""Tasks whose answers can be shown."""
MAX_CHARACTERS = 20_000
"""Of a text; longer ones are refused before they are tokenised."""
MAX_FILE_BYTES = 16 << 20
"""Of an image or a recording."""
Limit = tuple[type[Any], int, str, str]
TEXT: Limit = (str, MAX_CHARACTERS, "characters", "Write")
FILE: Limit = (bytes, MAX_FILE_BYTES, "bytes", "Choose")
NUM_KEPT = 64
"""Texts and files for which the answers of M₀ and M_θ are kept."""


class Answers(NamedTuple):
    """Outcomes of the three models for a text or a file; `places` are those of the `Question`."""

    places: list[str]
    base: Outcome
    interpolated: Outcome
    finetuned: Outcome


class AlphaSlider:
    """M_α of one pair of models, which answers texts or files at any α (see `open_slider`).

    Args:
        model: M_θ, a model of transformers or a `PeftModel` whose adapter can be scaled; it is taken over.
        base: M₀; `None` for a `PeftModel` that has it inside.
        tokenizer: of M_θ, or what makes the inputs of images or sound.
        recipe: names the task, and how texts are read.
        finetuned_only: names of weights that are M_θ's at every α, because M₀ has none.
        device: where the model runs.
        options: see `settings_of`.
    """

    def __init__(
        self,
        model: Any,
        base: Weights | None,
        tokenizer: Any,
        recipe: Recipe,
        *,
        finetuned_only: Sequence[str] = (),
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> None:
        config = unwrap_peft(model).config
        self.recipe, self.tokenizer = recipe, tokenizer
        self.settings: Settings = settings_of(recipe, tokenizer, config, **options)
        self.labels = _labels(recipe, config)
        self.answer_kind = check_task_name(recipe.task)
        self.takes: InputKind = TASK_INFOS[recipe.task].takes
        self._form = FORMS[self.answer_kind]
        if self.takes != "text":
            collator = get_task(recipe.task).collator(tokenizer, recipe)
            places = [""] if self.answer_kind == "label" else []
            self._form = Form(ask_file(self.takes, collator, places), self._form.answer)
        self._model = model.to(device).eval().requires_grad_(False)
        if model.can_generate():
            model.generation_config.update(max_length=None, max_new_tokens=None)  # as the settings say
        self._live = open_interpolation(base, self._model, finetuned_only=finetuned_only)
        self._lock = threading.Lock()
        self._at: float | None = None  # where the model is; None if that is not known
        self._kept: OrderedDict[tuple[str | bytes, str | None], tuple[Outcome, Outcome]] = OrderedDict()

    @property
    def notes(self) -> list[str]:
        """Remarks for somebody who looks at the answers."""
        names = self._live.report.names("finetuned")
        note = f"M₀ has no head of its own ({some_of(names, 2)}): its backbone is read by the head of M_θ."
        return [note] if names else []

    def choice(self, index: int) -> str:
        """Return the name of a choice: a label, or a token as it is written."""
        if self.labels is not None:
            return self.labels[index]
        return str(self.tokenizer.decode([index]))

    def predict(self, text: str | bytes, alpha: float, text_pair: str | None = None) -> Outcome:
        """Return the answer of M_α to a text or the bytes of a file, or, of classifiers of pairs, to two texts."""
        check_alpha(alpha)
        with self._lock:
            return self._answer(self._ask(text, text_pair), alpha)

    def compare(self, text: str | bytes, alpha: float, text_pair: str | None = None) -> Answers:
        """Return the answers of M₀, M_α and M_θ, and keep those of M₀ and M_θ for the next α. See `predict`."""
        check_alpha(alpha)
        with self._lock:
            question = self._ask(text, text_pair)
            key = (text if isinstance(text, str) else hashlib.sha256(text).digest(), text_pair or None)
            whole = [] if alpha in (0, 1) else [self._answer(question, alpha)]
            ends = self._kept.pop(key, None)
            if ends is None or not all(has_likeliest(ends[0].choices, outcome) for outcome in whole):
                found = [self._answer(question, 0.0), self._answer(question, 1.0), *whole]
                first, last, *_ = likeliest(found) if self.labels is None else found
                ends = (first, last)
            self._kept[key] = ends
            if len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
            interpolated = restrict(whole[0], ends[0].choices) if whole else ends[int(alpha)]
            return Answers(question.places, ends[0], interpolated, ends[1])

    def _ask(self, text: str | bytes, text_pair: str | None) -> Question:
        kind, most, unit, give = TEXT if self.takes == "text" else FILE
        if not isinstance(text, kind) or not text.strip():
            raise ValueError(f"The {self.takes} must not be empty. {give} one, or choose an example.")
        longest = max(len(text), len(text_pair or ""))
        if longest > most:
            raise ValueError(f"The {self.takes} must have at most {most:,} {unit}, got {longest:,}.")
        # a fast tokenizer is set to truncate while it is used, so this too is one thread's at a time
        question = self._form.ask(self.tokenizer, self.settings, text, text_pair or None)
        device = self._model.device
        return question._replace(inputs={name: tensor.to(device) for name, tensor in question.inputs.items()})

    def _answer(self, question: Question, alpha: float) -> Outcome:
        """Return M_α's answer; the caller holds the lock."""
        if alpha != self._at:
            self._at = None
            self._live.set_alpha(alpha)
            self._at = alpha
        with torch.inference_mode():
            return self._form.answer(self._model, self.tokenizer, self.settings, question)


def open_slider(
    recipe: Recipe,
    finetuned: str | Path,
    *,
    max_new_tokens: int = 32,
    chats: bool | None = None,
    device: str | torch.device = "cpu",
) -> AlphaSlider:
    """Load M₀ and M_θ, by the same rules as `interpolate_checkpoints`. No code from a model's repository is run.

    Args:
        recipe: names M₀ (`model_name_or_path`) and the task; see `describe_pair` for a pair without one.
        finetuned: M_θ, a folder or a name on the Hub; a whole model or an adapter.
        max_new_tokens, chats: see `Settings`.
        device: where the model runs.
    """
    check_task_name(recipe.task)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be at least 1, got {max_new_tokens!r}.")
    recipe = replace(recipe, trust_remote_code=False)
    folder = find_folder(finetuned, "finetuned")
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    if is_adapter:
        origin = find_base(recipe.model_name_or_path, folder)
        model, base, kind, new = open_adapter(origin, folder)
        if not kind.is_scalable:
            model = merge_adapter(model, kind)
            base = open_base(origin, model) if base is None else base
    else:
        origin = find_folder(recipe.model_name_or_path, "base", revision=recipe.model_revision)
        own = replace(recipe, model_name_or_path=str(folder))  # which tells its class
        model, missing = load_model(own, str(folder), local_files_only=True)
        if missing:
            raise ValueError(
                f"`finetuned` must be a model for {recipe.task}, but {folder.name!r} lacks {', '.join(missing[:3])}, "
                "which would be random. Give its own task (--task)."
            )
        new = set()
        base = open_base(origin, model)
    if not is_adapter and batch_norms(model):
        raise ValueError(
            "The page has no data on which to measure the statistics of batch norms at every α. See `hf-interp curve`."
        )
    tokenizer, inner = _load_processor(recipe, folder, origin), unwrap_peft(model)
    has_words = TASK_INFOS[recipe.task].takes == "text"
    if has_words and getattr(inner.config, "pad_token_id", None) is None:
        inner.config.pad_token_id = tokenizer.pad_token_id
    get_task(recipe.task).prepare(tokenizer, inner, recipe)
    if not is_adapter and has_tokenizer(origin) and has_tokenizer(folder):
        size = inner.get_input_embeddings().weight.shape[0] if has_words else inner.config.vocab_size
        check_common_tokens(origin, folder, size)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "chats": chats, "device": device}
    return AlphaSlider(model, base, tokenizer, recipe, finetuned_only=sorted(new), **options)


def _load_processor(recipe: Recipe, folder: Path, origin: Path) -> Any:
    """Load what makes the inputs of M_θ, which may have been saved with M₀ alone."""
    if TASK_INFOS[recipe.task].takes != "text":
        has_own = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
        return load_processor(recipe, folder if has_own else origin)
    tokenizer = AutoTokenizer.from_pretrained(folder if has_tokenizer(folder) else origin, local_files_only=True)
    prepare_tokenizer(tokenizer, recipe)
    return tokenizer


def describe_pair(base: str, finetuned: str | Path, *, task: str | None = None, **fields: Any) -> Recipe:
    """Return a recipe for a pair of models that has none; fields that are `None` are left out."""
    task = find_task(find_folder(finetuned, "finetuned")) if task is None else task
    check_task_name(task)
    given = {name: value for name, value in fields.items() if value is not None}
    return Recipe(model_name_or_path=base, corpora={}, task=task, **given)


def find_task(folder: Path) -> str:
    """Return the task of the model or adapter in a folder, or raise if it cannot be told."""
    adapter = read_json(folder / ADAPTER_CONFIG_NAME)
    if isinstance(adapter, dict):
        adapted_class = (adapter.get("auto_mapping") or {}).get("base_model_class") or ""
        task = task_of_adapter(adapter.get("task_type")) or task_of_class(adapted_class)
        if task is None:
            raise ValueError(f"`task` must be given: the adapter in {folder.name!r} does not say what it is for.")
        return task
    classes = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).architectures or []
    task = task_of_class(classes[0]) if classes else None
    if task is None:
        raise ValueError(
            f"`task` must be given, one of {', '.join(SHOWN)}: {folder.name!r} is of the class "
            f"{classes[0] if classes else 'that is not named'}, which is none of theirs."
        )
    return task


def check_task_name(task: str) -> AnswerKind:
    """Return the kind of answer of a task, or raise if its answers cannot be shown."""
    info = TASK_INFOS.get(task)
    if info is not None and info.takes not in COMPONENTS:
        raise ValueError(
            f"The page takes {', '.join(COMPONENTS)}, and a model for {task} takes {info.takes}. See `hf-interp curve`."
        )
    kind = info.answer if info is not None else None
    if kind is None:
        raise ValueError(f"`task` must be one of {', '.join(SHOWN)}, got {task!r}." + did_you_mean(task, SHOWN))
    return kind


def _labels(recipe: Recipe, config: Any) -> list[str] | None:
    """Return the names of the labels; `None` where tokens are chosen."""
    if not get_task(recipe.task).info.has_labels:
        return None
    known = [str(config.id2label[index]) for index in sorted(config.id2label)]
    given = list(recipe.label_names or known)
    if len(given) != len(known):
        raise ValueError(f"`label_names` must be the {len(known)} labels of the model in their order, got {given}.")
    return given
