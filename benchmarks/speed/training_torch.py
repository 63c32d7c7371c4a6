"""transformers' Trainer on the reviews; PyTorch's own loop, eager or compiled, at fixed length."""

import json
import tempfile
from pathlib import Path

import torch
import torch._dynamo
from torch.nn import functional
from transformers import BertConfig, BertForPreTraining, Trainer, TrainerCallback, TrainingArguments

from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast  # isort: skip

from benchmarks.speed import inputs
from benchmarks.speed.contenders import Contender
from benchmarks.speed.pytorch_peer import Model, load
from benchmarks.speed.training import (
    BATCH,
    CLIP_NORM,
    LEARNING_RATE,
    STEPS,
    WEIGHT_DECAY,
    Pacer,
    classification_batch,
    pretraining_batch,
)
from benchmarks.speed.worker import NUM_THREADS


def make_pretraining_model(folder: Path) -> None:
    """The published encoder under BERT's two heads, drawn with seed 0, into `pretraining_model`."""
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig.from_pretrained(folder / "huggingface"))
    model.bert.load_state_dict(load(folder).bert.state_dict())
    model.save_pretrained(folder / "pretraining_model")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / "pretraining_model" / name).write_bytes((folder / "huggingface" / name).read_bytes())


def write_expected(folder: Path) -> None:
    """What is right, in float64: probabilities of the rows, losses without dropout; into expected.json."""
    expected, model = {}, Model(folder, "eager", "float64")
    rows = inputs.read(folder)
    for row in inputs.LENGTHS:
        expected[row] = model.predict(inputs.pad(rows[row]["ids"])).tolist()
        expected[f"{row} texts"] = model.label(rows[row]["texts"])
    for row in STEPS:
        model, step_loss, batch = parts(folder, row)
        with torch.inference_mode():
            expected[row] = [float(step_loss(model.double().eval(), batch))]
    (folder / "expected.json").write_text(json.dumps(expected))


def parts(folder: Path, row: str):
    """The model, a function of it and of a batch that gives the loss, and the batch."""
    given = pretraining_batch(folder) if row == "pretraining" else classification_batch(folder, row)
    batch = {name: torch.from_numpy(values).long() for name, values in given.items()}
    if row != "pretraining":
        return load(folder, attn_implementation="sdpa"), classification_loss, batch
    model = BertForPreTraining.from_pretrained(folder / "pretraining_model", attn_implementation="sdpa")
    return model, pretraining_loss, batch


def classification_loss(model, batch):
    """Cross entropy of the labels."""
    return model(
        input_ids=batch["token_ids"], attention_mask=batch["padding_mask"], labels=batch["labels"]
    ).loss


def pretraining_loss(model, batch):
    """Of masked tokens and next sentences, the masked positions gathered before the decoder."""
    sequence, pooled = model.bert(
        input_ids=batch["token_ids"],
        attention_mask=batch["padding_mask"],
        token_type_ids=batch["segment_ids"],
        return_dict=False,
    )
    places = batch["masked_positions"][:, :, None].expand(-1, -1, sequence.shape[-1])
    logits, pair_logits = model.cls(torch.gather(sequence, 1, places), pooled)
    masked = functional.cross_entropy(logits.flatten(0, 1), batch["masked_ids"].flatten())
    return masked + functional.cross_entropy(pair_logits, batch["labels"])


def train(folder: Path, row: str, contender: Contender, pacer: Pacer) -> None:
    """Train on a row for ever."""
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    model, step_loss, batch = parts(folder, row)
    lower = contender.precision == "bfloat16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
        first = float(step_loss(model.eval(), batch))
    model.train()
    if row == "finetuning":
        pacer.begin(first)
        return train_with_trainer(folder, model, contender, pacer)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    compute = torch.compile(step_loss, dynamic=False) if contender.setting == "compiled" else step_loss
    pacer.begin(first)
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            value = compute(model, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        pacer.step_done()


def train_with_trainer(folder: Path, model, contender: Contender, pacer: Pacer) -> None:
    """transformers' Trainer, batches padded to their longest, in random order or grouped by length."""

    class Callback(TrainerCallback):
        def on_step_end(self, *_, **__):
            pacer.step_done()

    rows = inputs.read(folder)["training"]
    data = [
        {"input_ids": ids, "labels": label} for ids, label in zip(rows["ids"], rows["labels"], strict=True)
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "huggingface" / "tokenizer.json"), pad_token="[PAD]"
    )
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP_NORM,
            num_train_epochs=1000,
            use_cpu=True,
            bf16=contender.precision == "bfloat16",
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length" if contender.setting == "grouped" else "random",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(model, arguments, collator, data, callbacks=[Callback()]).train()
