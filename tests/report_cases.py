"""Made-up registrations for the tests of the report."""

import numpy as np

from scripts.report import ReportData

SHAPE, SPACING = (12, 16, 10), (1.0, 2.0, 3.0)
KINDS = ["fixed", "moving", "moved", "checkerboard", "difference_before", "difference_after", "grid", "jacobian"]


def stages(*values):
    return dict(zip(("before", "affine", "final"), values, strict=True))


VERDICT = {
    "outcome": "CHECK",
    "doubt": 0.625,
    "reasons": [{"what": "In 71 % of the content nothing fits", "advice": "Compare the edges."}],
    "measures": {"settled": 0.29},
    "least_sure": "Structures may be off by 3.5 mm around voxel (1, 2, 3)",
}
METRICS = {
    "name": "pair",
    "fixed": {"path": "/data/a.nii.gz", "shape": [12, 16, 10], "spacing": [1.0, 2.0, 3.0], "axcodes": "RAS"},
    "moving": {"path": "/data/b.nii.gz", "shape": [20, 21, 22], "spacing": [0.5, 0.5, 1.25], "axcodes": "LPS"},
    "initialisation": {"method": "moments", "translation_mm": [1.5, -2.0, 0.25]},
    "affine": {"matrix_ras": [[1.0, 0.0], [0.0, 1.5]], "found_by": "engine", "steps_kept": 7},
    "similarity": {"ncc": stages(0.41237, 0.7, 0.93456), "mk_lncc": stages(0.2, 0.3, 0.4)},
    "folds": 17,
    "jacobian": {"min": -0.1234, "max": 2.5, "std_log": 0.125},
    "inverse_consistency_mm": {"mean": 0.0421, "max": 0.777},
    "labels": {"1": {"dice": stages(0.5111, 0.6, 0.8222), "hd95": stages(9.0, 5.0, 1.25)},
        "mean": {"dice": stages(0.5, 0.6, 0.8333), "hd95": stages(8.0, 5.0, float("nan"))}},
    "optimisation": {"evaluations": [50, 20], "before": 0.4444, "after": 0.3333},
    "seconds": {"read": 0.5, "network": 1.75, "total": 2.25},
    "versions": {"avsm": "0.2.0", "torch": "2.6.1"},
    "weights_sha256": "abcdef0123456789",
    "seed": 42,
    "settings": {"device": "cpu", "field_spacing": 2.5, "grid": None},
    "verdict": VERDICT,
    "warnings": [],
}  # fmt: skip


def index(shape=SHAPE):
    return np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))


def block(shape=SHAPE, low=0.25, high=0.6):
    label = np.zeros(shape, dtype=np.uint8)
    label[tuple(slice(int(low * n), max(int(high * n), int(low * n) + 1)) for n in shape)] = 3
    return label


def example(shape=SHAPE, **more):
    draw = np.random.default_rng(0)
    volumes = {name: draw.uniform(size=shape).astype(np.float32) for name in ("fixed", "moving", "moved")}
    settings = {
        "name": "pair", **volumes, "voxel_map": index(shape), "jacobian": draw.uniform(0.7, 1.4, size=shape),
        "spacing": SPACING, "orientation": "RAS", "metrics": METRICS,
    }  # fmt: skip
    return ReportData(**(settings | more))


def labelled(shape=SHAPE, **more):
    labels = dict.fromkeys(("fixed_label", "moving_label", "moved_label"), block(shape))
    return example(shape, **(labels | {"mask": block(shape, 0.1, 0.9) > 0} | more))


ODD = {
    "plain": lambda: example(),
    "no metrics": lambda: example(metrics={}),
    "labels": lambda: labelled(),
    "fixed label only": lambda: example(fixed_label=block()),
    "moved label only": lambda: example(moved_label=block()),
    "mask only": lambda: example(mask=block() > 0),
    "empty label and mask": lambda: example(fixed_label=np.zeros(SHAPE), mask=np.zeros(SHAPE, bool)),
    "constant": lambda: example(**{n: np.full(SHAPE, 5, np.int16) for n in ("fixed", "moving", "moved")}),
    "constant difference": lambda: example(fixed=np.zeros(SHAPE), moving=np.ones(SHAPE), moved=np.ones(SHAPE)),
    "flat Jacobian": lambda: example(jacobian=np.ones(SHAPE)),
    "all folded": lambda: example(jacobian=-np.ones(SHAPE), voxel_map=index()[:, ::-1]),
    "wild map": lambda: example(voxel_map=index() * 1e6 - 1e5),
    "point map": lambda: example(voxel_map=index() * 0),
    "few slices": lambda: labelled((64, 64, 2), spacing=(0.4, 0.4, 6.0)),
    "tiny": lambda: labelled((2, 2, 2)),
    "long": lambda: labelled((4, 4, 300), orientation="PIR"),
}
