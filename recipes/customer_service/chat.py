"""Talk to customers on the terminal: tell the intent, look up similar past answers, answer, or hand over to a human.

    python recipes/customer_service/chat.py --intent DIR --answers FILE --calibrate FILE --target_accuracy 0.95
    python recipes/customer_service/chat.py --intent DIR --response DIR --answers FILE_OR_INDEX

The first command chooses from where on an intent is trusted and writes `thresholds.json` beside the intent model; the
second talks. Input that does not come from a terminal is read line by line. An empty line begins a new dialogue.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from assistant import Assistant, Turn, printable
from fallback import (
    OUT_OF_SCOPE,
    THRESHOLDS_NAME,
    Thresholds,
    choose_similarity,
    choose_threshold,
    load_thresholds,
    save_thresholds,
    selective,
)
from past_answers import AnswerIndex, read_answers, read_rows
from service_models import Encoder, IntentModel, ResponseModel
from transformers.utils import logging as host_logging

from hf_interp.utils.console import run_command


def calibrate(args: argparse.Namespace) -> str:
    """Choose thresholds on `--calibrate`, save them, and say what they come to there and on `--test`."""
    intent = IntentModel(args.intent)
    probabilities, correct, texts = judge(intent, args.calibrate, args.out_of_scope, args)
    chosen = choose_threshold(probabilities, correct, args.target_accuracy)
    similarity, similarities = -1.0, None
    encoder, index = open_answers(args, intent)
    if encoder is not None and index is not None:
        similarities = [row[0].similarity for row in index.search(encoder.embed(texts), 1)]
        similarity = choose_similarity(similarities, args.keep_similar)
    measured: dict[str, Any] = {"target_accuracy": args.target_accuracy, "calibration": asdict(chosen)}
    lines = [describe("calibration", probabilities, correct, chosen.threshold)]
    if args.test:
        test = judge(intent, args.test, args.test_out_of_scope, args)
        measured["test"] = asdict(selective(test[0], test[1], chosen.threshold))
        lines.append(describe("test", test[0], test[1], chosen.threshold))
    path = thresholds_path(args)
    found = Thresholds(probability=chosen.threshold, similarity=similarity, model=intent.fingerprint, measured=measured)
    save_thresholds(found, path)
    lines += [
        f"An intent is trusted from a probability of {chosen.threshold:.4f} on"
        + ("" if similarities is None else f", a past request from a similarity of {similarity:.4f} on")
        + f". Written to {path}."
    ]
    return "\n".join(lines)


def judge(
    intent: IntentModel, file: str, out_of_scope: str | None, args: argparse.Namespace
) -> tuple[list[float], list[bool], list[str]]:
    """Highest probability of each text, whether its intent is right, and the texts in scope; those out of scope last.

    Raises:
        ValueError: for a row without a text or label, or a label that the model does not know.
    """
    rows = list(read_rows(file))
    texts = [column(row, args.text_column, number, file) for number, row in enumerate(rows, 1)]
    labels = [column(row, args.label_column, number, file) for number, row in enumerate(rows, 1)]
    for label in labels:
        if label not in intent.labels:
            raise ValueError(
                f"{file!r} has the label {label!r}, which the intent model does not know; it knows "
                f"{', '.join(intent.labels[:5])}, ... Remove such rows, or give them as --out_of_scope."
            )
    others: list[str] = []
    if out_of_scope is not None:
        others = [
            column(row, args.text_column, number, out_of_scope) for number, row in enumerate(read_rows(out_of_scope), 1)
        ]
    if not texts:
        raise ValueError(f"{file!r} has no rows.")
    predicted = intent.probabilities(texts + others)
    names = [intent.labels[place] for place in predicted.argmax(axis=1).tolist()]
    # An intent that says "out of scope" is never answered: the rule hands it over whatever its probability.
    trusted = [name.lower() not in OUT_OF_SCOPE for name in names]
    highest = np.where(trusted, predicted.max(axis=1), 0.0).tolist()
    correct = [name == label for name, label in zip(names, labels, strict=False)] + [False] * len(others)
    return highest, correct, texts


def column(row: Any, name: str, number: int, file: str) -> str:
    """A text of a row.

    Raises:
        ValueError: naming the line, if there is none.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"Line {number} of {file!r} must have a text in {name!r}, got {value!r}; it has {list(row)}.")
    return value


def describe(name: str, probabilities: Sequence[float], correct: Sequence[bool], threshold: float) -> str:
    """One line on all that is answered, and on what is answered from the threshold on."""
    whole, chosen = selective(probabilities, correct, -1.0), selective(probabilities, correct, threshold)
    accuracy = "-" if chosen.accuracy is None else f"{chosen.accuracy:.3f}"
    return (
        f"{name}: accuracy {whole.accuracy:.3f} of all {whole.num_texts}; answered {chosen.coverage:.3f} with accuracy "
        f"{accuracy}"
    )


def open_answers(args: argparse.Namespace, intent: IntentModel) -> tuple[Encoder | None, AnswerIndex | None]:
    """The past answers and the encoder of their requests; nothing without `--answers`."""
    if args.answers is None:
        if args.save_index:
            raise ValueError("--save_index needs --answers FILE.")
        return None, None
    encoder = Encoder.load(args.encoder) if args.encoder else intent.encoder()
    if Path(args.answers).expanduser().is_dir():
        return encoder, AnswerIndex.load(Path(args.answers).expanduser(), encoder.fingerprint)
    answers = list(read_answers(args.answers))
    if not answers:
        raise ValueError(f"{args.answers!r} has no past answers.")
    index = AnswerIndex(answers, encoder.embed([answer.request for answer in answers]), encoder.fingerprint)
    if args.save_index:
        index.save(args.save_index)
    return encoder, index


