from __future__ import annotations

import pytest

from cuvee.errors import CuveeError
from cuvee.planning.machine import parse_machine


def test_all_that_can_be_said_of_a_machine() -> None:
    found = parse_machine("read=3GB/s,write=1.5GiB/s,cores=64,nodes=8")
    assert found == {"read": 3e9, "write": 1.5 * (1 << 30), "cores": 64, "nodes": 8}


def test_parts_may_be_left_out() -> None:
    assert parse_machine("cores=5, read=7GB") == {"read": 7e9, "cores": 5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing is said"),
        ("cores", "whole number"),
        ("cores=0", "whole number"),
        ("cores=2.5", "whole number"),
        ("cores=99999999", "whole number"),
        ("cores=²", "whole number"),
        ("nodes=-1", "whole number"),
        ("read=fast", "'fast' is not a rate"),
        ("read=0", "is not a rate"),
        ("write=9999999TB/s", "more than any machine"),
        ("gpus=8", "no 'gpus'"),
        ("cores=1,cores=2", "cores is given twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, words: str) -> None:
    with pytest.raises(CuveeError, match=words):
        parse_machine(text)
