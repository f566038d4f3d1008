"""YAML as people write it: keys once, aliases within bounds, numbers with an exponent."""

import pytest

from hf_interp.utils.yaml_values import load_yaml, parse_mapping, with_numbers

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{step}: &a{step} [{', '.join([f'*a{step - 1}'] * 10)}]\n" for step in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nalpha: 0.5\nseed: 2\n", "the key 'seed' is given twice, again in line 3"),
        ("corpora:\n  domain: {path: a, 'path': b}", "the key 'path' is given twice, again in line 2"),
        (BOMB, "it holds more than 100000 values, or repeats itself without end"),
        ("a: &a [*a]", "or repeats itself without end"),
        ("[" * 5000, "it is nested too deeply"),
        ("seed: " + "9" * 5000, "Exceeds the limit"),
        ("a: [1,\nb: 2", "expected"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_document_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_yaml(text)


def test_aliases_and_merges_within_bounds_are_read() -> None:
    text = "base: &base {path: a, split: train}\ndomain: {<<: *base, path: b}\ntwice: [*base, *base]\n1: x\n'1': y\n"
    base = {"path": "a", "split": "train"}
    assert load_yaml(text) == {"base": base, "domain": {**base, "path": "b"}, "twice": [base, base], 1: "x", "1": "y"}
    assert load_yaml("") is None


def test_words_dates_and_codes_are_texts_as_they_are_written() -> None:
    text = "[no, ON, y, 2024-13-45, 2020-01-01, 1:30, 01, -1, 1_000, 0x10, 1.5, .5, -.inf, true, ~, null, NA, '']"
    numbers = [-1, 1000, 16, 1.5, 0.5, float("-inf"), True, None, None, "NA", ""]
    assert load_yaml(text) == ["no", "ON", "y", "2024-13-45", "2020-01-01", "1:30", "01", *numbers]


def test_mappings_and_numbers() -> None:
    assert with_numbers(parse_mapping("kwargs", "{rate: 1e-5, names: [1e3, e3]}")) == {
        "rate": 1e-5,
        "names": [1000.0, "e3"],
    }
    for text in ("rate", "{rate", "{rate: 1, rate: 2}"):
        with pytest.raises(ValueError, match="`kwargs` must be a mapping such as"):
            parse_mapping("kwargs", text)
