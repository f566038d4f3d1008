"""The fields of a recipe."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_interp.mixture.apportionment import Side
from hf_interp.mixture.collators import DISTILL
from hf_interp.selection.choice import AlphaSearch

SELF = "self"
"""The path of a corpus that M₀ makes."""

GROUPS = ("corpora", "eval_corpora", "validation_corpora")
"""The fields of a recipe that hold corpora and sets by name."""

GROUP = "group "
"""Begins the name of a column of groups beside those of the task, whose names it might have."""


@dataclass(kw_only=True)
class CorpusConfig:
    """One corpus of a recipe: an entry of `corpora`, `eval_corpora` or `validation_corpora`.

    Args:
        path: a dataset's name on the Hub, a local file or list of files (.json, .jsonl, .ndjson, .csv, .tsv, .parquet,
            .arrow, .conll, .txt, each also as .gz, .bz2 or .xz), a pattern of files such as `texts/*.txt`, a local
            folder, a URL that fsspec opens such as `hf://buckets/jane/box/*.parquet`, or `self` for a corpus that M₀
            makes before training: `max_examples` rows (1,000 by default) with `sample_seed`.
        made_from: of `path: self`, a file or the name of another corpus, of which M₀ makes its own. A causal language
            model needs none: it draws texts, or dialogues. Prompts (`prompt_column`) it answers; answers
            (`target_column`, `messages_column`) it gives in its own words; texts it goes on from. A masked language
            model fills gaps in texts, by default the domain's; an encoder-decoder writes targets for these as inputs;
            of classifiers and taggers they are the inputs.
        agreement: of `path: self`, in [0, 1]: rows are left out where M₀ would less likely make the same again. That is
            the geometric mean of the probabilities of the tokens that it has made; of a classifier or tagger, of the
            labels that it predicts.
        format: json, csv, tsv, parquet, arrow, conll or text, where the files' names do not tell.
        encoding: of text, CSV, TSV, JSON and CoNLL files.
        delimiter: character between the cells of CSV and TSV files, by default a comma or a tab.
        quote_char: character around cells; by default `"` in CSV files and none in TSV files. `""` stands for none.
        header: whether the first line of CSV and TSV files names their columns.
        column_names: names of the columns of CSV, TSV and CoNLL files. Without a header they are needed; in CoNLL files
            the first column is `tokens_column` and the last `tags_column` by default.
        document: an example of a text file: line, paragraph (up to an empty line) or file. By default the file for a
            causal language model whose texts are packed, and the line for all others.
        side: "general" (α = 0) or "domain" (α = 1). It may be left out where the corpus is itself called so, or has
            shares that move: it is then domain if its share at the end is larger. An evaluation set needs none.
        config_name: the dataset's configuration, for `datasets.load_dataset`.
        split: the dataset's split, such as `train` or `train[:1000]`.
        part: the rows whose input lies in this part of [0, 1) by a hash of it, such as `[0, 0.8]`. Parts that do not
            overlap share no input, in whatever order the rows are.
        revision: branch, tag or commit of the dataset on the Hub.
        text_column: column of the input. A dot reaches into a column of mappings: `translation.en`.
        text_pair_column: column of the second text of a pair; of what a prompt is about, which follows it after a blank
            line, such as Alpaca's `input`. It may be blank.
        image_column: column of the image, as a file in the row or a path relative to the corpus' file; for
            image-text-to-text also of a list of them, and `""` for a corpus of texts alone.
        audio_column: column of the recording, likewise.
        label_column: column of the label, for classification.
        tokens_column: column of the words, for token classification.
        tags_column: column of the tags of the words, for token classification.
        target_column: column of the output, for sequence to sequence.
        messages_column: column of the turns of a dialogue, for a causal language model; or a list of columns whose
            turns follow each other, such as `[prompt, completion]`. Without it, and without `prompt_column`, the corpus
            is plain text.
        tools_column: column of the tools that the assistant of a dialogue may call: a list of JSON schemas, or that as
            JSON. Its calls are in the `tool_calls` of its turns.
        prompt_column: column of what a user says, for a causal language model; `target_column` is what the assistant
            answers.
        role_key: key of the speaker in a turn.
        content_key: key of the text in a turn.
        roles: speakers as system, user, assistant or tool, such as `{human: user, gpt: assistant}`. Those names
            themselves need no entry.
        columns: columns of a task of your own: from the task's name of a column to the file's.
        label_map: from values found in `label_column` (or single tags in `tags_column`) to the recipe's `label_names`;
            `null` drops the rows. Label names themselves need no entry, nor do ids if there is no map.
        label_names: of an evaluation set of image-text, its labels, if not the recipe's.
        zero_shot_template: of an evaluation set of image-text, if not the recipe's; `""` for a set with texts.
        objective: what the corpus trains, if that is not the recipe's task: a name in `objectives`, a task, or
            `distill` for M₀'s predictions in place of labels, which are then not read.
        group_columns: of an evaluation set of a classifier, columns by whose groups its metric is told apart: a name, a
            list of names, or true and false in each cell.
        balance_by: of a training corpus, a column whose values are read equally often, each as a corpus of its own.
        pair_columns: of an evaluation set of a language model, two columns of texts of which the model prefers the
            likelier, such as `[stereotyped, anti_stereotyped]`; it is measured by these pairs alone.
        canaries: of a domain corpus of a language model, how many random sequences of a known form are put among its
            rows, by `sample_seed`; `hf-interp audit` tells whether the model has learned them by heart.
        where: keep the rows whose column has the given value, or one of the given values: `{lang: [en, no]}`. Texts are
            compared as they are written.
        drop_faulty: leave rows out that would be refused, such as those without a text, with a warning of how many.
        max_examples: keep at most this many rows, drawn with `sample_seed`.
        sample_seed: seed of that draw.
        share: share of its side, in [0, 1]. Give it for all corpora of a side or for none; the shares of a side sum
            to 1. Without shares, corpora are read in proportion to their lengths. A mapping gives a share on each side,
            such as `{general: 0.7, domain: 0.2}`: α then moves from one mixture of all corpora to the other, and `side`
            only says where the corpus is counted.
        max_passes: refuse to read the corpus more often than this; above 0.
        mean_tokens: mean number of tokens of an example. A stream in a mixture by tokens needs it.
        streaming: read it as a stream, without downloading it first.
        license: its licence, for the model card.
    """

    path: str | list[str]
    made_from: str | None = None
    agreement: float | None = None
    format: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    quote_char: str | None = None
    header: bool = True
    column_names: list[str] | None = None
    document: str | None = None
    side: Side | None = None
    config_name: str | None = None
    split: str = "train"
    part: list[float] | None = None
    revision: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    image_column: str = "image"
    audio_column: str = "audio"
    label_column: str = "label"
    tokens_column: str = "tokens"
    tags_column: str = "ner_tags"
    target_column: str = "target"
    messages_column: str | list[str] | None = None
    tools_column: str | None = None
    prompt_column: str | None = None
    role_key: str = "role"
    content_key: str = "content"
    roles: dict[str, str] | None = None
    columns: dict[str, str] | None = None
    label_map: dict[Any, Any] | None = None
    label_names: list[str] | None = None
    zero_shot_template: str | None = None
    objective: str | None = None
    group_columns: list[str] | None = None
    balance_by: str | None = None
    pair_columns: list[str] | None = None
    canaries: int | None = None
    where: dict[str, Any] | None = None
    drop_faulty: bool = False
    max_examples: int | None = None
    sample_seed: int = 0
    share: float | dict[str, float] | None = None
    max_passes: float | None = None
    mean_tokens: float | None = None
    streaming: bool = False
    license: str | None = None

    @property
    def is_dialogue(self) -> bool:
        """Whether its rows are what a user and an assistant say."""
        return bool(self.messages_column or self.prompt_column)

    def source(self, column: str) -> str:
        """Return the file's name of a column of the task."""
        if column.startswith(GROUP):
            return column.removeprefix(GROUP)
        found = (self.columns or {}).get(column) or getattr(self, f"{column}_column", None) or column
        return str(found[0] if isinstance(found, list) else found)


