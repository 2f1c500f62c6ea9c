"""Two hundred damaged and foreign lists: each is read or refused in one line, at once, and nothing in it is run."""

import json
import random

import pytest

from refusals import within
from scripts.data.pairs import evaluation_pairs, training_pairs
from scripts.errors import InputError

INPUTS = 200
MARKER = "marker.txt"
VALUES = [
    "a.nii.gz", "b.nii.gz", "", " ", "x" * 300, "y/" * 3000, "~nobody_x/a.nii.gz", "../../../../../../etc/passwd",
    f"$__import__('pathlib').Path('{MARKER}').touch()", "@output_dir", "%a.json", "a\0.nii.gz", "\ud800", "a\nb", None,
    True, 0, -1.5, 10**300, 10**4000, float("nan"), float("inf"), [], {}, ["a.nii.gz"] * 3,
    {"_target_": "os.system", "command": f"touch {MARKER}"},
]  # fmt: skip
KEYS = ["fixed", "moving", "fixed_label", "moving_mask", "name", "fixed_subject", "image", "label", "time", "_target_"]


def value(chance, depth=0):
    """A value of any kind; seldom a nested one."""
    if depth < 3 and chance.random() < 0.1:
        return {chance.choice(KEYS): value(chance, depth + 1) for _ in range(3)}
    if depth < 3 and chance.random() < 0.05:
        return [value(chance, depth + 1) for _ in range(3)]
    return chance.choice(VALUES)


def entry(chance):
    """A pair, more or less."""
    found = {"fixed": "a.nii.gz", "moving": "b.nii.gz"}
    for _ in range(chance.choice([0, 0, 1, 3])):
        found[chance.choice(KEYS)] = value(chance)
    return found


def as_json(chance):
    entries = [entry(chance) for _ in range(chance.randrange(1, 4))]
    sections = ["registration_val", "training", "test", "labels", "name", chance.choice(KEYS)]
    section = chance.choice([*sections, "registration_val", "registration_val"])
    content = chance.choice([entries, {section: chance.choice([entries, entries, value(chance)])}])
    text = json.dumps(content)
    if chance.random() < 0.1:
        text = text.replace("{", '{"fixed": "c.nii.gz", ', 1)
    if chance.random() < 0.1:
        text = chance.choice(["[", '{"a":']) * chance.choice([10, 100_000])
    if chance.random() < 0.1:
        text = text.replace("0", "9" * 5000, 1)
    return text.encode(chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]), "replace")


def as_csv(chance):
    columns = ["fixed", " moving", *(chance.choice(["", *KEYS]) for _ in range(chance.choice([0, 0, 1, 3])))]
    chance.shuffle(columns)
    rows = [columns]
    for _ in range(chance.randrange(4)):
        pair = entry(chance)
        rows.append([str(pair.get(name.strip(), value(chance)))[:4000] for name in columns])
    comma = chance.choice([",", ",", ",", ";", "\t"])
    text = chance.choice(["\n", "\r\n", "\r", "\n\n"]).join(comma.join(row) for row in rows)
    if chance.random() < 0.2:
        text += chance.choice(['"', ",", '"' + "z" * 200_000, "\0", "\n,,,,"])
    return text.encode(chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]), "replace")


def damaged(chance, content):
    """Some bytes changed, cut off or doubled."""
    content = bytearray(content)
    for _ in range(chance.choice([0, 0, 0, 1, 5])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    if chance.random() < 0.2:
        del content[chance.randrange(len(content)) :]
    return bytes(content)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_fuzzed_lists(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        (tmp_path / name).touch()

    taken = refused = 0
    for number in range(INPUTS // 2):
        chance = random.Random(f"{kind} {number}")
        path = tmp_path / f"list.{kind}"
        path.write_bytes(damaged(chance, as_json(chance) if kind == "json" else as_csv(chance)))
        for read in (evaluation_pairs, training_pairs):
            try:
                with within(10):
                    pairs = read(path)
            except InputError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 1500 and text.split(":")[0], (number, text)
                refused += 1
            else:
                taken += 1
                assert all({"fixed", "moving", "name"} <= pair.keys() for pair in pairs), number
                assert len({pair["name"] for pair in pairs}) == len(pairs), number
    assert taken > 3 and refused > 50 and not (tmp_path / MARKER).exists()
