"""What a run is told: `InterpolationConfig` for the trainer, and recipes (YAML), whose keys are its fields and theirs.

A recipe is one mapping. Its keys are the fields of `Recipe` and of `InterpolationConfig`, hence of `TrainingArguments`;
every key is also a command-line flag, with dots to reach inside: `--learning_rate 1e-4 --corpora.domain.path my.csv`.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import EnumMeta
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_interp.choices import AlphaSearch
from hf_interp.controllers import AlphaController, get_controller
from hf_interp.divergence import DIRECTIONS, Direction
from hf_interp.schedules import DEFAULT_ALPHA, AlphaSchedule, did_you_mean, get_alpha_schedule
from hf_interp.shares import SIDES, UNITS, Side, Unit

ANCHORS = ("distill", "l2sp")
DOMAIN_LOSSES = ("gce",)
AnchoredExamples = Literal["all", "general"]


@dataclass
class InterpolationConfig(Seq2SeqTrainingArguments):
    """[`~transformers.TrainingArguments`] with the settings of α, and those of generation for sequence to sequence.

    α(step) is the share of domain examples in the global batch of a step. It is held at `alpha_start` for
    `alpha_initial_steps`, moves to `alpha_end`, and is held there for `alpha_target_steps`. The settings take effect
    when the trainer's `train_dataset` is a mixture; `max_steps` must then be set.

    An `anchor` ties the model to the pretrained M₀ with the weight (1 − α)·`anchor_strength`, over a mixture or an
    ordinary dataset (see `hf_interp.anchors`).

    Args:
        alpha_schedule_type (`str`, *optional*): constant, linear, exponential, cosine, sigmoid, polynomial, steps or
            piecewise (see `hf_interp.schedules`). By default constant, or linear if another field of α is given: at
            equal steps no rise was better than a constant mixture (tests/benchmarks/EFFECT.md, "Does the order
            matter?").
        alpha_schedule_kwargs (`dict`, *optional*): further arguments of the schedule, such as `{"rate": 3.0}`.
        alpha_start (`float`, *optional*, defaults to 0.0): α at the start, in [0, 1].
        alpha_end (`float`, *optional*, defaults to 1.0, or 0.5 if constant): α at the end, in [0, 1]; the value of a
            constant schedule, of which 0.5 ranks best by the mean of both sides (EFFECT.md, "All cells together").
        alpha_initial_steps (`float`, *optional*, defaults to 0): steps of the initial phase, or its share of the run if
            below 1.
        alpha_target_steps (`float`, *optional*, defaults to 0): the same for the target phase.
        mixture_unit (`str`, *optional*, defaults to `"examples"`): what α and the shares count: "examples" or "tokens".
        alpha_controller (`str`, *optional*): let α answer to training: guard or balance (see `hf_interp.controllers`).
        alpha_controller_kwargs (`dict`, *optional*): arguments of the controller, such as `{"tolerance": 0.1}`.
        alpha_update_steps (`int`, *optional*, defaults to 10): steps from one decision of the controller to the next.
        alpha_update_lag (`int`, *optional*, defaults to 10): steps from a decision until it is in force. It must exceed
            `dataloader_num_workers * dataloader_prefetch_factor / gradient_accumulation_steps`, which are on their way.
        log_corpus_loss (`bool`, *optional*, defaults to `True`): log the training loss of every corpus.
        domain_loss (`str`, *optional*): "gce" trains a classifier on the domain's examples with generalised cross
            entropy, which wrong labels move less (see `hf_interp.robust_loss`); general examples keep cross entropy. By
            default the loss is the model's own. What is logged by corpus, and evaluated, is cross entropy in any case.
        gce_q (`float`, *optional*, defaults to 0.7): q of "gce", in (0, 1]; the smaller, the nearer to cross entropy.
        anchor (`str`, *optional*): "distill" adds the divergence from M₀'s predictions to the loss; "l2sp" pulls the
            weights towards M₀'s after every optimizer step.
        anchor_strength (`float`, *optional*, defaults to 1.0): weight of the anchor at α = 0. For l2sp it is γ: a step
            at learning rate η moves the weights by the share ηγ / (1 + ηγ) of their way to M₀.
        anchor_temperature (`float`, *optional*, defaults to 1.0): T by which distill divides the logits of both models;
            the divergence is multiplied by T².
        anchor_direction (`str`, *optional*, defaults to `"forward"`): of distill: "forward" is KL(M₀‖M_θ), "reverse" is
            KL(M_θ‖M₀).
        anchor_on (`str`, *optional*, defaults to `"all"`): the examples that distill looks at: "all", or those of
            "general" corpora.
        anchor_alpha_schedule (`dict`, *optional*): α of the anchor where it is not to be the data's: a schedule's name
            or a mapping with its `type` and arguments, such as `{"type": "cosine", "end": 0.5}`. Without a mixture α
            is otherwise what the fields above describe, over the steps of the run.
        anchor_exclude (`list[str]`, *optional*): names of parameters that l2sp leaves alone, such as those of a new
            head; `*` stands for any text.
        log_loss_gap (`bool`, *optional*, defaults to `False`): log by how much the loss exceeds M₀'s, which costs a
            forward pass of M₀.

    Raises:
        ValueError: for an unknown schedule, argument or anchor, or a value out of range.
    """

    alpha_schedule_type: str | None = field(
        default=None,
        metadata={
            "help": "How α moves: constant, linear, exponential, cosine, sigmoid, polynomial, steps or piecewise. "
            "Default: constant, or linear if another field of α is given."
        },
    )
    alpha_schedule_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Further arguments of the schedule, such as {"rate": 3.0}.'}
    )
    alpha_start: float | None = field(default=None, metadata={"help": "α at the start, in [0, 1]. Default: 0."})
    alpha_end: float | None = field(
        default=None,
        metadata={"help": "α at the end, in [0, 1]; the value of a constant schedule. Default: 1, or 0.5 if constant."},
    )
    alpha_initial_steps: float = field(
        default=0.0, metadata={"help": "Steps for which α is held at its start, or a share of the run if below 1."}
    )
    alpha_target_steps: float = field(
        default=0.0, metadata={"help": "Steps for which α is held at its end, or a share of the run if below 1."}
    )
    mixture_unit: Unit = field(
        default="examples", metadata={"help": "What α and the shares count: examples or tokens."}
    )
    alpha_controller: str | None = field(default=None, metadata={"help": "Let α answer to training: guard or balance."})
    alpha_controller_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Arguments of the controller, such as {"tolerance": 0.1}.'}
    )
    alpha_update_steps: int = field(
        default=10, metadata={"help": "Steps from one decision of the controller to the next."}
    )
    alpha_update_lag: int = field(default=10, metadata={"help": "Steps from a decision until it is in force."})
    log_corpus_loss: bool = field(default=True, metadata={"help": "Log the training loss of every corpus."})
    domain_loss: str | None = field(
        default=None,
        metadata={"help": "Loss of a classifier on the domain, where labels may be wrong: gce. Default: the model's."},
    )
    gce_q: float = field(
        default=0.7, metadata={"help": "q of gce, in (0, 1]; the smaller, the nearer to cross entropy."}
    )
    # What ties the model to M₀
    anchor: str | None = field(
        default=None,
        metadata={"help": "What ties the model to M₀: distill (its predictions) or l2sp (its weights)."},
    )
    anchor_strength: float = field(default=1.0, metadata={"help": "Weight of the anchor at α = 0."})
    anchor_temperature: float = field(default=1.0, metadata={"help": "Temperature of distill."})
    anchor_direction: Direction = field(
        default="forward", metadata={"help": "Of distill: forward is KL(M₀‖M_θ), reverse is KL(M_θ‖M₀)."}
    )
    anchor_on: AnchoredExamples = field(
        default="all", metadata={"help": "Examples that distill looks at: all, or those of general corpora."}
    )
    anchor_alpha_schedule: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'α of the anchor, if not the data\'s: a schedule such as {"type": "cosine", "end": 0.5}.'},
    )
    anchor_exclude: list[str] | None = field(
        default=None, metadata={"help": "Names of parameters that l2sp leaves alone; * stands for any text."}
    )
    log_loss_gap: bool = field(
        default=False, metadata={"help": "Log by how much the loss exceeds M₀'s; costs a forward pass of M₀."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha_schedule_kwargs", "alpha_controller_kwargs"):
            value = getattr(self, name)
            setattr(self, name, _with_numbers(_parse_mapping(name, value) if isinstance(value, str) else value))
        self._settle_schedule()
        for name in ("alpha_start", "alpha_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be an α in [0, 1], got {getattr(self, name)}.")
        for name in ("alpha_update_steps", "alpha_update_lag"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.mixture_unit not in UNITS:
            raise ValueError(f"`mixture_unit` must be 'examples' or 'tokens', got {self.mixture_unit!r}.")
        self.build_alpha_schedule(max_steps=self.max_steps if self.max_steps > 0 else 1 << 40)
        self.build_alpha_controller()
        self._check_domain_loss()
        self._check_anchor()

    def _settle_schedule(self) -> None:
        """Fill in what is not given of the schedule. Who sets an end, a phase or a controller means α to move."""
        if self.alpha_schedule_type is None:
            moves = self.alpha_start, self.alpha_end, self.alpha_schedule_kwargs, self.alpha_controller
            is_still = all(value is None for value in moves) and not (
                self.alpha_initial_steps or self.alpha_target_steps
            )
            self.alpha_schedule_type = "constant" if is_still else "linear"
        if self.alpha_start is None:
            self.alpha_start = 0.0
        if self.alpha_end is None:
            self.alpha_end = DEFAULT_ALPHA if self.alpha_schedule_type == "constant" else 1.0

    def _check_domain_loss(self) -> None:
        if self.domain_loss is not None and self.domain_loss not in DOMAIN_LOSSES:
            raise ValueError(
                f"`domain_loss` must be {' or '.join(DOMAIN_LOSSES)}, got {self.domain_loss!r}. Leave it out for the "
                "model's own." + did_you_mean(str(self.domain_loss), DOMAIN_LOSSES)
            )
        if not 0 < self.gce_q <= 1:
            raise ValueError(
                f"`gce_q` must lie in (0, 1], got {self.gce_q}. Leave `domain_loss` out for cross entropy, which is "
                "the limit for q → 0."
            )
        if self.domain_loss != "gce" and self.gce_q != 0.7:
            raise ValueError(f"`gce_q` ({self.gce_q}) needs `domain_loss` to be gce, got {self.domain_loss!r}.")

    def _check_anchor(self) -> None:
        if self.anchor is not None and self.anchor not in ANCHORS:
            raise ValueError(
                f"`anchor` must be one of {', '.join(ANCHORS)}, got {self.anchor!r}."
                + did_you_mean(str(self.anchor), ANCHORS)
            )
        for name, options in (("anchor_direction", DIRECTIONS), ("anchor_on", get_args(AnchoredExamples))):
            if getattr(self, name) not in options:
                raise ValueError(f"`{name}` must be {' or '.join(map(repr, options))}, got {getattr(self, name)!r}.")
        if not 0 <= self.anchor_strength < math.inf:
            raise ValueError(f"`anchor_strength` must be a finite number of at least 0, got {self.anchor_strength}.")
        if not 0 < self.anchor_temperature < math.inf:
            raise ValueError(f"`anchor_temperature` must be a finite number above 0, got {self.anchor_temperature}.")
        if isinstance(self.anchor_alpha_schedule, str):
            self.anchor_alpha_schedule = _parse_schedule("anchor_alpha_schedule", self.anchor_alpha_schedule)
        self.anchor_alpha_schedule = _with_numbers(self.anchor_alpha_schedule)
        if isinstance(self.anchor_exclude, str):
            self.anchor_exclude = [self.anchor_exclude]
        for entry in dataclasses.fields(self):
            kinds = _ANCHORS_OF.get(entry.name, ())
            if kinds and self.anchor not in kinds and getattr(self, entry.name) != entry.default:
                raise ValueError(
                    f"`{entry.name}` ({getattr(self, entry.name)}) needs `anchor` to be {' or '.join(kinds)}, got "
                    f"{self.anchor!r}."
                )
        self.build_anchor_schedule(max_steps=self.max_steps if self.max_steps > 0 else 1 << 40)

    def build_anchor_schedule(self, max_steps: int) -> AlphaSchedule | None:
        """The anchor's own schedule of α for a run of `max_steps`; `None` if it follows the data's."""
        if self.anchor_alpha_schedule is None:
            return None
        kwargs: dict[str, Any] = dict(self.anchor_alpha_schedule)  # type: ignore[arg-type]
        if "type" not in kwargs or "max_steps" in kwargs or "alpha_schedule_type" in kwargs:
            raise ValueError(
                "`anchor_alpha_schedule` must hold the `type` of a schedule and its arguments, such as "
                f"{{type: cosine, end: 0.5}}, got {self.anchor_alpha_schedule}."
            )
        return get_alpha_schedule(str(kwargs.pop("type")), max_steps=max_steps, **kwargs)

    def build_alpha_controller(self) -> AlphaController | None:
        """The controller that the fields describe; `None` without one."""
        if self.alpha_controller is None:
            if self.alpha_controller_kwargs:
                raise ValueError(
                    f"`alpha_controller_kwargs` ({self.alpha_controller_kwargs}) need an `alpha_controller`: guard or "
                    "balance."
                )
            return None
        kwargs: dict[str, Any] = dict(self.alpha_controller_kwargs or {})  # type: ignore[arg-type]
        return get_controller(self.alpha_controller, **kwargs)

    def build_alpha_schedule(self, max_steps: int | None = None) -> AlphaSchedule:
        """The schedule that the fields describe, for a run of `max_steps` (default: this configuration's)."""
        kwargs: dict[str, Any] = dict(self.alpha_schedule_kwargs or {})  # type: ignore[arg-type]
        for name in kwargs:
            if name in _FIELD_OF:
                raise ValueError(f"`alpha_schedule_kwargs` must not hold {name!r}; set `{_FIELD_OF[name]}` instead.")
        assert self.alpha_schedule_type is not None  # settled, as the ends are
        assert self.alpha_start is not None
        assert self.alpha_end is not None
        return get_alpha_schedule(
            self.alpha_schedule_type,
            start=self.alpha_start,
            end=self.alpha_end,
            max_steps=self.max_steps if max_steps is None else max_steps,
            initial_steps=self.alpha_initial_steps,
            target_steps=self.alpha_target_steps,
            **kwargs,
        )


_FIELD_OF = {
    "alpha_schedule_type": "alpha_schedule_type",
    "start": "alpha_start",
    "end": "alpha_end",
    "max_steps": "max_steps",
    "initial_steps": "alpha_initial_steps",
    "target_steps": "alpha_target_steps",
}
"""Arguments of `get_alpha_schedule` that have fields of their own."""

_ANCHORS_OF = {
    "anchor_strength": ANCHORS,
    "anchor_alpha_schedule": ANCHORS,
    "anchor_temperature": ("distill",),
    "anchor_direction": ("distill",),
    "anchor_on": ("distill",),
    "anchor_exclude": ("l2sp",),
}
"""Fields that only some anchors look at."""


@dataclass(kw_only=True)
class CorpusConfig:
    """One corpus of a recipe.

    Args:
        path: a dataset's name on the Hub, a local file or list of files (.json, .jsonl, .csv, .tsv, .parquet, .txt,
            each also as .gz), or a local folder.
        side: "general" or "domain"; may be left out where the corpus is itself called so.
        config_name, split, revision: passed to `datasets.load_dataset`.
        text_column, text_pair_column, label_column: where the inputs and the label are. A dot reaches into a column of
            mappings: `translation.en`.
        tokens_column, tags_column: where the words of token classification and their tags are.
        target_column: where the output of sequence to sequence is.
        messages_column: where the turns of a dialogue are, for a causal language model; without it the corpus is plain
            text.
        role_key, content_key: what a turn calls its speaker and its text.
        roles: from speakers to system, user or assistant, such as `{human: user, gpt: assistant}`; those names
            themselves need no entry.
        columns: where the columns of a task of one's own are: from the task's name of a column to the file's.
        label_map: from values found in `label_column` (or single tags in `tags_column`) to the recipe's `label_names`;
            `null` drops the rows. Label names themselves need no entry, nor do ids if there is no map.
        objective: what the corpus trains, if it is not the recipe's task: a name in `objectives`, or a task.
        where: keep the rows whose column has the given value, or one of the given values.
        max_examples: keep at most this many rows, drawn with `sample_seed`.
        share: share of the side (see `hf_interp.plan.PlannedCorpus`).
        max_passes: refuse to read the corpus more often.
        mean_tokens: mean number of tokens of an example, for a stream in a mixture by tokens.
        streaming: read it as a stream, without downloading it first.
        license: its licence, for the model card.
    """

    path: str | list[str]
    side: Side | None = None
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    tokens_column: str = "tokens"
    tags_column: str = "ner_tags"
    target_column: str = "target"
    messages_column: str | None = None
    role_key: str = "role"
    content_key: str = "content"
    roles: dict[str, str] | None = None
    columns: dict[str, str] | None = None
    label_map: dict[Any, Any] | None = None
    objective: str | None = None
    where: dict[str, Any] | None = None
    max_examples: int | None = None
    sample_seed: int = 0
    share: float | None = None
    max_passes: float | None = None
    mean_tokens: float | None = None
    streaming: bool = False
    license: str | None = None

    def source(self, column: str) -> str:
        """What the file calls a column of the task."""
        return (self.columns or {}).get(column) or getattr(self, f"{column}_column", None) or column


@dataclass(kw_only=True)
class ObjectiveConfig:
    """What corpora train beside the recipe's task, on the same backbone with a head of its own.

    Args:
        task: an entry of `hf_interp.tasks.TASKS`.
        label_names, problem_type, max_length, packing, mlm_probability, whole_word_mask: as in the recipe; what is left
            out is the recipe's, but for the labels.
    """

    task: str
    label_names: list[str] | None = None
    problem_type: str | None = None
    max_length: int | None = None
    packing: bool | None = None
    mlm_probability: float | None = None
    whole_word_mask: bool | None = None


@dataclass(kw_only=True)
class Recipe:
    """What a recipe says beside the fields of `InterpolationConfig`.

    Args:
        model_name_or_path: the pretrained model M₀, on the Hub or in a folder.
        corpora: training corpora by name.
        eval_corpora: evaluation sets by name; metrics are called `eval_<name>_<metric>`.
        validation_corpora: sets by name on which the α of the weights is chosen; without them `eval_corpora` are.
        alpha_search: search for the α of the interpolated weights after training: `true`, or settings (see
            `hf_interp.choices.AlphaSearch`).
        task: an entry of `hf_interp.tasks.TASKS`.
        objectives: what corpora may train beside the task, by name; a corpus or evaluation set chooses one by its
            `objective`. A task that needs no settings of its own, such as masked-lm, can be chosen without an entry.
        label_names: the labels of the task, in the order of their ids; for token classification the tags.
        problem_type: of sequence classification: single_label_classification (default), multi_label_classification
            (each row has a list of labels) or regression (each row has a number).
        max_length: inputs are cut to this many tokens; packed texts have exactly as many.
        max_target_length: the longest output of sequence to sequence, in tokens.
        truncate_target: cut longer outputs, instead of refusing them.
        source_prefix: put before every input of sequence to sequence, such as "summarize: ".
        source_lang, target_lang: languages by the names that a multilingual tokenizer has for them, such as en_XX.
        packing: whether language models read their texts packed into examples of `max_length` tokens.
        mlm_probability: share of the tokens that masked language modelling masks.
        whole_word_mask: whether it masks whole words.
        chat_template: for tokenizers without one: "chatml", or a file with a Jinja template.
        peft: an adapter: a preset of `hf_interp.adapters`; a mapping with `preset` and fields laid over it; or a PEFT
            configuration as a mapping with `peft_type`.
        model_revision: branch, tag or commit of the model.
        trust_remote_code: allow code from the model's repository to run.
    """

    model_name_or_path: str
    corpora: dict[str, CorpusConfig]
    eval_corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    validation_corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    alpha_search: AlphaSearch | None = None
    task: str = "sequence-classification"
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    label_names: list[str] | None = None
    problem_type: str | None = None
    max_length: int = 128
    max_target_length: int = 128
    truncate_target: bool = False
    source_prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    packing: bool = True
    mlm_probability: float = 0.15
    whole_word_mask: bool = False
    chat_template: str | None = None
    peft: str | dict[str, Any] | None = None
    model_revision: str = "main"
    trust_remote_code: bool = False

    def for_objective(self, name: str | None) -> "Recipe":
        """The recipe as one objective sees it; `None` is the task itself.

        Raises:
            ValueError: for a name that stands for no objective (the nearest is named) when it is looked up as a task.
        """
        if name is None:
            return self
        own = self.objectives.get(name) or ObjectiveConfig(task=name)
        given = {key: value for key, value in vars(own).items() if value is not None}
        return dataclasses.replace(
            self, **{"label_names": None, "problem_type": None, **given}, peft=None, objectives={}
        )

    def objective_names(self) -> list[str]:
        """The objectives that corpora or evaluation sets choose, in order of appearance."""
        groups = (self.corpora, self.eval_corpora, self.validation_corpora)
        chosen = (corpus.objective for group in groups for corpus in group.values())
        return list(dict.fromkeys(name for name in chosen if name is not None))


def load_recipe(path: str | Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe's YAML and lay command-line flags over it.

    Returns:
        the recipe as a plain mapping, for `parse_recipe`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a mapping, or a flag cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {str(path)!r}.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Recipe {str(path)!r} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"Recipe {str(path)!r} must be a mapping of fields, got {_kind(recipe)}.")
    return lay_flags(recipe, flags)


def lay_flags(recipe: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Lay command-line flags over a recipe, in place.

    Raises:
        ValueError: if a flag cannot be read.
    """
    for key, value in read_flags(flags):
        _set(recipe, key, value)
    return recipe


def parse_recipe(recipe: Mapping[str, Any]) -> tuple[Recipe, InterpolationConfig]:
    """Check a recipe and turn it into its two halves.

    Raises:
        ValueError: for an unknown field (the nearest is named), a missing one, or a value of the wrong kind.
    """
    recipe_fields = _field_names(Recipe)
    known = {*recipe_fields, *_field_names(InterpolationConfig)}
    for key in recipe:
        if key not in known:
            raise ValueError(f"Unknown field {key!r} in the recipe." + did_you_mean(key, known))
    training = {key: value for key, value in recipe.items() if key not in recipe_fields}
    own = {key: value for key, value in recipe.items() if key in recipe_fields and value is not None}
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        if group in own:
            own[group] = _corpora(group, own[group])
    if "objectives" in own:
        own["objectives"] = _objectives(own["objectives"])
    if "alpha_search" in own:
        own["alpha_search"] = _alpha_search(own["alpha_search"])
    parsed: Recipe = _build(Recipe, own, "the recipe")
    if not parsed.corpora:
        raise ValueError("`corpora` must name at least one corpus, got none.")
    return parsed, parse_training_arguments(training)


def parse_training_arguments(values: Mapping[str, Any]) -> InterpolationConfig:
    """`InterpolationConfig` from plain values, converted as the host's own command-line parser converts them."""
    kinds = typing.get_type_hints(InterpolationConfig)
    whole: dict[str, Any] = {}
    flags: list[str] = []
    for key, value in values.items():
        if value is False and any(
            "no" in list(kind) for kind in _alternatives(kinds[key]) if isinstance(kind, EnumMeta)
        ):
            value = "no"  # as in `save_strategy: no`, which is false in YAML
        if isinstance(value, (dict, list)):
            if type(value) not in _alternatives(kinds[key]):
                raise ValueError(f"`{key}` must not be {_kind(value)}, got {value!r}.")
            whole[key] = _with_numbers(value)  # the command-line parser would take it as a text only
        elif value is not None:
            flags.append(f"--{key}={value}")
    return InterpolationConfig(**{**vars(_Parser(InterpolationConfig).parse_args(flags)), **whole})


def read_flags(flags: Sequence[str]) -> list[tuple[str, Any]]:
    """`--key value`, `--key=value` and a bare `--key` (true); values are read as YAML.

    >>> read_flags(["--learning_rate", "0.1", "--bf16", "--corpora.domain.where={label: [a, b]}"])
    [('learning_rate', 0.1), ('bf16', True), ('corpora.domain.where', {'label': ['a', 'b']})]
    """
    found: list[tuple[str, Any]] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise ValueError(f"Expected a flag such as --learning_rate 1e-4, got {flag!r}.")
        key, equals, text = flag[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            equals, text = "=", rest.pop(0)
        try:
            found.append((key, yaml.safe_load(text) if equals else True))
        except yaml.YAMLError as error:
            raise ValueError(f"The value of --{key} is not YAML: {text!r}.") from error
    return found


class _Parser(HfArgumentParser):
    """The host's parser, which raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}.")


def _corpora(group: str, entries: Any) -> dict[str, CorpusConfig]:
    if not isinstance(entries, Mapping):
        raise ValueError(f"`{group}` must be a mapping from names to corpora, got {_kind(entries)}.")
    corpora = {}
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"`{group}.{name}` must be a mapping of fields, got {_kind(entry)}.")
        corpus: CorpusConfig = _build(CorpusConfig, entry, f"`{group}.{name}`")
        if corpus.side is None and name in SIDES:
            corpus.side = name
        if group == "corpora" and corpus.side not in SIDES:
            raise ValueError(f"`{group}.{name}.side` must be general or domain, got {corpus.side!r}.")
        corpora[str(name)] = corpus
    return corpora


def _objectives(entries: Any) -> dict[str, ObjectiveConfig]:
    if not isinstance(entries, Mapping):
        raise ValueError(f"`objectives` must be a mapping from names to objectives, got {_kind(entries)}.")
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"`objectives.{name}` must be a mapping of fields, got {_kind(entry)}.")
    return {str(name): _build(ObjectiveConfig, entry, f"`objectives.{name}`") for name, entry in entries.items()}


def _alpha_search(settings: Any) -> AlphaSearch | None:
    if isinstance(settings, bool):
        return AlphaSearch() if settings else None
    if not isinstance(settings, Mapping):
        raise ValueError(f"`alpha_search` must be true or a mapping of settings, got {settings!r}.")
    return _build(AlphaSearch, settings, "`alpha_search`")


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    names = _field_names(cls)
    for key in values:
        if key not in names:
            raise ValueError(f"Unknown field {key!r} in {where}." + did_you_mean(key, names))
    converted = {key: _convert(cls, key, value, where) for key, value in values.items() if value is not None}
    missing = [name for name in _required(cls) if name not in converted]
    if missing:
        raise ValueError(f"{where[0].upper()}{where[1:]} must give {', '.join(missing)}.")
    return cls(**converted)


def _convert(cls: type, key: str, value: Any, where: str) -> Any:
    """`value` as the field's annotation wants it: YAML reads 1e-4 as a text and 3 as a whole number."""
    annotation = cls.__annotations__[key]
    expected = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    kinds = [getattr(kind, "__name__", str(kind)) for kind in _alternatives(annotation)]
    if type(value).__name__ in kinds:
        return value
    if "float" in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if "Literal" in kinds and isinstance(value, str):
        return value
    if "str" in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"`{key}` in {where} must be {expected}, got {value!r}.")


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, each without its parameters: `list[str] | None` gives list and NoneType."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return [kind for member in typing.get_args(annotation) for kind in _alternatives(member)]
    return [origin or annotation]


def _set(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a top-level key may be written with dashes, as the host's flags may."""
    head, *path = key.split(".")
    keys = [head.replace("-", "_"), *path]
    place = recipe
    for step in keys[:-1]:
        inner = place.setdefault(step, {})
        if inner is True and step == "alpha_search":  # which means all of its defaults
            inner = place[step] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"--{key} reaches into {step!r}, which is {_kind(inner)} in the recipe.")
        place = inner
    place[keys[-1]] = value


def _parse_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping such as {{rate: 3.0}}, got {text!r}.")
    return value


def _parse_schedule(name: str, text: str) -> dict[str, Any]:
    """A mapping, or the bare name of a schedule."""
    return {"type": text} if text.isidentifier() else _parse_mapping(name, text)


def _with_numbers(value: Any) -> Any:
    """`value` with texts such as 1e-4, which YAML takes for numbers only with a dot, made into numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value


def _field_names(cls: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(cls) if entry.init]


def _required(cls: type) -> Iterable[str]:
    return (
        entry.name
        for entry in dataclasses.fields(cls)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
