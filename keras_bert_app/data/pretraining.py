"""Documents -> sentence-pair examples on disk: over all cores, restartable, repeatable."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from keras_bert_app.data import tokenized
from keras_bert_app.data.documents import Skipped, input_files, read_documents
from keras_bert_app.data.duplicates import find_duplicates
from keras_bert_app.data.examples import (
    FORMAT,
    HELD_OUT,
    TRAIN,
    ExampleMaker,
    Shards,
    check_enough,
    nothing_read,
    splits_of,
    write_manifest,
)
from keras_bert_app.data.examples_store import Example, describe, write_records
from keras_bert_app.data.pairs import PrepareOptions, complete, plan_examples
from keras_bert_app.data.tokenized import ChunkTokenizer, TokenizedDocuments, document_digest
from keras_bert_app.data.workers import Workers
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory, is_taken, locked_folder
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary

_CHUNK_BYTES = 4 * 2**20

OnProgress = Callable[[str, int, int], None]


def prepare_examples(
    inputs: Sequence[str],
    output: str | os.PathLike,
    vocabulary: Vocabulary,
    tokenizer_options: TokenizerOptions,
    options: PrepareOptions,
    num_workers: int = 1,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> dict:
    """Read documents, drop duplicates, hold some out, and write the examples of both parts as a folder.

    The folder has TFRecord files with indexes (see `examples_store`) and, written last, manifest.json. It
    appears whole. Until then everything is in OUTPUT.partial, where a call with the same arguments goes on
    after an interruption. The result doesn't depend on num_workers. on_progress takes the stage, and what is
    done and to be done of it, in bytes, documents or files; 0 where the total is unknown.

    Held in memory: for each worker a chunk of 4 MiB of text, twice, or the tokens of one file of examples,
    some 16 MiB; some 100 bytes a document; options.memory_bytes at most while fingerprints are compared,
    which themselves are on disk.

    Returns:
        The manifest.

    Raises:
        UserError: the output exists, the input can't be read or has nothing that can be used, too few
            documents are left for pairs, another call is at work on the same output, or a worker was killed.
    """
    output = Path(output)
    if is_taken(output):
        raise UserError(f"{output}: exists already; remove it, or write to another folder")
    files = input_files(inputs)
    partial = output.with_name(output.name + ".partial")
    with (
        locked_folder(partial, "preparing these examples"),
        Workers(num_workers, _Tool, vocabulary, tokenizer_options, options) as workers,
    ):
        skipped = Skipped()
        chunks = _tokenise(
            files, partial, vocabulary, tokenizer_options, options, workers, skipped, on_progress
        )
        settings = dataclasses.astuple(dataclasses.replace(options, memory_bytes=2**30))
        work = partial / f"work-{_identity(FORMAT, settings, [chunk.name for chunk in chunks])}"
        counts = _select(chunks, work, options, skipped, on_progress)
        descriptions = {
            split: _write_shards(work, split, workers, on_progress) for split in splits_of(options)
        }
        manifest = write_manifest(
            work / "examples", files, vocabulary, tokenizer_options, options, skipped, counts, descriptions
        )
        os.rename(work / "examples", output)
        shutil.rmtree(partial)
    return manifest


def _tokenise(
    files, partial, vocabulary, tokenizer_options, options, workers, skipped, on_progress
) -> list[Path]:
    """Token ids of all documents as chunk folders, in the input's order; those that are there are kept."""
    identity = _identity(FORMAT, vocabulary.sha256, tokenizer_options, options.sentences)
    total = sum(file.stat().st_size for file in files)
    if any(file.suffix in (".gz", ".bz2") for file in files):
        total = 0
    chunks: list[Path] = []

    def missing() -> Iterator[tuple]:
        documents = read_documents(
            files, skipped, options.separation, options.text_key, options.max_document_bytes
        )
        for number, (chunk, done) in enumerate(_chunked(documents)):
            digests = [document_digest(document) for document in chunk]
            chunks.append(partial / "chunks" / f"{number:06}-{_identity(identity, number, digests)}")
            on_progress("tokenise", done, total)
            if not chunks[-1].is_dir():
                yield chunk, digests, chunks[-1]

    workers.run(_tokenise_chunk, missing())
    on_progress("tokenise", total, total)
    if not chunks:
        raise nothing_read(files, skipped)
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
            signatures = tokenized.gather_signatures(chunks, len(digests), folder / "signatures.npy")
            exact, near = find_duplicates(
                tokenized.contents(digests), signatures, options.near_duplicates, options.memory_bytes, folder
            )
            signatures.close()
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
    check_enough(counts, options, skipped)
    return counts


def _write_shards(work: Path, split: str, workers, on_progress) -> list[dict]:
    """Write the examples of a split, but the files that are there; returns what `describe` says of each."""
    documents = TokenizedDocuments.open(work / "documents" / split)
    shards = Shards(split, len(documents), len(documents.tokens))
    calls = [
        (work / "documents" / split, work / "examples" / shards.name(shard), shards.documents(shard))
        for shard in range(len(shards))
    ]
    on_progress(f"write {split}", 0, len(calls))
    return workers.run(_write_shard, calls, lambda number: on_progress(f"write {split}", number, len(calls)))


class _Tool:
    """What a process needs to tokenise documents and to make examples."""

    def __init__(self, vocabulary: Vocabulary, tokenizer_options: TokenizerOptions, options: PrepareOptions):
        self.options = options
        self.chunk_tokenizer = ChunkTokenizer(BertTokenizer(vocabulary, tokenizer_options), options.sentences)
        self.maker = ExampleMaker(vocabulary)


def _tokenise_chunk(tool: _Tool, documents: list[bytes], digests: list[bytes], folder: Path) -> None:
    tool.chunk_tokenizer.write(documents, digests, folder)


def _write_shard(tool: _Tool, folder: Path, path: Path, numbers: range) -> dict:
    """Write the examples of these documents of a split, unless it is done; returns the file's description."""
    if not path.is_file():
        documents, options = TokenizedDocuments.open(folder), tool.options
        if options.pack:
            examples = tool.maker.packed(map(documents.document_tokens, numbers), options.max_length)
        else:
            examples = _examples(tool, documents, numbers)
        write_records(path, examples)
    return describe(path)


def _examples(tool: _Tool, documents: TokenizedDocuments, numbers: range) -> Iterator[Example]:
    own = documents.load(numbers)
    for place, number in enumerate(numbers):
        bounds, digest = own.token_bounds(place), own.digest(place)
        for plan in plan_examples(bounds, digest, number, len(documents), tool.options):
            if plan.partner is None:
                spans = complete(plan)
                second = own.tokens[spans.second : spans.second_end].tobytes()
            else:
                spans = complete(plan, documents.token_bounds(plan.partner))
                second = documents.tokens.read(spans.second, spans.second_end)
            first = own.tokens[spans.first : spans.first_end].tobytes()
            yield tool.maker.example(first, second, spans.label)


def _identity(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
