"""Documents -> examples on disk, whole: the same for any number of workers, after any interruption."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.data import examples, pretraining
from keras_bert_app.data.documents import split_sentences
from keras_bert_app.data.examples_store import MANIFEST, ExampleStore
from keras_bert_app.data.pretraining import PrepareOptions, prepare_examples
from keras_bert_app.errors import UserError
from keras_bert_app.files import locked_folder
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

NUMBERS = [str(number) for number in range(1000)]
VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *NUMBERS, ".", "common"))
OPTIONS = PrepareOptions(max_length=32, held_out=0.1)


def document(number):
    """Sentences of words that no other of the 90 documents has, so that a token tells where it is from."""
    random = np.random.default_rng(number)
    words = NUMBERS[number * 10 : number * 10 + 10]
    sentences = [random.choice(words, random.integers(2, 9)) for _ in range(random.integers(2, 30))]
    return " ".join(" ".join(sentence) + "." for sentence in sentences)


DOCUMENTS = [document(number) for number in range(90)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(pretraining, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(examples, "_SHARD_TOKENS", 1500)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return path


def prepare(corpus, output, options=OPTIONS, **settings):
    return prepare_examples([str(corpus)], output, VOCABULARY, TokenizerOptions(), options, **settings)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def spans_of(examples):
    """(first span's ids, second span's ids, label) of every example."""
    read = examples.read(range(len(examples)))
    columns = (read[features.TOKEN_IDS], read[features.SEGMENT_IDS], read[features.NEXT_SENTENCE_LABEL])
    rows = zip(columns[0].to_list(), columns[1].to_list(), columns[2].numpy().tolist(), strict=True)
    for ids, segments, label in rows:
        second = segments.index(1)
        separate = VOCABULARY.ids["[SEP]"]
        assert ids[0] == VOCABULARY.ids["[CLS]"] and ids[second - 1] == ids[-1] == separate
        assert segments == [0] * second + [1] * (len(ids) - second)
        yield ids[1 : second - 1], ids[second:-1], label


def source_of(ids):
    """The numbers of the documents the ids are from."""
    first = VOCABULARY.ids[NUMBERS[0]]
    return {(token - first) // 10 for token in ids if token != VOCABULARY.ids["."]}


def test_pairs_are_packed_and_labelled_and_no_random_one_is_from_one_document(corpus, tmp_path):
    prepare(corpus, tmp_path / "out")
    labels = []
    for first, second, label in spans_of(ExampleStore(tmp_path / "out")):
        assert len(source_of(first)) <= 1 and len(source_of(second)) <= 1
        assert len(first) + len(second) <= 29
        if source_of(first) and source_of(second):
            assert (source_of(first) == source_of(second)) == (label == 0)
            labels.append(label)
    assert {0, 1} == set(labels)


def test_no_document_is_in_both_parts(corpus, tmp_path):
    manifest = prepare(corpus, tmp_path / "out")
    parts = []
    for split in ("train", "held_out"):
        spans = [span for example in spans_of(ExampleStore(tmp_path / "out", split)) for span in example[:2]]
        parts.append(set().union(*map(source_of, spans)))
    assert parts[0] | parts[1] == set(range(90)) and not parts[0] & parts[1]
    assert (manifest["documents"]["train"], manifest["documents"]["held_out"]) == tuple(map(len, parts))


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """Examples of 1.2 M tokens; returns folder, manifest and function from token ids to families.

    Of 1,000 families of documents with words of their own every second has an exact duplicate, and every
    third a near one.
    """
    folder = tmp_path_factory.mktemp("million")
    random, texts = np.random.default_rng(0), []
    for family in range(1000):
        lengths = random.integers(3, 20, 120)
        words = np.char.add(f"w{family}x", random.integers(0, 20, lengths.sum()).astype(str))
        sentences = [" ".join(part).capitalize() + "." for part in np.split(words, np.cumsum(lengths)[:-1])]
        text = " ".join(sentences)
        texts += [text] * (1 + (family % 2)) + [text.replace(words[0], "common", 1)] * (family % 3 == 0)
    (folder / "corpus.txt").write_text(
        "\n\n".join(texts[number] for number in random.permutation(len(texts)))
    )
    pieces = [f"w{family}x{number}" for family in range(1000) for number in range(20)]
    vocabulary = Vocabulary((*SPECIAL_TOKENS, ".", "common", *pieces))
    first = vocabulary.ids[pieces[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "_SHARD_TOKENS", 100_000)
        manifest = prepare_examples(
            [str(folder / "corpus.txt")], folder / "out", vocabulary, TokenizerOptions(), OPTIONS
        )

    def families(ids):
        return {(token - first) // 20 for token in ids if token >= first}

    return folder / "out", manifest, families


def test_over_a_million_tokens_half_of_the_pairs_are_random_and_from_two_documents(million):
    folder, manifest, families = million
    part, labels = manifest["splits"]["train"], []
    assert part["num_tokens"] > 1_000_000
    read = ExampleStore(folder).read(range(part["num_examples"]))
    rows = zip(
        read[features.TOKEN_IDS].to_list(),
        read[features.SEGMENT_IDS].to_list(),
        read[features.NEXT_SENTENCE_LABEL].numpy().tolist(),
        strict=True,
    )
    for ids, segments, label in rows:
        second = segments.index(1)
        one, other = families(ids[:second]), families(ids[second:])
        if one and other:  # not only a full stop
            assert len(one) == len(other) == 1 and (one != other) == label
        labels.append(label)
    assert abs(np.mean(labels) - 0.5) < 0.005


def test_over_a_million_tokens_no_document_leaks_between_the_parts_as_duplicate_or_partner(million):
    folder, manifest, families = million
    counts = manifest["documents"]
    assert counts["exact_duplicates"] == 500 and counts["near_duplicates"] == 334
    found = []
    for split in ("train", "held_out"):
        tokens = ExampleStore(folder, split).read(range(manifest["splits"][split]["num_examples"]))
        found.append(families(np.unique(tokens[features.TOKEN_IDS].flat_values).tolist()))
        assert len(found[-1]) == counts[split]
    assert len(found[0] | found[1]) == 1000 and not found[0] & found[1]


def test_packed_rows_hold_every_token_once_and_say_which_text_it_is_of(corpus, tmp_path):
    options = PrepareOptions(objective="none", pack=True, max_length=32, held_out=0.1)
    manifest = prepare(corpus, tmp_path / "out", options)
    texts, lengths = [], []
    for split in ("train", "held_out"):
        store = ExampleStore(tmp_path / "out", split)
        batch = store.batch(range(len(store)))
        rows = zip(batch[features.TOKEN_IDS].numpy(), batch[features.SEQUENCE_IDS].numpy(), strict=True)
        for ids, numbers in rows:
            assert ((numbers > 0) == (ids != VOCABULARY.ids["[PAD]"])).all()
            row = [ids[numbers == number] for number in range(1, numbers.max() + 1)]
            assert np.concatenate(row).tolist() == ids[numbers > 0].tolist()
            texts += row
        lengths += store.lengths.tolist()
        assert not batch[features.SEGMENT_IDS].numpy().any()
    assert {(VOCABULARY.ids["[CLS]"], VOCABULARY.ids["[SEP]"])} == {(text[0], text[-1]) for text in texts}
    assert all(len(source_of(text[1:-1].tolist())) <= 1 for text in texts)
    words = sorted(word for text in DOCUMENTS for word in text.replace(".", " .").split())
    assert sorted(VOCABULARY.pieces[token] for text in texts for token in text[1:-1]) == words
    num_files = sum(len(part["files"]) for part in manifest["splits"].values())
    assert max(lengths) <= 32 and sum(length <= 32 - 8 for length in lengths) <= num_files


def test_the_part_of_a_document_depends_on_neither_seed_nor_order(corpus, tmp_path):
    def held_out(name, options):
        prepare(corpus, tmp_path / name, options)
        spans = spans_of(ExampleStore(tmp_path / name, "held_out"))
        return set().union(*(source_of(first + second) for first, second, _ in spans))

    first = held_out("a", OPTIONS)
    corpus.write_text("\n\n".join(DOCUMENTS[::-1]))
    assert first == held_out("b", PrepareOptions(max_length=64, held_out=0.1, seed=5))


def test_ids_are_those_of_the_tokenizer(tmp_path, minilm, reviews):
    vocabulary = Vocabulary.load(minilm / "vocab.txt")
    corpus = tmp_path / "reviews.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": review}) for review in reviews[:300]))
    options = PrepareOptions(
        max_length=2048, objective="none", short_fraction=0, held_out=0, near_duplicates=1
    )
    manifest = prepare_examples([str(corpus)], tmp_path / "out", vocabulary, TokenizerOptions(), options)
    examples = ExampleStore(tmp_path / "out")
    ours = examples.read(range(len(examples)))[features.TOKEN_IDS].to_list()
    different = list(dict.fromkeys(review.strip() for review in reviews[:300] if review.strip()))
    texts = [" ".join(split_sentences(review)) for review in different]
    wanted = BertTokenizer(vocabulary)(tf.constant(texts)).to_list()
    assert [ids[1:-1] for ids in ours] == [ids for ids in wanted if ids]
    assert manifest["vocabulary_sha256"] == vocabulary.sha256


def test_two_workers_write_the_bytes_that_one_does(corpus, tmp_path):
    stages = []
    prepare(corpus, tmp_path / "one", num_workers=1, on_progress=lambda *args: stages.append(args))
    prepare(corpus, tmp_path / "two", num_workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("train*.tfrecord"))) > 3
    assert [stage for stage, done, total in stages if done == total] == [
        "tokenise", "drop duplicates", "write train", "write held_out"
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["_tokenise_chunk", "write_records"])
def test_after_a_failure_finished_parts_are_kept_and_bytes_are_the_same(corpus, tmp_path, monkeypatch, stage):
    prepare(corpus, tmp_path / "whole")
    original, calls = getattr(pretraining, stage), []

    def failing(*arguments):
        calls.extend(argument for argument in arguments if isinstance(argument, Path))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pretraining, stage, failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    num_before = len(calls)
    prepare(corpus, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(pretraining, "_CHUNK_BYTES", 4096)
    repeated = [call for call in calls[num_before:] if call in calls[: num_before - 1]]
    assert not repeated and calls[num_before - 1] in calls[num_before:]
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


KILLED = """
import os, signal, sys
from keras_bert_app.data import examples, pretraining
from keras_bert_app.text.tokenizer import TokenizerOptions as Options
from keras_bert_app.text.vocabulary import Vocabulary
pretraining._CHUNK_BYTES, examples._SHARD_TOKENS = 4096, 1500
write, written = pretraining.write_records, []
def dying(path, examples):
    def some():
        for number, example in enumerate(examples):
            if len(written) == 2 and number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield example
    write(path, some())
    written.append(path)
