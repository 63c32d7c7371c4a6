"""The same answers on Apache Beam: for files beyond one machine, on an engine that is there already.

An element is a part of a file, with its place: the batches that the model sees are those of one machine, so
that the output has the same bytes. Workers write each part's answers to a file of its own, and whoever
started the pipeline joins them.
"""

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference

from keras_bert_app.data.pipeline import make_pipeline
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file
from keras_bert_app.scoring.answering import Answerer, load_bundle
from keras_bert_app.scoring.models import Model
from keras_bert_app.scoring.parts import read_parts

Texts = list[Mapping[str, bytes]]


class BundleHandler(ModelHandler[Texts, bytes, Answerer]):
    """Loads a bundle in the worker; answers parts of a file with lines of JSON, of one part at a time.

    Args:
        path: the folder of a bundle's version, as workers see it.
    """

    def __init__(self, path: str):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._path = path

    def load_model(self) -> Answerer:
        """The bundle, ready to answer."""
        return load_bundle(Path(self._path))

    def run_inference(
        self, batch: Sequence[Texts], model: Answerer, inference_args: dict[str, Any] | None = None
    ) -> Iterable[bytes]:
        """The lines of each part; each part's texts are batched by themselves."""
        return [model.lines(texts) for texts in batch]

    def get_num_bytes(self, batch: Sequence[Texts]) -> int:
        """The size of the texts, for the metrics."""
        return sum(len(value) for texts in batch for row in texts for value in row.values())


def predict_files_on_beam(model: Model, files: Sequence[Path], output: Path, beam_options: str) -> int:
    """As `resumable.predict_files`, with the same bytes as result, on the runner that beam_options name.

    model: a bundle. beam_options: such as "--runner=FlinkRunner --flink_master=HOST:PORT". Workers need this
    package, and see bundle, inputs and output's folder under the same paths. One worker reads a file; all
    answer. An interrupted run starts anew, and leaves nothing unless it is killed.

    Raises:
        UserError: no such runner, or a row can't be read.
    """
    output = output.absolute()
    # Of a new name, so that no worker of an interrupted run writes there; not tempfile's, which others can't.
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    pipeline = make_pipeline(beam_options)
    folder.mkdir(parents=True)
    try:
        numbered = [(number, str(file.absolute()), str(file)) for number, file in enumerate(files)]
        (
            pipeline
            | "files" >> beam.Create(numbered)
            | "spread files" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(_read, dict(model.columns), str(folder))
            | "spread parts" >> beam.Reshuffle()
            | "answer" >> RunInference(KeyedModelHandler(BundleHandler(str(model.path.absolute()))))
            | "write" >> beam.Map(_write, str(folder))
        )
        pipeline.run().wait_until_finish()
        return _join(folder, len(files), output)
    finally:
        shutil.rmtree(folder)


def _read(file: tuple[int, str, str], columns: Mapping[str, str], folder: str) -> Iterator[tuple]:
    """(number, path, name as given) -> ((number of the file, of the part), texts); writes what was found."""
    number, path, name = file
    place, count, problem = -1, 0, None
    try:
        for place, part in enumerate(read_parts(Path(path), columns)):
            count += len(part.texts)
            yield (number, place), part.texts
    except UserError as error:
        problem = str(error).replace(path, name)
    _write_whole(_summary(folder, number), json.dumps([place + 1, count, problem]).encode())


def _write(answered: tuple[tuple[int, int], bytes], folder: str) -> None:
    """((number of the file, of the part), lines) -> a file."""
    _write_whole(_answers(folder, *answered[0]), answered[1])


def _join(folder: Path, num_files: int, output: Path) -> int:
    """Write the answers to all parts in order; returns the number of texts."""
    summaries = [json.loads(_summary(folder, number).read_bytes()) for number in range(num_files)]
    for _, _, problem in summaries:
        if problem:
            raise UserError(problem)
    with atomic_file(output) as temporary, open(temporary, "wb") as whole:
        for number, (num_parts, _, _) in enumerate(summaries):
            for place in range(num_parts):
                with open(_answers(folder, number, place), "rb") as part:
                    shutil.copyfileobj(part, whole)
    return sum(count for _, count, _ in summaries)


def _summary(folder: str | Path, number: int) -> Path:
    """What was found in a file: number of parts, of texts, and the problem, if there is one."""
    return Path(folder, f"{number}.json")


def _answers(folder: str | Path, number: int, place: int) -> Path:
    return Path(folder, f"{number}-{place}.jsonl")


def _write_whole(path: Path, content: bytes) -> None:
    """A bundle of work may be tried twice, at the same time too."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
