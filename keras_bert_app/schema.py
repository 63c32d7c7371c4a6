"""Every key of a config: its type, default, meaning and possible values. The only list."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def _key(
    default: Any,
    help: str,
    one_of: Sequence[str] = (),
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    may_change: bool = False,
):
    """A key with its default, its meaning, what values are possible, whether a begun run may change it."""
    possible = {"one_of": one_of, "least": least, "below": below, "most": most}
    return field(default=default, metadata={"help": help, "may_change": may_change} | possible)


@dataclass(frozen=True)
class TextConfig:
    """How text becomes ids."""

    vocabulary: str | None = _key(None, "path of a vocab.txt; None: the one that comes with `init`")
    lower_case: bool | None = _key(None, "lower-case; None: as `init` says, else True")
    strip_accents: bool | None = _key(None, "delete accents; None: as `init` says, else as lower_case")
    split_chinese: bool | None = _key(
        None, "make each Chinese character a word; None: as `init` says, else True"
    )
    never_split: tuple[str, ...] = _key(
        (), "pieces, such as [MASK], that a text can have literally; empty: as `init` says"
    )
    max_length: int = _key(128, "longest sequence, special tokens included, in tokens", least=5)
    truncation: str = _key(
        "longest_first",
        "what is cut to fit max_length: the end of the longer text, of one of a pair, or each text's middle; "
        "see text/packing.py",
        one_of=("longest_first", "only_first", "only_second", "head_tail"),
    )


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's shape. None: what `init` says, else BERT's default (Devlin et al. 2019)."""

    vocabulary_size: int | None = _key(None, "entries of the vocabulary", least=1)
    num_layers: int | None = _key(None, "Transformer blocks", least=1)
    num_heads: int | None = _key(None, "attention heads; divides hidden_dim", least=1)
    hidden_dim: int | None = _key(None, "width of the residual stream", least=1)
    intermediate_dim: int | None = _key(None, "width of the feed-forward layer", least=1)
    max_positions: int | None = _key(None, "longest sequence that positions are there for", least=1)
    num_segments: int | None = _key(
        None, "segment (token type) embeddings; one is added to every token, whatever its segment", least=0
    )
    position_offset: int | None = _key(
        None, "row of the position table that the first token has; RoBERTa leaves two unused", least=0
    )
    embedding_dim: int | None = _key(
        None, "width of the embeddings, where it isn't hidden_dim and a projection follows", least=1
    )
    activation: str | None = _key(None, "of the feed-forward layer", one_of=("gelu", "gelu_new", "relu"))
    epsilon: float | None = _key(None, "of layer normalisation", least=0)
    dropout: float | None = _key(None, "rate after embeddings, attention and feed-forward", least=0, below=1)
    attention_dropout: float | None = _key(None, "rate on attention probabilities", least=0, below=1)
    initializer_range: float | None = _key(None, "standard deviation of fresh weights", least=0)
    position_type: str | None = _key(None, "of position embeddings", one_of=("learned", "sinusoidal"))
    pooling: str | None = _key(
        None,
        "pooled output: first token through a dense layer, masked mean, or max",
        one_of=("first", "mean", "max"),
    )
    pooler_activation: str | None = _key(
        None, "of the pooler, for pooling first; BERT has tanh", one_of=("tanh", "gelu", "relu")
    )


ENCODER_DEFAULTS = EncoderConfig(
    num_layers=12,
    num_heads=12,
    hidden_dim=768,
    intermediate_dim=3072,
    max_positions=512,
    num_segments=2,
    position_offset=0,
    activation="gelu",
    epsilon=1e-12,
    dropout=0.1,
    attention_dropout=0.1,
    initializer_range=0.02,
    position_type="learned",
    pooling="first",
    pooler_activation="tanh",
)


@dataclass(frozen=True)
class TaskConfig:
    """What the job is."""

    name: str = _key("classification", "a key of keras_bert_app.tasks.TASKS")
    class_weights: str = _key(
        "none", "balanced: weight each class by the inverse of its share", one_of=("none", "balanced")
    )
    head_dropout: float | None = _key(
        None, "rate before the classifier; None: encoder.dropout", least=0, below=1
    )


@dataclass(frozen=True)
class DataConfig:
    """Where text and labels come from: paths (.csv, .tsv, .jsonl, a folder per class) or packaged names."""

    train: str | None = _key(None, "trained on; for pretraining the folder that `run.py prepare` wrote")
    evaluation: str | None = _key(None, "chooses the checkpoint; None: held out of train by hash")
    test: str | None = _key(None, "reported, never chosen on; None: held out of train by hash")
    evaluation_fraction: float = _key(
        0.1, "of what is left of train, when evaluation isn't given", least=0, below=1
    )
    test_fraction: float = _key(0.1, "of train, when test isn't given", least=0, below=1)
    text_column: str = _key("text", "column of the text")
    pair_column: str | None = _key(None, "column of the second text, for pairs")
    label_column: str = _key("label", "column of the label")
    label_separator: str | None = _key(
        None, "between the labels of a text that has several, or none, such as |; None: one label a text"
    )
    group_column: str | None = _key(None, "column whose equal values stay in one split")
    skip_bad_rows: bool = _key(False, "skip and count malformed rows instead of refusing the file")


