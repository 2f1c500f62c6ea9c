"""The average of images: in the middle of them, whatever their order, sharp, resumed, with labels."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

import scripts as avsm
from scripts.cli import main
from scripts.errors import InputError
from world_cases import sitk_points

SHAPE = (26, 30, 24)


def bent(seed, flip=1):
    """One body bent otherwise for each seed, with a label, on a grid of its own."""
    random = np.random.default_rng(seed)
    at = np.stack(np.indices(SHAPE)).astype(float)
    bend = np.stack([gaussian_filter(random.normal(size=SHAPE), 5) for _ in range(3)])
    at += 3.0 * bend / np.abs(bend).max()
    texture = gaussian_filter(np.random.default_rng(99).normal(size=SHAPE), 1.5)
    centred = [(axis - (n - 1) / 2) / (n / 3) for axis, n in zip(np.indices(SHAPE), SHAPE, strict=True)]
    body = sum(np.square(axis) for axis in centred) < 1
    image = gaussian_filter((body * (2 + 8 * texture)).astype(float), 0.6)
    moved, label = (map_coordinates(one, at, order=1) for one in (image, body.astype(float)))
    affine = np.diag([flip * 1.5, 1.5, 1.8, 1.0])
    affine[:3, 3] = random.normal(size=3) * 20
    return nib.Nifti1Image((500 * moved).astype(np.float32), affine), nib.Nifti1Image(
        (label > 0.5).astype(np.uint8), affine
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(3):
        image, label = bent(seed)
        nib.save(image, folder / f"s{seed}.nii.gz")
        nib.save(label, folder / f"l{seed}.nii.gz")
    rows = [f"s{seed}.nii.gz,l{seed}.nii.gz,p{seed}" for seed in range(3)]
    for name, order in (("list.csv", 1), ("reversed.csv", -1)):
        (folder / name).write_text("image,label,name\n" + "\n".join(rows[::order]) + "\n")
    return folder


@pytest.fixture(scope="module")
def built(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("average") / "out"
    words = ["--images", str(files / "list.csv"), "--output", str(folder), "--rounds", "1", "--threads", "1"]
    assert main(["template", *words]) == 0
    return folder


def test_the_average_is_in_the_middle_of_its_images_as_written(built):
    template = nib.load(built / "template.nii.gz")
    inside = np.argwhere(template.get_fdata() > template.get_fdata().mean())[::97] + 0.3
    points = nib.affines.apply_affine(template.affine, inside)
    places = [sitk_points(sitk.ReadTransform(built / f"p{seed}" / "transform.h5"), points) for seed in range(3)]
    assert np.linalg.norm(np.mean(places, axis=0) - points, axis=1).max() < 0.1
    back = sitk_points(sitk.ReadTransform(built / "p1" / "inverse_transform.h5"), places[1])
    assert np.linalg.norm(back - points, axis=1).max() < 0.3
    facts = json.loads((built / "template.json").read_text())
    assert [one["kind"] for one in facts["rounds"]] == ["rigid", "deformable"]
    assert facts["rounds"][-1]["mean_displacement_mm"] < 0.1


def test_rounds_make_it_sharper_and_labels_meet(built, files):
    rounds = json.loads((built / "template.json").read_text())["rounds"]
    assert rounds[-1]["mean_gradient"] > rounds[0]["mean_gradient"]
    won = nib.load(built / "label.nii.gz").get_fdata() > 0
    for seed in range(3):
        label = nib.load(built / f"p{seed}" / "moved_label.nii.gz").get_fdata() > 0
        assert 2 * (won & label).sum() / (won.sum() + label.sum()) > 0.93
    deviation = nib.load(built / "deviation.nii.gz").get_fdata()
    assert 0 < deviation.max() < 0.5


def test_no_order_of_the_images_is_preferred(built, files, tmp_path):
    words = [
        "--images", str(files / "reversed.csv"), "--output", str(tmp_path / "out"), "--rounds", "1", "--threads", "1",
    ]  # fmt: skip
    assert main(["template", *words]) == 0
    one, other = (nib.load(folder / "template.nii.gz").get_fdata() for folder in (built, tmp_path / "out"))
    np.testing.assert_allclose(one, other, atol=1e-3 * one.max())


def test_what_is_done_is_not_done_again(built, files, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("registered again")

    before = nib.load(built / "template.nii.gz").get_fdata()
    (built / "template.json").unlink()
    monkeypatch.setattr("scripts.registration.registrar.Registrar.accepted", never)
    words = ["--images", str(files / "list.csv"), "--output", str(built), "--rounds", "1", "--threads", "1"]
    assert main(["template", *words]) == 0
    np.testing.assert_array_equal(nib.load(built / "template.nii.gz").get_fdata(), before)
    # Other settings, or names that have changed hands.
    (files / "exchanged.csv").write_text("image,name\ns0.nii.gz,p1\ns1.nii.gz,p0\ns2.nii.gz,p2\n")
    for other in (["--average", "mean"], ["--images", str(files / "exchanged.csv")]):
        with pytest.raises(AssertionError, match="registered again"):
            main(["template", *words, *other])


def test_nothing_of_an_earlier_run_is_left(files, tmp_path):
    words = ["--output", str(tmp_path), "--transform", "rigid", "--spacing", "4", "--threads", "1"]
    assert main(["template", "--images", str(files / "list.csv"), *words]) == 0
    (tmp_path / "p1" / "mine.txt").write_text("kept")
    assert main(["template", str(files / "s0.nii.gz"), str(tmp_path / "p2" / "moved.nii.gz"), *words]) == 0
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    left = {name for name in left if not name.startswith("rounds")}
    each = {"transform.h5", "inverse_transform.h5", "moved.nii.gz", "jacobian.nii.gz"}
    written = {f"{name}/{file}" for name in ("s0", "moved") for file in each}
    assert left == written | {
        "template.nii.gz", "deviation.nii.gz", "template.json", "p1/mine.txt", "p2/moved.nii.gz"
    }  # fmt: skip


@pytest.mark.parametrize("average", ["mean", "median"])
def test_kinds_of_averages(files, tmp_path, average):
    words = [str(files / f"s{seed}.nii.gz") for seed in range(2)]
    words += ["--output", str(tmp_path / "out"), "--transform", "rigid", "--average", average, "--spacing", "2"]
    assert main(["template", *words, "--threads", "1"]) == 0
    moved = [nib.load(tmp_path / "out" / f"s{seed}" / "moved.nii.gz").get_fdata() for seed in range(2)]
    template = nib.load(tmp_path / "out" / "template.nii.gz")
    expected = {"mean": np.mean, "median": np.median}[average](moved, axis=0)
    assert np.corrcoef(expected.ravel(), template.get_fdata().ravel())[0, 1] > 0.99
    assert template.header.get_zooms() == (2, 2, 2) and not (tmp_path / "out" / "label.nii.gz").exists()


@pytest.mark.parametrize(("average", "cut"), [("mean", 1), ("median", 1), ("mean", 2), ("median", 2)])
def test_where_an_image_ends_the_others_count_unless_they_are_few(files, tmp_path, average, cut):
    whole = nib.load(files / "s0.nii.gz")
    names = [f"cut{number}" for number in range(cut)]
    for name in names:
        nib.save(whole.slicer[:, :, :18], tmp_path / f"{name}.nii.gz")
    words = [str(files / "s0.nii.gz"), *(str(tmp_path / f"{name}.nii.gz") for name in names)]
    words += ["--output", str(tmp_path / "out"), "--transform", "rigid", "--average", average, "--threads", "1"]
    assert main(["template", *words]) == 0
    template, moved = (nib.load(tmp_path / "out" / name).get_fdata() for name in ("template.nii.gz", "s0/moved.nii.gz"))
    dark = [nib.load(tmp_path / "out" / name / "moved.nii.gz").get_fdata() == 0 for name in names]
    beyond = np.all(dark, axis=0) & (moved > np.percentile(moved, 90))
    assert beyond.sum() > 50
    expected = moved[beyond].mean() if cut == 1 else template.min()
    assert template[beyond].mean() == pytest.approx(expected, rel=0.1)


def test_an_end_of_the_images_does_not_weaken_the_sharpening(tmp_path):
    bright = 9 + gaussian_filter(np.random.default_rng(7).normal(size=SHAPE), 1.5)
    for name in "ab":
        nib.save(nib.Nifti1Image(bright.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    slopes = []
    for average in ("mean", "sharpened"):
        words = [str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"), "--output", str(tmp_path / average)]
        assert main(["template", *words, "--transform", "rigid", "--average", average, "--threads", "1"]) == 0
        middle = nib.load(tmp_path / average / "template.nii.gz").get_fdata()[8:-8, 8:-8, 8:-8]
        slopes.append(np.linalg.norm(np.gradient(middle), axis=0).mean())
    assert slopes[1] > 1.1 * slopes[0]


BAD = {
    "one image": (["s0.nii.gz"], "needs at least two images, got 1; give more"),
    "missing": (["s0.nii.gz", "no.nii.gz"], "no.nii.gz: file does not exist"),
    "no column": (["--images", "odd.csv"], "has the columns file; its first line must be image,label,name"),
    "misspelt": (["--images", "lable.csv"], "has the columns image, lable; its first line must be image,label,name"),
    "taken": (["--images", "taken.csv"], "the name 'rounds' occurs twice or cannot be a folder's"),
    "both": (["s0.nii.gz", "--images", "list.csv"], "give images, or --images"),
    "a name twice": (["--images", "twice.csv"], "the name 'a' occurs twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(files, tmp_path, capsys, name):
    (files / "odd.csv").write_text("file\na\n")
    (files / "twice.csv").write_text("image,name\ns0.nii.gz,a\ns1.nii.gz,a\n")
    (files / "lable.csv").write_text("image,lable\ns0.nii.gz,l0.nii.gz\ns1.nii.gz,l1.nii.gz\n")
    (files / "taken.csv").write_text("image,name\ns0.nii.gz,rounds\ns1.nii.gz,a\n")
    words, message = BAD[name]
    words = [word if word.startswith("--") else str(files / word) for word in words]
    try:
        status = main(["template", *words, "--output", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    assert status and message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"average": "nope"}, "average='nope': give one of sharpened"), ({"rounds": 0}, "rounds=0: give a whole number"),
     ({"spacing": -1}, "spacing=-1: give a number from"), ({"spacing": 0.01}, "give a larger spacing"),
     ({"transform": "similarity"}, "transform='similarity': give one of rigid"),
     ({"preset": "affine-opt"}, "preset='affine-opt': give one of fast")],
)  # fmt: skip
def test_options_in_python_are_refused_as_on_the_command_line(files, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        avsm.template([files / "s0.nii.gz", files / "s1.nii.gz"], tmp_path / "out", **options)


def test_images_in_memory_are_refused(tmp_path):
    with pytest.raises(InputError, match="images: give files, or dictionaries"):
        avsm.template([(np.zeros((4, 4, 4)), np.eye(4))] * 2, tmp_path / "out")
