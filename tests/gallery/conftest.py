"""Records to make pages of, fresh for every test."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery_samples", Path(__file__).parent / "samples.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tagger() -> dict[str, Any]:
    return load_samples().tagger()


@pytest.fixture
def segmenter() -> dict[str, Any]:
    return load_samples().segmenter()


@pytest.fixture
def classifier() -> dict[str, Any]:
    return load_samples().classifier()


@pytest.fixture
def ablation() -> dict[str, Any]:
    return load_samples().ablation()
