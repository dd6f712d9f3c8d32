"""Names of classes and labels."""

import pytest
from helpers import refused

from var.utils.classes import find_label, imagenet_names, listing, spread

CLASSES = {1: "goldfish", 207: "golden retriever", 134: "crane", 517: "crane", 8: "Red_Fox", 9: "t-shirt"}


@pytest.mark.parametrize(
    "name", ["golden retriever", "Golden Retriever", "GOLDEN_RETRIEVER", "golden_retriever", "  golden   retriever "]
)
def test_case_blanks_and_underscores_do_not_matter(name: str) -> None:
    assert find_label(name, CLASSES) == 207


@pytest.mark.parametrize("name", ["red fox", "Red_Fox", "red_fox", "RED FOX"])
def test_nor_do_they_in_the_names_known(name: str) -> None:
    assert find_label(name, CLASSES) == 8


def test_a_name_of_several_classes_asks_for_the_index() -> None:
    with refused("'crane'", "2 classes", "[134, 517]"):
        find_label("crane", CLASSES)


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with refused("'goldn retriver'", "did you mean 'golden retriever'"):
        find_label("goldn retriver", CLASSES)
    with refused("'fish'", "did you mean 'goldfish'"):
        find_label("fish", CLASSES)


def test_a_name_like_no_other_lists_what_is_known() -> None:
    with refused("'xylophone'", "8 Red_Fox", "207 golden retriever"):
        find_label("xylophone", CLASSES)


def test_a_part_of_a_name_is_not_taken_for_it() -> None:
    with refused("'golden'", "golden retriever"):
        find_label("golden", CLASSES)


def test_listing_is_sorted_and_cut() -> None:
    assert listing({207: "golden retriever", 1: "goldfish"}) == "1 goldfish, 207 golden retriever"
    assert listing({2: "2", 1: "1"}) == "1, 2"  # without names the labels alone
    assert listing({label: str(label) for label in range(50)}, most=3) == "0, 1, 2, and 47 more"


def test_imagenets_names() -> None:
    names = imagenet_names()
    assert sorted(names) == list(range(1000))
    assert [names[label] for label in (0, 207, 999)] == ["tench", "golden retriever", "toilet tissue"]
    assert find_label("Golden_Retriever", names) == 207
    assert len(set(names.values())) == 1000  # torchvision tells the two cranes apart
    assert (find_label("crane", names), find_label("crane bird", names)) == (517, 134)


@pytest.mark.parametrize(
    ("known", "expected"), [(3, [0, 1, 2]), (8, list(range(8))), (1000, list(range(0, 1000, 125)))]
)
def test_spread_takes_a_few_at_even_distances(known: int, expected: list[int]) -> None:
    assert spread(range(known), 8) == expected
