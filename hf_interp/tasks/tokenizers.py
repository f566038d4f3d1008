"""The tokenizer of a recipe's model, or the processor of its images or sound, with the settings that it asks for."""

import os
from typing import Any

import transformers
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from hf_interp.tasks.corpora.dialogues import set_chat_template
from hf_interp.tasks.corpora.media import EXTRAS
from hf_interp.tasks.fitness import check_tokenizer
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.speech import is_ctc, set_language
from hf_interp.utils.errors import import_extra, reading
from hf_interp.utils.task_info import TASK_INFOS


def load_processor(recipe: Recipe, folder: str | os.PathLike[str] | None = None) -> Any:
    """Load what makes the inputs of a recipe's model, which may lie in another folder; a tokenizer is prepared."""
    name, kind = str(folder or recipe.model_name_or_path), TASK_INFOS[recipe.task].processor
    if (takes := TASK_INFOS[recipe.task].takes) != "text":
        import_extra(*EXTRAS[takes])  # now, with the reason, and not by a processor that lacks it
    missing = "" if os.path.isdir(name) else " (there is no such folder)"
    both = "feature extractor and the tokenizer of the " if takes == "audio" and kind == "AutoProcessor" else ""
    with reading(f"The {both}model {name!r}{missing} (`model_name_or_path`)"):
        found = getattr(transformers, kind).from_pretrained(
            name, revision=recipe.model_revision, trust_remote_code=recipe.trust_remote_code
        )
    if takes == "text":
        check_tokenizer(found, recipe)
        prepare_tokenizer(found, recipe)
    elif TASK_INFOS[recipe.task].converses:
        prepare_conversations(found, recipe)
    elif both:
        set_language(found, recipe)
        if not is_ctc(recipe):  # whose blank is its padding
            set_padding(found.tokenizer, recipe)
    elif takes == "image-text":
        if not hasattr(found, "tokenizer") or not hasattr(found, "image_processor"):
            found = _join_processors(recipe)
        prepare_tokenizer(found.tokenizer, recipe)
    return found


def prepare_conversations(processor: Any, recipe: Recipe) -> None:
    """Set what a recipe wants of a processor of images and texts, whose chat template is its tokenizer's, too."""
    if not all(hasattr(processor, name) for name in ("tokenizer", "image_processor", "image_token")):
        raise ValueError(
            f"The model {recipe.model_name_or_path!r} takes no images among its texts: it brings a "
            f"{type(processor).__name__} alone. Take a model of images and texts, or `task: chat` for texts alone."
        )
    processor.tokenizer.chat_template = processor.chat_template or processor.tokenizer.chat_template
    set_chat_template(processor.tokenizer, recipe.chat_template)
    prepare_tokenizer(processor.tokenizer, recipe)
    processor.chat_template = processor.tokenizer.chat_template


def _join_processors(recipe: Recipe) -> Any:
    """Return one processor of the image processor and the tokenizer that lie beside a model, such as ViT with GPT-2."""
    name = recipe.model_name_or_path
    settings: dict[str, Any] = {
        "revision": recipe.model_revision,
        "trust_remote_code": recipe.trust_remote_code,
    }
    with reading(f"The image processor and the tokenizer of the model {name!r}"):
        kinds = (transformers.AutoImageProcessor, transformers.AutoTokenizer)
        return transformers.VisionTextDualEncoderProcessor(*(kind.from_pretrained(name, **settings) for kind in kinds))


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Set what a recipe wants of a tokenizer: languages, a chat template, a token to pad with, words one by one."""
    set_padding(tokenizer, recipe)
    _set_languages(tokenizer, recipe)
    corpora = [corpus for _, _, corpus in recipe.entries()]
    if recipe.applies_chat_template() or any(corpus.is_dialogue for corpus in corpora):
        set_chat_template(tokenizer, recipe.chat_template)
    names = {recipe.for_objective(corpus.objective).task for corpus in corpora}
    if any(TASK_INFOS[name].answer == "tags" for name in names):
        _prefix_words(tokenizer)


def set_padding(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Let a tokenizer without a token to pad with take the one that ends a text."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of {recipe.model_name_or_path!r} has neither a token to pad with nor one that ends a "
                "text. Set its `pad_token` and save it beside the model."
            )
        tokenizer.pad_token = tokenizer.eos_token


def _set_languages(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    for field, name in (("source_lang", "src_lang"), ("target_lang", "tgt_lang")):
        value = getattr(recipe, field)
        if value is None:
            continue
        if not hasattr(tokenizer, "src_lang"):
            raise ValueError(
                f"The tokenizer of {recipe.model_name_or_path!r} knows no languages, got `{field}`: {value!r}. Leave "
                "it out for a model of two languages."
            )
        language_token(tokenizer, value, field)
        setattr(tokenizer, name, value)


def language_token(tokenizer: PreTrainedTokenizerBase, language: str, field: str) -> int:
    """Return the token that stands for a language."""
    try:
        if hasattr(tokenizer, "get_lang_id"):  # of M2M100, whose tokens are called otherwise than its languages
            return int(tokenizer.get_lang_id(language))
        token = tokenizer.convert_tokens_to_ids(language)
    except KeyError:
        token = None
    if token is None or token == tokenizer.unk_token_id:
        raise ValueError(
            f"The tokenizer does not know the language {language!r} (`{field}`). Name it as the model does, or leave "
            "it out for a model of two languages."
        )
    return int(token)


def _prefix_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer of bytes put a space before words that come one by one, as they had in pretraining."""
    if not tokenizer.is_fast:
        return
    found: Any = tokenizer.backend_tokenizer.pre_tokenizer  # a sequence has no length, but can be gone through
    has_parts = isinstance(found, pre_tokenizers.Sequence)
    for part in found if has_parts else [found]:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = True
            tokenizer.add_prefix_space = True  # or classes such as RoBERTa's forget it when they are loaded