@dataclass(kw_only=True)
class ObjectiveConfig:
    """An objective that corpora may train beside the recipe's task, on the same backbone with a head of its own.

    Args:
        task: a task, as in the recipe.
        label_names: the labels of this objective, in the order of their ids.
        problem_type: as in the recipe; it is not taken over from there.
        max_length: as in the recipe, whose value is the default.
        packing: as in the recipe, whose value is the default.
        mlm_probability: as in the recipe, whose value is the default.
        whole_word_mask: as in the recipe, whose value is the default.
    """

    task: str
    label_names: list[str] | None = None
    problem_type: str | None = None
    max_length: int | None = None
    packing: bool | str | None = None
    mlm_probability: float | None = None
    whole_word_mask: bool | None = None


@dataclass(kw_only=True)
class HarnessConfig:
    """Tasks of EleutherAI's lm-eval that measure M₀, M_α and M_θ of a causal language model, and how.

    Args:
        tasks: names of its tasks, groups or tags (`lm-eval ls tasks` lists them), or YAML files in its format.
        num_fewshot: worked examples before each question, where a task's file does not set them to 0; by default as
            many as it says.
        limit: at most so many examples of each task, or this share of them if below 1.
        include_path: a folder with tasks of your own in lm-eval's format, beside lm-eval's.
        apply_chat_template: ask by the tokenizer's chat template. By default it is so where corpora are dialogues.
    """

    tasks: list[str]
    num_fewshot: int | None = None
    limit: float | None = None
    include_path: str | None = None
    apply_chat_template: bool | None = None


