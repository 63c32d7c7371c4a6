"""The same examples on Apache Beam: for corpora beyond one machine, on an engine that is there already.

Every step is a function that the engine of `pretraining` calls too. Here they are joined by keys: a
document's position (number of its file, its place there), then its part and number among the documents that
are kept, and at last the file that its examples go to. What one worker holds at a time is a document, the
examples of one file, or a few numbers for each document of a block or of those that are alike. Apache Beam is
imported here and in `pipeline_selection` alone.
"""

import json
import os
import shlex
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from keras_bert_app.data.documents import Skipped, input_files, read_documents
from keras_bert_app.data.examples import (
    HELD_OUT,
    TRAIN,
    ExampleMaker,
    Shards,
    check_enough,
    needed_documents,
    nothing_read,
    splits_of,
    write_manifest,
)
from keras_bert_app.data.examples_store import describe, write_records
from keras_bert_app.data.pairs import Plan, PrepareOptions, complete, plan_examples
from keras_bert_app.data.pipeline_selection import (
    EXACT,
    KEYED,
    NEAR,
    WITHOUT_TOKENS,
    Mark,
    number_documents,
    statuses_of,
)
from keras_bert_app.data.tokenized import ChunkTokenizer, document_digest
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory, is_taken
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary

_SUMMARY = "summary.json"
_CHUNK_BYTES = 4 * 2**20


class _Document(NamedTuple):
    tokens: np.ndarray
    bounds: list[int]
    digest: bytes


class _Waiting(NamedTuple):
    """An example that still needs its partner: tokens are those of the plan's first span."""

    file: str
    place: tuple[int, int]
    plan: Plan
    tokens: np.ndarray


def prepare_examples_on_beam(
    inputs: Sequence[str],
    output: str | os.PathLike,
    vocabulary: Vocabulary,
    tokenizer_options: TokenizerOptions,
    options: PrepareOptions,
    beam_options: str,
) -> dict:
    """As `pretraining.prepare_examples`, with the same bytes as result, on the runner that beam_options name.

    beam_options: such as "--runner=FlinkRunner --flink_master=HOST:PORT". Workers need this package, and see
    inputs and output under the same paths. An interrupted run starts anew; it leaves nothing.

    Returns:
        The manifest.

    Raises:
        UserError: the output exists, no such runner, the input can't be read or has nothing that can be used,
            or too few documents are left for pairs.
    """
    output = Path(output).absolute()
    if is_taken(output):
        raise UserError(f"{output}: exists already; remove it, or write to another folder")
    files = input_files(inputs)
    with atomic_directory(output) as folder:
        pipeline = make_pipeline(beam_options)
        _build(pipeline, files, folder, vocabulary, tokenizer_options, options)
        pipeline.run().wait_until_finish()
        summary = json.loads((folder / _SUMMARY).read_text())
        if summary["problems"]:
            raise UserError(summary["problems"][0])
        skipped = Skipped()
        for counts, first in summary["skipped"]:
            skipped.counts.update(counts)
            skipped.first = first | skipped.first
        if not summary["counts"]["read"]:
            raise nothing_read(files, skipped)
        check_enough(summary["counts"], options, skipped)
        return write_manifest(
            folder,
            files,
            vocabulary,
            tokenizer_options,
            options,
            skipped,
            summary["counts"],
            summary["files"],
        )


def make_pipeline(beam_options: str) -> beam.Pipeline:
    """An empty pipeline on the runner that the options name.

    Raises:
        UserError: there is no such runner, or it doesn't take the options.
    """
    try:
        return beam.Pipeline(options=PipelineOptions(shlex.split(beam_options)))
    except ValueError as error:
        raise UserError(f"--beam={beam_options}: {error}") from None


def _build(pipeline, files, folder, vocabulary, tokenizer_options, options) -> None:
    read = (
        pipeline
        | "files"
        >> beam.Create([(number, str(file.absolute()), str(file)) for number, file in enumerate(files)])
        | "spread files" >> beam.Reshuffle()
        | "read"
        >> beam.FlatMap(_read, options).with_output_types(KEYED).with_outputs("reports", main="documents")
    )
    tokenised = (
        read.documents
        | "spread documents" >> beam.Reshuffle()
        | "chunks"
        >> beam.BatchElements(_CHUNK_BYTES, _CHUNK_BYTES, element_size_fn=lambda each: len(each[1]))
        | "tokenise"
        >> beam.ParDo(_Tokenise(vocabulary, tokenizer_options, options.sentences))
        .with_output_types(KEYED)
        .with_outputs("marks", main="documents")
    )
    statuses = statuses_of(pipeline, tokenised.marks, options)
    totals = beam.pvalue.AsDict(
        statuses
        | "count" >> beam.Map(lambda each: (each[1][0], (1, each[1][1])))
        | "totals" >> beam.CombinePerKey(beam.combiners.TupleCombineFn(sum, sum))
    )
    numbered = number_documents(tokenised.documents, statuses)
    planned = numbered | "plan" >> beam.FlatMap(_plan, totals, options).with_output_types(KEYED).with_outputs(
        "waiting", main="done"
    )
    completed = (
        {"document": numbered, "waiting": planned.waiting}
        | "to partners" >> beam.CoGroupByKey()
        | "complete" >> beam.FlatMap(_complete)
    )
    written = (
        (planned.done, completed)
        | beam.Flatten()
        | "to files" >> beam.GroupByKey()
        | "write" >> beam.Map(_write, str(folder), vocabulary, options)
    )
    reports, descriptions = beam.pvalue.AsList(read.reports), beam.pvalue.AsList(written)
    (
        pipeline
        | "once" >> beam.Create([str(folder)])
        | "summary" >> beam.Map(_summarise, totals, reports, descriptions, options)
    )


