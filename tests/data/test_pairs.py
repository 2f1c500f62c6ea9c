import json
import os
from pathlib import Path

import pytest

from scripts.data.lists import find_datalist, name_pairs
from scripts.data.pairs import (
    cross_subject_pairs,
    evaluation_pairs,
    longitudinal_pairs,
    read_datalist,
    split_subjects,
    training_pairs,
)
from scripts.errors import InputError

CASES = ("a", "b", "c", "d")


def make_files(root, names=CASES, labels=CASES):
    for folder, stems in (("imagesTr", names), ("labelsTr", labels)):
        (root / folder).mkdir(exist_ok=True)
        for stem in stems:
            (root / folder / f"{stem}.nii.gz").touch()


def write(root, content, name="dataset.json"):
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root / name


def entry(stem, **more):
    return {"image": f"./imagesTr/{stem}.nii.gz", **more}


def images(subjects, visits=1):
    return [
        {"image": f"/data/s{s}_{v}.nii.gz", "label": f"/labels/s{s}_{v}.nii.gz", "subject": f"s{s}", "time": v}
        for s in range(subjects)
        for v in range(visits)
    ]


def keys(pairs):
    return [(pair["fixed"], pair["moving"]) for pair in pairs]


def test_learn2reg_json(tmp_path):
    make_files(tmp_path, labels=("a", "b", "c"))
    (tmp_path / "elsewhere.nii.gz").touch()
    write(tmp_path, {"name": "X", "relase": "1.0", "numRegistration_val": 1,
        "training": [entry("a", label="elsewhere.nii.gz"), "imagesTr/b.nii.gz", entry("c", subject="p", time=2)],
        "registration_val": [{"fixed": "imagesTr/a.nii.gz", "moving": "./imagesTr/c.nii.gz"},
        {"fixed": "imagesTr/c.nii.gz", "moving": "imagesTr/d.nii.gz"}]})  # fmt: skip
    found = read_datalist(tmp_path)
    assert found["training"] == [
        {"image": f"{tmp_path}/imagesTr/a.nii.gz", "label": f"{tmp_path}/elsewhere.nii.gz", "subject": "a"},
        {"image": f"{tmp_path}/imagesTr/b.nii.gz", "subject": "b"},
        {"image": f"{tmp_path}/imagesTr/c.nii.gz", "subject": "p", "time": 2},
    ]
    first, second = found["registration_val"]
    assert first == {
        "fixed": f"{tmp_path}/imagesTr/a.nii.gz",
        "moving": f"{tmp_path}/imagesTr/c.nii.gz",
        "fixed_label": f"{tmp_path}/elsewhere.nii.gz",  # what training lists goes before the folder layout
        "moving_label": f"{tmp_path}/labelsTr/c.nii.gz",
        "name": "c_to_a",
    }
    assert "moving_label" not in second and evaluation_pairs(tmp_path, limit=1) == [first]
    assert evaluation_pairs(tmp_path / "dataset.json") == [first, second]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_plain_list_of_pairs(tmp_path, kind):
    make_files(tmp_path)
    if kind == "json":
        rows = [
            {"fixed": "imagesTr/a.nii.gz", "moving": "imagesTr/b.nii.gz", "name": "first"},
            {"fixed": "imagesTr/c.nii.gz", "moving": "imagesTr/d.nii.gz", "fixed_label": "labelsTr/a.nii.gz"},
        ]
        path = write(tmp_path, rows, "list.json")
    else:
        text = (
            "fixed,moving,fixed_label,name\nimagesTr/a.nii.gz,imagesTr/b.nii.gz,,first\n"
            "imagesTr/c.nii.gz,imagesTr/d.nii.gz,labelsTr/a.nii.gz,\n"
        )
        path = write(tmp_path, text, "list.csv")
    first, second = evaluation_pairs(path)
    assert (first["name"], second["name"]) == ("first", "d_to_c")
    assert first["fixed_label"] == f"{tmp_path}/labelsTr/a.nii.gz"
    assert second["fixed_label"] == f"{tmp_path}/labelsTr/a.nii.gz" and training_pairs(path) == [first, second]
    assert training_pairs(path, count=1, seed=3) == training_pairs(path, count=1, seed=3)
    with pytest.raises(InputError, match="cannot be split"):
        training_pairs(path, holdout_fraction=0.5)


