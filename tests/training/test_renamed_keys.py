"""Keys of recipes under their former names: read with a warning, in files, in overrides and in what runs have kept."""

from pathlib import Path
from typing import Any

import pytest
from helpers import refused
from tiny import TOKENIZER, VAR, merged, tokenizer_recipe, write_recipe

from var.training.config import Recipe
from var.training.logger import write_recipe as write_checked
from var.training.recipe import load_recipe
from var.training.renamed_keys import rename_keys
from var.training.stages.base import find_stage

STAGES = ("tokenizer", "var", "ddo")
RENAMED = {old: new for stage in STAGES for old, new in find_stage(stage).recipe_type.renamed.items()}

OLD: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "keep": 5,
        "wandb": "mine",
        "optimizer": {"clip": 0.5},
        "schedule": {"flat": 0.25, "final": 0.125},
        "loss": {"crowding": 0.75, "adversarial": {"optimizer": {"clip": 7.0}}},
    },
    "var": {"tokens": "cache"},
    "ddo": {"fakes": 7},
}
NEW: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "keep_last": 5,
        "wandb_project": "mine",
        "optimizer": {"grad_clip": 0.5},
        "schedule": {"hold": 0.25, "final_lr_factor": 0.125},
        "loss": {"entropy": 0.75, "adversarial": {"optimizer": {"grad_clip": 7.0}}},
    },
    "var": {"token_cache": "cache"},
    "ddo": {"reference_samples": 7},
}
BASES = {
    "tokenizer": merged(TOKENIZER, {"optimizer": {"lr": 1e-3}}),
    "var": VAR | {"tokenizer": "tok"},
    "ddo": VAR | {"stage": "ddo", "tokenizer": "tok", "init": "trained"},
}
for base in BASES.values():  # what is given under both names is refused
    base["optimizer"] = {"lr": 1e-3}


def dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        key
        for name, value in values.items()
        for key in (dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_former_names_are_read_and_told_of_once(stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = BASES[stage] | {"data": {"source": "images"}}
    old = write_recipe(tmp_path / "run.yaml", base, **OLD[stage])
    with caplog.at_level("WARNING"):
        found = load_recipe(old)
        load_recipe(old)
    told = [record.getMessage() for record in caplog.records]
    pairs = list(zip(dotted(OLD[stage]), dotted(NEW[stage]), strict=True))
    assert sorted(told) == sorted(
        f"recipe {old}: {former} is called {now} now; the former name is read in this release only"
        for former, now in pairs
    )
    new = write_recipe(tmp_path / "run.yaml", base, **NEW[stage])
    assert load_recipe(new) == found
    write_checked(found, tmp_path / "kept.yaml")
    text = (tmp_path / "kept.yaml").read_text()
    assert all(f"{now.rsplit('.', 1)[-1]}:" in text for _, now in pairs)


def test_every_former_name_is_tried_above() -> None:
    assert set(RENAMED) == {key for old in OLD.values() for key in dotted(old)}


def test_an_override_may_use_a_former_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer_recipe(tmp_path / "run", tmp_path, keep_last=4)
    with caplog.at_level("WARNING"):
        assert load_recipe(tmp_path / "run.yaml", ["keep=9", "optimizer.clip=3"]).keep_last == 9
    assert "override 'keep=9': keep is called keep_last now" in caplog.text


def test_a_former_value_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "heads": 2}
    base = {"stage": "aim", "batch_size": 4, "steps": 6, "optimizer": {"lr": 1e-3}, "model": sizes}
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", base, data={"source": "x"}, targets="normalised"))
    assert recipe.model_dump()["targets"] == "normalized"
    assert "targets=normalised is called targets=normalized now" in caplog.text


@pytest.mark.parametrize("old", ["keep", "optimizer.clip", "schedule.flat"])
def test_both_names_at_once_are_refused(old: str, tmp_path: Path) -> None:
    *parents, name = old.split(".")
    given: dict[str, Any] = {name: 1, RENAMED[old]: 1}
    now = ".".join([*parents, RENAMED[old]])
    changes = {parents[0]: given} if parents else given
    path = write_recipe(tmp_path / "r.yaml", merged(TOKENIZER, {"data": {"source": "x"}}), **changes)
    with refused(f"recipe {path}: {old} is the former name of {now}, and both are given: leave out {old}"):
        load_recipe(path)


def test_what_is_given_stays_as_it_is() -> None:
    given = {"keep": 2, "optimizer": {"clip": 1.0}, "loss": None}
    found = rename_keys(given, find_stage("tokenizer").recipe_type, "somewhere")
    assert found == {
        "keep_last": 2,
        "optimizer": {"grad_clip": 1.0},
        "loss": None,
    }
    assert given == {"keep": 2, "optimizer": {"clip": 1.0}, "loss": None}


def test_a_stages_own_key_keeps_its_name_whatever_another_stage_once_called_so() -> None:
    class Own(Recipe):
        keep: int = 3

    assert rename_keys({"keep": 5, "tokens": 6, "wandb": "mine"}, Own, "somewhere") == {
        "keep": 5,
        "tokens": 6,
        "wandb_project": "mine",
    }
