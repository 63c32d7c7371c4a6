"""The program that reference.Reference starts: a library's answer to one question.

Apart, so that it starts without TensorFlow where the library needs none.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_bert_app import features


def _answer_huggingface():
    import torch
    import transformers

    question = json.loads(sys.stdin.read())
    path, model_class = Path(question["path"]), getattr(transformers, question["class_name"])
    model = model_class.from_pretrained(
        path if path.is_dir() else path.parent,
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
    ).eval()
    with np.load(question["batch"]) as batch:
        inputs = {
            "input_ids": torch.tensor(batch[features.TOKEN_IDS].astype("int64")),
            "attention_mask": torch.tensor(batch[features.PADDING_MASK].astype("int64")),
        }
        if model.config.model_type != "distilbert":
            inputs["token_type_ids"] = torch.tensor(batch[features.SEGMENT_IDS].astype("int64"))
    with torch.no_grad():
        np.savez(question["answer"], **huggingface_outputs(model(**inputs)))


def _answer_kerashub():
    # It takes long, and is wanted before there is a question.
    importlib.import_module("keras_hub")
    from keras_bert_app.config import EncoderConfig
    from keras_bert_app.convert import kerashub
    from keras_bert_app.model.networks import Network

    question = json.loads(sys.stdin.read())
    encoder, network = EncoderConfig(**question["encoder"]), Network(**question["network"])
    model = kerashub.make_model(encoder, network)
    kerashub.load_into(model, Path(question["path"]))
    with np.load(question["batch"]) as batch:
        np.savez(question["answer"], **kerashub_outputs(model, dict(batch)))


def kerashub_outputs(model, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A KerasHub model's outputs, by the names of `Network.build`; a classifier's without activation."""
    inputs = {name: batch[name] for name in (features.TOKEN_IDS, features.SEGMENT_IDS, features.PADDING_MASK)}
    inputs = {name: value.astype("int32") for name, value in inputs.items()}
    if features.MASKED_POSITIONS in batch:
        positions = {"mask_positions": batch[features.MASKED_POSITIONS]}
        return {features.MASKED_LOGITS: np.asarray(model(inputs | positions))}
    answers = model(inputs)
    if isinstance(answers, dict):
        names = {features.SEQUENCE: "sequence_output", features.POOLED: "pooled_output"}
        return {ours: np.asarray(answers[theirs]) for ours, theirs in names.items()}
    return {features.LOGITS: np.asarray(answers)}


def huggingface_outputs(output) -> dict[str, np.ndarray]:
    """transformers' outputs of whatever class, by the names of `Network.build`."""
    kind = type(output).__name__
    if "start_logits" in output:
        stacked = np.stack([output.start_logits.numpy(), output.end_logits.numpy()], axis=-1)
        return {features.LOGITS: stacked}
    if "prediction_logits" in output:
        return {
            features.MASKED_LOGITS: output.prediction_logits.numpy(),
            features.PAIR_LOGITS: output.seq_relationship_logits.numpy(),
        }
    if "logits" in output:
        names = {
            "MaskedLMOutput": features.MASKED_LOGITS,
            "NextSentencePredictorOutput": features.PAIR_LOGITS,
        }
        return {names.get(kind, features.LOGITS): output.logits.numpy()}
    answers = {features.SEQUENCE: output.last_hidden_state.numpy()}
    if output.get("pooler_output") is not None:
        answers[features.POOLED] = output.pooler_output.numpy()
    return answers


if __name__ == "__main__":
    {"huggingface": _answer_huggingface, "kerashub": _answer_kerashub}[sys.argv[1]]()
