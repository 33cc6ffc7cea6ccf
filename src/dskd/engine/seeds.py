"""Seeds of the parts of a run, which draw numbers independently of each other."""

from __future__ import annotations

import numpy as np


def seed_of_part(seed: int, part: int) -> int:
    """A seed for one part of a run.

    Args:
        seed: Of the run.
        part: 1 for what the method adds to the student, and 2 for the training (of images: and more
            for further processes). Graphs and images with masks have 0 for the student's weights,
            and 3 for the teacher.

    Example:
        >>> seed_of_part(0, 1) != seed_of_part(0, 2)
        True
    """
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
