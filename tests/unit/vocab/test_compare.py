from __future__ import annotations

from cuvee.vocab.compare import compare


def test_what_differs_is_counted_and_shown() -> None:
    found = compare({"a": 0, "b": 1, "c": 2, "d": 3}, {"a": 0, "c": 1, "b": 5, "e": 2})
    assert (found.shared, found.moved) == (3, (("b", 1, 5), ("c", 2, 1)))
    assert (found.only_first, found.only_second) == (("d",), ("e",))
    assert not found.equal
    assert found.words("A", "B") == (
        "1 token only in A ('d'); 1 token only in B ('e'); 2 tokens with another id ('b' 1/5, 'c' 2/1)"
    )


def test_equal_vocabularies_have_nothing_to_say() -> None:
    found = compare({"a": 0}, {"a": 0})
    assert found.equal
    assert found.words("A", "B") == "the same tokens with the same ids"


def test_long_lists_are_cut() -> None:
    found = compare({str(n): n for n in range(9)}, {})
    assert found.words("A", "B") == "9 tokens only in A ('0', '1', '2', '3', '4', ...)"
