"""Corpora that M₀ makes before training (`path: self`), once: files that are then read as any other.

They lie in the user's cache (`hf_interp/self` in `HF_HOME`), under a hash of M₀ and of all that decides them, so that
every run, comparison and search reads the same file. Texts are drawn from M₀'s own predictions, as they are: at
temperature 1, without a cut of rare tokens; the targets of given inputs are the likeliest, token by token. Where a task
makes no texts, M₀'s predictions on given inputs are trained.
"""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from accelerate import PartialState
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_interp.mixture.collators import DISTILL
from hf_interp.tasks.corpora.corpus_files import load_rows
from hf_interp.tasks.corpora.dialogues import Turn, encode_dialogue
from hf_interp.tasks.corpora.loading import column_names, first_rows, load_corpus
from hf_interp.tasks.models import load_model
from hf_interp.tasks.recipe import GROUPS, SELF, CorpusConfig, Recipe
from hf_interp.tasks.task import get_task
from hf_interp.tasks.tokenizers import load_processor
from hf_interp.utils.errors import reading
from hf_interp.utils.files import new_folder, read_json, write_json
from hf_interp.utils.model_files import weights_fingerprint

ROWS = 1000
"""Made by default."""
BATCH = 32
MOST_TRIES = 4
"""Texts are drawn up to so many times as often as they are wanted."""
LEAST_TOKENS, GRAM, LEAST_DIFFERENT = 8, 4, 0.5
"""A text has at least so many tokens (an answer one); of its runs of four, at least this share differ."""
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0}
SAMPLING = {**PLAIN, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
KEPT = ("side", "part", "objective", "share", "max_passes", "mean_tokens", "streaming", "license")
"""Fields of a corpus that are true of the file that is made, too."""
ROWS_NAME, ABOUT_NAME = "rows.jsonl", "about.json"
REWRITING = (
    "Below are an instruction that describes a task along with a reference answer. Using the reference answer as a "
    "guide, write your own response.\n\n### Instruction:\n{prompt}\n\n### Reference Answer:\n{target}\n\n### Response:"
)
"""That of self-distillation (arXiv 2402.13669)."""
UNSURE = "with too little agreement"
PLACE = "HFINTERPPLACE"  # a word that no template holds
TEXTS, GONE_ON, DRAWN, ANSWERS, REWRITTEN, FILLED, TARGETS, LABELLED, PREDICTED = (
    *("texts that it draws", "texts whose beginnings it goes on from", "dialogues that it draws"),
    *("prompts that it answers", "answers in its own words", "texts with gaps that it fills"),
    *("targets of given inputs", "inputs of which it is sure", "its predictions on given inputs"),
)


class Made(NamedTuple):
    """What M₀ makes, in words, where that lies, and whether it is there."""

    text: str
    place: str
    is_there: bool = True


def format_made(made: Mapping[str, Made]) -> list[str]:
    """Return a line on each file that M₀ makes, with the corpora that read it."""
    readers: dict[Made, list[str]] = {}
    for name, found in made.items():
        readers.setdefault(found, []).append(name)
    return [f"M₀ makes {', '.join(names)}: {found.text} ({found.place})" for found, names in readers.items()]


class Job(NamedTuple):
    """What M₀ is to make for a corpus: what kind, from which rows, how many, with which seed."""

    name: str
    recipe: Recipe
    kind: str
    rows: list[Any]
    wanted: int
    seed: int
    agreement: float | None = None


class Speaker(NamedTuple):
    """M₀ with its tokenizer, the longest text that is wanted, and the longest that M₀ takes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    length: int
    positions: int

    def encode(self, *texts: Any, **options: Any) -> Any:
        """Return inputs of the model, cut to the longest text and padded."""
        options = {"truncation": True, "max_length": self.length, "padding": True, "return_tensors": "pt", **options}
        return self.tokenizer(*texts, **options)


class Said(NamedTuple):
    """A text or a row that M₀ has made, its new tokens (`None` where there was no room for it), and their agreement.

    That is the probability with which M₀ would make a token again: their geometric mean.
    """

    row: Any
    tokens: Sequence[int] | None
    agreement: float = 1.0


def check_self(recipe: Recipe) -> None:
    """Refuse what a corpus that M₀ makes cannot be, before anything is loaded."""
    for group, name, corpus in recipe.entries():
        where = f"`{group}.{name}"
        if corpus.path != SELF and corpus.made_from is not None:
            raise ValueError(f"{where}.made_from` is for `path: {SELF}`, got the path {corpus.path!r}.")
        if corpus.agreement is not None and not (corpus.path == SELF and 0 <= corpus.agreement <= 1):
            raise ValueError(
                f"{where}.agreement` is for `path: {SELF}` and must lie in [0, 1], got {corpus.agreement} for "
                f"{corpus.path!r}."
            )
        if corpus.path == SELF and get_task(recipe.task).info.converses:
            raise ValueError(f"{where}.path` must be files for {recipe.task}, of which M₀ makes none, got {SELF}.")
        if corpus.path == SELF and corpus.objective not in (None, DISTILL):
            raise ValueError(f"{where}.objective` must be left out with `path: {SELF}`, got {corpus.objective!r}.")
        if corpus.path == SELF and group != "corpora" and get_task(recipe.task).info.has_labels:
            raise ValueError(f"{where}` must be a file with labels: {SELF} makes none to be measured by.")
        if corpus.path == SELF:
            _source(where, corpus, recipe)


def place_self(recipe: Recipe, *, makes: bool = True) -> tuple[Recipe, dict[str, Made]]:
    """Return a recipe whose corpora `path: self` are the files that M₀ has made, and of each what it is and where.

    Unless it `makes` them, those that are not there stay `path: self`.
    """
    groups: dict[str, Any] = {group: dict(getattr(recipe, group)) for group in GROUPS}
    made: dict[str, Made] = {}
    fingerprint = cache(lambda: _fingerprint(recipe))  # of gigabytes, but only where something is made
    for group, name, corpus in recipe.entries():
        if corpus.path == SELF:
            key = f"{group}.{name}"
            own = name if group == "corpora" else key
            groups[group][name], made[key] = _placed(own, corpus, recipe, fingerprint, makes)
    return replace(recipe, **groups) if made else recipe, made


def promised(config: CorpusConfig, recipe: Recipe) -> datasets.Dataset:
    """Return examples that stand for those that M₀ will make, to be counted."""
    start, end = config.part or (0, 1)
    count, tokens = max(1, round((config.max_examples or ROWS) * (end - start))), [0] * recipe.max_length
    return datasets.Dataset.from_dict(dict.fromkeys(("input_ids", "attention_mask", "labels"), [tokens] * count))


def _placed(
    name: str, config: CorpusConfig, recipe: Recipe, fingerprint: Callable[[], list[Any]], makes: bool
) -> tuple[CorpusConfig, Made]:
    source, kept = _source(f"`{name}", config, recipe), {field: getattr(config, field) for field in KEPT}
    if source is not None and get_task(recipe.task).info.has_labels and config.agreement is None:
        kept |= {"max_examples": config.max_examples or source.max_examples, "part": config.part or source.part}
        return replace(source, **kept), Made(PREDICTED, str(source.path))
    job = _job(name, config, source, recipe)
    folder = Path(datasets.config.HF_CACHE_HOME) / "hf_interp" / "self" / _digest(job, fingerprint())
    about = read_json(folder / ABOUT_NAME)
    if about is None and makes:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            about = read_json(folder / ABOUT_NAME) or _make(job, folder)
    if about is None:
        text = f"{job.wanted:,} {job.kind}, which train will make, and fewer where some are not fit"
        return config, Made(text, str(folder), is_there=False)
    columns: dict[str, Any] = {"messages_column": "messages"} if job.kind in (DRAWN, ANSWERS, REWRITTEN) else {}
    if source is not None and source.text_pair_column and job.kind == LABELLED:
        columns = {"text_pair_column": "text_pair"}
    lost = _lost(about["left_out"])
    wanted = f" of {job.wanted:,}" if about["rows"] < job.wanted else ""
    text = f"{about['rows']:,}{wanted} {job.kind}" + (f" (left out: {lost})" if lost else "")
    file = str(folder / ROWS_NAME)
    return CorpusConfig(path=file, **kept, **columns), Made(text, file)


def _lost(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {fault}" for fault, count in sorted(left_out.items()))


def _source(where: str, config: CorpusConfig, recipe: Recipe) -> CorpusConfig | None:
    """Return the corpus of which M₀ makes its own: another of the recipe, or a file; `None` for none."""
    others = {name: corpus for name, corpus in recipe.corpora.items() if corpus.path != SELF}
    name = config.made_from
    if name is None and get_task(recipe.task).info.answer == "continuation":
        return None
    name = name or next((name for name, corpus in others.items() if corpus.side == "domain"), None)
    if name is None or (name in recipe.corpora and name not in others):
        raise ValueError(
            f"{where}.made_from` must name a file, or a corpus that M₀ does not make itself, got {name!r}."
        )
    return others.get(name) or replace(config, path=name, made_from=None, part=None, max_examples=None)


def _job(name: str, config: CorpusConfig, source: CorpusConfig | None, recipe: Recipe) -> Job:
    wanted, kind = config.max_examples or ROWS, TEXTS
    if source is None:
        kind = DRAWN if any(corpus.is_dialogue for corpus in recipe.corpora.values()) else TEXTS
        return Job(name, recipe, kind, [], wanted, config.sample_seed, config.agreement)
    if source.is_dialogue:
        rows = _dialogues(name, source)
        kind = ANSWERS if rows[0]["row"][-1]["role"] == "user" else REWRITTEN
    elif get_task(recipe.task).info.has_labels:
        rows, kind = _inputs(name, source, recipe), LABELLED
    else:
        rows = load_corpus(name, source, {"text": "prose"}).rename_column("text", "row")
        kind = {"masks": FILLED, "text": TARGETS}.get(get_task(recipe.task).info.answer or "", GONE_ON)
    if len(rows) > wanted:
        rows = first_rows(rows.shuffle(seed=config.sample_seed), wanted)
    return Job(name, recipe, kind, list(rows["row"]), len(rows), config.sample_seed, config.agreement)


def _inputs(name: str, source: CorpusConfig, recipe: Recipe) -> datasets.Dataset:
    """Return what a classifier or tagger is given, as a mapping a row."""
    columns = {
        column: kind
        for column, kind in get_task(recipe.task).columns(recipe, source).items()
        if kind in ("text", "any text", "words")
    }
    if not columns or recipe.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"`agreement` of corpus {name!r} is for texts with one label, or one for each word, got {recipe.task}"
            + (f" with {recipe.problem_type}. " if recipe.problem_type else ". ")
            + "Leave it out."
        )
    return datasets.Dataset.from_list([{"row": row} for row in load_corpus(name, source, columns)])


def _dialogues(name: str, source: CorpusConfig) -> datasets.Dataset:
    """Return turns: what a user says and, where the corpus has one, an answer."""
    if source.messages_column:
        return load_corpus(name, source, {"messages": "turns"}).rename_column("messages", "row")
    is_answered = source.source("target") in column_names(load_rows(name, source, []))
    found = load_corpus(name, source, {"prompt": "text", **({"target": "text"} if is_answered else {})})
    texts = [found[column] for column in found.column_names]
    return datasets.Dataset.from_dict({"row": [_turns(*row) for row in zip(*texts, strict=True)]})


def _turns(*said: str) -> list[Turn]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=False)]


def _fingerprint(recipe: Recipe) -> list[Any]:
    """Return what tells M₀ from others: its weights, by their content or the commit on the Hub, and its tokenizer."""
    name, folder, tokenizer = recipe.model_name_or_path, Path(recipe.model_name_or_path), load_processor(recipe)
    weights: Any = weights_fingerprint(folder) or [path.stat().st_mtime_ns for path in sorted(folder.glob("*.bin"))]
    if not folder.is_dir():
        with reading(f"The model {name!r}"):
            kwargs = {"revision": recipe.model_revision, "trust_remote_code": recipe.trust_remote_code}
            weights = AutoConfig.from_pretrained(name, **kwargs)._commit_hash
    return [weights, sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template]


def _digest(job: Job, fingerprint: Sequence[Any]) -> str:
    """Return a hash of all that decides what is made."""
    recipe = job.recipe
    found = [2, *fingerprint, recipe.task, recipe.max_length, recipe.mlm_probability, *job[2:]]
    if job.kind == TARGETS:
        found += [recipe.max_target_length, recipe.source_prefix, recipe.source_lang, recipe.target_lang]
    return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()[:16]


def _make(job: Job, folder: Path) -> dict[str, Any]:
    """Let M₀ make the rows, and keep those that are fit; the folder is whole or not there."""
    recipe, maker = job.recipe, MAKERS[get_task(job.recipe.task).info.answer]
    model, new_names = load_model(recipe)
    if new_names or not (maker in (_fill, _classify) or model.can_generate()):
        lacks = f"lacks {', '.join(new_names)}" if new_names else "cannot generate"
        raise ValueError(
            f"`path: {SELF}` of corpus {job.name!r} needs a model that has its head and can generate, but "
            f"{recipe.model_name_or_path!r} {lacks}. Start from another model, or give a file."
        )
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    get_task(recipe.task).prepare(load_processor(recipe), model, recipe)
    model = model.to(PartialState().device).eval()
    speaker = Speaker(model, load_processor(recipe), min(recipe.max_length, positions), positions)
    bar = tqdm(desc=f"M₀ makes {job.name}", total=job.wanted, mininterval=0.5 if sys.stderr.isatty() else 60)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.inference_mode(), bar:
        torch.manual_seed(job.seed)
        rows, left_out = _fit(maker(job, speaker), job, bar)
    if not rows:
        raise ValueError(f"M₀ made nothing fit for corpus {job.name!r} ({_lost(left_out)}). Give a file instead.")
    about = {"kind": job.kind, "rows": len(rows), "left_out": left_out, "model": recipe.model_name_or_path}
    with new_folder(folder) as place:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (place / ROWS_NAME).write_text("".join(lines), encoding="utf-8")
        write_json(place / ABOUT_NAME, about)
    return about


def _fit(candidates: Iterator[Said], job: Job, bar: Any) -> tuple[list[Any], Counter[str]]:
    """Return the rows that are fit, up to those wanted, and how many are left out by what is wrong with them."""
    rows: dict[str, Any] = {}
    left_out: Counter[str] = Counter()
    least = LEAST_TOKENS if job.kind in (TEXTS, GONE_ON) else 0 if job.kind == LABELLED else 1
    for row, tokens, agreement in candidates:
        fault = "repeated" if (key := json.dumps(row)) in rows else find_fault(tokens, least)
        fault = fault or (UNSURE if agreement < (job.agreement or 0) else None)
        if fault is not None:
            left_out[fault] += 1
            continue
        rows[key] = row
        bar.update()
        if len(rows) == job.wanted:
            break
    return list(rows.values()), left_out


def find_fault(tokens: Sequence[int] | None, least: int) -> str | None:
    """Return what is wrong with the tokens that M₀ has made, if anything is.

    >>> find_fault([1, 2, 3], 8), find_fault([1, 2] * 10, 8), find_fault(range(20), 8), find_fault(None, 8)
    ('too short', 'repeating themselves', None, 'too long')
    """
    if tokens is None or len(tokens) < least:
        return "too long" if tokens is None else "too short"
    grams = [tuple(tokens[place : place + GRAM]) for place in range(len(tokens) - GRAM + 1)]
    return "repeating themselves" if len({*grams}) < LEAST_DIFFERENT * len(grams) else None


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[place : place + BATCH] for place in range(0, len(rows), BATCH))


def _speak(job: Job, speaker: Speaker) -> Iterator[Said]:
    """Yield what a causal language model says: texts, or dialogues."""
    if job.kind in (TEXTS, GONE_ON):
        yield from _texts(job, speaker)
        return
    for dialogues in _batches(job.rows) if job.rows else _questions(job, speaker):
        before = [turns[:-1] if job.kind == REWRITTEN else turns for turns in dialogues]
        asked = [_rewriting(turns) for turns in dialogues] if job.kind == REWRITTEN else before
        answers = _say([_render(turns, speaker) for turns in asked], job, speaker)
        for turns, (answer, tokens, agreement) in zip(before, answers, strict=True):
            said = [*turns, {"role": "assistant", "content": answer}]
            yield Said({"messages": said}, tokens if not tokens or _has_room(said, speaker) else None, agreement)


def _texts(job: Job, speaker: Speaker) -> Iterator[Said]:
    """Yield texts that begin as those that are given, or with the token that begins or ends a text alone."""
    tokenizer = speaker.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ValueError(
            f"`path: {SELF}` of corpus {job.name!r} needs a tokenizer with a token that begins or ends a text. Set its "
            "`eos_token` and save it beside the model."
        )
    for texts in _batches(job.rows or [""] * MOST_TRIES * job.wanted):
        begun = [tokenizer(text, add_special_tokens=False)["input_ids"][: speaker.length // 4] for text in texts]
        prompts = [[start, *ids] for ids in begun]
        for ids, said in zip(prompts, _generate(prompts, speaker), strict=True):
            yield Said({"text": tokenizer.decode([*ids[1:], *said])}, said, _agreement(ids, said, job, speaker))


def _questions(job: Job, speaker: Speaker) -> Iterator[list[Any]]:
    """Yield what a user says, drawn behind the opening of a user's turn (arXiv 2406.08464)."""
    opening = _user_turn(speaker)[0]
    for batch in _batches([opening] * MOST_TRIES * job.wanted):
        yield [_turns(text) for text, tokens, _ in _say(batch, job._replace(agreement=None), speaker) if tokens]


def _say(prompts: Sequence[str], job: Job, speaker: Speaker) -> list[Said]:
    """Return what M₀ says after each of some rendered prompts, up to the mark that ends a turn.

    Prompts that leave no room for an answer get none, but those that ask for other words: they are not kept.
    """
    tokenizer, mark = speaker.tokenizer, _user_turn(speaker)[1].strip()
    ids = [tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"] for prompt in prompts]
    marks = tokenizer(mark, add_special_tokens=False)["input_ids"] if mark else []
    most = speaker.positions if job.kind == REWRITTEN else speaker.length
    fitting = [tokens for tokens in ids if len(tokens) < most]
    made = iter(_generate(fitting, speaker, marks if len(marks) == 1 else ()))
    found: list[Said] = []
    for tokens in ids:
        said = next(made) if len(tokens) < most else None
        text = tokenizer.decode(said or [])
        text = (text.partition(mark)[0] if mark else text).strip()
        agreement = _agreement(tokens, said, job, speaker) if said else 1.0
        found.append(Said(text, said if text or said is None else [], agreement))
    return found


def _user_turn(speaker: Speaker) -> tuple[str, str]:
    """Return what the chat template puts before what a user says, and after it."""
    before, _, after = _render(_turns(PLACE), speaker, opens=False).partition(PLACE)
    return before, after


def _render(turns: Sequence[Turn], speaker: Speaker, *, opens: bool = True) -> str:
    return str(speaker.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=opens))


def _rewriting(dialogue: Sequence[Turn]) -> list[Turn]:
    """Return a dialogue that asks for its last answer in other words."""
    *before, asked, answer = dialogue
    text = REWRITING.format(prompt=asked["content"], target=answer["content"])
    return [*before, {"role": "user", "content": text}]


def _has_room(turns: Sequence[Turn], speaker: Speaker) -> bool:
    """Whether the reader of dialogues will find something to learn in these."""
    try:
        return bool(encode_dialogue(speaker.tokenizer, turns, speaker.length))
    except ValueError:
        return False


def _generate(prompts: Sequence[Sequence[int]], speaker: Speaker, marks: Sequence[int] = ()) -> list[list[int]]:
    """Return the tokens that M₀ draws after each prompt, up to an end, without special tokens."""
    if not prompts:
        return []
    model, tokenizer = speaker.model, speaker.tokenizer
    ends = _ends(speaker) | {*marks}
    inputs = tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    found = model.generate(
        **{name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")},
        max_new_tokens=max(1, min(speaker.length, speaker.positions - width)),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) or None,
        **SAMPLING,
    )
    return [_up_to(tokens[width:], ends, {*tokenizer.all_special_ids}) for tokens in found.tolist()]


def _ends(speaker: Speaker) -> set[int]:
    """Return the tokens that end what M₀ says."""
    stated = speaker.model.generation_config.eos_token_id
    return {*(stated if isinstance(stated, list) else [stated]), speaker.tokenizer.eos_token_id} - {None}


def _agreement(prompt: Sequence[int], made: Sequence[int], job: Job, speaker: Speaker) -> float:
    """Return how likely M₀ makes a token again that it has made after a prompt, where that is asked for."""
    if job.agreement is None or not made:
        return 1.0
    ids = torch.tensor([[*prompt, *made]], device=speaker.model.device)
    logits = speaker.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return _likelihood(logits, ids[0, len(prompt) :])


def _likelihood(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Return the geometric mean of the probabilities of tokens (n,), by the scores (n, vocabulary) for their places."""
    losses = torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="none")
    return math.exp(-float(losses.mean())) if len(losses) else 1.0


def _up_to(tokens: Sequence[int], ends: set[int], special: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return [token for token in tokens[:end] if token not in special]


def _fill(job: Job, speaker: Speaker) -> Iterator[Said]:
    """Yield texts in which a masked language model has drawn the masked tokens anew."""
    model, tokenizer = speaker.model, speaker.tokenizer
    special = torch.tensor(tokenizer.all_special_ids)
    for texts in _batches(job.rows):
        inputs = speaker.encode(list(texts))
        ids = inputs["input_ids"].clone()
        masked = (torch.rand(ids.shape) < job.recipe.mlm_probability) & ~torch.isin(ids, special)
        inputs["input_ids"][masked] = tokenizer.mask_token_id
        logits = model(**inputs.to(model.device)).logits[masked.to(model.device)]
        drawn = torch.multinomial(logits.float().softmax(-1), 1).flatten()
        ids[masked] = drawn.cpu()
        sizes = masked.sum(dim=1).tolist()
        for row, scores, words in zip(ids, torch.split(logits, sizes), torch.split(drawn, sizes), strict=True):
            tokens = row[~torch.isin(row, special)].tolist()
            yield Said({"text": tokenizer.decode(tokens)}, tokens, _likelihood(scores, words))


def _write_targets(job: Job, speaker: Speaker) -> Iterator[Said]:
    """Yield pairs of given inputs and the targets that M₀ finds likeliest, token by token."""
    model, tokenizer, recipe = speaker.model, speaker.tokenizer, job.recipe
    ends, special = _ends(speaker), {*tokenizer.all_special_ids}
    options = {**PLAIN, "do_sample": False, "max_new_tokens": recipe.max_target_length}
    for texts in _batches(job.rows):
        sources = [recipe.source_prefix + text for text in texts]
        found = model.generate(**speaker.encode(sources).to(model.device), **options)[:, 1:].tolist()
        for text, source, tokens in zip(texts, sources, found, strict=True):
            made = _up_to(tokens, ends, special) if ends & {*tokens} else None
            target = tokenizer.decode(made or []).strip()
            sure = _target_agreement(source, made, job, speaker)
            yield Said({"text": text, "target": target}, made if target or made is None else [], sure)


def _target_agreement(source: str, made: Sequence[int] | None, job: Job, speaker: Speaker) -> float:
    """Return the agreement of a target, where it is asked for; see `_agreement`."""
    if job.agreement is None or not made:
        return 1.0
    labels = torch.tensor([made], device=speaker.model.device)
    inputs = speaker.encode(source).to(labels.device)
    return _likelihood(speaker.model(**inputs, labels=labels).logits[0], labels[0])


def _classify(job: Job, speaker: Speaker) -> Iterator[Said]:
    """Yield given inputs with the probability of the class that M₀ predicts; of tags the geometric mean."""
    split = "tokens" in job.rows[0]
    for rows in _batches(job.rows):
        given = [[row[column] for row in rows] for column in rows[0]]
        inputs = speaker.encode(*given, is_split_into_words=split).to(speaker.model.device)
        best = speaker.model(**inputs).logits.float().log_softmax(-1).max(-1).values
        if split:
            weights = inputs["attention_mask"]
            best = (best * weights).sum(-1) / weights.sum(-1)
        yield from (Said(row, [], math.exp(sure)) for row, sure in zip(rows, best.tolist(), strict=True))


MAKERS: dict[str | None, Callable[[Job, Speaker], Iterator[Said]]] = {
    **{"continuation": _speak, "masks": _fill, "text": _write_targets},
    **{"label": _classify, "tags": _classify},
}
"""What M₀ makes, by what its task answers; of labels and tags only where inputs are to be left out."""
