"""Pretrain, fine-tune, evaluate, export, verify, serve and query BERT classifiers.

python run.py VERB --flag=value ...        python run.py VERB --help
"""

import contextlib
import difflib
import json
import os
import signal
import sys
from pathlib import Path

from keras_bert_app import command_line
from keras_bert_app import config as configuration
from keras_bert_app.command_line import FLAGS
from keras_bert_app.errors import Stopped, UserError, needing_beam
from keras_bert_app.verb_flags import (
    EXPORT_OPTIONS,
    FORMATS,
    TAKES,
    TOKENIZER_OPTIONS,
    VERB_FLAGS,
    VOCABULARY_OPTIONS,
)


def _start_tensorflow():
    """Import it, which takes seconds: after what can be refused without it."""
    from keras_bert_app import quiet_tensorflow  # noqa: F401


def vocab():
    """Learn a vocabulary from the documents of --input: text with blank lines between them, or .jsonl."""
    from keras_bert_app.data.documents import input_files

    input_files([FLAGS.input])
    _start_tensorflow()
    from keras_bert_app.text.tokenizer import TokenizerOptions
    from keras_bert_app.training import pretraining

    options = TokenizerOptions(**_given(VOCABULARY_OPTIONS))
    print(pretraining.learn(FLAGS.input, Path(FLAGS.output), FLAGS.vocab_size, options))


def tokenize(*texts):
    """Show how texts are cut into pieces, or with --compare where a Hugging Face tokenizer does it otherwise.

    run.py tokenize --source=SOURCE [--compare=DIR] TEXT... or --input=FILE

    With --compare the exit code is 1 where texts differ.
    """
    from keras_bert_app import features
    from keras_bert_app.data.readers import read_texts
    from keras_bert_app.training import places

    if bool(texts) == bool(FLAGS.input):
        raise UserError(
            'give either texts, such as: run.py tokenize --source=vocab.txt "a quiet triumph"; or --input'
        )
    given = [os.fsencode(text) for text in texts]
    if FLAGS.input:
        given = (row[features.TEXT] for row in read_texts(FLAGS.input, {features.TEXT: features.TEXT}))
    places.require_source(FLAGS.source)
    _start_tensorflow()
    from keras_bert_app.text import comparison
    from keras_bert_app.text.tokenizer import BertTokenizer
    from keras_bert_app.training import initial

    tokenizer = BertTokenizer(*initial.load_tokenizer(FLAGS.source, _given(TOKENIZER_OPTIONS)))
    if not FLAGS.compare:
        return print(comparison.table(tokenizer, list(given)))
    count = num_different = 0
    for difference in comparison.differences(
        tokenizer, comparison.load_reference(Path(FLAGS.compare)), given
    ):
        count += 1
        if difference:
            num_different += 1
            print(difference)
    print(f"{num_different:,} of {count:,} texts differ")
    if num_different:
        sys.exit(1)


def _given(chosen):
    """The values of those of the flags that were given."""
    return {name: value for name, *_ in chosen if (value := FLAGS[name].value) is not None}


def prepare():
    """Turn the documents of --input into examples for pretraining; goes on where one was interrupted."""
    from keras_bert_app.data import workers
    from keras_bert_app.data.documents import input_files
    from keras_bert_app.training import places

    config = configuration.freeze(FLAGS.config)
    input_files([FLAGS.input])
    places.require_source(config.init)
    num_workers = FLAGS.num_workers or _num_cores()
    if num_workers > 1 and not FLAGS.beam:
        workers.start_importing("keras_bert_app.quiet_tensorflow", "keras_bert_app.data.pretraining")
    _start_tensorflow()
    from keras_bert_app.training import pretraining

    print(pretraining.prepare(config, FLAGS.input, Path(FLAGS.output), num_workers, FLAGS.beam))


def pretrain():
    """Pretrain an encoder in a workdir, or go on where one was interrupted; then evaluate it."""
    from keras_bert_app.training import places

    config = configuration.freeze(FLAGS.config)
    places.require_source(config.init)
    _start_tensorflow()
    from keras_bert_app.training import pretraining

    _train(pretraining.pretrain, config)


