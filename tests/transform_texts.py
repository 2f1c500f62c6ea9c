"""Texts of ITK transforms that the tests of readers share."""

HEAD = "#Insight Transform File V1.0\n#Transform 0\n"
AFFINE_LINE = "Transform: AffineTransform_double_3_3\n"
NUMBERS = "Parameters: 1.1 0 0 0 0.9 0 0 0 1 5 6 7\n"
CENTRE = "FixedParameters: 10 20 30\n"
WHOLE = HEAD + AFFINE_LINE + NUMBERS + CENTRE
VERSOR = HEAD + "Transform: VersorRigid3DTransform_double_3_3\nParameters: {} 1 2 3\n" + CENTRE
EULER = HEAD + "Transform: Euler3DTransform_double_3_3\nParameters: 0.1 0.2 0.3 1 2{}\nFixedParameters: 0 0 0{}\n"

GOOD_TEXTS = {
    "plain": WHOLE,
    "fixed first": HEAD + AFFINE_LINE + CENTRE + NUMBERS,
    "line ends of Windows": WHOLE.replace("\n", "\r\n"),
    "blank lines": WHOLE.replace("\n", "\n\n"),
    "no first line": AFFINE_LINE + NUMBERS + CENTRE,
    "float": WHOLE.replace("double", "float"),
    "old name": WHOLE.replace("AffineTransform", "MatrixOffsetTransformBase"),
    "Euler": EULER.format(" 3", " 0"),
    "Euler of ITK 3": EULER.format(" 3", ""),
    "Euler ZYX": EULER.format(" 3", " 1"),
    "versor": VERSOR.format("0.1 0.2 0.3"),
    "quaternion": HEAD
    + "Transform: QuaternionRigidTransform_double_3_3\nParameters: 0.1 0.2 0.3 0.927361849549570 1 2 3\n"
    + CENTRE,
    "translation": HEAD + "Transform: TranslationTransform_double_3_3\nParameters: 1 2 3\nFixedParameters:\n",
    "identity": HEAD + "Transform: IdentityTransform_double_3_3\nParameters:\nFixedParameters:\n",
    "scale": HEAD + "Transform: ScaleTransform_double_3_3\nParameters: 1.1 0.9 1.2\n" + CENTRE,
    "composite": HEAD
    + "Transform: CompositeTransform_double_3_3\n#Transform 1\n"
    + AFFINE_LINE
    + NUMBERS
    + CENTRE
    + EULER.format(" 3", " 0")[len(HEAD) :],
}
