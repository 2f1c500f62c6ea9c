"""Names of the cases of `speed.py`: every piece, the whole, and what has no counterpart in the reference."""

PIECES = (
    "affine pass",
    "affine 7 passes",
    "momentum forward",
    "momentum forward+backward",
    *(
        f"{piece}{suffix}"
        for piece in ("smoother", "integrator", "up-sampling", "warp", "mk-LNCC")
        for suffix in ("", " forward+backward")
    ),
)
WHOLE = ("inference 7+2", "inference 7+3", "training affine 3", "training vsvf 2")
EXTRA = ("inference 7+2 blocks",)
CASES = (*PIECES, *WHOLE, *EXTRA)