def finetune():
    """Fine-tune a classifier in a workdir, or go on where one was interrupted; then evaluate it."""
    from keras_bert_app.training import places

    config = configuration.freeze(FLAGS.config)
    places.require_texts(config.data)
    places.require_source(config.init)
    _start_tensorflow()
    from keras_bert_app.training import finetuning

    _train(finetuning.finetune, config)


def _train(train, config):
    from keras_bert_app import evaluation
    from keras_bert_app.training.strategy import is_chief, make_strategy

    workdir = Path(FLAGS.workdir)
    train(config, workdir)
    if is_chief(make_strategy(config.train)):
        print(evaluation.evaluate_test(workdir))


def launch(*arguments):
    """Pretrain or fine-tune in several processes here; when one dies or hangs, all go on from a checkpoint.

    run.py launch [--num_workers=2 ...] pretrain --config=FILE --workdir=DIR ...

    Flags of launch come before the verb, the verb's own after it. When a process dies, the others are ended
    within 6 s; when one hangs, all are, --hang_seconds and 6 s after its last sign of life. Exit codes:
    0 finished, 1 no restarts left, 2 a user's mistake, 75 stopped by SIGTERM and saved, 130, 143 interrupted.
    """
    from keras_bert_app.training import launch as launcher

    verb, *verb_flags = arguments or [None]
    if verb not in LAUNCHED:
        raise UserError(
            f"launch runs {' or '.join(LAUNCHED)}, not {verb or 'nothing'}; such as: "
            "run.py launch --num_workers=2 pretrain --config=FILE --workdir=DIR"
        )
    for argument in verb_flags:
        if argument.lstrip("-").partition("=")[0] in (name for name, *_ in VERBS["launch"][1]):
            raise UserError(f"{argument} is a flag of launch; write it before {verb}")
    # So that mistakes are said here, once.
    command_line.parse(verb, verb_flags, *VERBS[verb][1:])
    command = [sys.executable, __file__, verb, *verb_flags, "--config.train.strategy=multi_worker"]
    checkpoints = Path(FLAGS.workdir, "checkpoints")
    sys.exit(launcher.run(command, FLAGS.num_workers, FLAGS.hang_seconds, FLAGS.restarts, checkpoints))


def evaluate():
    """Metrics and a report of a workdir's best checkpoint: on --input, else on the run's own test set."""
    from keras_bert_app.data import sources
    from keras_bert_app.training import places

    workdir = Path(FLAGS.workdir)
    places.require_run(workdir)
    if FLAGS.input:
        sources.resolve(FLAGS.input, {})
    _start_tensorflow()
    from keras_bert_app import evaluation

    if FLAGS.input:
        print(evaluation.evaluate_file(workdir, FLAGS.input, FLAGS.output and Path(FLAGS.output)))
    else:
        print(evaluation.evaluate_test(workdir))


def predict():
    """Answer each text of --input with a line of JSON; goes on where one was interrupted.

    --input is a file, a folder or a pattern: .txt (one text a line), .jsonl, .csv, .tsv, also as .gz or .bz2.
    A run (--workdir) answers, or a bundle (--export_dir: its newest version, or the folder of one). With
    --beam workers do, who see input, output and bundle under the same paths; interrupted, that starts anew.
    """
    from keras_bert_app.data.documents import input_files
    from keras_bert_app.export.versions import newest_version
    from keras_bert_app.training import places

    if bool(FLAGS.workdir) == bool(FLAGS.export_dir):
        raise UserError("predict takes either a run's --workdir or a bundle's --export_dir")
    if FLAGS.beam and FLAGS.workdir:
        raise UserError("--beam takes a bundle: run.py export writes one, give it as --export_dir")
    if FLAGS.workdir:
        places.require_run(Path(FLAGS.workdir))
    else:
        newest_version(Path(FLAGS.export_dir))
    input_files([FLAGS.input])
    _start_tensorflow()
    from keras_bert_app.scoring import models, parts, resumable

    output, columns = Path(FLAGS.output), models.given_columns(FLAGS.text_column, FLAGS.pair_column)
    if FLAGS.workdir:
        model = models.open_run(Path(FLAGS.workdir), columns)
    else:
        model = models.open_bundle(Path(FLAGS.export_dir), columns)
    files = parts.files_to_read(FLAGS.input, model.columns, output)
    if FLAGS.beam:
        with needing_beam():
            from keras_bert_app.scoring import pipeline
        count = pipeline.predict_files_on_beam(model, files, output, FLAGS.beam)
    else:
        count = resumable.predict_files(model, files, output)
    print(f"{count} answers in {output}")


