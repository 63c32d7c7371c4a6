"""Test accuracy on the reviews: this project and transformers' Trainer, same weights, split and settings.

    pip install -e '.[peers]'
    python -m benchmarks.sentiment_accuracy --seeds=0,1,2,3,4 --output=accuracy.jsonl

Runs configs/sentiment.py with both, seed by seed, and appends a line of JSON for each run; a run that the
file has is not repeated. Then prints mean and standard error of each, and the difference in standard errors.
"""

import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

# Before TensorFlow: see tests/conftest.py.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

from absl import app, flags

from configs import sentiment
from keras_bert_app import config as configuration
from keras_bert_app import features
from keras_bert_app.data import sources
from keras_bert_app.training import finetuning

SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "seeds of head, order and dropout")
LIBRARIES = flags.DEFINE_list("libraries", ["transformers", "keras_bert_app"], "which to run")
PRECISION = flags.DEFINE_enum(
    "precision", "mixed_bfloat16", ["float32", "mixed_bfloat16"], "of both libraries"
)
OUTPUT = flags.DEFINE_string("output", "accuracy.jsonl", "file that results are appended to and read from")


def run_keras_bert_app(config: configuration.Config) -> dict[str, float]:
    """Fine-tune in a temporary workdir; accuracy of the best checkpoint on the test split."""
    from keras_bert_app import evaluation

    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder, "run")
        state = finetuning.finetune(config, workdir)
        evaluation.evaluate_test(workdir)
        metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    return {"evaluation_accuracy": state.best_value, "test_accuracy": metrics["accuracy"]}


def run_transformers(config: configuration.Config) -> dict[str, float]:
    """The same through transformers' Trainer with its dynamic padding."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import transformers

    splits = finetuning.load_splits(config)
    folder = sources.fetch(config.init)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    labels = sorted({record.values[features.LABEL] for record in splits.train})

    def encode(records):
        texts = [record.values[features.TEXT] for record in records]
        encoded = tokenizer(texts, truncation=True, max_length=config.text.max_length)
        label_ids = [labels.index(record.values[features.LABEL]) for record in records]
        return [
            {name: encoded[name][row] for name in encoded} | {"labels": label_ids[row]}
            for row in range(len(texts))
        ]

    transformers.set_seed(config.seed)
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
    with tempfile.TemporaryDirectory() as output:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=output,
                per_device_train_batch_size=config.train.batch_size,
                per_device_eval_batch_size=64,
                num_train_epochs=config.train.epochs,
                learning_rate=config.train.learning_rate,
                weight_decay=config.train.weight_decay,
                warmup_steps=config.train.warmup_fraction,
                max_grad_norm=config.train.clip_norm,
                bf16=config.train.precision == "mixed_bfloat16",
                seed=config.seed,
                data_seed=config.seed,
                use_cpu=True,
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="accuracy",
                report_to=[],
            ),
            train_dataset=encode(splits.train),
            eval_dataset=encode(splits.evaluation),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda given: {
                "accuracy": float((given.predictions.argmax(-1) == given.label_ids).mean())
            },
        )
        trainer.train()
        evaluation = trainer.evaluate()["eval_accuracy"]
        test = trainer.evaluate(encode(splits.test))["eval_accuracy"]
    return {"evaluation_accuracy": evaluation, "test_accuracy": test}


RUNNERS = {"transformers": run_transformers, "keras_bert_app": run_keras_bert_app}


def summary(rows: list[dict]) -> str:
    """Mean and standard error a library, and how far apart two are."""
    lines, means = [], {}
    for library in RUNNERS:
        values = [row["test_accuracy"] for row in rows if row["library"] == library]
        if len(values) > 1:
            means[library] = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
            mean, error = means[library]
            lines.append(f"{library:<16} {mean:.4f} +- {error:.4f} (standard error of {len(values)} runs)")
    if len(means) == 2:
        (theirs, error), (ours, our_error) = means["transformers"], means["keras_bert_app"]
        both = (error**2 + our_error**2) ** 0.5
        lines.append(
            f"{'difference':<16} {ours - theirs:+.4f}, {(ours - theirs) / both:+.1f} standard errors"
        )
    return "\n".join(lines)


def main(_) -> None:
    """Run what the output doesn't have yet, then summarise it."""
    path = Path(OUTPUT.value)
    for seed in map(int, SEEDS.value):
        for library in LIBRARIES.value:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if any(row["library"] == library and row["seed"] == seed for row in rows):
                continue
            config = sentiment.get_config()
            config.seed = seed
            config.train.precision = PRECISION.value
            started = time.monotonic()
            result = RUNNERS[library](configuration.freeze(config))
            row = {
                "library": library,
                "seed": seed,
                "precision": PRECISION.value,
                "seconds": time.monotonic() - started,
            } | result
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print(summary([json.loads(line) for line in path.read_text().splitlines()]))


if __name__ == "__main__":
    app.run(main)
