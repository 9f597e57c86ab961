"""Every row of the table of faults has a test with its number first in its name."""

import re
from pathlib import Path

NUM_ROWS = 48
STILL_OPEN = {42: "merging shards of a probe: there is no --shard and no --merge yet"}


def rows_with_tests():
    texts = [path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py"))]
    return {
        int(number) for text in texts for number in re.findall(r"^def test_(\d\d)_", text, re.M)
    }


def test_every_row_has_a_test_and_no_other_number_is_used():
    assert rows_with_tests() == set(range(1, NUM_ROWS + 1)) - set(STILL_OPEN)