def import_():
    """Someone's weights to a run's folder, which every verb takes: Hugging Face, Google, KerasHub and others.

    The source is a folder or file, or a packaged name. What it lacks, a head or the pooler, starts fresh
    only where --fresh names it.
    """
    from keras_bert_app.files import require_free
    from keras_bert_app.training import places

    require_free(Path(FLAGS.output))
    places.require_source(FLAGS.source)
    _start_tensorflow()
    from keras_bert_app.training import importing

    options = _given(VOCABULARY_OPTIONS) if FLAGS.tokenizer else None
    print(importing.import_weights(FLAGS.source, Path(FLAGS.output), FLAGS.fresh or (), FLAGS.pairs, options))


def publish():
    """A run's best checkpoint for others: a Hugging Face or KerasHub folder, Google's checkpoint, .keras."""
    from keras_bert_app.files import require_free
    from keras_bert_app.training import places

    if FLAGS.format not in FORMATS:
        raise UserError(f"--format is {FLAGS.format!r}; it takes one of {', '.join(FORMATS)}")
    places.require_run(Path(FLAGS.workdir))
    require_free(Path(FLAGS.output))
    _start_tensorflow()
    from keras_bert_app.export import publishing

    print(publishing.publish(Path(FLAGS.workdir), FLAGS.format, Path(FLAGS.output)))


def inspect(*sources):
    """Show what a run or someone's weights are made of: architecture, tokenizer, provenance, hashes, tensors.

    run.py inspect SOURCE
    """
    from keras_bert_app.training import places

    if len(sources) != 1:
        raise UserError("inspect takes one source, such as: run.py inspect runs/sentiment")
    places.require_source(sources[0])
    _start_tensorflow()
    from keras_bert_app import inspection

    print(inspection.inspect(sources[0]))


def export():
    """Write a workdir's best checkpoint as the next version of a bundle for TensorFlow Serving."""
    from keras_bert_app.export.options import ExportOptions
    from keras_bert_app.training import places

    options = ExportOptions(**_given(EXPORT_OPTIONS))
    places.require_run(Path(FLAGS.workdir))
    _start_tensorflow()
    from keras_bert_app.export import bundle

    print(f"exported {bundle.export(Path(FLAGS.workdir), Path(FLAGS.export_dir), options)}")


def verify():
    """Prove that a bundle stands alone: moved, run without this project and without Python TensorFlow."""
    from keras_bert_app.export.versions import newest_version

    newest_version(Path(FLAGS.export_dir))
    _start_tensorflow()
    from keras_bert_app.export import verification

    print(verification.verify(Path(FLAGS.export_dir), FLAGS.server_version))


def serve():
    """Serve a bundle over gRPC and REST: by tensorflow_model_server if installed, else by our own."""
    from keras_bert_app.export.versions import newest_version
    from serving import server

    if server.stock_command(FLAGS.port, FLAGS.model, FLAGS.export_dir) is None:
        newest_version(Path(FLAGS.export_dir))
        _start_tensorflow()
    server.run(
        FLAGS.export_dir,
        FLAGS.model or Path(FLAGS.export_dir).resolve().name,
        host=FLAGS.host,
        port=FLAGS.port,
        rest_api_port=FLAGS.rest_api_port,
        enable_batching=FLAGS.enable_batching,
        enable_per_model_batching_parameters=FLAGS.enable_batching,
    )


