"""Lists of names: reading, joining, and the paper's merge against its own pseudocode."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tokenize_anything.semantic_sa1b.vocabulary import (
    NameList,
    join_names,
    merge_names,
    read_names,
    separators_to_blanks,
)


def merge_plainly(sources: list[list[str]]) -> list[str]:
    """Algorithm 1 of the paper, as it is written there."""
    concepts = {name.lower() for source in sources for name in source}
    remove = set()
    for singular in concepts:
        for plural in [singular + "s", singular + "es"]:
            if plural in concepts:
                remove.add(plural)
    return sorted(concepts.difference(remove))


# --- merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "names", "repeated", "plurals"),
    [
        ([["Zebra", "apple"]], ("apple", "zebra"), (), ()),
        ([["Cat", "cats"], ["cat", "dogs"]], ("cat", "dogs"), ("cat",), ("cats",)),
        ([["bus", "buses", "glass", "glasses"]], ("bus", "glass"), (), ("buses", "glasses")),
        # as published: what merely ends like a plural goes too, and chains go whole
        ([["bras", "bra", "bras", "clas", "cla", "class"]], ("bra", "cla"), ("bras",),
         ("bras", "clas", "class")),
        ([["knife", "knives"]], ("knife", "knives"), (), ()),
        ([["Ärmel", "äpfel", "Zelt"]], ("zelt", "äpfel", "ärmel"), (), ()),
        ([["T-shirt", "t_shirt"]], ("t-shirt", "t_shirt"), (), ()),
    ],
)  # fmt: skip
def test_merged_names(
    sources: list[list[str]], names: tuple[str, ...], repeated: tuple[str, ...],
    plurals: tuple[str, ...],
) -> None:  # fmt: skip
    assert merge_names(sources) == NameList(names, repeated, plurals)
    assert list(names) == merge_plainly(sources)


def test_merging_many_names_is_the_papers_algorithm() -> None:
    draw = random.Random(0)
    sources = [["".join(draw.choices("aAesS", k=draw.randint(1, 5))) for _ in range(300)]] * 2
    found = merge_names(sources)
    assert list(found.names) == merge_plainly(sources)
    assert len(found.plurals) > 20
    assert merge_names(sources[::-1]).names == found.names


def test_separators_become_blanks() -> None:
    names = ["bow_(decorative_ribbons)", "T-shirt", "hot dog", "_x"]
    assert separators_to_blanks(names) == ["bow (decorative ribbons)", "T shirt", "hot dog", "x"]


def test_joined_names_keep_their_order_and_case() -> None:
    found = join_names([["b", "a", "B"], ["a", "c", "b", "b"]])
    assert found == NameList(("b", "a", "B", "c"), ("b", "a"))


@pytest.mark.parametrize("collect", [join_names, merge_names])
def test_no_name(collect: object) -> None:
    with pytest.raises(ValueError, match=r"names: expected at least one name, got none"):
        collect([[], []])  # type: ignore[operator]


# --- files --------------------------------------------------------------------------------------


def test_names_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "namen.txt"
    path.write_bytes("\ufeffmug \r\n\n  stapler\nCafé au lait\n#1 pencil\nmug".encode())
    assert read_names(path) == ["mug", "stapler", "Café au lait", "#1 pencil", "mug"]
    assert read_names(str(path))[0] == "mug"


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, FileNotFoundError, r"names: no file at .*a.txt; expected a text file, a name a li"),
        (b"\n \n", ValueError, r"names: expected one name per line, got none in .*a.txt"),
        ("café".encode("latin-1"), ValueError, r"a.txt is not UTF-8 text .*; save it as such"),
    ],
)
def test_files_without_names(
    tmp_path: Path, content: bytes | None, kind: type[Exception], words: str
) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(kind, match=words):
        read_names(tmp_path / "a.txt")
