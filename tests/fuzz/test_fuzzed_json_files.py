"""JSON that others or accidents changed: configurations of models, and files of our own."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import NAMES, tiny_pipeline
from tiny_fuzz import Findings, damaged, replaced

from var.cli.evaluation.score import read_labels
from var.data.shard_index import read_index
from var.data.token_cache import read_manifest
from var.evaluation.samples.sample_folder import check_same_set
from var.evaluation.samples.sample_set import Settings
from var.evaluation.scaling.runs import _read_validations as read_validations
from var.hub.checkpoint import load_encoder, load_probe, save_model
from var.models.aim import AIM, AIMConfig, Encoder, EncoderConfig
from var.pipeline import VARPipeline
from var.utils.classes import named_classes
from var.utils.json_text import parse_json


def fuzz(file: Path, read: Callable[[], object], seed: int, times: int, findings: Findings) -> None:
    """Read a file of JSON many times, changed in another way each time; it is as it was afterwards."""
    content, rng = file.read_bytes(), random.Random(seed)
    for number in range(times):
        values = json.loads(content)
        for _ in range(rng.randrange(1, 3)):
            values = replaced(values, rng)
        changed = json.dumps(values).encode()
        if number % 4 == 0:
            changed = damaged(content, rng)
        file.write_bytes(changed)
        findings.attempt((file.name, changed), read)
    file.write_bytes(content)


def test_configurations_of_models(tmp_path: Path) -> None:
    findings = Findings()
    tiny_pipeline(NAMES).save_pretrained(tmp_path / "model")
    for number, part in enumerate(("tokenizer", "transformer")):
        file = tmp_path / "model" / part / "config.json"
        fuzz(file, lambda: VARPipeline.from_pretrained(tmp_path / "model"), number, 120, findings)
    sizes = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "heads": 1}
    save_model(tmp_path / "encoder", Encoder(EncoderConfig(**sizes)))
    fuzz(tmp_path / "encoder" / "config.json", lambda: load_encoder(tmp_path / "encoder"), 3, 80, findings)
    save_model(tmp_path / "aim", AIM(AIMConfig(**sizes, probe_layers=(0,), num_classes=2)))
    fuzz(tmp_path / "aim" / "config.json", lambda: load_probe(tmp_path / "aim"), 4, 40, findings)
    findings.check()


INDEX = {
    "train": [{"url": "train-0.tar", "nsamples": 3}, {"url": "train-1.tar", "nsamples": 4}],
    "validation": [{"url": "val-0.tar", "nsamples": 2}],
    "num_classes": 3,
    "class_names": {"0": "bar", "1": "cup"},
}
CLASSES = {"0": {"name": "bar"}, "207": {"name": "golden retriever"}}
SPLIT = {"samples": 4, "labels": "0f", "num_classes": 2, "class_names": {"0": "bar"}, "streamed": None}
TOKEN_CACHE = {
    "settings": {"format": 1, "seed": 0},
    "scales": [1, 2],
    "length": 5,
    "vocab_size": 16,
    "dtype": "<u2",
    "shard_samples": 2,
    "splits": {"train": SPLIT, "validation": SPLIT},
}
SAMPLES = Settings("m", "float32", "cpu", {"torch": "2"}, "0f", (0, 1), 2, 2, None, 0, 1.5, 9, 0.9, 2)
METRICS = {"step": 5, "split": "validation"} | dict.fromkeys(("loss", "loss/2x2", "accuracy", "accuracy/2x2"), 0.5)


def test_json_of_ours(tmp_path: Path) -> None:
    findings = Findings()

    def attempts(name: str, content: object, read: Callable[[], object], times: int) -> None:
        (tmp_path / name).write_text(json.dumps(content))
        fuzz(tmp_path / name, read, times, times, findings)

    attempts("classes.json", CLASSES, lambda: named_classes(tmp_path), 61)
    attempts("classes.json", CLASSES, lambda: read_labels(str(tmp_path / "classes.json")), 41)
    attempts("index.json", INDEX, lambda: read_index(str(tmp_path / "index.json")), 101)
    attempts("manifest.json", TOKEN_CACHE, lambda: read_manifest(tmp_path, {"seed": 0}), 81)
    attempts("settings.json", asdict(SAMPLES), lambda: check_same_set(tmp_path, SAMPLES), 82)
    attempts("metrics.jsonl", METRICS, lambda: read_validations(tmp_path / "metrics.jsonl", 2), 83)
    findings.check()


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"1e999", b'"\\ud800"', b"\xff", b""]
)
def test_json_made_to_do_harm(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each parser has its own words
        parse_json(content)
