"""The code of docs/conversion.md runs as it stands, top to bottom."""

import re
from pathlib import Path

import numpy as np
from test_huggingface_heads import SHAPES, make

from keras_bert_app.convert import reference
from keras_bert_app.export import publishing
from keras_bert_app.training import importing

ROOT = Path(__file__).parent.parent


def test_every_example_runs(tmp_path, tiny_run, minilm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "LIBRARIES", {})
    publishing.publish(tiny_run, "keras", tmp_path / "classifier.keras")
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0])
    importing.import_weights("theirs", tmp_path / "weights" / "theirs", tokenizer={})
    text = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 5
    names = {}
    for example in examples:
        exec(compile(example, "docs/conversion.md", "exec"), names)
    assert names["logits"].shape == (2, 5)
    outputs = names["outputs"]
    assert len(outputs["hidden_states"]) == 7 and names["fourth"].shape[-1] == 384
    np.testing.assert_allclose(np.sum(names["heads"], axis=-1), 1, atol=1e-5)
    model, labels = names["model"], {"logits": np.array([0, 1, 2, 1])}
    batch = reference.random_batch(names["classifier"].network, names["encoder_config"])
    before = model.evaluate(batch, labels, verbose=0)
    model.fit(batch, labels, epochs=5, verbose=0)
    assert model.evaluate(batch, labels, verbose=0) < before
