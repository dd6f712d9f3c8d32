"""Names of classes and labels."""

import pytest
from helpers import refused

from var.utils.classes import (
    class_labels,
    find_label,
    folder_names,
    imagenet_names,
    label_of_text,
    listing,
    names_are_imagenets,
    split_classes,
    spread,
)

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
    assert listing({0: "1", 1: "10", 2: "2", 3: "none"}) == "0 (1), 1 (10), 2, 3 (none)"
    assert listing({2: "2", 1: "1"}) == "1, 2"  # without names the labels alone
    assert listing({label: str(label) for label in range(50)}, most=3) == "0, 1, 2, and 47 more"


def test_names_tell_whether_labels_are_imagenets() -> None:
    ids = {label: f"n{label:08d}" for label in range(1000)}
    ours = imagenet_names()
    for names in (ours, {207: "Golden_Retriever"}, {1: "goldfish, Carassius auratus"}, {5: "5"}, ids):
        assert names_are_imagenets(names)
    for names in ({0: "goldfish"}, {0: "our cat", 1: "goldfish"}, {1000: "1000"}, {0: ids[0], 1: ids[1]}):
        assert not names_are_imagenets(names)


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


def test_text_that_is_a_name_means_that_class_even_if_it_is_a_number(caplog: pytest.LogCaptureFixture) -> None:
    classes = {0: "1", 1: "10", 2: "2", 3: "none"}
    assert [label_of_text(text, classes) for text in ("1", "10", "2", "none", "3", "7", "-1", " 1 ", "cat")] == [
        *(0, 1, 2, 3, 3, 7, -1, 0),
        None,
    ]
    assert caplog.messages[0] == ("class '1' is taken as the name of the class with label 0; label 1 is the class '10'")
    assert len(caplog.messages) == 2  # ' 1 ' again: 10 is no label, 2 is the label of the class 2
    assert label_of_text("9" * 5000, classes) is None


@pytest.mark.parametrize(("text", "label"), [("01", 1), ("002", 2), ("+1", 1)])
def test_a_label_that_looks_like_the_name_of_another_class_is_taken_with_a_warning(
    text: str, label: int, caplog: pytest.LogCaptureFixture
) -> None:
    classes = {0: "1", 1: "10", 2: "owl", 3: "02", 4: "cat"}
    assert label_of_text(text, classes) == label
    assert caplog.messages == [f"class {text!r} is taken as label {label}, which is the class {classes[label]!r}"]
    assert label_of_text("4", classes) == 4
    assert len(caplog.messages) == 1


def test_numbers_of_folders_that_are_too_large_for_labels_are_names() -> None:
    assert class_labels(["20240101", "20231231"]) == {"20231231": 0, "20240101": 1}
    assert class_labels(["9" * 255, "1"]) == {"1": 0, "9" * 255: 1}
    assert class_labels(["10", "2", "21840"]) == {"10": 10, "2": 2, "21840": 21840}
    assert len(class_labels(map(str, range(100_000)))) == 100_000  # so many there are
    assert class_labels([]) == {}
    assert folder_names({"20231231": 0, "20240101": 1}) == {0: "20231231", 1: "20240101"}
    assert folder_names({"10": 10, "02": 2}) == {}
    assert folder_names({"1": 0, "10": 1, "none": 2}) == {0: "1", 1: "10", 2: "none"}


def test_a_name_with_commas_is_one_class() -> None:
    names = {0: "tench, Tinca tinca", 1: "tench", 2: "red fox"}
    for text, parts in {
        "0,1": ["0", "1"],
        "tench, Tinca Tinca": ["tench, Tinca Tinca"],
        "tench,red fox": ["tench", "red fox"],
        "2,tench, tinca_tinca,tench": ["2", "tench, tinca_tinca", "tench"],
        "2,": ["2", ""],
    }.items():
        assert split_classes(text, names) == parts


def test_what_is_spread_reaches_over_all_that_is_given() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(400), 120)[-1] == 396
    assert spread("abc", 5) == ["a", "b", "c"]
    assert spread([], 3) == []