PAIR = {"fixed": "imagesTr/a.nii.gz", "moving": "imagesTr/b.nii.gz"}
BAD_LISTS = [
    ("not json", "dataset.json", "{", "not JSON"),
    ("unknown top key", "dataset.json", {"trainings": []}, "unknown key 'trainings'"),
    ("no list", "dataset.json", {"registration_val": {}}, "dict found where a list is needed"),
    ("no object", "list.json", [3], "is not an object"),
    ("kind", "list.txt", "fixed,moving\n", "unknown kind of data list '.txt'"),
    ("absent section", "dataset.json", {"training": [entry("a")]}, "'registration_val': absent or empty"),
    ("unknown key", "dataset.json", {"registration_val": [{**PAIR, "fix": 1}]},
        r"registration_val\[0\]: unknown key 'fix'"),
    ("missing key", "dataset.json", {"registration_val": [{"fixed": PAIR["fixed"]}]}, "'moving' is missing"),
    ("absent file", "dataset.json", {"registration_val": [{**PAIR, "moving": "x.nii.gz"}]},
        r"x\.nii\.gz does not exist"),
    ("absent label", "list.json", [{**PAIR, "fixed_label": "y.nii.gz"}], r"pair 0\.fixed_label.*y\.nii\.gz does not"),
    ("same name", "list.json", [{**PAIR, "name": "n"}] * 2, "'n' occurs twice"),
    ("bad name", "list.json", [{**PAIR, "name": "../n"}], "cannot be a file name"),
    ("csv cells", "list.csv", "fixed,moving\na,b,c\n", "row 2: it has more or fewer cells"),
    ("csv column twice", "list.csv", "fixed,moving, fixed\na,b,c\n", "column 'fixed' is there 2 times"),
    ("csv long cell", "list.csv", f"fixed,moving\n{'x' * 200_000},b\n", "field larger than field limit"),
    ("key twice", "list.json", '[{"fixed": "a", "moving": "b", "fixed": "c"}]', "'fixed' is there 2 times"),
    ("huge number", "list.json", f'[{{"fixed": {"9" * 5000}}}]', "not JSON"),
    ("deep", "list.json", "[" * 100_000, "nested too deeply"),
    ("nul", "list.json", [{**PAIR, "fixed": "a\0b"}], "does not exist"),
    ("subject", "list.json", [{**PAIR, "fixed_subject": {"a": 1}}], "is no subject"),
    *((f"name {words}", "list.json", [{**PAIR, "name": name}], words) for name,
        words in (("n" * 300, "longer than 240 bytes"), ("ä" * 130, "longer than 240 bytes"),
        ("pairs.csv", "that of a file of results"), ("Failed_3.json", "that of a file of results"),
        ("mlruns", "that of a file of results"), ("a\x07", "cannot be a file name"),
        ("$(touch x)", "cannot be a file name"), ("\ud800", "cannot be a file name"), ("  ", "cannot be a file name"))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), [c[1:] for c in BAD_LISTS], ids=[c[0] for c in BAD_LISTS])
