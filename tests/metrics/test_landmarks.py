"""Target registration error."""

import numpy as np
import pytest

from scripts.errors import InputError
from scripts.formats.points import Points
from scripts.metrics import target_registration_error
from scripts.spatial.resampling import OutsideFieldWarning
from scripts.spatial.transform import WorldTransform
from world_cases import AFFINE, FRAMES, displacement, some_points


@pytest.mark.parametrize(("fixed", "moving"), FRAMES.values(), ids=FRAMES)
def test_zero_for_the_true_transform_in_its_direction(fixed, moving):
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement())
    points = some_points(fixed)
    pair = Points(points), Points(transform.apply(points))
    assert target_registration_error(*pair, [transform])["max"] < 1e-9
    before = target_registration_error(*pair)
    assert before["max"] == pytest.approx(np.linalg.norm(points - transform.apply(points), axis=1).max())
    assert before["max"] > 0.3


def test_figures():
    fixed = Points(np.zeros((4, 3)))
    moving = Points([[3, 4, 0], [0, 0, 1], [0, 2, 0], [0, 0, 0]])
    assert target_registration_error(fixed, moving) == pytest.approx(
        {"count": 4, "mean": 2.0, "std": np.std([5, 1, 2, 0], ddof=1), "median": 1.5, "max": 5.0}
    )
    assert target_registration_error(Points([[0, 0, 0]]), Points([[0, 0, 2]]))["std"] == 0
    shift = WorldTransform(np.array([[1, 0, 0, 3.0], [0, 1, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1]]))
    back = WorldTransform(np.linalg.inv(shift.linear))
    assert target_registration_error(fixed, moving, [shift])["max"] == pytest.approx(np.sqrt(26))
    assert target_registration_error(fixed, moving, [shift, back])["max"] == pytest.approx(5)


def test_outside_is_told():
    fixed, moving = FRAMES["shifted"]
    transform = WorldTransform.from_network(fixed, moving, AFFINE, displacement())
    with pytest.warns(OutsideFieldWarning, match="1 of 1 points"):
        target_registration_error(Points([[900, 0, 0]]), Points([[0, 0, 0]]), [transform])


BAD = {
    "other order": (Points(np.eye(3), ("a", "b", "c")), Points(np.eye(3), ("a", "c", "b")), "point 1 is 'b' and 'c'"),
    "counts": (Points(np.eye(3)), Points(np.zeros((2, 3))), "got 3 and 2"),
    "none": (Points(np.zeros((0, 3))), Points(np.zeros((0, 3))), "at least one"),
}


@pytest.mark.parametrize(("fixed", "moving", "message"), BAD.values(), ids=BAD)
def test_bad_input(fixed, moving, message):
    with pytest.raises(InputError, match=message):
        target_registration_error(fixed, moving)