pretraining.write_records = dying
options = pretraining.PrepareOptions(max_length=32, held_out=0.1)
pretraining.prepare_examples([sys.argv[1]], sys.argv[2], Vocabulary.load(sys.argv[3]), Options(), options)
"""


def test_after_a_kill_in_the_middle_of_a_file_the_bytes_are_the_same(corpus, tmp_path):
    VOCABULARY.save(tmp_path / "vocab.txt")
    arguments = [str(corpus), str(tmp_path / "out"), str(tmp_path / "vocab.txt")]
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED, *arguments]
    killed = subprocess.run(command, cwd=root, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial").glob("work-*/examples/train*.tfrecord"))) == 2
    prepare(corpus, tmp_path / "out")
    prepare(corpus, tmp_path / "whole")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "out")


def test_duplicates_are_dropped_and_counted(corpus, tmp_path):
    alone = prepare(corpus, tmp_path / "alone")
    long = next(text for text in DOCUMENTS if len(text.split()) > 120)
    near = " ".join(["common", *long.split()[1:]])
    corpus.write_text("\n\n".join([*DOCUMENTS, DOCUMENTS[3], near, DOCUMENTS[4], DOCUMENTS[3]]))
    manifest = prepare(corpus, tmp_path / "out")
    assert manifest["documents"] == {
        **alone["documents"], "read": 94, "exact_duplicates": 3, "near_duplicates": 1
    }  # fmt: skip
    assert manifest["splits"] == alone["splits"]


def test_the_manifest_counts_what_is_there(corpus, tmp_path):
    corpus.write_text("\n\n".join([*DOCUMENTS, "\u200b"]) + "\n\n")
    with corpus.open("ab") as file:
        file.write(b"\xff\n\n\xfe")
    manifest = prepare(corpus, tmp_path / "out")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == manifest
    assert manifest["documents"]["read"] == 91 and manifest["documents"]["without_tokens"] == 1
    assert manifest["skipped"]["not UTF-8"]["count"] == 2
    for split in ("train", "held_out"):
        examples = ExampleStore(tmp_path / "out", split)
        examples.verify()
        counts = manifest["splits"][split]
        paths = sorted(str(path) for path in (tmp_path / "out").glob(f"{split}*.tfrecord"))
        records = list(tf.data.TFRecordDataset(paths).as_numpy_iterator())
        labels = [label for _, _, label in spans_of(examples)]
        assert len(records) == len(examples) == counts["num_examples"]
        assert counts["num_labelled_1"] == sum(labels)
        assert counts["num_tokens"] == examples.lengths.sum()
        assert counts["num_bytes"] == sum(os.path.getsize(path) for path in paths)


def test_other_objectives_need_no_second_document(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(DOCUMENTS[2])
    for objective in ("sop", "none"):
        prepare(path, tmp_path / objective, PrepareOptions(max_length=32, held_out=0, objective=objective))
        assert len(ExampleStore(tmp_path / objective)) > 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"nothing to learn from in 1 files: 1 empty \(the first .*corpus\.txt\)"),
        (b"\x7fELF\0\0\0", "nothing to learn from in 1 files: 1 binary"),
        (b"\xff\xfe\xfd", r"nothing to learn from in 1 files: 1 not UTF-8 \(the first .*corpus\.txt:1\)"),
        (b"x" * 2**20, "nothing to learn from in 1 files: 1 too long"),
        (b"1. 2. 3.", r"1 of 1 documents are left for train; objective 'nsp' needs 2; give more"),
        (b"1. 2.\n\n1. 2.\n\n1. 2.\n\n\xff", r"1 of 3 .* train \(left out: 1 not UTF-8 .*needs 2"),
        (b"1\n\n2\n\n3", "no examples for train: each document is one sentence"),
    ],
    ids=["empty", "binary", "not UTF-8", "enormous line", "one document", "duplicates", "one sentence"],
)
def test_input_without_examples_is_refused_and_nothing_is_written(corpus, tmp_path, content, message):
    corpus.write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(corpus, tmp_path / "out", PrepareOptions(held_out=0, max_document_bytes=2**19))
    assert not (tmp_path / "out").exists()


def test_an_enormous_line_among_documents_is_counted_and_takes_no_memory(corpus, tmp_path):
    with corpus.open("ab") as file:
        file.write(b"\n\n")
        for _ in range(200):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    manifest = prepare(corpus, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest["skipped"] == {"too long": {"count": 1, "first": f"{corpus}:{2 * len(DOCUMENTS) + 1}"}}
    assert manifest["documents"]["read"] == len(DOCUMENTS)
    assert peak < 40 * 2**20


def test_an_input_that_gives_nothing_leaves_no_folder(corpus, tmp_path):
    corpus.write_bytes(b"")
    with pytest.raises(UserError):
        prepare(corpus, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


def test_an_output_that_exists_is_refused(corpus, tmp_path):
    prepare(corpus, tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    with pytest.raises(UserError, match="out: exists already"):
        prepare(corpus, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == before


def test_two_at_work_on_one_output_are_refused(corpus, tmp_path):
    with (
        locked_folder(tmp_path / "out.partial", "preparing"),
        pytest.raises(UserError, match=r"out\.partial: another process"),
    ):
        prepare(corpus, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "mlm"}, "objective is 'mlm'; it takes one of nsp, sop, none"),
        ({"held_out": 0.9}, "config.prepare.held_out is 0.9; it takes at most 0.5"),
        ({"max_length": 4}, "config.text.max_length is 4; examples take at least 8"),
        ({"separation": "pages"}, "separation is 'pages'; it takes one of blank_lines, files"),
    ],
)
def test_options_out_of_range_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        PrepareOptions(**settings)
