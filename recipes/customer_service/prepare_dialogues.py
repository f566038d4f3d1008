"""Make the dialogues of `response.yaml` from the Schema-Guided Dialogue data, whose own form is one big JSON a file.

    git clone https://github.com/google-research-datasets/dstc8-schema-guided-dialogue
    python recipes/customer_service/prepare_dialogues.py dstc8-schema-guided-dialogue --output data

Dialogues that no bank takes part in go to `sgd_general/`, in the splits of the source. Those with a bank go to
`sgd_banks/`: 80% of the source's training split, 10% for validation and 10% for testing. The other splits know another
bank (Banks_2); its dialogues go to `test_banks2`. A row has `doc`, `services`, and `turns` of `speaker` (user or
system) and `text`.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_interp.utils.console import run_command

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
SEED = 13


def read_split(source: Path, split: str) -> Iterator[dict[str, Any]]:
    """The dialogues of a split, in the order of the files.

    Raises:
        FileNotFoundError: if the split has no files.
        ValueError: for a file of another form.
    """
    files = sorted((source / split).glob("dialogues_*.json"))
    if not files:
        raise FileNotFoundError(
            f"There are no files {str(source / split / 'dialogues_*.json')!r}. Clone the data first."
        )
    for file in files:
        try:
            for dialogue in json.loads(file.read_text(encoding="utf-8")):
                yield row_of(split, dialogue)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(file)!r} does not hold dialogues of the Schema-Guided form: {error!r}.") from error


def row_of(split: str, dialogue: dict[str, Any]) -> dict[str, Any]:
    """A dialogue with what the recipe reads of it.

    >>> turn = {"speaker": "USER", "utterance": "Hi ", "frames": []}
    >>> row_of("dev", {"dialogue_id": "1_0", "services": ["Banks_2"], "turns": [turn]})
    {'doc': 'dev_1_0', 'services': ['Banks_2'], 'turns': [{'speaker': 'user', 'text': 'Hi'}]}
    """
    turns = [{"speaker": turn["speaker"].lower(), "text": turn["utterance"].strip()} for turn in dialogue["turns"]]
    return {"doc": f"{split}_{dialogue['dialogue_id']}", "services": dialogue["services"], "turns": turns}


def has_bank(row: dict[str, Any]) -> bool:
    """Whether one of a dialogue's services is a bank's."""
    return any(service.startswith("Banks_") for service in row["services"])


def divide(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """80% for training, 10% for validation and 10% for testing, drawn with a fixed seed.

    >>> {name: len(part) for name, part in divide(range(29)).items()}
    {'train': 25, 'validation': 2, 'test': 2}
    """
    order = random.Random(SEED).sample(range(len(rows)), len(rows))
    tenth = len(rows) // 10
    parts = {"validation": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    return {name: [rows[place] for place in sorted(parts[name])] for name in SPLITS.values()}


def prepare(source: Path, output: Path) -> dict[str, int]:
    """Write all files; returns the number of dialogues in each."""
    found = {split: list(read_split(source, split)) for split in SPLITS}
    files = {
        f"sgd_general/{SPLITS[split]}": [row for row in rows if not has_bank(row)] for split, rows in found.items()
    }
    banks = divide([row for row in found["train"] if has_bank(row)])
    files |= {f"sgd_banks/{name}": rows for name, rows in banks.items()}
    files["sgd_banks/test_banks2"] = [row for split in ("dev", "test") for row in found[split] if has_bank(row)]
    for name, rows in files.items():
        path = output / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the cloned data")
    parser.add_argument("--output", default="data", help="folder for the files (default: %(default)s)")
    args = parser.parse_args(argv)

    def write() -> None:
        for name, count in prepare(Path(args.source), Path(args.output)).items():
            print(f"{args.output}/{name}.jsonl: {count:,} dialogues")

    return int(run_command(write))


if __name__ == "__main__":
    sys.exit(main())
