"""Correction and update compute what the released trainer computes; skipped where its numbers are not there."""

import pytest
from official import FOLDER, differences


@pytest.mark.skipif(not (FOLDER / "released.npz").is_file(), reason=f"{FOLDER} is not there")
def test_the_official_correction_and_update_are_the_released_ones():
    found = differences()
    assert found.keys() >= {
        "loss",
        "loss without EDA",
        "grad",
        "grad norm",
        "grad without EDA",
        "advantages before EDA",
        "texts: unequal rows",
        "prompt_ids: unequal rows",
        "prompt_mask: unequal rows",
        "completion_ids: unequal rows",
        "completion_mask: unequal rows",
        "rewards",
    }
    # docs/departures.md says why these two are not exact.
    shifted = {name: found.pop(name) for name in ("logps, shifted", "entropy, shifted")}
    assert max(shifted.values()) < 2e-5
    assert {name: value for name, value in found.items() if value > 1e-6} == {}
