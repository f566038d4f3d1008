"""The fields of a recipe."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hf_interp.mixture.apportionment import Side
from hf_interp.selection.choice import AlphaSearch


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
        share: share of the side (see `hf_interp.mixture.plan.PlannedCorpus`).
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
            `hf_interp.selection.choice.AlphaSearch`).
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
        peft: an adapter: a preset of `hf_interp.tasks.presets`; a mapping with `preset` and fields laid over it; or a
            PEFT configuration as a mapping with `peft_type`.
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
