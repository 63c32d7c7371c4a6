"""How fast the tokenizer is beside Rust's, tensorflow_text's stock ones and KerasHub's, and whose ids agree.

    python -m benchmarks.tokenization --output=tokenization.jsonl

All encode the packaged reviews with MiniLM's vocabulary, uncased, without special tokens, in batches of 64
and of 1,024, one batch at a time and two at a time from two threads of Python, and one short text again and
again. Each is given what it takes: lists of strings, or string tensors, and gives what it gives: Rust's
encodings, or ragged ids of a traced `tf.function`. TensorFlow and Rust have --threads threads each. They
take turns, in another order each round; a speed is a ratio to Rust's `encode_batch_fast` of the same round.
On the short text MiniLM's encoder runs too, of which the tokenizer should be a small part. All times are
added to --output as JSON, a line each; medians with least and most are printed as a Markdown table.
"""

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

SHORT_TEXT = "a quiet triumph, and easily the best film of the year"
BASELINE, MINILM = "Rust, encode_batch_fast", "MiniLM's encoder"


class Contestant(NamedTuple):
    """Texts -> what it takes, that -> what it gives, and that -> a list of ids for each text."""

    take: Callable[[list[str]], Any]
    encode: Callable[[Any], Any]
    ids: Callable[[Any], list[list[int]]] | None


class Load(NamedTuple):
    """Batches of texts, and how many of them are encoded at a time."""

    name: str
    batches: Sequence[list[str]]
    at_a_time: int = 1


