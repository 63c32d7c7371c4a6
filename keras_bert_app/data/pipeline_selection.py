"""Which documents stay and which number each gets, on Apache Beam: the second half of `pipeline`'s work.

Documents are known here by position, (number of their file, place in it), and come in that order.
"""

from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np

from keras_bert_app.data.duplicates import agreement, band_keys, consecutive
from keras_bert_app.data.examples import HELD_OUT, TRAIN
from keras_bert_app.data.tokenized import held_out

EXACT, NEAR, WITHOUT_TOKENS = "exact_duplicates", "near_duplicates", "without_tokens"
# What steps with several outputs give; Beam would guess it of all outputs together.
KEYED = tuple[Any, Any]
# Documents are counted by blocks of so many, so that no worker needs even the numbers of all of them.
_BLOCK = 65536


class Mark(NamedTuple):
    """What is to be known of a document to say whether it stays."""

    digest: bytes
    num_tokens: int
    signature: np.ndarray


def statuses_of(pipeline, marks, options):
    """Marks by position -> (what becomes of the document, its number of tokens) by position."""
    exact = (
        marks
        | "contents" >> beam.Map(lambda each: (each[1].digest[:8], each[0]))
        | "equal contents" >> beam.GroupByKey()
        | "later ones" >> beam.FlatMap(lambda each: [(position, True) for position in sorted(each[1])[1:]])
    )
    near = pipeline | beam.Create([])
    if options.near_duplicates < 1:
        different = (
            {"mark": marks, "exact": exact}
            | "drop equal ones" >> beam.CoGroupByKey()
            | beam.FlatMap(lambda each: [] if each[1]["exact"] else [(each[0], each[1]["mark"][0].signature)])
        )
        candidates = (
            different
            | "bands" >> beam.FlatMap(_bands)
            | "equal bands" >> beam.GroupByKey()
            | "candidates" >> beam.FlatMap(lambda each: consecutive(sorted(each[1])))
            | beam.Distinct()
        )
        earlier = (
            {"signature": different, "others": candidates}
            | "to the earlier" >> beam.CoGroupByKey()
            | beam.FlatMap(lambda each: [(later, each[1]["signature"][0]) for later in each[1]["others"]])
        )
        near = (
            {"signature": different, "others": earlier}
            | "to the later" >> beam.CoGroupByKey()
            | "alike" >> beam.FlatMap(_alike, options.near_duplicates)
        )
    return (
        {"mark": marks, "exact": exact, "near": near}
        | "join marks" >> beam.CoGroupByKey()
        | "decide" >> beam.Map(_decide, options.held_out)
    )


def _bands(marked):
    position, signature = marked
    usable, keys = band_keys(signature[None])
    if usable[0]:
        for band, key in enumerate(keys[:, 0]):
            yield (band, key.tobytes()), position


def _alike(joined, threshold):
    position, found = joined
    signature = found["signature"][0]
    if any(agreement(other[None], signature[None])[0] >= threshold for other in found["others"]):
        yield position, True


def _decide(joined, fraction):
    position, found = joined
    mark = found["mark"][0]
    if found["exact"]:
        status = EXACT
    elif found["near"]:
        status = NEAR
    elif not mark.num_tokens:
        status = WITHOUT_TOKENS
    else:
        digests = np.frombuffer(mark.digest, "<u8")[None]
        status = HELD_OUT if held_out(digests, fraction)[0] else TRAIN
    return position, (status, mark.num_tokens)


def number_documents(documents, statuses):
    """Documents and statuses by position -> the documents kept by (part, number in it)."""
    blocks = (
        statuses
        | "kept" >> beam.Filter(lambda each: each[1][0] in (TRAIN, HELD_OUT))
        | "blocks" >> beam.Map(lambda each: ((each[1][0], each[0][0], each[0][1] // _BLOCK), each[0][1]))
        | "by block" >> beam.GroupByKey()
        | "count blocks"
        >> beam.FlatMap(_count_block).with_output_types(KEYED).with_outputs("counts", main="places")
    )
    starts = blocks.counts | beam.combiners.ToList() | "starts" >> beam.Map(_block_starts)
    return (
        {"document": documents, "place": blocks.places}
        | "to documents" >> beam.CoGroupByKey()
        | "number" >> beam.FlatMap(_numbered, beam.pvalue.AsSingleton(starts))
    )


def _count_block(grouped):
    block, places = grouped[0], sorted(grouped[1])
    for number, place in enumerate(places):
        yield (block[1], place), (block, number)
    yield beam.pvalue.TaggedOutput("counts", (block, len(places)))


def _block_starts(counts):
    """Numbers of documents by block -> by block the number, in its part, of the first."""
    starts, totals = {}, {TRAIN: 0, HELD_OUT: 0}
    for block, count in sorted(counts):
        starts[block] = totals[block[0]]
        totals[block[0]] += count
    return starts


def _numbered(joined, starts):
    for block, number in joined[1]["place"]:
        yield (block[0], starts[block] + number), joined[1]["document"][0]
