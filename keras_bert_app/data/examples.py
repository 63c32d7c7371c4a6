"""What every engine makes of the documents that are kept: examples, files of them, and the manifest."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_bert_app.data.documents import Skipped
from keras_bert_app.data.examples_store import MANIFEST, Example, dtypes, token_dtype
from keras_bert_app.data.pairs import PrepareOptions, pack_documents
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import CLASSIFY, PAD, SEPARATE, Vocabulary

# Part of what identifies finished work: raise it when the same input would give other bytes.
FORMAT = 3
_SHARD_TOKENS = 8 * 2**20
TRAIN, HELD_OUT = "train", "held_out"


class ExampleMaker:
    """Puts [CLS] and [SEP] around token ids, bytes of `token_dtype`, and numbers segments and texts."""

    def __init__(self, vocabulary: Vocabulary):
        dtype = token_dtype(len(vocabulary))
        self._token_bytes = dtype.itemsize
        self._classify, self._separate = (
            np.array(vocabulary.ids[piece], dtype).tobytes() for piece in (CLASSIFY, SEPARATE)
        )

    def example(self, first: bytes, second: bytes, label: int) -> Example:
        """Token ids of the spans -> the example; there is a second span unless the label is negative."""
        token_ids = self._classify + first + self._separate
        segment_ids = bytes(len(token_ids) // self._token_bytes)
        if label >= 0:
            second += self._separate
            token_ids += second
            segment_ids += b"\1" * (len(second) // self._token_bytes)
        return Example(token_ids, segment_ids, label)

    def packed(self, documents: Iterable[np.ndarray], max_length: int) -> Iterator[Example]:
        """Token ids of documents -> rows of several texts."""
        for row in pack_documents(documents, max_length):
            token_ids = b"".join(self._classify + text.tobytes() + self._separate for text in row)
            lengths = [len(text) + 2 for text in row]
            sequence_ids = np.repeat(np.arange(1, len(row) + 1, dtype="<u2"), lengths).tobytes()
            yield Example(token_ids, bytes(sum(lengths)), sequence_ids=sequence_ids)


@dataclass(frozen=True)
class Shards:
    """The files of a split; which documents' examples each has follows from the totals alone."""

    split: str
    num_documents: int
    num_tokens: int

    def __len__(self) -> int:
        return max(1, min(self.num_documents, -(-self.num_tokens // _SHARD_TOKENS)))

    def of(self, number: int) -> int:
        """The file that the examples of document `number` go to."""
        return number * len(self) // self.num_documents

    def documents(self, shard: int) -> range:
        """The documents whose examples go to a file."""
        return range(*(-(-end * self.num_documents // len(self)) for end in (shard, shard + 1)))

    def name(self, shard: int) -> str:
        """The file's name."""
        return f"{self.split}-{shard:05}-of-{len(self):05}.tfrecord"


def splits_of(options: PrepareOptions) -> tuple[str, ...]:
    """The parts that documents are split into."""
    return (TRAIN, HELD_OUT) if options.held_out else (TRAIN,)


def needed_documents(options: PrepareOptions) -> int:
    """Documents without which a part can't have an example."""
    return 2 if options.objective == "nsp" else 1


def check_enough(counts: Mapping[str, int], options: PrepareOptions, skipped: Skipped) -> None:
    """Refuse too few documents.

    Raises:
        UserError: says of which part, and what was left out.
    """
    for split in splits_of(options):
        if counts[split] < needed_documents(options):
            advice = "" if split == TRAIN else ", set held_out to more, or to 0"
            left_out = f" (left out: {skipped})" if skipped.counts else ""
            raise UserError(
                f"{counts[split]} of {counts['read']} documents are left for {split}{left_out}; objective "
                f"{options.objective!r} needs {needed_documents(options)}; give more documents{advice}; they "
                f"are set apart by {options.separation}"
            )


def nothing_read(files: Sequence[Path], skipped: Skipped) -> UserError:
    """What there is to say where no file has a document."""
    return UserError(f"nothing to learn from in {len(files)} files: {skipped}")


def write_manifest(
    folder: Path,
    files: Sequence[Path],
    vocabulary: Vocabulary,
    tokenizer_options: TokenizerOptions,
    options: PrepareOptions,
    skipped: Skipped,
    counts: Mapping[str, int],
    descriptions: Mapping[str, Sequence[dict]],
) -> dict:
    """Write what the folder holds, and remove what isn't part of it; returns the manifest.

    descriptions: for each split what `examples_store.describe` says of its files, in their order.

    Raises:
        UserError: a split has no example.
    """
    manifest = {
        "format": FORMAT,
        "options": dataclasses.asdict(options),
        "vocabulary_sha256": vocabulary.sha256,
        "vocabulary_size": len(vocabulary),
        "tokenizer": tokenizer_options.get_config(),
        "pad_id": vocabulary.ids[PAD],
        "dtypes": dtypes(len(vocabulary)),
        "input": [{"file": str(file), "num_bytes": file.stat().st_size} for file in files],
        "skipped": {
            reason: {"count": count, "first": skipped.first[reason]}
            for reason, count in skipped.counts.items()
        },
        "documents": dict(counts),
        "splits": {split: _describe_split(descriptions[split], split) for split in splits_of(options)},
    }
    described = itertools.chain(*(split["files"] for split in manifest["splits"].values()))
    wanted = {file[kind] for file in described for kind in ("records", "index")}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _describe_split(descriptions: Sequence[dict], split: str) -> dict:
    files = [file for file in descriptions if file["num_examples"]]
    if not files:
        raise UserError(f"no examples for {split}: each document is one sentence; try objective 'none'")
    names = ("num_examples", "num_tokens", "num_labelled_1", "num_bytes")
    return {name: sum(file[name] for file in files) for name in names} | {"files": files}