@dataclass(frozen=True)
class PrepareConfig:
    """How documents become examples for pretraining (`run.py prepare`)."""

    objective: str = _key(
        "nsp",
        "what is asked of two texts: whether the second follows the first, their order, or nothing",
        one_of=("nsp", "sop", "none"),
    )
    short_fraction: float = _key(
        0.1, "of examples made shorter than max_length on purpose; not with pack", least=0, most=1
    )
    pack: bool = _key(False, "for objective none: rows filled with one document after another")
    held_out: float = _key(
        0.01, "share of documents set apart, on which pretraining is evaluated", least=0, most=0.5
    )
    separation: str = _key(
        "blank_lines", "what sets documents of plain text apart", one_of=("blank_lines", "files")
    )
    sentences: str = _key("split", "split at full stops, or one a line", one_of=("split", "lines"))
    text_key: str = _key("text", "key of the text in .jsonl")
    near_duplicates: float = _key(
        0.8,
        "documents whose token 5-grams agree by so much with an earlier one's are dropped; 1 keeps them",
        least=0.5,
        most=1,
    )
    max_document_bytes: int = _key(
        16 * 2**20, "longer documents are skipped and counted", least=1, most=2**31
    )
    memory_bytes: int = _key(2**30, "held at most while duplicates are sought", least=2**20, most=2**50)


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens pretraining hides; see text/masking.py."""

    unit: str = _key("token", "what is hidden whole", one_of=("token", "word", "ngram"))
    rate: float = _key(0.15, "share of the tokens that can be hidden", least=0, below=1)
    max_ngram: int = _key(3, "words of the longest n-gram", least=1)
    max_predictions: int | None = _key(None, "hidden tokens a row at most; None: no limit", least=1)


@dataclass(frozen=True)
class TrainConfig:
    """How weights move."""

    strategy: str = _key(
        "none",
        "one device, a replica per device of this machine, or of all machines in TF_CONFIG",
        one_of=("none", "mirrored", "multi_worker"),
        may_change=True,
    )
    num_devices: int | None = _key(
        None,
        "for mirrored: how many GPUs, or logical CPU devices where there is no GPU; None: all GPUs",
        least=1,
        may_change=True,
    )
    precision: str = _key(
        "float32",
        "dtype policy of the layers",
        one_of=("float32", "mixed_bfloat16", "mixed_float16", "float64"),
    )
    batch_size: int = _key(32, "examples an update, over all replicas", least=1)
    accumulation: int = _key(
        1,
        "parts in which each replica computes its share of an update, to save memory",
        least=1,
        may_change=True,
    )
    jit: bool = _key(
        False, "compile forward and backward pass by XLA, anew for each shape of a batch", may_change=True
    )
    recompute: bool = _key(
        False,
        "keep each block's input alone for the backward pass and compute the rest again: less memory, about "
        "a third more operations",
        may_change=True,
    )
    epochs: int = _key(3, "passes over the training set", least=1)
    budget_minutes: float | None = _key(
        None, "train for so long by the clock instead, evaluations included; the schedule follows", least=1e-3
    )
    optimizer: str = _key(
        "adamw", "of Loshchilov and Hutter 2019, or You et al. 2020", one_of=("adamw", "lamb")
    )
    schedule: str = _key(
        "linear", "of the learning rate after the warm-up", one_of=("linear", "cosine", "constant")
    )
    learning_rate: float = _key(5e-5, "peak", least=0)
    warmup_fraction: float = _key(0.1, "of the run, before the decay to zero", least=0, below=1)
    weight_decay: float = _key(0.01, "decoupled; biases and layer normalisation excluded", least=0)
    clip_norm: float = _key(1.0, "global norm that the summed gradient is clipped to", least=1e-6)
    group_by_length: bool = _key(True, "batches of similar lengths, in random order")
    metric: str | None = _key(
        None, "evaluation metric that chooses the checkpoint, higher is better; None: the task's first"
    )
    patience: int | None = _key(None, "stop after so many evaluations without a better metric", least=1)
    evaluate_every: int | None = _key(None, "updates between evaluations; None: every epoch", least=1)
    checkpoint_every: int | None = _key(
        None, "updates between checkpoints beside those of evaluations", least=1, may_change=True
    )
    keep_checkpoints: int = _key(2, "newest checkpoints kept, beside the best", least=1, may_change=True)
    deterministic: bool = _key(False, "TensorFlow's op determinism: slower, the same bits on every run")
    peak_flops: float | None = _key(
        None,
        "of all devices together in this precision, a second; shows the model FLOP utilisation",
        least=1,
        may_change=True,
    )


@dataclass(frozen=True)
class PhaseConfig:
    """One of the stretches that a run is made of, such as short sequences first, or small batches."""

    share: float = _key(1.0, "of the run: of its epochs, or of its time; all together are 1", least=0, most=1)
    train: str | None = _key(None, "trained on meanwhile; None: data.train")
    batch_size: int | None = _key(None, "examples an update; None: train.batch_size", least=1)


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    seed: int = _key(0, "of fresh weights, order and dropout", least=0)
    init: str | None = _key(
        None,
        "weights to start from: whatever `run.py import` takes, or a workdir; None: fresh",
    )
    init_head: bool = _key(
        False, "take the classifier of `init` too, which needs the same labels; else it starts fresh"
    )
    fresh: tuple[str, ...] = _key(
        (), "layers that start fresh though there is `init`: pooler, masked_head, pair_head"
    )
    text: TextConfig = TextConfig()
    encoder: EncoderConfig = EncoderConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    masking: MaskingConfig = MaskingConfig()
    train: TrainConfig = TrainConfig()
    phases: tuple[PhaseConfig, ...] = _key(
        (), "for pretraining, in the config file: ({'share': 0.9, 'train': 'examples-128'}, {...}); (): one"
    )