def query(*texts):
    """Ask a model server about texts, with --pairs about pairs, and print its answers, a line of JSON each.

    run.py query --model=NAME [--target=HOST:PORT[,HOST:PORT...]] TEXT... or --input=FILE
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what is wrong is said in one line, not by gRPC's log
    from serving import query as asking
    from serving.errors import ServerError

    rows, tls = _rows_to_ask(texts), _tls()
    if FLAGS.version is not None and FLAGS.version_label:
        raise UserError("give --version or --version_label, not both")
    if FLAGS.rest:
        from serving.rest_client import RestPredictClient as Client
    else:
        from serving.client import PredictClient as Client
    try:
        client = Client(FLAGS.target or f"localhost:{8501 if FLAGS.rest else 8500}", FLAGS.model, tls=tls)
        with client:
            asking.query(
                client,
                rows,
                signature_name=FLAGS.signature,
                version=FLAGS.version,
                label=FLAGS.version_label,
                timeout=FLAGS.timeout or None,
            )
    except ServerError as error:
        sys.exit(f"error: {error}")
    except ValueError as error:
        raise UserError(str(error)) from error


def _tls():
    from serving.connection import Tls

    files = (FLAGS.root_certificates, FLAGS.client_certificate, FLAGS.client_key, FLAGS.server_name)
    return Tls(*files) if FLAGS.tls or any(files) else None


def _rows_to_ask(texts):
    from keras_bert_app import features
    from keras_bert_app.data.readers import read_texts

    if bool(texts) == bool(FLAGS.input):
        raise UserError(
            'give the texts to ask about, such as: run.py query --model=sentiment "a quiet triumph", '
            "or --input"
        )
    names = (features.TEXT, features.TEXT_PAIR) if FLAGS.pairs else (features.TEXT,)
    if FLAGS.input:
        return read_texts(FLAGS.input, {name: name for name in names})
    if len(texts) % len(names):
        raise UserError(
            f"--pairs takes texts two by two, first and second of each pair; here are {len(texts)}"
        )
    given = iter(map(os.fsencode, texts))
    return [dict(zip(names, row, strict=True)) for row in zip(*[given] * len(names), strict=True)]


def loadtest():
    """Load a model server: latency by length, throughput at a latency, proposed batching parameters.

    Requests of one text each arrive at random at --rate (one, or several that rise: 50,100,200), however
    slowly they are answered; without it, the highest rate is searched for at which 99 in 100 are answered
    within --target_p99_ms. Texts are those of --input, else made up. --model may be MODEL@VERSION or @LABEL.
    """
    from keras_bert_app.files import atomic_directory, require_free
    from serving import latency
    from serving import loadtest as load

    output = Path(FLAGS.output)
    require_free(output)
    with _told():
        rates = FLAGS.rate and load.parse_rates(FLAGS.rate)
        target, names = _text_model(f"{FLAGS.target or 'localhost:8500'}/{FLAGS.model}")
        rows = _texts_for(names) if FLAGS.input else load.made_texts(FLAGS.seed, len(names))
        times = {"seconds": FLAGS.duration_s, "warmup": FLAGS.warmup_s, "target_ms": FLAGS.target_p99_ms}
        results = load.run(target, _signature(), names, rows, rates, **times, seed=FLAGS.seed, tls=_tls())
    with atomic_directory(output) as folder:
        (folder / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        (folder / "batching_parameters.txt").write_text(results["batching"]["text"])
        latency.plot(results, folder / "latency.png")
    print(latency.verdict(results), f"results in {output}", sep="\n")


def compare():
    """Send the texts of --input to two versions, models or servers: how often and where the answers differ.

    --a and --b are host:port[/MODEL][@VERSION or @LABEL], such as localhost:8500/sentiment@canary; --model is
    for those that name none. Where the signature gives a label, that counts; else numbers further apart than
    --tolerance do. Exit codes: 0 compared, 1 more than --max_disagreement differ, 2 a mistake.
    """
    from tqdm import tqdm

    from keras_bert_app.files import atomic_file
    from serving import compare as comparing

    with _told():
        (a, names), (b, others) = (_text_model(spec, FLAGS.model) for spec in (FLAGS.a, FLAGS.b))
        if names != others:
            raise UserError(
                f"a takes {', '.join(names)}, b takes {', '.join(others)}; they can't be compared"
            )
        texts = tqdm(_texts_for(names), "compare", unit=" texts", disable=None)
        found = comparing.compare(comparing.ask(a, b, _signature(), names, texts, _tls()), FLAGS.tolerance)
    if FLAGS.output:
        with atomic_file(FLAGS.output) as path:
            path.write_text(comparing.as_lines(found.changes), encoding="utf-8")
    print(comparing.report(found, a, b, FLAGS.limit))
    if FLAGS.max_disagreement is not None and found.rate > FLAGS.max_disagreement:
        print(f"{found.rate:.2%} is more than --max_disagreement={FLAGS.max_disagreement}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _told():
    """What a model server, or what asks it, refuses is a user's mistake, told in one line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # not by gRPC's log as well
    from serving.errors import ServerError
    from serving.targets import TargetError

    try:
        yield
    except (ServerError, TargetError) as error:
        raise UserError(str(error)) from error


