"""Run the trainer tests of a transformers checkout with our classes in place of its own, and print what differs.

    python tests/outside/host_suite.py PATH [ARGUMENTS OF PYTEST]

PATH is a checkout of the version of transformers that is installed: `git clone --branch vVERSION --depth 1
https://github.com/huggingface/transformers`. Its tests need `pip install parameterized`, and the Hub for some. Its
`tests/trainer` runs twice: as it is, and with `InterpolationTrainer` and `InterpolationSeq2SeqTrainer` under the names
of `Trainer` and `Seq2SeqTrainer`; scripts that a test starts in processes of their own keep the host's classes. Exit
status: 0 if every test ends alike, 1 if one does not.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

SWAPS = "HF_INTERP_SWAPS_TRAINERS"
"""The environment variable by which this module, as a plugin of pytest, knows that it is to swap."""
FOLDERS = (Path(__file__).parent, Path(__file__).parents[2])


def pytest_configure() -> None:
    """Put our classes in the place of the host's, before its tests are imported."""
    if os.environ.get(SWAPS):
        import transformers
        import transformers.trainer

        from hf_interp import InterpolationSeq2SeqTrainer, InterpolationTrainer

        transformers.Trainer = transformers.trainer.Trainer = InterpolationTrainer  # type: ignore[misc]
        transformers.Seq2SeqTrainer = InterpolationSeq2SeqTrainer  # type: ignore[misc]


def outcomes(checkout: Path, arguments: Sequence[str], *, swaps: bool) -> dict[str, str]:
    """Run the tests; return what became of each, with the first line of what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        python_path = os.pathsep.join([*map(str, FOLDERS), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": python_path, SWAPS: "1" if swaps else ""}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "host_suite", f"--junitxml={report}", "tests/trainer"]
        done = subprocess.run([*command, *arguments], cwd=checkout, env=environment)
        if not report.is_file():
            raise SystemExit(f"pytest wrote no report in {checkout} (exit status {done.returncode}).")
        return {
            f"{case.get('classname')}::{case.get('name')}": outcome(case)
            for case in ElementTree.parse(report).iter("testcase")
        }


def outcome(case: ElementTree.Element) -> str:
    """Return "passed", "skipped", or "failed" with a reason."""
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return f"failed: {(found.get('message') or kind).splitlines()[0]}"
    return "passed" if case.find("skipped") is None else "skipped"


def main(arguments: Sequence[str]) -> int:
    """Run both, and print the differences."""
    if not arguments or not Path(arguments[0], "tests", "trainer").is_dir():
        raise SystemExit(__doc__)
    checkout = Path(arguments[0]).absolute()
    host, ours = (outcomes(checkout, arguments[1:], swaps=swaps) for swaps in (False, True))
    pairs = {name: (host.get(name, "missing"), ours.get(name, "missing")) for name in sorted(host | ours)}
    parted = {name: pair for name, pair in pairs.items() if len({text.partition(":")[0] for text in pair}) > 1}
    for name, (theirs, own) in parted.items():
        print(f"{name}\n  Trainer:              {theirs}\n  InterpolationTrainer: {own}")
    print(f"{len(host)} tests, {len(parted)} end otherwise with our classes.")
    return int(bool(parted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
