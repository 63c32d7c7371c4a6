"""From documents to a pretrained encoder: the vocabulary, the examples, the run."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from keras_bert_app.config import Config, to_dict
from keras_bert_app.data.documents import Skipped, input_files, read_documents
from keras_bert_app.data.examples_store import MANIFEST, ExampleStore
from keras_bert_app.data.pretraining import HELD_OUT, TRAIN, PrepareOptions, prepare_examples
from keras_bert_app.errors import UserError, needing_beam
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.learning import learn_vocabulary
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.training import assembly, initial
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.plan import State
from keras_bert_app.training.progress import StagesProgress


def learn(pattern: str, output: Path, vocabulary_size: int, options: TokenizerOptions) -> str:
    """Learn a vocabulary from documents, write it to `output`, and return what there is to say about it.

    Args:
        pattern: a file, a folder or a glob pattern; see data/documents.py.

    Raises:
        UserError: no such files, or they hold no words.
    """
    files, skipped = input_files([pattern]), Skipped()

    def lines(skipped: Skipped) -> Iterator[str]:
        for document in read_documents(files, skipped):
            yield from document.decode().split("\n")

    passes = iter((skipped, Skipped()))  # both skip the same
    try:
        vocabulary, coverage = learn_vocabulary(lambda: lines(next(passes)), output, vocabulary_size, options)
    except UserError as error:
        left_out = f"; left out: {skipped}" if skipped.counts else ""
        raise UserError(f"{pattern}: {error}{left_out}") from None
    summary = (
        f"{len(vocabulary):,} pieces in {output}; of the words in a sample of {coverage.num_texts:,} lines "
        f"{100 * coverage.known_words:.2f} % are known, {coverage.pieces_per_word:.2f} pieces a word; "
        f"{100 * coverage.unknown_pieces:.2f} % of the pieces are unknown"
    )
    return summary + (f"; left out: {skipped}" if skipped.counts else "")


def prepare(config: Config, pattern: str, output: Path, num_workers: int, beam: str = "") -> str:
    """Write the examples of documents to the folder `output`; returns what there is to say about them.

    Args:
        pattern: a file, a folder or a glob pattern; see data/documents.py.
        beam: Apache Beam's pipeline options, which name the runner that does the work; "": num_workers
            processes here.

    Raises:
        UserError: anything in config, documents or output that the user can mend, or Beam isn't installed.
    """
    vocabulary, tokenizer_options = initial.choose_tokenizer(config, initial.load_pretrained(config.init))
    options = PrepareOptions(**to_dict(config.prepare), max_length=config.text.max_length, seed=config.seed)
    if beam:
        with needing_beam():
            from keras_bert_app.data import pipeline
        manifest = pipeline.prepare_examples_on_beam(
            [pattern], output, vocabulary, tokenizer_options, options, beam
        )
    else:
        with StagesProgress() as progress:
            manifest = prepare_examples(
                [pattern], output, vocabulary, tokenizer_options, options, num_workers, progress
            )
    documents = manifest["documents"]
    lines = [
        f"{split:<10} {part['num_examples']:>12,} examples {part['num_tokens']:>14,} tokens"
        f" {documents[split]:>11,} documents"
        for split, part in manifest["splits"].items()
    ]
    duplicates = documents["exact_duplicates"] + documents["near_duplicates"]
    lines.append(f"left out: {duplicates:,} duplicates, {documents['without_tokens']:,} without tokens")
    lines += [
        f"left out: {skipped['count']:,} {reason}, the first {skipped['first']}"
        for reason, skipped in manifest["skipped"].items()
    ]
    return "\n".join([*lines, f"examples: {output}"])


def pretrain(config: Config, workdir: Path) -> State:
    """Train what the config describes in `workdir`, or go on there; ends with the best model as model.keras.

    Raises:
        UserError: anything in config, examples, weights or workdir that the user can mend.
    """
    if config.task.name != PretrainingTask.name:
        raise UserError(
            f"config.task.name is {config.task.name}; `run.py pretrain` takes {PretrainingTask.name}, "
            "such as configs/pretrain_small.py"
        )
    if config.train.jit and config.masking.max_predictions is None:
        raise UserError(
            "config.train.jit compiles anew for each number of hidden tokens; set "
            "config.masking.max_predictions, such as 20 for 128 tokens"
        )
    strategy = assembly.start(config)
    train = [load_examples(folder, TRAIN) for folder in phase_folders(config)]
    evaluation = load_examples(phase_folders(config)[-1], HELD_OUT)
    pretrained = initial.load_pretrained(config.init)
    task = PretrainingTask(config.prepare.objective, config.prepare.pack)
    description = assembly.describe(config, task, pretrained)
    for examples in train:
        check_examples(config, examples, description)
    digest = hashlib.sha256(b"".join((examples.folder / MANIFEST).read_bytes() for examples in train))
    assembly.open_run(workdir, config, strategy, description, digest.hexdigest(), pretrained)
    return assembly.fit(workdir, config, strategy, description, pretrained, train, evaluation)


def phase_folders(config: Config) -> list[str | None]:
    """The folder of examples of each phase; the last one's held-out part is what the run is evaluated on."""
    return [phase.train or config.data.train for phase in assembly.phases_of(config)]


def load_examples(folder: str | None, split: str) -> ExampleStore:
    """One part of a prepared folder.

    Raises:
        UserError: there is none, or it can't be used.
    """
    if not folder:
        raise UserError("config.data.train is not set; give the folder that `run.py prepare` wrote")
    return ExampleStore(Path(folder), split)


def check_examples(config: Config, examples: ExampleStore, description: folders.ModelDescription) -> None:
    """Refuse examples that were prepared for another network or with another config.

    Raises:
        UserError: says in what they differ.
    """
    made, vocabulary = examples.manifest, description.vocabulary
    if made["vocabulary_sha256"] != vocabulary.sha256:
        raise UserError(
            f"{examples.folder}: made with another vocabulary than {vocabulary.where}; prepare the examples "
            "again, or give the vocabulary they were made with"
        )
    # Of several phases the last alone may have the longest sequences.
    length = made["options"]["max_length"]
    longest = min(length, config.text.max_length) if config.phases else config.text.max_length
    wanted = {
        name: (made["tokenizer"][name], f"text.{name}", value)
        for name, value in description.tokenizer_options.get_config().items()
    }
    wanted |= {
        "max_length": (length, "text.max_length", longest),
        "objective": (made["options"]["objective"], "prepare.objective", config.prepare.objective),
        "pack": (examples.packed, "prepare.pack", config.prepare.pack),
    }
    for name, (given, key, value) in wanted.items():
        if given != value:
            raise UserError(
                f"{examples.folder}: made with {name} {given}, but config.{key} is {value}; prepare the "
                "examples again, or set the key to what they were made with"
            )
