"""Tables of label ids: each covers what its data set defines."""

from __future__ import annotations

import numpy as np
import pytest

from tmt_d2.data.datasets.bdd100k import BDD100K
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.datasets.gtav import GTAV
from tmt_d2.data.datasets.label_spaces import CLASSES, IGNORE, OUTSIDE, PALETTE, TRAIN_IDS, LabelSpace
from tmt_d2.data.datasets.mapillary import MAPILLARY_A, MAPILLARY_B
from tmt_d2.data.datasets.synthia import SYNTHIA, SYNTHIA_13, SYNTHIA_16

ALL_SPACES = (CITYSCAPES, TRAIN_IDS, BDD100K, MAPILLARY_A, MAPILLARY_B, GTAV, SYNTHIA)


@pytest.mark.parametrize("space", ALL_SPACES, ids=lambda space: space.name)
def test_a_table_covers_what_the_data_set_defines_and_nothing_else(space: LabelSpace) -> None:
    table = space.lookup()
    assert not set(space.train_ids) & space.ignored
    assert {value for value in range(256) if table[value] != OUTSIDE} == set(space.train_ids) | space.ignored
    assert set(table[sorted(space.train_ids)].tolist()) == set(range(19))


def test_the_two_mapillary_mappings_differ_in_eleven_ids() -> None:
    a, b = MAPILLARY_A.lookup(), MAPILLARY_B.lookup()
    assert np.flatnonzero(a != b).tolist() == [7, 8, 9, 10, 11, 14, 23, 41, 44, 46, 49]
    assert (a[41], b[41]) == (0, IGNORE)


def test_the_subsets_of_synthia() -> None:
    assert [CLASSES[i] for i in SYNTHIA.never_occurs] == ["terrain", "truck", "train"]
    assert len(SYNTHIA_16) == 16 and len(SYNTHIA_13) == 13
    assert [CLASSES[i] for i in sorted(set(SYNTHIA_16) - set(SYNTHIA_13))] == ["wall", "fence", "pole"]
    assert len(PALETTE) == len(CLASSES) == 19
