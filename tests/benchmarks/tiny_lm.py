"""Pretrain a tiny Llama with a byte-pair tokenizer of its own on local texts, where no pretrained model can be had.

    python tests/benchmarks/tiny_lm.py --texts train.jsonl.gz --output tiny_lm
    python tests/benchmarks/tiny_lm.py --texts dialogues.jsonl.gz --field turns --chat_template chatml \\
        --output tiny_chat --max_length 512

`--texts` are JSON Lines (or .gz) whose `--field` is a text, or a list of turns `{"speaker": ..., "text": ...}`: those
of the speaker `user` are the user's, all others the assistant's. The texts are joined, with the end of a text between
two, and cut into blocks of `--max_length` tokens. Every 50th text is held out; its perplexity is printed at the end.
"""

import argparse
import gzip
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

END, PAD, TURN, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELD_OUT = 50  # every how manieth text is kept from training


def read(path: str, field: str) -> Iterator[Any]:
    """What `field` holds in every row of a file of JSON Lines."""
    with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            if field not in row:
                raise SystemExit(f"Line {number} of {path} has no field {field!r}; it has {list(row)}. Set --field.")
            yield row[field]


def flat(value: Any) -> str:
    """A text as it is; of a dialogue, the texts of its turns."""
    return value if isinstance(value, str) else "\n".join(turn["text"] for turn in value)


def messages(turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A dialogue as chat templates take it."""
    return [{"role": "user" if turn["speaker"] == "user" else "assistant", "content": turn["text"]} for turn in turns]


def train_byte_pairs(texts: Sequence[str], vocab_size: int, special: Sequence[str], *, prefix: bool) -> Tokenizer:
    """A byte-pair vocabulary of texts; with `prefix`, a text begins with a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int, max_length: int, chat: bool) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer; with `chat`, the end of a turn is the end of what a model generates."""
    special = [END, PAD, *([TURN, TURN_END] if chat else [])]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_byte_pairs(texts, vocab_size, special, prefix=False),
        eos_token=TURN_END if chat else END,
        pad_token=PAD,
        additional_special_tokens=[END, TURN] if chat else [],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHATML
    return fast


def blocks(tokenizer: PreTrainedTokenizerFast, values: Sequence[Any], max_length: int) -> datasets.Dataset:
    """All texts one after another, cut into rows of `max_length` tokens; what is left over is dropped."""
    end = tokenizer.convert_tokens_to_ids(END)
    ids: list[int] = []
    for value in values:
        text = value if isinstance(value, str) else tokenizer.apply_chat_template(messages(value), tokenize=False)
        ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], end]
    rows = [ids[begin : begin + max_length] for begin in range(0, len(ids) - max_length + 1, max_length)]
    if not rows:
        raise SystemExit(f"The texts have {len(ids)} tokens, fewer than one block of {max_length}. Give more texts.")
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})


def build_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=max(1, args.hidden // 32),
            max_position_embeddings=args.max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def add_sizes(parser: argparse.ArgumentParser, layers: int, batch_size: int, max_length: int) -> None:
    """Add what both kinds of models are told, with these defaults."""
    parser.add_argument("--vocab_size", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=layers, help="of an encoder and of a decoder")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=batch_size)
    parser.add_argument("--max_length", type=int, default=max_length, help="tokens of an example, and of the model")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)


def training_settings(args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """What `TrainingArguments` of both kinds of models are given."""
    settings = {
        "output_dir": str(Path(args.output) / "log"),
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": max(1, args.steps // 10),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": args.seed,
    }
    return settings | changes


def train_and_save(trainer: Trainer, output: str, unit: str, held_out: str) -> None:
    """Train, tell the perplexity of what is held out, and save the model with its tokenizer."""
    begin = time.perf_counter()
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{size:,} parameters, {len(trainer.train_dataset):,} {unit}", flush=True)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.model.save_pretrained(output)
    trainer.processing_class.save_pretrained(output)
    seconds = time.perf_counter() - begin
    print(f"Perplexity of the held-out {held_out}: {math.exp(loss):.2f} a token; {seconds:.0f} s; saved in {output}.")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, help="JSON Lines, also as .gz")
    parser.add_argument("--output", required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--field", default="text", help="field of a row (default: %(default)s)")
    parser.add_argument("--chat_template", choices=["chatml"], help="needed for lists of turns")
    add_sizes(parser, layers=3, batch_size=16, max_length=128)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    datasets.disable_progress_bars()
    values = [value for path in args.texts for value in read(path, args.field)]
    if args.chat_template is None and not all(isinstance(value, str) for value in values):
        raise SystemExit(f"Field {args.field!r} holds lists of turns. Set --chat_template chatml.")
    held_out, kept = values[::HELD_OUT], [value for row, value in enumerate(values) if row % HELD_OUT]
    tokenizer = train_tokenizer(
        [flat(value) for value in kept], args.vocab_size, args.max_length, chat=args.chat_template is not None
    )
    set_seed(args.seed)
    model = build_model(tokenizer, args)
    trainer = Trainer(
        model,
        TrainingArguments(**training_settings(args, weight_decay=0.1, adam_beta2=0.95)),
        data_collator=default_data_collator,
        train_dataset=blocks(tokenizer, kept, args.max_length),
        eval_dataset=blocks(tokenizer, held_out, args.max_length),
        processing_class=tokenizer,
    )
    train_and_save(trainer, args.output, "blocks", "texts")


if __name__ == "__main__":
    main()