def test_bad_list_is_named(tmp_path, name, content, words):
    make_files(tmp_path)
    path = write(tmp_path, content, name)
    with pytest.raises(InputError, match=words) as caught:
        evaluation_pairs(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 + len(str(path))


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_byte_order_mark_is_no_fault(tmp_path, kind):
    make_files(tmp_path)
    text = json.dumps([PAIR]) if kind == "json" else f"fixed,moving\n{PAIR['fixed']},{PAIR['moving']}\n"
    path = tmp_path / f"list.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert evaluation_pairs(path) == evaluation_pairs(write(tmp_path, text, f"plain.{kind}"))


def test_a_list_that_is_no_file(tmp_path):
    """A pipe, which would never end, a folder, a file of any length."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.json").mkdir()
    with open(tmp_path / "sparse.json", "wb") as stream:
        stream.truncate(1 << 36)
    for name, words in (
        ("pipe.csv", "no regular file"),
        ("folder.json", r"no dataset\.json in this folder"),
        ("sparse.json", "68719476736 bytes are no list"),
        ("absent.csv", "list of pairs does not exist"),
        ("absent", "data set folder does not exist"),
        ("x" * 5000, "data set folder does not exist"),
        ("~nobody_x/list.csv", "no such user's home"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            find_datalist(tmp_path / name if not name.startswith("~") else name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_equal_pairs_are_numbered_at_once(tmp_path):
    """Their number must not count twice: a hundred thousand took hours."""
    make_files(tmp_path)
    pairs = name_pairs([{key: str(tmp_path / value) for key, value in PAIR.items()}] * 30_000)
    assert [pairs[0]["name"], pairs[1]["name"], pairs[-1]["name"]] == ["b_to_a", "b_to_a_2", "b_to_a_30000"]


BAD_TRAINING = [
    ("unknown key", [entry("a", lable="x")], {}, "unknown key 'lable'"),
    ("twice", [entry("a"), entry("a")], {}, "listed twice"),
    ("no image", [{"label": "labelsTr/a.nii.gz"}], {}, "'image' is missing"),
    ("none", [entry("a"), entry("b")], {"mode": "longitudinal"}, "no longitudinal pairs exist"),
    ("part", [entry("a"), entry("b")], {"part": "val"}, "part='val'"),
    ("holdout of nothing", [entry("a"), entry("b")], {"part": "holdout"}, "holdout_fraction=0"),
    ("time", [entry("a", time="old")], {}, "'old' is not a number"),
    ("count", [entry("a"), entry("b")], {"count": 3}, "count=3 cross-subject pairs asked for but only 2 exist"),
    ("mode", [entry("a"), entry("b")], {"mode": "all"}, "mode='all'"),
    ("fraction", [entry("a"), entry("b")], {"holdout_fraction": 1.5}, "holdout_fraction=1.5"),
    ("all held out", [entry("a"), entry("b")], {"holdout_fraction": 0.9}, "leaves none for training"),
]


@pytest.mark.parametrize(("entries", "more", "words"), [c[1:] for c in BAD_TRAINING], ids=[c[0] for c in BAD_TRAINING])
def test_bad_training_request(tmp_path, entries, more, words):
    make_files(tmp_path)
    write(tmp_path, {"training": entries})
    with pytest.raises(InputError, match=words):
        training_pairs(tmp_path, **more)


def test_cross_subject_pairs():
    listed = images(5, visits=2)
    everything = cross_subject_pairs(listed)
    expected = {(a["image"], b["image"]) for a in listed for b in listed if a["subject"] != b["subject"]}
    assert set(keys(everything)) == expected and len(everything) == len(expected) == 80
    assert len({pair["name"] for pair in everything}) == 80

    some = cross_subject_pairs(listed, 20, seed=4)
    assert some == cross_subject_pairs(listed, 20, seed=4) and some != cross_subject_pairs(listed, 20, seed=5)
    assert len(set(keys(some))) == 20 and {(m, f) for f, m in keys(some)} == set(keys(some))
    assert len(cross_subject_pairs(listed, 7)) == 7
    assert some[0]["fixed_label"].replace("labels", "data") == some[0]["fixed"]

    single = everything[::2]
    assert not {(m, f) for f, m in keys(single)} & set(keys(single))
    with pytest.raises(InputError, match="only 80 exist"):
        cross_subject_pairs(listed, 81)
    with pytest.raises(InputError, match="count=0"):
        cross_subject_pairs(listed, 0)


def test_cross_subject_pairs_of_unequal_groups_are_found_once():
    listed = [*images(1, visits=4), *images(3)[1:]]
    assert len(set(keys(cross_subject_pairs(listed)))) == 2 * (4 + 4 + 1)


def test_longitudinal_pairs():
    listed = images(4, visits=3)[::-1]
    everything = longitudinal_pairs(listed)
    assert len(set(keys(everything))) == 4 * 6
    assert all(pair["fixed_subject"] == pair["moving_subject"] for pair in everything)
    assert {(m, f) for f, m in keys(everything)} == set(keys(everything))
    forward = everything[::2]
    assert len(forward) == 12
    assert all(pair["fixed"] < pair["moving"] for pair in forward)  # earlier visit fixed, though listed last
    assert longitudinal_pairs(listed, 6, seed=1) == longitudinal_pairs(listed, 6, seed=1)
    with pytest.raises(InputError, match="only 24 exist"):
        longitudinal_pairs(listed, 25)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5])
def test_split_leaks_no_subject(fraction):
    listed = images(20, visits=3)
    train, held = split_subjects(listed, fraction, seed=2)
    a, b = ({item["subject"] for item in part} for part in (train, held))
    assert not a & b and len(train) + len(held) == 60
    assert len(b) == (0 if fraction == 0 else max(1, round(20 * fraction)))
    assert {item["subject"] for item in split_subjects(listed[::-1], fraction, seed=2)[1]} == b


def test_training_pairs_parts_share_no_subject(tmp_path):
    stems = [f"p{s}_{v}" for s in range(10) for v in range(2)]
    make_files(tmp_path, stems, stems)
    write(tmp_path, {"training": [entry(stem, subject=stem.split("_")[0]) for stem in stems]})

    def subjects(pairs):
        return {pair[f"{role}_subject"] for pair in pairs for role in ("fixed", "moving")}

    for mode in ("cross_subject", "longitudinal", "both"):
        # different pair seeds must not move the border between the parts
        train = training_pairs(tmp_path, mode=mode, seed=1, holdout_fraction=0.3)
        held = training_pairs(tmp_path, mode=mode, seed=2, holdout_fraction=0.3, part="holdout")
        assert len(subjects(train)) == 7 and len(subjects(held)) == 3 and not subjects(train) & subjects(held)
    both = training_pairs(tmp_path, mode="both", count=13)
    assert sum(pair["fixed_subject"] == pair["moving_subject"] for pair in both) == 6 and len(both) == 13


@pytest.mark.data
def test_hippocampus():
    root = Path(os.environ["AVSM_DATA"]) / "Task04_Hippocampus"
    pairs = evaluation_pairs(root)
    assert len(pairs) == 30 and all("fixed_label" in pair and "moving_label" in pair for pair in pairs)
    assert len(training_pairs(root, count=2000, holdout_fraction=0.1)) == 2000