@dataclass(kw_only=True)
class Recipe:
    """The fields of a recipe beside those of `InterpolationConfig`.

    Args:
        model_name_or_path: the pretrained model M₀, on the Hub or in a folder.
        corpora: training corpora by name; at least one.
        eval_corpora: evaluation sets by name. Metrics are called `eval_<name>_<metric>`.
        validation_corpora: sets by name on which the α of the weights is chosen. Without them `eval_corpora` are used.
        alpha_search: search for the α of the interpolated weights after training: `true`, or a mapping of settings.
        eval_harness: tasks of lm-eval by which `train` measures M₀, M_θ and M_α: a list of them, or a mapping of
            settings.
        method: keep, balanced or domain, by the side that counts most. It stands for fields that the evidence
            recommends, where the recipe does not set them, be it to null; `plan` and `train` print them.
        task: sequence-classification, token-classification, translation, summarization, seq2seq (the last three differ
            in their metrics), causal-lm, chat (causal-lm of dialogues), masked-lm, image-classification, image-text
            (contrastive, as CLIP), image-to-text (captions), image-text-to-text (chat about images),
            audio-classification, automatic-speech-recognition, or a task of your own.
        objectives: objectives that corpora may train beside the task, by name; a corpus or evaluation set chooses one
            by its `objective`. A task that needs no settings of its own, such as masked-lm, can be chosen without an
            entry.
        label_names: the labels of the task, in the order of their ids; for token classification the tags.
        problem_type: single_label_classification, multi_label_classification (each row has a list of labels) or
            regression (each row has a number). Of classification only; by default single_label_classification.
        zero_shot_template: the text of a label, with `{}` for its name, such as `a photo of a {}`. With it evaluation
            sets of image-text have labels, and every image is given the nearest of their texts; without it they have
            texts, which are to find their images and the other way round.
        max_length: inputs are cut to this many tokens. Packed texts have exactly as many.
        max_target_length: the longest output of sequence to sequence, in tokens.
        truncate_target: cut longer outputs instead of refusing them.
        source_prefix: a text put before every input of sequence to sequence, such as "summarize: ".
        source_lang: language of the inputs, by the name that a multilingual tokenizer has for it, such as en_XX.
        target_lang: language of the outputs, likewise.
        packing: pack the texts of a language model into examples of `max_length` tokens; with `bfd`, for causal-lm,
            whole texts or dialogues of training share an example and do not see each other.
        mlm_probability: share of the tokens that masked language modelling masks.
        whole_word_mask: mask whole words.
        chat_template: "chatml", or a file with a Jinja template, for a tokenizer that has none. "trl" trains with the
            variant of the tokenizer's own that TRL has, which marks what the assistant says; the model keeps its own.
        augmentation: what is done to the images of training, at random: `shift` (up to this share of the width and
            height), `rotate` (up to so many degrees), `zoom` (up to this share), `flip` (the probability of mirroring),
            such as `{shift: 0.1, rotate: 10}`. It depends on the seed and the place in the run alone.
        max_seconds: recordings to classify are cut to so many seconds; by default they are not.
        peft: an adapter: the name of a preset (lora, rslora, dora, adalora, ia3, prompt_tuning, bitfit, last_layers,
            head); a mapping with `preset` and the fields to change; or a PEFT configuration as a mapping with
            `peft_type`.
        model_revision: branch, tag or commit of the model.
        trust_remote_code: allow code from the model's repository to run.
    """

    model_name_or_path: str
    corpora: dict[str, CorpusConfig]
    eval_corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    validation_corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    alpha_search: AlphaSearch | None = None
    eval_harness: HarnessConfig | None = None
    method: str | None = None
    task: str = "sequence-classification"
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    label_names: list[str] | None = None
    problem_type: str | None = None
    zero_shot_template: str | None = None
    max_length: int = 128
    max_target_length: int = 128
    truncate_target: bool = False
    source_prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    packing: bool | str = True
    mlm_probability: float = 0.15
    whole_word_mask: bool = False
    chat_template: str | None = None
    augmentation: dict[str, float] | None = None
    max_seconds: float | None = None
    peft: str | dict[str, Any] | None = None
    model_revision: str = "main"
    trust_remote_code: bool = False

    @property
    def search_group(self) -> str:
        """The field whose sets choose the α of the weights."""
        return "validation_corpora" if self.validation_corpora else "eval_corpora"

    def entries(self) -> Iterator[tuple[str, str, CorpusConfig]]:
        """Give every corpus and set, with the field that holds it and its name there."""
        for group in GROUPS:
            for name, corpus in getattr(self, group).items():
                yield group, name, corpus

    def for_objective(self, name: str | None) -> "Recipe":
        """Return the recipe as one objective sees it; `None` stands for the task itself."""
        if name in (None, DISTILL):
            return self
        own = self.objectives.get(name) or ObjectiveConfig(task=name)
        given = {key: value for key, value in vars(own).items() if value is not None}
        return dataclasses.replace(
            self, **{"label_names": None, "problem_type": None, **given}, peft=None, objectives={}
        )

    def for_corpus(self, corpus: CorpusConfig, *, trains: bool) -> "Recipe":
        """Return the recipe as a corpus or an evaluation set sees it, which may have labels and a template its own."""
        own = self.for_objective(corpus.objective)
        given = self.zero_shot_template if corpus.zero_shot_template is None else corpus.zero_shot_template
        names, template = corpus.label_names or own.label_names, None if trains else given or None
        return dataclasses.replace(own, label_names=names, zero_shot_template=template)

    def applies_chat_template(self) -> bool:
        """Return whether lm-eval is to ask by the tokenizer's chat template."""
        said = self.eval_harness.apply_chat_template if self.eval_harness else False
        return any(corpus.is_dialogue for corpus in self.corpora.values()) if said is None else said

    def objective_names(self) -> list[str]:
        """List the objectives with heads of their own that corpora or sets choose, in order of appearance."""
        chosen = (corpus.objective for _, _, corpus in self.entries())
        return list(dict.fromkeys(name for name in chosen if name not in (None, DISTILL)))


