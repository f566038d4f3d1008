"""Texts whose labels are what the intent model of a toy run says of them, so that it can be calibrated.

python tests/support/toy_intents.py MODEL TEXTS.jsonl.gz OUT.jsonl
"""

import gzip
import json
import sys
from pathlib import Path

from transformers import pipeline


def main(model: str, texts: str, output: str) -> None:
    classify = pipeline("text-classification", model=model)
    with gzip.open(texts, "rt", encoding="utf-8") as lines:
        found = [json.loads(line)["text"] for line in lines]
    rows = [json.dumps({"text": text, "label_name": classify(text)[0]["label"]}) for text in found]
    Path(output).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
