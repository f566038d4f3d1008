"""General skill as others measure it: tasks of EleutherAI's lm-eval on M₀, M_α and M_θ of a causal language model."""

import copy
import io
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_interp.mixture.collators import random_state_of_slot
from hf_interp.tasks.recipe import HarnessConfig, Recipe
from hf_interp.tasks.task import get_task
from hf_interp.utils.errors import did_you_mean, import_extra, reading
from hf_interp.weights.live import evaluation_mode

if TYPE_CHECKING:  # a plan trains nothing
    from transformers import Trainer

SEED = 1234  # lm-eval's own, by which it draws worked examples
GROUP = re.compile(r"^group:", re.MULTILINE)
"""In the file of a group of tasks."""


class Harness:
    """Tasks of lm-eval, loaded, and what they have found of a model so far; without `eval_harness`, none.

    They find what the command `lm-eval run` finds of the saved model.

    Raises: as `check_harness`, and for data that cannot be loaded.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.settings, self.is_chat = recipe.eval_harness, recipe.applies_chat_template()
        self._alphas: set[float] = set()
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        if self.settings is not None:
            check_harness(recipe)
            self._loaded = _load(self.settings)
            _manager.cache_clear()  # the user's files may change

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Every task and metric with its scores, for results."""
        return list(self._found.values())

    def measure(self, trainer: "Trainer", alpha: float) -> None:
        """Measure the model of a trainer, which is M_α now, if it has not been; of several processes the first does."""
        if self.settings is None or trainer.args.process_index or alpha in self._alphas:
            return
        self._alphas.add(alpha)
        for entry, point in _scores(self._evaluate(trainer, self.settings)):
            known = self._found.setdefault((entry["task"], entry["metric"]), {**entry, "points": []})
            known["points"] = sorted([*known["points"], {"alpha": alpha, **point}], key=lambda each: each["alpha"])

    def _evaluate(self, trainer: "Trainer", settings: HarnessConfig) -> Mapping[str, Any]:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        for task in self._loaded["tasks"].values():
            shots = task.get_config("num_fewshot")
            if settings.num_fewshot is not None and shots != 0:
                shots = settings.num_fewshot
            task.set_config("num_fewshot", shots or 0)
            task.set_fewshot_seed(SEED)
        with evaluation_mode(trainer.model), random_state_of_slot(SEED, 0), _quiet():
            model = HFLM(
                pretrained=trainer.model,
                tokenizer=copy.deepcopy(trainer.processing_class),  # it may be given a token to pad with
                batch_size=trainer.args.per_device_eval_batch_size,
            )
            chat = {"apply_chat_template": self.is_chat, "fewshot_as_multiturn": self.is_chat}
            return evaluate(model, self._loaded, limit=settings.limit, log_samples=False, **chat)


def check_harness(recipe: Recipe) -> None:
    """Refuse tasks that lm-eval does not have, and a model that it cannot measure.

    Raises:
        ValueError, FileNotFoundError: naming the field, or the task and the nearest that there is.
        ImportError: if lm-eval is not installed.
    """
    settings = recipe.eval_harness
    if settings is None:
        return
    if get_task(recipe.task).info.auto_class != "AutoModelForCausalLM":
        raise ValueError(
            f"`eval_harness` needs the task causal-lm or chat, because lm-eval measures language models, got "
            f"{recipe.task}. Leave it out."
        )
    if not settings.tasks:
        raise ValueError("`eval_harness` must name at least one task, such as hellaswag, got none.")
    if (settings.num_fewshot or 0) < 0 or (settings.limit is not None and settings.limit <= 0):
        raise ValueError("`eval_harness` must have a `limit` above 0, and a `num_fewshot` of at least 0.")
    files = [name for name in settings.tasks if name.endswith((".yaml", ".yml"))]
    for name in filter(None, [settings.include_path, *files]):
        if not Path(name).expanduser().exists():
            raise FileNotFoundError(f"There is no {name!r} (`eval_harness`). Check the path.")
    import_extra("lm_eval", "`eval_harness` needs lm-eval", "harness")
    known = _manager(settings.include_path, tuple(settings.tasks)).all_tasks
    for name in settings.tasks:
        if name not in (*known, *files):
            raise ValueError(
                f"`eval_harness` must name tasks of lm-eval, or YAML files in its format, got {name!r}."
                f"{did_you_mean(name, known)} `lm-eval ls tasks` lists them."
            )


@cache  # it takes seconds to look through lm-eval's own tasks
def _manager(include_path: str | None, tasks: tuple[str, ...]) -> Any:
    """Return what loads the tasks; lm-eval's own are looked through only if some may not be the user's."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are of what was chosen here
    folder = include_path and str(Path(include_path).expanduser())
    own = TaskManager(include_path=folder, include_defaults=False)
    files = [path for path in map(Path, tasks) if path.suffix in (".yaml", ".yml")]
    has_groups = any(GROUP.search(path.expanduser().read_text(encoding="utf-8")) for path in files)
    is_own = not has_groups and {*tasks} <= {*own.all_subtasks, *map(str, files)}
    return own if is_own else TaskManager(include_path=folder)


def _load(settings: HarnessConfig) -> Any:
    """Load the tasks and their data, so that what is missing shows before anything is trained."""
    with reading(f"`eval_harness` ({', '.join(settings.tasks)})"), _quiet():
        loaded = _manager(settings.include_path, tuple(settings.tasks)).load(settings.tasks)
    for name, task in loaded["tasks"].items():
        if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
            raise ValueError(
                f"`eval_harness` cannot have the task {name!r}, which takes more than text, or runs code that the "
                "model writes. Use lm-eval itself for it."
            )
    return loaded


def _quiet() -> AbstractContextManager[Any]:
    """Keep lm-eval from drawing bars where nobody looks."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def _scores(found: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, float | None]]]:
    """Give every task and metric, and its value and standard error; of a group that has its own score, only that."""
    results = found["results"]
    scored = [name for name, scores in results.items() if any("," in key for key in scores)]
    parts = {part for group, names in found["group_subtasks"].items() if group in scored for part in names}
    for task in scored:
        about = {"task": task, "num_fewshot": found["n-shot"].get(task, 0), "version": str(found["versions"].get(task))}
        for key, value in results[task].items():
            metric, _, kind = key.partition(",")  # kind is the filter that the answers went through
            if task in parts or not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = results[task].get(f"{metric}_stderr,{kind}")
            name = metric if kind == "none" else f"{metric} ({kind})"
            point = {"value": float(value), "std_error": float(error) if isinstance(error, (int, float)) else None}
            yield {**about, "metric": name, "num_examples": results[task].get("sample_len")}, point
