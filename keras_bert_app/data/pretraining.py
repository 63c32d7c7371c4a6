"""Documents -> sentence-pair examples on disk: over all cores, restartable, repeatable."""

import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_bert_app.config import PrepareConfig, check
from keras_bert_app.data import tokenized
from keras_bert_app.data.documents import Skipped, input_files, read_documents
from keras_bert_app.data.duplicates import find_duplicates
from keras_bert_app.data.examples_store import MANIFEST, describe, write_records
from keras_bert_app.data.pairs import document_examples
from keras_bert_app.data.tokenized import ChunkTokenizer, TokenizedDocuments, document_digest
from keras_bert_app.data.workers import Workers
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory, atomic_file
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import CLASSIFY, PAD, SEPARATE, Vocabulary

# Part of what identifies finished work: raise it when the same input would give other bytes.
_FORMAT = 1
_CHUNK_BYTES = 4 * 2**20
_SHARD_TOKENS = 8 * 2**20
_LEAST_LENGTH = 8
TRAIN, HELD_OUT = "train", "held_out"

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PrepareOptions(PrepareConfig):
    """How documents become examples: the config's section, and what of the config's other keys counts.

    Raises:
        UserError: a value out of range; names the key.
    """

    max_length: int = 128
    seed: int = 0

    def __post_init__(self):
        check(self, "config.prepare")
        if self.max_length < _LEAST_LENGTH:
            raise UserError(
                f"config.text.max_length is {self.max_length}; examples take at least {_LEAST_LENGTH}"
            )


