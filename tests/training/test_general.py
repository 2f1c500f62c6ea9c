"""The recipe of the default network on the real data: every source gives pairs on its grid, as it was asked for."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

import tiny_bundle as tiny
from scripts.data.augmented import field_of_view

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def mixture():
    root = Path(os.environ["AVSM_DATA"])
    parser = ConfigParser()
    parser.read_config([tiny.CONFIGS / "train.json", tiny.CONFIGS / "general.json"])
    parser.update(
        {
            "bundle_root": str(tiny.BUNDLE),
            "dataset_dir": str(root / "Task04_Hippocampus"),
            "knee_labels": str(root / "knee_labels" / "pymskt_dess_right_label.nrrd"),
            "brains": str(root / "brain_templates"),
        }
    )
    return parser.get_parsed_content("train#dataset")


def test_all_sources_give_pairs_and_only_those_with_labels_show_them(mixture):
    seen, known, sums = Counter(), 0, set()
    for index in range(40):
        source, _ = mixture.drawn(index)
        item = mixture[index]
        seen[source] += 1
        sums.add(float(item["fixed"].sum()))
        known += int(item["affine"].isfinite().all())
        for role in ("fixed", "moving"):
            image = item[role]
            assert image.shape == (1, 48, 64, 48) and image.dtype == torch.float32 and image.isfinite().all()
            assert image.std() > 0.02 and image.min() > -0.5 and image.max() < 1.5
            # Noise leaves what was not seen alone.
            assert (image[item[f"{role}_mask"] == 0] == 0).all() and field_of_view(image).mean() > 0.05
            assert bool(item[f"{role}_label"].any()) == mixture.labels[source]
    assert len(sums) == 40
    assert set(seen) == set(range(len(mixture.sources))) and 4 < known < 24