def rust(folder: Path) -> dict[str, Contestant]:
    """The `tokenizers` library, with offsets and without."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def contestant(method):
        return Contestant(
            take=list,
            encode=lambda texts: method(texts, add_special_tokens=False),
            ids=lambda encodings: [encoding.ids for encoding in encodings],
        )

    return {
        BASELINE: contestant(tokenizer.encode_batch_fast),
        "Rust, encode_batch, with offsets": contestant(tokenizer.encode_batch),
    }


def in_the_graph(folder: Path) -> dict[str, Contestant]:
    """Ours and those of others, each traced once for any number of texts."""
    import tensorflow as tf
    import tensorflow_text as tf_text
    from keras_hub.models import BertTokenizer as HubTokenizer

    from keras_bert_app.text.tokenizer import BertTokenizer
    from keras_bert_app.text.vocabulary import Vocabulary

    path = str(folder / "vocab.txt")
    vocabulary = Vocabulary.load(path)
    ours = BertTokenizer(vocabulary)
    stock = tf_text.BertTokenizer(path, token_out_type=tf.int32, lower_case=True)
    fast = tf_text.FastBertTokenizer(
        list(vocabulary.pieces), token_out_type=tf.int32, lower_case_nfd_strip_accents=True
    )
    hub = HubTokenizer(vocabulary=path, lowercase=True)

    def contestant(function, ids=lambda rows: rows.to_list()):
        traced = tf.function(function, input_signature=[tf.TensorSpec([None], tf.string)])
        return Contestant(take=lambda texts: tf.constant(texts, tf.string), encode=traced, ids=ids)

    return {
        "ours": contestant(ours.__call__),
        "ours, with spans": contestant(ours.tokenize_with_spans, lambda spans: spans.token_ids.to_list()),
        "tensorflow_text's FastBertTokenizer": contestant(fast.tokenize),
        "tensorflow_text's BertTokenizer": contestant(lambda texts: stock.tokenize(texts).merge_dims(1, 2)),
        "KerasHub's BertTokenizer": contestant(hub.tokenize),
    }


def minilm() -> dict[str, Contestant]:
    """The encoder that a short text is tokenised for."""
    import tensorflow as tf

    from keras_bert_app import features
    from keras_bert_app.convert.pretrained import assign
    from keras_bert_app.model import BertEncoder
    from keras_bert_app.text.packing import TextPacker
    from keras_bert_app.text.tokenizer import BertTokenizer
    from keras_bert_app.training.initial import load_pretrained

    weights = load_pretrained("minilm-l6")
    encoder = BertEncoder(**weights.encoder)
    encoder.build(None)
    assign(encoder, weights)
    packer = TextPacker(BertTokenizer(weights.vocabulary, weights.tokenizer_options), 128)
    encode = tf.function(lambda batch: encoder(batch)[features.SEQUENCE])
    return {MINILM: Contestant(lambda texts: packer([tf.constant(texts)]), encode, None)}


def seconds(contestant: Contestant, inputs: Sequence[Any], pool: ThreadPoolExecutor | None) -> float:
    """Time for all of the inputs."""
    started = time.perf_counter()
    for _ in (pool.map if pool else map)(contestant.encode, inputs):
        pass
    return time.perf_counter() - started


def measure(load: Load, contestants: dict[str, Contestant], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; a round before them isn't counted."""
    inputs = {
        name: [contestant.take(batch) for batch in load.batches] for name, contestant in contestants.items()
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with ThreadPoolExecutor(load.at_a_time) as threads:
        pool = threads if load.at_a_time > 1 else None
        for round_number in range(-1, num_rounds):
            order = sorted(contestants)
            random.Random(round_number).shuffle(order)
            for name in order:
                taken = seconds(contestants[name], inputs[name], pool)
                if round_number >= 0:
                    times[name].append(taken)
    return times


def num_disagreeing(contestants: dict[str, Contestant], texts: list[str]) -> dict[str, int]:
    """Of how many texts each has other ids than the baseline."""
    ids = {
        name: contestant.ids(contestant.encode(contestant.take(texts)))
        for name, contestant in contestants.items()
    }
    return {
        name: sum(list(one) != list(other) for one, other in zip(rows, ids[BASELINE], strict=True))
        for name, rows in ids.items()
    }


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Median with least and most."""
    middle, least, most = (f"{f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} ({least} to {most})"


def main(_) -> None:
    """Measure all, print the tables."""
    given = flags.FLAGS
    # Rust's pool of threads is made at its first call.
    os.environ |= {"RAYON_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "true"}
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from keras_bert_app import quiet_tensorflow  # noqa: F401, I001
    import tensorflow as tf
    from keras_bert_app import features
    from keras_bert_app.data import sources

    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    folder = sources.fetch("minilm-l6")
    records, _ = sources.load("reviews", {})
    texts = [record.values[features.TEXT] for record in records][: given.texts]
    contestants = rust(folder) | in_the_graph(folder)
    loads = [
        Load(
            f"batches of {size:,}",
            [texts[start : start + size] for start in range(0, len(texts), size)],
            many,
        )
        for size in (64, 1024)
        for many in (1, 2)
    ]
    loads.append(Load("one short text", [[SHORT_TEXT]] * given.calls))
    times, disagreeing = [], num_disagreeing(contestants, texts)
    shares = {name: count / len(texts) for name, count in disagreeing.items()}
    for load in loads:
        times.append(measure(load, contestants | (minilm() if load is loads[-1] else {}), given.runs))
        facts = {"load": load.name, "at_a_time": load.at_a_time, "texts": sum(map(len, load.batches))}
        facts |= {"threads": given.threads, "load_average": os.getloadavg()[0]}
        with open(given.output, "a", encoding="utf-8") as file:
            file.writelines(
                json.dumps(facts | {"name": name, "seconds": taken, "share_with_other_ids": shares.get(name)})
                + "\n"
                for name, taken in times[-1].items()
            )
    print_tables(loads, times, disagreeing, len(texts))


def print_tables(loads, times, disagreeing: dict[str, int], num_texts: int) -> None:
    """How many times as fast as Rust each is, and what part of MiniLM's time ours takes."""
    titles = [load.name + (f", {load.at_a_time} at a time" if load.at_a_time > 1 else "") for load in loads]
    print("\nTimes as fast as Rust, median of rounds (least to most)\n")
    print("| tokenizer |", " | ".join(titles), "| texts with other ids |\n|" + "---|" * (len(loads) + 2))
    for name, count in disagreeing.items():
        ratios = [
            cell([base / own for base, own in zip(of[BASELINE], of[name], strict=True)]) for of in times
        ]
        print(f"| {name} |", " | ".join(ratios), f"| {count:,} of {num_texts:,} |")
    sizes = [sum(map(len, load.batches)) for load in loads]
    rates = [cell([size / own for own in of[BASELINE]], 0) for size, of in zip(sizes, times, strict=True)]
    print(f"| {BASELINE}, texts a second |", " | ".join(rates), "| |")
    ours, encoder = (times[-1][name] for name in ("ours", MINILM))
    share = [100 * own / other for own, other in zip(ours, encoder, strict=True)]
    milliseconds = [1000 * other / sizes[-1] for other in encoder]
    print(f"\nOne short text: {MINILM} takes {cell(milliseconds)} ms, ours {cell(share, 1)} % of that")


if __name__ == "__main__":
    flags.DEFINE_string("output", "tokenization.jsonl", "file that results are appended to")
    flags.DEFINE_integer("runs", 9, "rounds", 1)
    flags.DEFINE_integer("threads", 2, "threads of TensorFlow's and of Rust's", 1)
    flags.DEFINE_integer("texts", 12_808, "reviews taken", 1)
    flags.DEFINE_integer("calls", 500, "calls with the short text a round", 1)
    app.run(main)