def thresholds_path(args: argparse.Namespace) -> Path:
    """Where the thresholds are: `--thresholds`, or beside the intent model."""
    return Path(args.thresholds or Path(args.intent) / THRESHOLDS_NAME).expanduser()


def build_assistant(args: argparse.Namespace) -> Assistant:
    """Load all that a chat needs; whatever is missing or does not fit is said before the first turn."""
    if args.response is None:
        raise ValueError("A chat needs --response, a folder or a name on the Hub; --calibrate does without.")
    if args.top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {args.top_k}.")
    intent = IntentModel(args.intent)
    if args.threshold is None:
        thresholds = load_thresholds(thresholds_path(args), intent.fingerprint)
    else:
        thresholds = Thresholds(probability=args.threshold)
    if args.min_similarity is not None:
        thresholds = replace(thresholds, similarity=args.min_similarity)
    encoder, index = open_answers(args, intent)
    response = ResponseModel(
        args.response, max_new_tokens=args.max_new_tokens, context=args.context, temperature=args.temperature
    )
    handover = Path(args.handover).expanduser()
    handover.parent.mkdir(parents=True, exist_ok=True)
    with open(handover, "a", encoding="utf-8"):  # now, rather than when a customer waits
        pass
    return Assistant(
        intent,
        response,
        encoder,
        index,
        thresholds,
        top_k=args.top_k,
        with_answers=args.with_answers,
        follow_up_words=args.follow_up_words,
        handover=handover,
    )


def read_turns(is_terminal: bool) -> Iterator[str]:
    """Lines until the input ends; on a terminal with a prompt, where they can be edited."""
    if not is_terminal:
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # there is no readline on Windows
        import readline  # noqa: F401
    while True:
        try:
            line = input("you> ")
        except EOFError:
            print()
            return
        yield line.strip()


def chat(assistant: Assistant, *, as_json: bool) -> None:
    """Take turns until the input ends or is interrupted."""
    is_terminal = sys.stdin.isatty()
    try:
        for text in read_turns(is_terminal and not as_json):
            if not text:
                if assistant.turns:
                    assistant.begin()
                continue
            turn = assistant.take(text)
            print(json.dumps(turn.to_dict(), ensure_ascii=False) if as_json else show(turn), flush=True)
    except KeyboardInterrupt:
        print()


def show(turn: Turn) -> str:
    """A turn for people to read."""
    lines = []
    if turn.intent is not None:
        about = " (goes on)" if turn.is_follow_up else f" {turn.probability:.2f}"
        best = (
            f"; similar {turn.similar[0].similarity:.2f}: {printable(turn.similar[0].past.request)}"
            if turn.similar
            else ""
        )
        lines.append(f"  [{turn.intent}{about}{best}]")
    if turn.reason is not None:
        lines.append(f"  [handed over: {turn.reason}]")
    return "\n".join([*lines, f"bot> {turn.response}"])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="chat.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--intent", required=True, help="intent model: a folder, or a name on the Hub")
    parser.add_argument("--response", help="causal language model with a chat template")
    parser.add_argument("--answers", help="past answers: JSON Lines (.gz), or an index that --save_index has written")
    parser.add_argument("--encoder", help="encoder of past requests (default: the one of the intent model)")
    parser.add_argument("--save_index", metavar="DIR", help="keep the index of --answers here")
    parser.add_argument("--top_k", type=int, default=3, help="past answers to look up (default: %(default)s)")
    parser.add_argument("--with_answers", action="store_true", help="show the past answers to the response model")
    parser.add_argument("--handover", default="handover.jsonl", help="dialogues for humans (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a turn")
    rule = parser.add_argument_group("when to answer")
    rule.add_argument("--thresholds", metavar="FILE", help=f"default: {THRESHOLDS_NAME} beside the intent model")
    rule.add_argument("--threshold", type=float, help="least probability of an intent, instead of a file")
    rule.add_argument("--min_similarity", type=float, help="least similarity of a past request, instead of the file's")
    rule.add_argument(
        "--follow_up_words",
        type=int,
        default=4,
        help="turns of so many words go on with the request before (default: %(default)s; 0: none do)",
    )
    model = parser.add_argument_group("response model")
    model.add_argument("--max_new_tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    model.add_argument("--context", type=int, help="tokens of dialogue and answer (default: what the model takes)")
    model.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (the default)")
    choose = parser.add_argument_group("calibration")
    choose.add_argument("--calibrate", metavar="FILE", help="labelled texts on which to choose the thresholds")
    choose.add_argument("--out_of_scope", metavar="FILE", help="texts of no intent, which should not be answered")
    choose.add_argument("--test", metavar="FILE", help="other labelled texts on which to measure the choice")
    choose.add_argument("--test_out_of_scope", metavar="FILE", help="the same for texts of no intent")
    choose.add_argument(
        "--target_accuracy", type=float, default=0.95, help="of what is answered (default: %(default)s)"
    )
    choose.add_argument(
        "--keep_similar",
        type=float,
        default=0.95,
        help="share of the texts that the threshold of similarity lets through (default: %(default)s)",
    )
    choose.add_argument("--text_column", default="text", help="default: %(default)s")
    choose.add_argument("--label_column", default="label_name", help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 with one line on stderr for bad input."""
    args = parse(argv)
    host_logging.set_verbosity_error()
    host_logging.disable_progress_bar()
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    if args.calibrate:
        return int(run_command(lambda: print(calibrate(args))))
    return int(run_command(lambda: chat(build_assistant(args), as_json=args.json)))


if __name__ == "__main__":
    sys.exit(main())