def prepare_examples(
    inputs: Sequence[str],
    output: str | os.PathLike,
    vocabulary: Vocabulary,
    lower_case: bool,
    options: PrepareOptions,
    num_workers: int = 1,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> dict:
    """Read documents, drop duplicates, hold some out, and write the examples of both parts as a folder.

    The folder has TFRecord files with indexes (see `examples_store`) and, written last, manifest.json. It
    appears whole. Until then everything is in OUTPUT.partial, where a call with the same arguments goes on
    after an interruption. The result doesn't depend on num_workers. on_progress takes the stage, and what is
    done and to be done of it, in bytes, documents or files; 0 where the total is unknown.

    Held in memory: a chunk of 4 MiB of text for each worker, twice, some 100 bytes a document, and
    options.memory_bytes at most while fingerprints are compared, which themselves are on disk.

    Returns:
        The manifest.

    Raises:
        UserError: the output exists, the input can't be read or has nothing that can be used, too few
            documents are left for pairs, another call is at work on the same output, or a worker was killed.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output}: exists already; remove it, or write to another folder")
    files = input_files(inputs)
    partial = output.with_name(output.name + ".partial")
    with _locked(partial), Workers(num_workers, _Tool, vocabulary, lower_case, options) as workers:
        skipped = Skipped()
        chunks = _tokenise(files, partial, vocabulary, lower_case, options, workers, skipped, on_progress)
        settings = dataclasses.astuple(dataclasses.replace(options, memory_bytes=2**30))
        work = partial / f"work-{_identity(_FORMAT, settings, [chunk.name for chunk in chunks])}"
        counts = _select(chunks, work, options, skipped, on_progress)
        shards = {
            split: _write_shards(work, split, options, workers, on_progress)
            for split in ((TRAIN, HELD_OUT) if options.held_out else (TRAIN,))
        }
        manifest = {
            "format": _FORMAT,
            "options": dataclasses.asdict(options),
            "vocabulary_sha256": vocabulary.sha256,
            "vocabulary_size": len(vocabulary),
            "lower_case": lower_case,
            "pad_id": vocabulary.ids[PAD],
            "input": [{"file": str(file), "num_bytes": file.stat().st_size} for file in files],
            "skipped": {
                reason: {"count": count, "first": skipped.first[reason]}
                for reason, count in skipped.counts.items()
            },
            "documents": counts,
            "splits": {split: _describe_split(paths, split) for split, paths in shards.items()},
        }
        _finish(work / "examples", output, manifest)
        shutil.rmtree(partial)
    return manifest


def _tokenise(files, partial, vocabulary, lower_case, options, workers, skipped, on_progress) -> list[Path]:
    """Token ids of all documents as chunk folders, in the input's order; those that are there are kept."""
    identity = _identity(_FORMAT, vocabulary.sha256, lower_case, options.sentences)
    total = sum(file.stat().st_size for file in files)
    if any(file.suffix in (".gz", ".bz2") for file in files):
        total = 0
    chunks: list[Path] = []

    def missing() -> Iterator[tuple]:
        documents = read_documents(
            files, skipped, options.separation, options.text_key, options.max_document_bytes
        )
        for number, (chunk, done) in enumerate(_chunked(documents)):
            digest = _identity(identity, number, [document_digest(document) for document in chunk])
            chunks.append(partial / "chunks" / f"{number:06}-{digest}")
            on_progress("tokenise", done, total)
            if not chunks[-1].is_dir():
                yield chunk, chunks[-1]

    workers.run(_tokenise_chunk, missing())
    on_progress("tokenise", total, total)
    if not chunks:
        raise UserError(f"nothing to learn from in {len(files)} files: {skipped or 'all empty'}")
    return chunks


def _chunked(documents: Iterator[bytes]) -> Iterator[tuple[list[bytes], int]]:
    """Lists of documents of some _CHUNK_BYTES together, each with the bytes until then."""
    chunk, size, done = [], 0, 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= _CHUNK_BYTES:
            done += size
            yield chunk, done
            chunk, size = [], 0
    if chunk:
        yield chunk, done + size


def _select(chunks, work: Path, options: PrepareOptions, skipped: Skipped, on_progress) -> dict:
    """Drop duplicates, split, and write both parts below `work`; returns the counts of documents."""
    finished = work / "documents"
    if not finished.is_dir():
        digests = tokenized.load_column(chunks, "digests")
        on_progress("drop duplicates", 0, len(digests))
        with atomic_directory(finished) as folder:
            signatures = tokenized.map_signatures(chunks, len(digests), folder / "signatures.npy")
            exact, near = find_duplicates(
                tokenized.contents(digests), signatures, options.near_duplicates, options.memory_bytes, folder
            )
            del signatures
            (folder / "signatures.npy").unlink()
            without_tokens = tokenized.load_column(chunks, "document_lengths") == 0
            kept = ~(exact | near | without_tokens)
            out = tokenized.held_out(digests, options.held_out) & kept
            for split, members in ((TRAIN, kept & ~out), (HELD_OUT, out)):
                (folder / split).mkdir()
                tokenized.gather(chunks, members, folder / split)
            counts = {
                "read": len(digests),
                "exact_duplicates": int(exact.sum()),
                "near_duplicates": int((near & ~exact).sum()),
                "without_tokens": int((without_tokens & ~exact & ~near).sum()),
                TRAIN: int((kept & ~out).sum()),
                HELD_OUT: int(out.sum()),
            }
            (folder / "counts.json").write_text(json.dumps(counts))
        on_progress("drop duplicates", len(digests), len(digests))
    counts = json.loads((finished / "counts.json").read_text())
    _check_enough(counts, options, skipped)
    return counts


def _check_enough(counts: dict, options: PrepareOptions, skipped: Skipped) -> None:
    needed = 2 if options.objective == "nsp" else 1
    for split in (TRAIN, HELD_OUT) if options.held_out else (TRAIN,):
        if counts[split] < needed:
            advice = "" if split == TRAIN else ", set held_out to more, or to 0"
            left_out = f" (left out: {skipped})" if skipped.counts else ""
            raise UserError(
                f"{counts[split]} of {counts['read']} documents are left for {split}{left_out}; objective "
                f"{options.objective!r} needs {needed}; give more documents{advice}; they are set apart by "
                f"{options.separation}"
            )


def _write_shards(work: Path, split: str, options: PrepareOptions, workers, on_progress) -> list[Path]:
    """The examples of a split, in files of some _SHARD_TOKENS tokens; those that are there are kept."""
    documents = TokenizedDocuments.open(work / "documents" / split)
    ends = np.asarray(documents.sentence_starts[documents.document_starts[1:]])
    cuts = np.flatnonzero(np.diff(ends // _SHARD_TOKENS, append=ends[-1] // _SHARD_TOKENS + 1)) + 1
    ranges = list(itertools.pairwise([0, *cuts.tolist()]))
    names = [f"{split}-{number:05}-of-{len(ranges):05}.tfrecord" for number in range(len(ranges))]
    paths = [work / "examples" / name for name in names]
    missing = [
        (work / "documents" / split, path, *documents_range)
        for path, documents_range in zip(paths, ranges, strict=True)
        if not path.is_file()
    ]
    finished = len(paths) - len(missing)
    on_progress(f"write {split}", finished, len(paths))

    def report(number: int) -> None:
        on_progress(f"write {split}", finished + number, len(paths))

    workers.run(_write_shard, missing, report)
    return paths


def _describe_split(paths: Sequence[Path], split: str) -> dict:
    files = [description for path in paths if (description := describe(path))["num_examples"]]
    if not files:
        raise UserError(f"no examples for {split}: each document is one sentence; try objective 'none'")
    names = ("num_examples", "num_tokens", "num_labelled_1", "num_bytes")
    return {name: sum(file[name] for file in files) for name in names} | {"files": files}


def _finish(folder: Path, output: Path, manifest: dict) -> None:
    wanted = {
        file[kind]
        for split in manifest["splits"].values()
        for file in split["files"]
        for kind in ("records", "index")
    }
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    os.rename(folder, output)


class _Tool:
    """What a process needs to tokenise documents and to pack examples."""

    def __init__(self, vocabulary: Vocabulary, lower_case: bool, options: PrepareOptions):
        self.options = options
        self.chunk_tokenizer = ChunkTokenizer(BertTokenizer(vocabulary, lower_case), options.sentences)
        self.classify, self.separate = vocabulary.ids[CLASSIFY], vocabulary.ids[SEPARATE]


def _tokenise_chunk(tool: _Tool, documents: list[bytes], folder: Path) -> None:
    tool.chunk_tokenizer.write(documents, folder)


def _write_shard(tool: _Tool, folder: Path, path: Path, first: int, last: int) -> None:
    """Write the examples of documents first to last - 1 of a split."""
    options, classify, separate = tool.options, [tool.classify], [tool.separate]
    documents = TokenizedDocuments.open(folder)
    tokens = documents.tokens

    def examples():
        for number in range(first, last):
            for spans in document_examples(
                documents, number, options.objective, options.max_length, options.short_fraction, options.seed
            ):
                ids = classify + tokens[spans.first : spans.first_end].tolist() + separate
                segments = [0] * len(ids)
                if spans.label >= 0:
                    ids += tokens[spans.second : spans.second_end].tolist() + separate
                    segments += [1] * (len(ids) - len(segments))
                yield ids, segments, spans.label

    write_records(path, examples())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is preparing these examples; wait for it") from None
        try:
            yield
        finally:
            if [path.name for path in folder.glob("*")] == ["lock"]:
                shutil.rmtree(folder)


def _identity(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
