"""Pretrain a tiny BART with a byte-pair tokenizer of its own on local pairs, where no pretrained model can be had.

    python tests/benchmarks/tiny_seq2seq.py --pairs translation/train.jsonl.gz --output tiny_translator
    python tests/benchmarks/tiny_seq2seq.py --pairs summarization/train.jsonl.gz --output tiny_summarizer \\
        --max_length 128 --batch_size 16

`--pairs` are JSON Lines (or .gz) with the fields `--source_field` and `--target_field`; both sides share a vocabulary.
Longer sources and targets are cut. Every 50th pair is held out; its perplexity is printed at the end.
"""

import argparse
from collections.abc import Sequence

import datasets
from tiny_lm import HELD_OUT, add_sizes, read, train_and_save, train_byte_pairs, training_settings
from tokenizers import processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

BEGIN, PAD, END = "<s>", "<pad>", "</s>"


def train_tokenizer(texts: Sequence[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer that puts the end-of-text token behind every text."""
    tokenizer = train_byte_pairs(texts, vocab_size, [BEGIN, PAD, END], prefix=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        pad_token=PAD,
        eos_token=END,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]], max_length: int) -> datasets.Dataset:
    """Sources and targets as ids, each cut to `max_length` tokens."""
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    inputs = tokenizer(sources, truncation=True, max_length=max_length)
    labels = tokenizer(targets, truncation=True, max_length=max_length)["input_ids"]
    return datasets.Dataset.from_dict({**inputs, "labels": labels})


def build_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> BartForConditionalGeneration:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            d_model=args.hidden,
            encoder_layers=args.layers,
            decoder_layers=args.layers,
            encoder_ffn_dim=4 * args.hidden,
            decoder_ffn_dim=4 * args.hidden,
            encoder_attention_heads=max(1, args.hidden // 32),
            decoder_attention_heads=max(1, args.hidden // 32),
            max_position_embeddings=args.max_length,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=tokenizer.eos_token_id,
        )
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", required=True, help="JSON Lines, also as .gz")
    parser.add_argument("--output", required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--source_field", default="source", help="field of a row (default: %(default)s)")
    parser.add_argument("--target_field", default="target", help="field of a row (default: %(default)s)")
    add_sizes(parser, layers=2, batch_size=64, max_length=64)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    datasets.disable_progress_bars()
    pairs = [
        pair
        for path in args.pairs
        for pair in zip(read(path, args.source_field), read(path, args.target_field), strict=True)
    ]
    held_out, kept = pairs[::HELD_OUT], [pair for row, pair in enumerate(pairs) if row % HELD_OUT]
    tokenizer = train_tokenizer([text for pair in kept for text in pair], args.vocab_size, args.max_length)
    set_seed(args.seed)
    model = build_model(tokenizer, args)
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**training_settings(args, weight_decay=0.01, adam_beta2=0.98)),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        train_dataset=encode(tokenizer, kept, args.max_length),
        eval_dataset=encode(tokenizer, held_out, args.max_length),
        processing_class=tokenizer,
    )
    train_and_save(trainer, args.output, "pairs", "targets")


if __name__ == "__main__":
    main()
