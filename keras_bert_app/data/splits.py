"""Records -> parts held out by hash: the same parts every time, whatever the order of the rows."""

import hashlib
from collections.abc import Sequence

import scipy

from keras_bert_app import features
from keras_bert_app.data.readers import Record


def hold_out(records: Sequence[Record], fraction: float, salt: str) -> tuple[list[Record], list[Record]]:
    """Split `records` into (kept, held out), about `fraction` of them held out.

    Records with the same text, or of the same group, always fall on the same side; so do all that such
    links connect. Each connected set is assigned by the SHA-256 of its smallest member and `salt`, so that
    two splits with different salts are independent of one another.
    """
    keys = connected_keys(records)
    threshold = int(fraction * 2**64)
    held = [_hash64(f"{salt}\0{key}") < threshold for key in keys]
    kept_records = [record for record, out in zip(records, held, strict=True) if not out]
    held_records = [record for record, out in zip(records, held, strict=True) if out]
    return kept_records, held_records


def connected_keys(records: Sequence[Record]) -> list[str]:
    """For each record the name of the connected set it belongs to: equal text or equal group connects."""
    links = scipy.cluster.hierarchy.DisjointSet()
    for record in records:
        text = _text_key(record)
        links.add(text)
        if features.GROUP in record.values:
            group = "group\0" + record.values[features.GROUP]
            links.add(group)
            links.merge(text, group)
    names = {}
    for member in links:
        root = links[member]
        names[root] = min(names.get(root, member), member)
    return [names[links[_text_key(record)]] for record in records]


def drop_shared_texts(records: Sequence[Record], *others: Sequence[Record]) -> list[Record]:
    """`records` without those whose text also stands in one of `others`, so that none is in two splits."""
    seen = {_text_key(record) for other in others for record in other}
    return [record for record in records if _text_key(record) not in seen]


def _text_key(record: Record) -> str:
    return f"text\0{record.values[features.TEXT]}\0{record.values.get(features.TEXT_PAIR, '')}"


def _hash64(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