def _read(file, options):
    """(number, path, name as given) -> documents with their positions, and what was left out."""
    number, path, name = file
    skipped, problem = Skipped(), None
    settings = (options.separation, options.text_key, options.max_document_bytes)
    try:
        for place, document in enumerate(read_documents([Path(path)], skipped, *settings)):
            yield (number, place), document
    except UserError as error:
        problem = str(error).replace(path, name)
    first = {reason: where.replace(path, name) for reason, where in skipped.first.items()}
    yield beam.pvalue.TaggedOutput("reports", (number, dict(skipped.counts), first, problem))


class _Tokenise(beam.DoFn):
    """Chunks of documents -> each as `_Document` and, in output "marks", as `Mark`; by position."""

    def __init__(self, vocabulary, tokenizer_options, sentences):
        self._arguments = vocabulary, tokenizer_options, sentences

    def setup(self):
        """Build the tokenizer, once a worker."""
        vocabulary, tokenizer_options, sentences = self._arguments
        self._tokenizer = ChunkTokenizer(BertTokenizer(vocabulary, tokenizer_options), sentences)

    def process(self, chunk):
        """Tokenise one chunk."""
        documents = [document for _, document in chunk]
        columns = self._tokenizer.tokenise(documents, [document_digest(document) for document in documents])
        ends = np.cumsum(columns["document_lengths"])
        sentences = np.split(columns["sentence_lengths"], ends[:-1])
        tokens = np.split(
            columns["tokens"], np.cumsum([lengths.sum() for lengths in sentences], dtype=int)[:-1]
        )
        for number, (position, _) in enumerate(chunk):
            digest, bounds = columns["digests"][number].tobytes(), [0, *np.cumsum(sentences[number]).tolist()]
            yield position, _Document(tokens[number], bounds, digest)
            mark = Mark(digest, bounds[-1], columns["signatures"][number])
            yield beam.pvalue.TaggedOutput("marks", (position, mark))


def _plan(numbered, totals, options):
    """A document -> by file its examples, or by partner those that need one, in output "waiting"."""
    (split, number), document = numbered
    shards = Shards(split, *totals[split])
    file = shards.name(shards.of(number))
    if options.pack:
        yield file, ((number, 0), document.tokens, None, -1)
        return
    if shards.num_documents < needed_documents(options):
        return
    plans = plan_examples(document.bounds, document.digest, number, shards.num_documents, options)
    for place, plan in enumerate(plans):
        if plan.partner is None:
            yield file, _example((number, place), document.tokens, document.tokens, complete(plan))
        else:
            waiting = _Waiting(file, (number, place), plan, document.tokens[slice(*plan.first)])
            yield beam.pvalue.TaggedOutput("waiting", ((split, plan.partner), waiting))


def _complete(joined):
    for waiting in joined[1]["waiting"]:
        partner, plan = joined[1]["document"][0], waiting.plan
        spans, start = complete(plan, partner.bounds), plan.first[0]
        spans = spans._replace(first=spans.first - start, first_end=spans.first_end - start)
        yield waiting.file, _example(waiting.place, waiting.tokens, partner.tokens, spans)


def _example(place, first, second, spans):
    spans_of_second = second[spans.second : spans.second_end].tobytes()
    return place, first[spans.first : spans.first_end].tobytes(), spans_of_second, spans.label


def _write(grouped, folder, vocabulary, options):
    """Write one file; returns its description."""
    name, examples = grouped[0], sorted(grouped[1], key=itemgetter(0))
    maker, path = ExampleMaker(vocabulary), Path(folder, name)
    if options.pack:
        rows = maker.packed((tokens for _, tokens, _, _ in examples), options.max_length)
    else:
        rows = (maker.example(first, second, label) for _, first, second, label in examples)
    write_records(path, rows)
    return describe(path)


def _summarise(folder, totals, reports, descriptions, options):
    """Write what the manifest needs to know where whoever started the pipeline finds it."""
    counts = {name: totals.get(name, (0, 0))[0] for name in (EXACT, NEAR, WITHOUT_TOKENS, TRAIN, HELD_OUT)}
    reports = sorted(reports, key=itemgetter(0))
    descriptions = sorted(descriptions, key=itemgetter("records"))
    summary = {
        "counts": {"read": sum(counts.values())} | counts,
        "skipped": [(skipped, first) for _, skipped, first, _ in reports],
        "problems": [problem for _, _, _, problem in reports if problem],
        "files": {
            split: [each for each in descriptions if each["records"].startswith(f"{split}-")]
            for split in splits_of(options)
        },
    }
    Path(folder, _SUMMARY).write_text(json.dumps(summary))
