"""`var classify`: what it prints and writes, and mistakes in one line."""

import json
from pathlib import Path

import pytest
from helpers import noise
from tiny import NAMES, Run, refusal
from tiny_aim import small_aim

from var.hub.checkpoint import save_model


@pytest.fixture(autouse=True)
def photos(tmp_path: Path) -> None:
    noise(20, 12).save(tmp_path / "a.png")
    noise(9, 30, seed=1).convert("L").save(tmp_path / "b.png")


def test_it_prints_classes_by_scale_and_writes_them(var: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = var("classify", "a.png", "b.png", "--model", model, "--scales", "--top", 3, "--json", "r.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "a.png"
    assert lines[1].split() == ["label", "class", "posterior", "difference", "1x1", "2x2", "4x4"]
    assert lines[2].split()[-4:] == ["0.00"] * 4
    assert lines[6] == "b.png"
    assert "\n4 classes compared; difference: log-likelihood in nats minus that of the best class\n" in out
    assert "2 images in " in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert [entry["image"] for entry in written["images"]] == ["a.png", "b.png"]
    assert (written["by"], written["num_classes"], written["keep"]) == ("likelihood", 4, None)
    best, second, _ = written["images"][0]["classes"]
    assert best["name"] == NAMES[best["label"]]
    assert sum(best["scales"].values()) == pytest.approx(best["log_likelihood"])
    difference = second["log_likelihood"] - best["log_likelihood"]
    assert lines[3].startswith(str(second["label"]))
    assert f" {difference:.2f} " in lines[3]
    for name, part in zip(("1x1", "2x2", "4x4"), lines[3].split()[-3:], strict=True):
        assert float(part) == pytest.approx(second["scales"][name] - best["scales"][name], abs=0.006)


def test_it_says_what_was_left_out(var: Run, model: Path, tmp_path: Path) -> None:
    options = ("--keep", "1:1", "--class", "red fox", "--class", 1, "--class", 4, "--json", "r.json")
    code, out, err = var("classify", "a.png", "--model", model, *options)
    assert (code, err) == (0, "")
    assert out.count("left out after 1x1") == 2
    assert "2x2" not in out
    classes = json.loads((tmp_path / "r.json").read_text())["images"][0]["classes"]
    assert [len(found["scales"]) for found in classes] == [3, 1, 1]
    for name in ("log_likelihood", "posterior"):
        assert [found[name] is None for found in classes] == [False, True, True]
    assert out.splitlines()[3].endswith("  left out after 1x1")
    assert "0.0000" not in out


def test_it_says_which_step_has_no_effect(var: Run, model: Path) -> None:
    code, out, _ = var("classify", "a.png", "--model", model, "--keep", "1:1,2:50%")
    assert code == 0
    assert "\n--keep: the step after 2 scales leaves no class out: 1 left there\n" in out
    assert "--keep" not in var("classify", "a.png", "--model", model, "--keep", "1:2,2:1")[1]


def test_it_classifies_by_a_probe(var: Run, tmp_path: Path) -> None:
    save_model(tmp_path / "aim", small_aim(), {"classes": {"1": "cup", "3": "crane"}})
    code, out, err = var("classify", "a.png", "--model", "aim", "--json", "r.json")
    assert (code, err) == (0, "")
    assert {"cup", "crane"} <= set(out.split())
    assert "difference: logit of the probe minus" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["by"] == "probe"
    assert set(written["images"][0]["classes"][0]) == {"label", "name", "posterior", "logit"}
    for option in (("--keep", "1:1"), ("--class", "1"), ("--scales",)):
        refusal(var("classify", "a.png", "--model", "aim", *option), option[0], "--by likelihood", "leave it out")


def test_mistakes_are_reported_in_one_line(var: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no image")
    for words, parts in {
        ("folder",): ["folder is a folder", "var evaluate classification"],
        ("a.png", "none.png"): ["none.png does not exist"],
        ("a.png", "text.png"): ["text.png is not an image"],
        ("a.png", "--top", "0"): ["top=0"],
        ("a.png", "--rows", "0"): ["rows=0"],
        ("a.png", "--keep", "2"): ["--keep='2'", "3:25%,5:8"],
        ("a.png", "--keep", "3:2"): ["after 3 scales"],
        ("a.png", "--class", "1"): ["class 1", "two classes"],
        ("a.png", "--class", "1", "--class", "red dog"): ["red dog"],
        ("a.png", "--by", "probe"): ["cannot classify by probe"],
        ("a.png", "--by", "eye"): ["eye"],
        ("a.png", "--json", "a.png"): ["would replace"],
        ("a.png", "--model", "var-d17"): ["var-d17"],
    }.items():
        refusal(var("classify", *words[:1], "--model", model, *words[1:]), *parts)
    refusal(var("classify"), "IMAGE")
    assert not (tmp_path / "classes.json").exists()
