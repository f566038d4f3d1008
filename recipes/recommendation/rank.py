"""Rank candidates for a user by the probability of a like, or measure how well a model does that.

python recipes/recommendation/rank.py MODEL_DIR --history "Likes: ... Dislikes: ..." --candidates titles.txt
python recipes/recommendation/rank.py MODEL_DIR --evaluate data/tallrec/book_test.jsonl
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pairs import read_rows
from sklearn.metrics import ndcg_score, roc_auc_score

from hf_interp.utils.console import format_table, run_command

BATCH_SIZE = 64

Score = Callable[[Sequence[str], Sequence[str]], list[float]]
"""From histories and as many candidates to the probability of a like."""


def load_ranker(path: str, *, like_label: str = "like", max_length: int = 128, device: str | None = None) -> Score:
    """The probability of a like that a classifier of pairs gives.

    Args:
        path: a folder, or a name on the Hub.
        like_label: the label that means a like, in upper or lower case.
        max_length: a pair is cut to this many tokens, the longer part first, as in training.
        device: where to run it, such as cuda:0; by default on an accelerator if there is one.

    Raises:
        ValueError: if the model has no such label.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    if like_label.lower() not in map(str.lower, labels):
        raise ValueError(f"The model has the labels {labels}, but none {like_label!r}; name one with --like_label.")
    like = list(map(str.lower, labels)).index(like_label.lower())
    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    model.to(device)
    positions = getattr(model.config, "max_position_embeddings", max_length)
    limit = min(max_length, tokenizer.model_max_length, positions)

    @torch.no_grad()
    def score(histories: Sequence[str], candidates: Sequence[str]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(histories), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            inputs = tokenizer(
                [_clean(text) for text in histories[batch]],
                [_clean(text) for text in candidates[batch]],
                truncation=True,
                max_length=limit,
                padding=True,
                return_tensors="pt",
            )
            probabilities = model(**inputs.to(device)).logits.float().softmax(-1)[:, like]
            found += probabilities.tolist()
        return found

    return score


def rank(score: Score, history: str, candidates: Sequence[str]) -> list[tuple[str, float]]:
    """Candidates with their probabilities of a like, the likeliest first; equal ones in the order given.

    >>> rank(lambda histories, candidates: [len(text) / 10 for text in candidates], "Likes: long", ["ab", "abc", "ba"])
    [('abc', 0.3), ('ab', 0.2), ('ba', 0.2)]
    """
    probabilities = score([history] * len(candidates), candidates)
    return sorted(zip(candidates, probabilities, strict=True), key=lambda pair: -pair[1])


def read_candidates(path: Path) -> list[str]:
    """The lines of a file, or of standard input for "-", without the empty ones.

    Raises:
        ValueError: if none is left.
    """
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    candidates = [line.strip() for line in text.split("\n") if line.strip()]
    if not candidates:
        raise ValueError(f"{str(path)!r} names no candidates; write one a line.")
    return candidates


def read_likes(
    rows: Iterable[Mapping[str, Any]], *, columns: Mapping[str, str], like_label: str
) -> list[dict[str, Any]]:
    """Rows as `history`, `candidate`, `user` and `liked` (0 or 1).

    Args:
        rows: as they are in the file.
        columns: the names of `history`, `candidate`, `label` and `user` in them.
        like_label: the label that means a like, in upper or lower case; so does 1.

    Raises:
        ValueError: for a row without a column, with the row's number.
    """
    found = []
    for number, row in enumerate(rows, 1):
        missing = [name for name in columns.values() if name not in row]
        if missing:
            raise ValueError(f"Row {number} lacks {', '.join(missing)}; it has {', '.join(row)}.")
        liked = str(row[columns["label"]]).lower() in (like_label.lower(), "1", "true")
        pair = {name: str(row[columns[name]]) for name in ("history", "candidate", "user")}
        found.append({**pair, "liked": int(liked)})
    if not found:
        raise ValueError("There are no rows to evaluate on.")
    return found


def evaluate(rows: Sequence[Mapping[str, Any]], probabilities: Sequence[float], *, k: int = 10) -> dict[str, Any]:
    """AUC over all rows, and nDCG@k (Järvelin and Kekäläinen 2002) averaged over users.

    Rows with the same `user` are one user's candidates. Users with one candidate, or whose candidates are all liked or
    all disliked, are left out: no order of theirs is better than another. So are rows with an empty `user`.

    Args:
        rows: `user` and `liked` of each.
        probabilities: of a like, for each.
        k: places that count, at least 1.

    Returns:
        "auc" (`None` if there is one class only); "ndcg" and "ndcg_random", the mean over all orders (both `None`
        without users); "rows", "users", "left_out" by reason, in users, and "sizes": users by their number of
        candidates.

    >>> rows = [{"user": "u", "liked": 1}, {"user": "u", "liked": 0}, {"user": "v", "liked": 0}]
    >>> found = evaluate(rows, [0.9, 0.2, 0.5])
    >>> found["auc"], found["ndcg"], found["users"], found["left_out"]["one candidate"]
    (1.0, 1.0, 1, 1)
    """
    users: dict[str, list[tuple[int, float]]] = {}
    for row, probability in zip(rows, probabilities, strict=True):
        users.setdefault(row["user"], []).append((row["liked"], probability))
    left_out = {"one candidate": 0, "one class": 0, "rows without a user": len(users.pop("", []))}
    scores, by_chance, sizes = [], [], Counter[int]()
    for pairs in users.values():
        liked, theirs = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
        if len(pairs) == 1:
            left_out["one candidate"] += 1
        elif liked.min() == liked.max():
            left_out["one class"] += 1
        else:
            scores.append(ndcg_score(liked[None], theirs[None], k=k))
            by_chance.append(ndcg_score(liked[None], np.zeros_like(theirs)[None], k=k))  # ties: mean over orders
            sizes[len(pairs)] += 1
    likes = [row["liked"] for row in rows]
    return {
        "auc": float(roc_auc_score(likes, probabilities)) if len(set(likes)) == 2 else None,
        "ndcg": float(np.mean(scores)) if scores else None,
        "ndcg_random": float(np.mean(by_chance)) if scores else None,
        "k": k,
        "rows": len(rows),
        "users": len(scores),
        "left_out": left_out,
        "sizes": dict(sorted(sizes.items())),
    }


def format_evaluation(found: Mapping[str, Any]) -> str:
    """What `evaluate` found, for readers."""
    ndcg = "none" if found["ndcg"] is None else f"{found['ndcg']:.3f} (any order: {found['ndcg_random']:.3f})"
    auc = "none (one class only)" if found["auc"] is None else f"{found['auc']:.3f}"
    left_out = found["left_out"]
    sizes = ", ".join(f"{count} with {size}" for size, count in found["sizes"].items())
    return "\n".join(
        [
            f"AUC: {auc}, {found['rows']} rows",
            f"nDCG@{found['k']}: {ndcg}, {found['users']} users" + (f" (candidates: {sizes})" if sizes else ""),
            f"left out of nDCG: {left_out['one candidate']} users with one candidate, {left_out['one class']} whose "
            f"candidates are all liked or all disliked, {left_out['rows without a user']} rows without a user",
        ]
    )


def _clean(text: str) -> str:
    """`text` without halves of surrogate pairs, which tokenizers refuse."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _run(args: argparse.Namespace) -> None:
    if args.evaluate is not None:
        columns = {
            "history": args.history_column,
            "candidate": args.candidate_column,
            "label": args.label_column,
            "user": args.user_column or args.history_column,
        }
        rows = read_likes(read_rows(args.evaluate), columns=columns, like_label=args.like_label)
        score = load_ranker(args.model, like_label=args.like_label, max_length=args.max_length, device=args.device)
        probabilities = score([row["history"] for row in rows], [row["candidate"] for row in rows])
        found = evaluate(rows, probabilities, k=args.k)
        print(json.dumps(found) if args.json else format_evaluation(found))
        return
    candidates = read_candidates(args.candidates)
    score = load_ranker(args.model, like_label=args.like_label, max_length=args.max_length, device=args.device)
    ranked = rank(score, args.history, candidates)
    if args.json:
        print(json.dumps([{"candidate": text, "like": round(value, 6)} for text, value in ranked], ensure_ascii=False))
    else:
        print(format_table(["candidate", "like"], [[text, f"{value:.3f}"] for text, value in ranked]))


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description="Rank candidates for a user by the probability of a like.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a classifier of pairs: a folder, or a name on the Hub")
    parser.add_argument("--history", help="what the user liked and disliked, as in training")
    parser.add_argument(
        "--candidates", type=Path, metavar="FILE", help="what to rank, one a line; - for standard input"
    )
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="print AUC and nDCG on these JSON lines instead")
    parser.add_argument("--k", type=int, default=10, help="places that count for nDCG")
    parser.add_argument("--history_column", default="history", help="of the file")
    parser.add_argument("--candidate_column", default="candidate", help="of the file")
    parser.add_argument("--label_column", default="label", help="of the file")
    parser.add_argument("--user_column", help="rows that agree in it are one user's; by default the history")
    parser.add_argument("--like_label", default="like", help="the label that means a like")
    parser.add_argument("--max_length", type=int, default=128, help="pairs are cut to this many tokens")
    parser.add_argument("--device", help="such as cuda:0; by default an accelerator if there is one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    ranking = args.history is not None and args.candidates is not None
    if ranking == (args.evaluate is not None) or (args.history is None) != (args.candidates is None):
        parser.error("give --history and --candidates, or --evaluate")
    if args.k < 1 or args.max_length < 1:
        parser.error(f"--k and --max_length must be at least 1, got {args.k} and {args.max_length}")
    return run_command(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
