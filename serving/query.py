"""What `run.py query` does with a client: rows of text in, one JSON object a line out."""

import itertools
import json

CHUNK = 1024  # rows asked about before their answers are printed


def query(client, text_rows, **options):
    """Print the answers to rows of {"text", "text_pair" where there are pairs: str or bytes}, as they come.

    Args:
        client: a `serving.client.PredictClient` or `serving.rest_client.RestPredictClient`.
        options: of its `predict_rows`; a timeout is for 1,024 rows.

    Raises ServerError.
    """
    remaining = iter(text_rows)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        inputs = {name: [row[name] for row in chunk] for name in chunk[0]}
        for row, answer in zip(chunk, client.predict_rows(inputs, **options), strict=True):
            asked = {name: _shown(text) for name, text in row.items()}
            print(json.dumps({**asked, **answer}, ensure_ascii=False))


def _shown(text):
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return data.decode("utf-8", "replace")