def _text_model(spec, model=None):
    """The Target of a spec, and the names of the texts that --signature takes there."""
    from serving import targets

    target = targets.parse(spec, model)
    return target, targets.text_inputs(target, _signature(), _tls())


def _signature():
    return FLAGS.signature or "serving_default"


def _texts_for(names):
    """The rows of --input: as many texts each as there are names."""
    from keras_bert_app import features
    from keras_bert_app.data.readers import read_texts

    columns = (features.TEXT, features.TEXT_PAIR)[: len(names)]
    rows = [tuple(row.values()) for row in read_texts(FLAGS.input, dict(zip(columns, columns, strict=True)))]
    if not rows:
        raise UserError(f"{FLAGS.input}: no text in it; give a file with at least one")
    return rows


def demo():
    """The whole way on packaged weights and texts: pretrain, fine-tune, export, verify, serve, query."""
    from keras_bert_app import demonstration

    demonstration.main(Path(__file__))


def _num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


LAUNCHED = ("pretrain", "finetune")
_FUNCTIONS = (
    vocab,
    tokenize,
    prepare,
    pretrain,
    finetune,
    launch,
    evaluate,
    predict,
    import_,
    publish,
    inspect,
)
_FUNCTIONS += (export, verify, serve, query, loadtest, compare, demo)
# Verb -> what it does, its flags, and those of them that must be given.
VERBS = {
    function.__name__.strip("_"): (function, *VERB_FLAGS[function.__name__.strip("_")])
    for function in _FUNCTIONS
}


def main(arguments: list[str]) -> None:
    """Run one verb.

    Raises:
        UserError: unknown verb or flag, a missing flag, or what the verb itself refuses.
    """
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        return print(usage())
    verb, *rest = arguments
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        raise UserError(
            f"unknown verb {verb!r}" + (f"; did you mean {near[0]}?" if near else f"\n\n{usage()}")
        )
    function, verb_flags, required = VERBS[verb]
    if any(argument in ("--help", "-h", "--helpfull") for argument in rest):
        return print(command_line.usage(verb, function.__doc__, verb_flags, required))
    return function(*command_line.parse(verb, rest, verb_flags, required, TAKES.get(verb, "")))


def usage() -> str:
    """The verbs, a line each."""
    lines = [f"  {verb:<10} {function.__doc__.splitlines()[0]}" for verb, (function, _, _) in VERBS.items()]
    return "\n".join([__doc__.strip(), "", *lines])


def _interrupted(number, frame):
    # An exception, so that temporary files are removed on the way out, which no second signal may cut short.
    for other in INTERRUPTS:
        signal.signal(other, signal.SIG_IGN)
    # On a terminal the progress bar's line is still open.
    new_line = "\n" if sys.stderr.isatty() else ""
    message = "interrupted; the same command goes on from the last checkpoint, if there is one"
    print(new_line + message, file=sys.stderr)
    raise SystemExit(128 + number)


INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

if __name__ == "__main__":
    for number in INTERRUPTS:
        signal.signal(number, _interrupted)
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + signal.SIGINT if stop.signal == signal.SIGINT else os.EX_TEMPFAIL)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(1)