SCHEDULE_FIELDS = (
    *("alpha_schedule_type", "alpha_schedule_kwargs", "alpha_start", "alpha_end"),
    *("alpha_initial_steps", "alpha_target_steps"),
)


_GONE_WITH: Mapping[str, Sequence[str]] = {
    "alpha": SCHEDULE_FIELDS,
    "alpha_schedule_type": ("alpha",),
    "max_steps": ("stopping_strategy",),
    "num_train_epochs": ("stopping_strategy",),
    "stopping_strategy": ("max_steps", "num_train_epochs"),
}


def gone_with(fields: Collection[str]) -> Sequence[str]:
    """Return the fields of a recipe whose place others take: a constant α for a schedule, an end for another."""
    return [gone for name, others in _GONE_WITH.items() if name in fields for gone in others]


def with_alpha(recipe: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with fields laid over it.

    >>> with_alpha({"alpha_start": 0.2, "alpha_end": 1.0, "seed": 1}, {"alpha": 0.5})
    {'seed': 1, 'alpha': 0.5}
    >>> with_alpha({"alpha": 0.5}, {"alpha_schedule_type": "linear"})
    {'alpha_schedule_type': 'linear'}
    >>> with_alpha({"stopping_strategy": "all_exhausted"}, {"max_steps": 9})
    {'max_steps': 9}
    """
    return {**{name: value for name, value in recipe.items() if name not in gone_with(fields)}, **fields}
