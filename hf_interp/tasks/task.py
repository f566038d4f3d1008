"""One table: task → columns, model class, preprocessing, collator, metrics. A new task is a new entry.

A task of one's own is a `Task` put into `TASKS` before a recipe is run, which then names it. In a script, for `python`
or `accelerate launch`:

```python
from transformers import DataCollatorForMultipleChoice

from hf_interp.tasks.parsing import load_recipe
from hf_interp.tasks.metrics import classification_metrics
from hf_interp.tasks.task import TASKS, Task
from hf_interp.train import run_recipe
from hf_interp.utils.task_info import TaskInfo


def encode_choices(tokenizer, recipe):
    def encode(batch):  # lists of the columns below
        found = {"labels": batch["answer"], "input_ids": [], "attention_mask": []}
        for question, choices in zip(batch["question"], batch["choices"]):
            encoded = tokenizer([question] * len(choices), choices, truncation=True, max_length=recipe.max_length)
            for name in ("input_ids", "attention_mask"):
                found[name].append(encoded[name])
        return found

    return encode


TASKS["multiple-choice"] = Task(
    info=TaskInfo(auto_class="AutoModelForMultipleChoice", pipeline_tag="multiple-choice"),
    columns=lambda recipe, corpus: {"question": "text", "choices": "words", "answer": "anything"},
    encode=encode_choices,
    collator=lambda tokenizer, recipe: DataCollatorForMultipleChoice(tokenizer),
    metrics=lambda tokenizer, recipe: classification_metrics(),
)
run_recipe(load_recipe("recipe.yaml"))  # task: multiple-choice; of a corpus, columns: {question: stem, answer: key}
```
"""

import importlib
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from hf_interp.losses.per_example import ContrastiveLoss
from hf_interp.mixture.collators import MaskingCollator, PackedCollator
from hf_interp.tasks.corpora.columns import Kind, check_tag_set
from hf_interp.tasks.corpora.media import (
    ConversationCollator,
    ImageCollator,
    PairCollator,
    SoundCollator,
    check_conversations,
    check_images,
    check_images_texts,
    check_sound,
    encode_images_texts,
    is_sigmoid,
)
from hf_interp.tasks.encoding import (
    Encode,
    encode_captions,
    encode_causal,
    encode_classification,
    encode_conversations,
    encode_files,
    encode_masked,
    encode_pairs,
    encode_tokens,
    split_tokens,
)
from hf_interp.tasks.fitness import num_positions
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.speech import check_speech, check_transcripts, encode_speech, is_ctc, prepare_speech
from hf_interp.tasks.tokenizers import language_token
from hf_interp.utils.errors import check_choice
from hf_interp.utils.task_info import TASK_INFOS, TaskInfo

PROBLEM_TYPES: dict[str, Kind] = {
    "single_label_classification": "class",
    "multi_label_classification": "classes",
    "regression": "number",
}
"""Kinds of the label of a classifier."""

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that training needs of a task.

    Args:
        info: the model class, and what cards, adapters and the page must know of the task.
        columns: (recipe, corpus) → the kinds of the columns that a corpus must have (`tasks.corpora.columns`).
            What the file calls them is in the recipe: `text_column: review`, or `columns: {question: stem}`.
        encode: (tokenizer, recipe) → a function from a batch of columns to model inputs, for `Dataset.map`. Here and
            below the tokenizer is an image processor where `info` says that the task takes images, and so on.
        check_rows: (name of the corpus, its rows, tokenizer, recipe) → raises `ValueError` for what only all rows tell.
        split: (tokenizer, recipe) → a function from a batch of columns to one in which long rows are several, so that
            an evaluation sees all of them; or `None`.
        collator: (tokenizer, recipe) → data collator.
        metrics: (tokenizer, recipe) → `compute_metrics`, or `None`.
        preprocess_logits: → `preprocess_logits_for_metrics`, which keeps logits from piling up; or `None`.
        num_labels: recipe → how many labels the head has; `None` where it has none. With a number, but for regression,
            the recipe must list `label_names`.
        is_packed: whether texts become examples of `max_length` tokens if the recipe says `packing`.
        generates: whether evaluation generates, with `Seq2SeqTrainer`, if the model can.
        check: recipe → raises `ValueError` for what can be seen before anything is loaded.
        prepare: (tokenizer, model, recipe) → sets what generation needs of both.
        loss: tokenizer → `compute_loss_func`, where the model's own loss is not taken; or `None`.
    """

    info: TaskInfo
    columns: Callable[[Recipe, CorpusConfig], Mapping[str, Kind]]
    encode: Callable[[PreTrainedTokenizerBase, Recipe], Encode]
    collator: Callable[[PreTrainedTokenizerBase, Recipe], Any]
    metrics: Callable[[PreTrainedTokenizerBase, Recipe], ComputeMetrics | None] = lambda tokenizer, recipe: None
    split: Callable[[PreTrainedTokenizerBase, Recipe], Encode] | None = None
    preprocess_logits: Callable[[], Callable[[Any, Any], Any]] | None = None
    num_labels: Callable[[Recipe], int | None] = lambda recipe: None
    is_packed: bool = False
    generates: bool = False
    check: Callable[[Recipe], None] = lambda recipe: None
    check_rows: Callable[[str, Any, Any, Recipe], None] = lambda name, rows, tokenizer, recipe: None
    prepare: Callable[[PreTrainedTokenizerBase, Any, Recipe], None] = lambda tokenizer, model, recipe: None
    loss: Callable[[PreTrainedTokenizerBase], Callable[..., Any]] | None = None


def _problem_type(recipe: Recipe) -> str:
    return recipe.problem_type or "single_label_classification"


def _classification_columns(recipe: Recipe, corpus: CorpusConfig) -> Mapping[str, Kind]:
    pair: dict[str, Kind] = {"text_pair": "any text"} if corpus.text_pair_column else {}
    return {"text": "text", **pair, "label": PROBLEM_TYPES[_problem_type(recipe)]}


def _causal_columns(recipe: Recipe, corpus: CorpusConfig) -> Mapping[str, Kind]:
    if corpus.prompt_column:
        return {"prompt": "text", "target": "text"}
    if corpus.messages_column:
        return {"messages": "turns", **({"tools": "tools"} if corpus.tools_column else {})}
    return {"text": "prose"}


def _conversation_columns(recipe: Recipe, corpus: CorpusConfig) -> Mapping[str, Kind]:
    """Return the columns of what is said, with those of images first: what is said of two may be the same."""
    said = _causal_columns(recipe, corpus)
    if not corpus.image_column:
        return said
    kinds: dict[Kind, Kind] = {"turns": "parts", "prose": "text"}
    return {"image": "images", **{column: kinds.get(kind, kind) for column, kind in said.items()}}


def _check_problem_type(recipe: Recipe) -> None:
    check_choice("problem_type", _problem_type(recipe), PROBLEM_TYPES)
    if _problem_type(recipe) == "regression" and recipe.label_names:
        raise ValueError(f"A regression has no `label_names`, got {recipe.label_names}. Leave them out.")


def _check_dialogues(recipe: Recipe) -> None:
    if not any(corpus.is_dialogue for corpus in recipe.corpora.values()):
        raise ValueError(
            "`task: chat` needs a corpus of dialogues: name its `messages_column`, or its `prompt_column` and "
            "`target_column`. Of plain texts alone, use `causal-lm`."
        )


def _check_masking(recipe: Recipe) -> None:
    if not 0 < recipe.mlm_probability <= 1:
        raise ValueError(f"`mlm_probability` must lie in (0, 1], got {recipe.mlm_probability}.")


def _prepare_languages(tokenizer: PreTrainedTokenizerBase, model: Any, recipe: Recipe) -> None:
    """Let generation begin with the language that is wanted, where a multilingual model needs to be told."""
    if recipe.target_lang is not None:
        token = language_token(tokenizer, recipe.target_lang, "target_lang")
        model.generation_config.forced_bos_token_id = token


def _prepare_captions(processor: Any, model: Any, recipe: Recipe) -> None:
    """Tell an encoder-decoder of images what its tokenizer pads with, begins and ends texts by, where it is not told.

    GPT-2 has no token that begins a text but the one that ends it.
    """
    if (most := num_positions(model, "decoder")) < recipe.max_target_length:
        raise ValueError(
            f"`max_target_length` ({recipe.max_target_length}) is more than the {most:g} positions of the model's "
            "decoder. Lower it."
        )
    known = processor.tokenizer
    begin, end = (
        next(each for each in pair if each is not None)
        for pair in (
            (known.cls_token_id, known.bos_token_id, known.eos_token_id),
            (known.eos_token_id, known.sep_token_id),
        )
    )
    for config in (model.config, model.generation_config):
        for name, token in (
            ("decoder_start_token_id", begin),
            ("eos_token_id", end),
            ("pad_token_id", known.pad_token_id),
        ):
            if getattr(config, name, None) is None:
                setattr(config, name, token)


def _prepare_conversations(processor: Any, model: Any, recipe: Recipe) -> None:
    """Leave out of an evaluation what a model tells of images beside its predictions, and what it keeps to go on."""
    of_images, kept = ["image_outputs", "image_hidden_states"], ["cache", "past_key_values", "rope_deltas"]
    model.config.keys_to_ignore_at_inference = [*of_images, *kept]  # by what versions of transformers call them


def _metrics() -> Any:
    """Return the module of metrics, late: it imports evaluate, which takes seconds."""
    return importlib.import_module("hf_interp.tasks.metrics")


def _seq2seq(name: str, *metrics: str) -> Task:
    """Return a task from text to text, by the names of its metrics."""
    return Task(
        info=TASK_INFOS[name],
        columns=lambda recipe, corpus: {"text": "text", "target": "text"},
        encode=encode_pairs,
        collator=lambda tokenizer, recipe: DataCollatorForSeq2Seq(tokenizer),
        metrics=lambda tokenizer, recipe: _metrics().generation_metrics(
            tokenizer, [getattr(_metrics(), metric) for metric in metrics]
        ),
        generates=True,
        prepare=_prepare_languages,
    )


def _classification(name: str, check: Callable[[Recipe], None] = lambda recipe: None, **parts: Any) -> Task:
    """Return a task that gives an input one or several labels, or a number."""

    def check_both(recipe: Recipe) -> None:
        _check_problem_type(recipe)
        check(recipe)

    return Task(
        info=TASK_INFOS[name],
        metrics=lambda tokenizer, recipe: _metrics().classification_metrics(_problem_type(recipe)),
        num_labels=lambda recipe: 1 if recipe.problem_type == "regression" else len(recipe.label_names or []),
        check=check_both,
        **parts,
    )


class TaskTable(UserDict[str, Task]):
    """Tasks by name. Their facts are where cards, adapters and the page look for them, as long as they are in here."""

    def __setitem__(self, name: str, task: Task) -> None:
        super().__setitem__(name, task)
        TASK_INFOS[name] = task.info

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del TASK_INFOS[name]


_CAUSAL = Task(
    info=TASK_INFOS["causal-lm"],
    columns=_causal_columns,
    encode=encode_causal,
    collator=lambda tokenizer, recipe: (
        PackedCollator(tokenizer) if recipe.packing == "bfd" else DataCollatorForSeq2Seq(tokenizer)
    ),
    metrics=lambda tokenizer, recipe: _metrics().language_model_metrics,
    preprocess_logits=lambda: _metrics().score_shifted_tokens,
    is_packed=True,
)

TASKS = TaskTable(
    {
        "sequence-classification": _classification(
            "sequence-classification",
            columns=_classification_columns,
            encode=encode_classification,
            collator=lambda tokenizer, recipe: DataCollatorWithPadding(tokenizer),
        ),
        "image-classification": _classification(
            "image-classification",
            columns=lambda recipe, corpus: {"image": "image", "label": PROBLEM_TYPES[_problem_type(recipe)]},
            encode=lambda tokenizer, recipe: encode_files("image"),
            collator=lambda tokenizer, recipe: ImageCollator(tokenizer, recipe.augmentation),
            check=check_images,
        ),
        "image-text": Task(
            info=TASK_INFOS["image-text"],
            columns=lambda recipe, corpus: {
                "image": "image",
                **({"label": "class"} if recipe.zero_shot_template else {"text": "text"}),
            },
            encode=encode_images_texts,
            collator=PairCollator,
            metrics=lambda tokenizer, recipe: _metrics().image_text_metrics(),
            preprocess_logits=lambda: _metrics().keep_embeddings,
            check=check_images_texts,
            loss=lambda processor: ContrastiveLoss(is_sigmoid=is_sigmoid(processor)),
        ),
        "image-to-text": Task(
            info=TASK_INFOS["image-to-text"],
            columns=lambda recipe, corpus: {"image": "image", "text": "text"},
            encode=encode_captions,
            collator=lambda processor, recipe: ImageCollator(processor.image_processor, recipe.augmentation),
            metrics=lambda processor, recipe: _metrics().generation_metrics(
                processor.tokenizer, [_metrics().Summary, _metrics().Translation]
            ),
            generates=True,
            check=check_images,
            prepare=_prepare_captions,
        ),
        "image-text-to-text": Task(
            info=TASK_INFOS["image-text-to-text"],
            columns=_conversation_columns,
            encode=encode_conversations,
            collator=lambda processor, recipe: ConversationCollator(processor),
            metrics=lambda processor, recipe: _metrics().language_model_metrics,
            preprocess_logits=lambda: _metrics().score_shifted_tokens,
            check=check_conversations,
            prepare=_prepare_conversations,
        ),
        "audio-classification": _classification(
            "audio-classification",
            columns=lambda recipe, corpus: {"audio": "audio", "label": PROBLEM_TYPES[_problem_type(recipe)]},
            encode=lambda tokenizer, recipe: encode_files("audio"),
            collator=lambda tokenizer, recipe: SoundCollator(tokenizer, recipe.max_seconds),
            check=check_sound,
        ),
        "automatic-speech-recognition": Task(
            info=TASK_INFOS["automatic-speech-recognition"],
            columns=lambda recipe, corpus: {"audio": "audio", "text": "text"},
            encode=encode_speech,
            collator=lambda processor, recipe: SoundCollator(processor.feature_extractor),
            metrics=lambda processor, recipe: _metrics().transcription_metrics(processor, of_ctc=is_ctc(recipe)),
            preprocess_logits=lambda: _metrics().likeliest_tokens,
            generates=True,
            check=check_speech,
            check_rows=check_transcripts,
            prepare=prepare_speech,
        ),
        "token-classification": Task(
            info=TASK_INFOS["token-classification"],
            columns=lambda recipe, corpus: {"tokens": "words", "tags": "tags"},
            encode=encode_tokens,
            split=split_tokens,
            collator=lambda tokenizer, recipe: DataCollatorForTokenClassification(tokenizer),
            metrics=lambda tokenizer, recipe: _metrics().token_metrics(recipe.label_names or []),
            num_labels=lambda recipe: len(recipe.label_names or []),
            check=lambda recipe: check_tag_set(recipe.label_names or []),
        ),
        "translation": _seq2seq("translation", "Translation"),
        "summarization": _seq2seq("summarization", "Summary"),
        "seq2seq": _seq2seq("seq2seq", "Summary", "Translation"),
        "causal-lm": _CAUSAL,
        "chat": replace(_CAUSAL, info=TASK_INFOS["chat"], check=_check_dialogues),
        "masked-lm": Task(
            info=TASK_INFOS["masked-lm"],
            columns=lambda recipe, corpus: {"text": "prose"},
            encode=encode_masked,
            collator=lambda tokenizer, recipe: MaskingCollator(
                tokenizer, recipe.mlm_probability, recipe.whole_word_mask
            ),
            metrics=lambda tokenizer, recipe: _metrics().language_model_metrics,
            preprocess_logits=lambda: _metrics().score_tokens,
            is_packed=True,
            check=_check_masking,
        ),
    }
)
"""All tasks. translation, summarization and seq2seq differ in their metrics alone: BLEU and chrF, ROUGE, or both."""


def get_task(name: str) -> Task:
    """Return the entry of a task; `ValueError` names the nearest to an unknown one."""
    check_choice("task", name, TASKS)
    return TASKS[name]


def check_task(recipe: Recipe) -> Task:
    """Return the task of a recipe, once all has been checked that needs nothing loaded."""
    task = get_task(recipe.task)
    if recipe.label_names:
        twice = [label for label in recipe.label_names if recipe.label_names.count(label) > 1]
        if twice:
            raise ValueError(f"`label_names` must be different labels, got {twice[0]!r} twice.")
    if not isinstance(recipe.packing, bool) and (
        recipe.packing != "bfd" or task.info.auto_class != "AutoModelForCausalLM"
    ):
        raise ValueError(
            f"`packing` must be true or false, or bfd for causal language models, got {recipe.packing!r} for "
            f"{recipe.task}."
        )
    of_sets = (each.zero_shot_template or each.label_names for _, _, each in recipe.entries())
    own = recipe.zero_shot_template or any(of_sets)
    if own and task.loss is None:
        raise ValueError(
            f"`zero_shot_template`, and `label_names` of one set, are for image-text, got them for {recipe.task}. "
            "Leave them out."
        )
    task.check(recipe)
    if task.num_labels(recipe) == 0:
        raise ValueError(f"A recipe for {recipe.task} must list `label_names`, in the order of the label ids.")
    return task
