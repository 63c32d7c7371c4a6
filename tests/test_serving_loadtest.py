import contextlib
import json
import statistics
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conftest import fresh_flags
from google.protobuf import any_pb2
from scipy import stats
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

import run
from keras_bert_app.errors import UserError
from serving import latency, loadtest, proposal, server, targets
from serving.batching import read_parameters
from serving.loadtest import LoadTest, arrivals, connected, parse_rates, search, send, summarise
from tests.stand_ins import write_certificates

TARGET = "localhost:8500/m"


def metadata():
    """What a model says that takes `text`."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    text = meta_graph_pb2.TensorInfo(dtype=tf.string.as_datatype_enum)
    signatures.signature_def["serving_default"].inputs["text"].CopyFrom(text)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    packed = any_pb2.Any()
    packed.Pack(signatures)
    response.metadata["signature_def"].CopyFrom(packed)
    return response


@contextlib.contextmanager
def stand_in(answer, threads=8, credentials=None):
    """The address of a server whose Predict is `answer(request, context)`."""
    rpc = grpc.unary_unary_rpc_method_handler
    methods = {
        "Predict": rpc(
            lambda request, context: answer(request, context) or predict_pb2.PredictResponse(),
            predict_pb2.PredictRequest.FromString,
            predict_pb2.PredictResponse.SerializeToString,
        ),
        "GetModelMetadata": rpc(
            lambda request, context: metadata(),
            get_model_metadata_pb2.GetModelMetadataRequest.FromString,
            get_model_metadata_pb2.GetModelMetadataResponse.SerializeToString,
        ),
    }
    running = grpc.server(futures.ThreadPoolExecutor(threads), options=[("grpc.so_reuseport", 0)])
    running.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", methods)]
    )
    address = "127.0.0.1:0"
    port = (
        running.add_secure_port(address, credentials) if credentials else running.add_insecure_port(address)
    )
    running.start()
    yield f"127.0.0.1:{port}"
    running.stop(0).wait()


# ---- Arrivals and texts ----


def test_arrivals_are_a_poisson_process_that_a_seed_repeats():
    times = arrivals(200.0, 50.0, np.random.default_rng(1))
    assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 50
    assert stats.kstest(np.diff(times), "expon", (0, 1 / 200)).pvalue > 0.01
    numbers = [arrivals(30.0, 1.0, np.random.default_rng(seed)).size for seed in range(2000)]
    # Of a Poisson distribution the variance is the mean.
    assert np.mean(numbers) == pytest.approx(30, abs=0.5) and np.var(numbers) == pytest.approx(30, abs=4)
    assert np.array_equal(times, arrivals(200.0, 50.0, np.random.default_rng(1)))


def test_made_texts_have_the_lengths_that_are_stated():
    lengths = [len(text.split()) for (text,) in loadtest.made_texts(3)]
    assert np.median(lengths) == pytest.approx(loadtest.MEDIAN_WORDS, abs=1)
    assert np.std(np.log(lengths)) == pytest.approx(loadtest.SIGMA, abs=0.05)
    assert loadtest.made_texts(3) == loadtest.made_texts(3) != loadtest.made_texts(4)
    assert {len(row) for row in loadtest.made_texts(3, 2)} == {2}


# ---- Arithmetic ----


def summary(latencies, codes=None, sizes=None, late=0.0, target_ms=100.0, warmup=0.0):
    """Of requests that are due each ms."""
    times = np.arange(len(latencies)) / 1000
    codes = np.array(codes or ["OK"] * len(latencies), object)
    sizes = np.array(sizes or [1] * len(latencies))
    answered = times + np.array(latencies) / 1000
    return summarise(
        1000.0, warmup, len(times) / 1000 - warmup, target_ms, times, times + late, answered, codes, sizes
    )


def test_percentiles_by_length_are_those_of_each_length_alone():
    generator = np.random.default_rng(5)
    sizes = generator.integers(1, 3000, 4000).tolist()
    latencies = [size / 100 + wait for size, wait in zip(sizes, generator.exponential(5, 4000), strict=True)]
    found = summary(latencies, sizes=sizes)
    ends = (64, 128, 256, 512, 1024, 2048, 10**9)
    assert len(found["latency_ms_by_bytes"]) == len(ends)
    for start, end, (name, group) in zip(
        (0, *ends), ends, found["latency_ms_by_bytes"].items(), strict=False
    ):
        kept = [value for value, size in zip(latencies, sizes, strict=True) if start < size <= end]
        assert group["answered"] == len(kept) and name.startswith(f"{start + 1 if start else 0}-")
        cuts = statistics.quantiles(kept, n=1000, method="inclusive")
        for percent in (50, 90, 99, 99.9):
            expected = cuts[round(percent * 10) - 1] if len(kept) * (100 - percent) / 100 >= 0.999 else None
            assert group[f"p{percent}"] == pytest.approx(expected)
    everything = statistics.quantiles(latencies, n=1000, method="inclusive")
    assert found["latency_ms"]["p99.9"] == pytest.approx(everything[998])


def test_a_percentile_without_an_answer_beyond_it_is_not_given():
    one = pytest.approx(1.0)
    assert summary([1.0] * 99)["latency_ms"] == {"p50": one, "p90": one, "p99": None, "p99.9": None}


def test_latency_counts_from_the_time_a_request_was_due_and_a_late_generator_is_said_to_be():
    found = summary([500.0] * 200, late=0.4, target_ms=450)
    assert found["latency_ms"]["p50"] == pytest.approx(500) and not found["meets_target"]
    assert found["late_p99_ms"] == pytest.approx(400) and found["generator_behind"]
    assert "the generator was behind by 400.0 ms" in latency.line(found)
    assert not summary([500.0] * 200, late=0.04)["generator_behind"]
    assert not summary([2.0] * 200, late=0.0009)["generator_behind"]


def test_what_is_shed_or_failed_has_no_latency_and_is_not_within_the_target():
    codes = ["OK"] * 980 + ["RESOURCE_EXHAUSTED"] * 15 + ["UNAVAILABLE", "INTERNAL", *["OK"] * 3]
    found = summary([10.0] * 980 + [0.1] * 17 + [10.0] * 3, codes)
    assert (found["sent"], found["shed"], found["failed"]) == (1000, 15, 2)
    assert found["codes"] == {"INTERNAL": 1, "OK": 983, "RESOURCE_EXHAUSTED": 15, "UNAVAILABLE": 1}
    assert found["latency_ms"]["p50"] == pytest.approx(10)
    assert found["within_target"] == 0.983 and not found["meets_target"]
    assert summary([10.0] * 990 + [101.0] * 10)["meets_target"]
    assert not summary([10.0] * 989 + [101.0] * 11)["meets_target"]


def test_the_warm_up_is_not_counted_and_throughput_is_of_answers_in_the_window():
    # Due at 0 ... 99 ms; the first half is warm-up; the last ten are answered after the end.
    found = summary([200.0] * 10 + [1.0] * 80 + [200.0] * 10, warmup=0.05)
    assert found["sent"] == 50 and found["codes"] == {"OK": 50}
    # 39 + 1 of the 40 due within, and the last of the warm-up, which is answered as the window opens.
    assert found["throughput"] == pytest.approx(41 / 0.05, rel=0.03)


@pytest.mark.parametrize("capacity", [0.7, 3.0, 10.0, 47.0, 1234.5])
def test_the_search_finds_a_capacity_to_4_4_percent(capacity):
    tried = []

    def meets(rate):
        tried.append(rate)
        return rate <= capacity

    found = search(meets)
    assert found <= capacity < found * 2 ** (1 / 16) * 1.0001
    assert len(tried) == len(set(tried))


def test_the_search_ends_where_nothing_or_everything_meets_the_target():
    assert search(lambda rate: False) is None
    assert loadtest.MOST_RATE / 2 < search(lambda rate: True) <= loadtest.MOST_RATE


def test_rates_rise_and_are_positive():
    assert parse_rates("5,10.5") == [5, 10.5]
    for text in ("0", "-1", "nan", "inf", "5,5", "9,3", "a", "1,", ","):
        with pytest.raises(targets.TargetError, match="give one rate, or several that rise"):
            parse_rates(text)


# ---- The proposal ----


def test_the_batch_size_is_the_smallest_with_nearly_the_best_throughput():
    linear = {size: 0.001 * size for size in (1, 2, 4, 8)}
    assert proposal.batch_size(linear, 1.0) == 1
    # A fixed cost of 7 ms and 1 ms a text: 125, 222, ... texts/s, 899 at 64, 948 at 128.
    fixed = {size: 0.007 + 0.001 * size for size in proposal.SIZES}
    assert proposal.batch_size(fixed, 1.0) == 64
    # 16 texts take 23 ms and 8 take 15: half of 40 ms is 20.
    assert proposal.batch_size(fixed, 0.04) == 8
    assert proposal.batch_size(fixed, 0.001) == 1


def test_threads_are_the_fewest_with_nearly_the_best_throughput():
    assert proposal.num_threads({1: 100.0, 2: 185.0, 4: 200.0, 8: 190.0}) == 2
    assert proposal.num_threads({1: 100.0}) == 1


def test_a_request_behind_the_longest_queue_still_runs_within_the_target():
    # Two batches of 8 at once at 400 texts/s: 40 ms each. 100 ms leave 60, in which 3 of them start.
    chosen = proposal.parameters(8, 2, {1: 300.0, 2: 400.0}, 0.1)
    assert {name: value for name, (value, _) in chosen.items()} == {
        "max_batch_size": 8,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 3,
        "num_batch_threads": 2,
    }
    assert proposal.parameters(8, 2, {2: 400.0}, 0.01)["max_enqueued_batches"][0] == 1


def make(size):
    return targets.request(targets.parse(TARGET), "serving_default", ("text",), [(b"a",)] * size)


def test_batches_grow_until_the_server_refuses_them(monkeypatch):
    monkeypatch.setattr(proposal, "SECONDS", 0.0)

    def answer(request, context):
        if request.inputs["text"].tensor_shape.dim[0].size > 4:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too large")

    with stand_in(answer) as address, connected(address) as calls:
        assert list(proposal.time_batches(calls, make, 60.0)) == [1, 2, 4]
        assert list(proposal.time_batches(calls, make, 0.0)) == [1]


@pytest.mark.parametrize(("num_answered", "expected"), [(0, []), (3, [1]), (9, [1, 2])])
def test_in_flight_ends_where_the_server_sheds(monkeypatch, num_answered, expected):
    """One at once makes 3 calls, two make 6."""
    monkeypatch.setattr(proposal, "SECONDS", 0.0)
    left = threading.Semaphore(num_answered)

    def answer(request, context):
        if not left.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")

    with stand_in(answer) as address, connected(address) as calls:
        assert list(proposal.time_in_flight(calls, make, 2)) == expected


# ---- Sending ----


def load_test(calls, seconds=1.0, target_ms=1000.0):
    rows = [(b"a text",), (b"another, longer one",)]
    target = targets.parse(TARGET)
    return LoadTest(calls, target, "serving_default", ("text",), rows, seconds, 0.0, target_ms, 7)


def test_requests_are_sent_while_none_has_been_answered():
    """In a closed loop, the second would never come."""
    arrived, count = threading.Barrier(30), 30

    def answer(request, context):
        arrived.wait(60)

    times = np.linspace(0.0, 0.1, count)
    with stand_in(answer, threads=count) as address, connected(address) as calls:
        sent, answered, codes = send(calls, [make(1)] * count, times)
    assert set(codes) == {"OK"}
    assert (sent >= times).all() and answered.min() >= sent.max()


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_nothing_is_tried_again_and_shedding_is_no_failure(code):
    seen = []

    def answer(request, context):
        seen.append(request)
        if len(seen) % 2:
            context.abort(grpc.StatusCode[code], "no")

    with stand_in(answer, threads=1) as address, connected(address) as calls:
        test = load_test(calls)
        test.measure(50.0)
    [step] = test.steps
    assert len(seen) == step["sent"] == sum(step["codes"].values())
    assert step["codes"][code] == (len(seen) + 1) // 2
    is_shed = code == "RESOURCE_EXHAUSTED"
    assert (step["shed"], step["failed"])[is_shed] == 0
    assert (step["shed"], step["failed"])[not is_shed] == step["codes"][code]
    assert not step["meets_target"]


def test_an_answer_that_does_not_come_is_a_failure(monkeypatch):
    monkeypatch.setattr(loadtest, "DEADLINE", 0.2)
    ended = threading.Event()
    with stand_in(lambda *_: ended.wait(60) and None, threads=50) as address, connected(address) as calls:
        test = load_test(calls, seconds=0.2)
        test.measure(100.0)
        ended.set()
    [step] = test.steps
    assert step["codes"] == {"DEADLINE_EXCEEDED": step["sent"]} and step["failed"] == step["sent"] > 0
    assert set(step["latency_ms"].values()) == {None}


def test_the_same_seed_sends_the_same_texts():
    texts = []
    for _ in range(2):
        seen = []
        with (
            stand_in(
                lambda request, _, seen=seen: seen.append(request.inputs["text"].string_val[0])
            ) as address,
            connected(address) as calls,
        ):
            load_test(calls).measure(60.0)
        texts.append(sorted(seen))
    assert texts[0] == texts[1] and len(set(texts[0])) == 2


# ---- The command ----


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    """A model that says how long a text is."""
    folder = tmp_path_factory.mktemp("model")
    module = tf.Module()
    module.measure = tf.function(
        lambda text: {"length": tf.strings.length(text)}, [tf.TensorSpec([None], tf.string, name="text")]
    )
    module.add = tf.function(lambda x: {"y": x + 1}, [tf.TensorSpec([None], tf.int32, name="x")])
    signatures = {"serving_default": module.measure, "add": module.add}
    tf.saved_model.save(module, str(folder / "1"), signatures)
    return folder


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs `loadtest` with flags; short."""
    monkeypatch.setattr(proposal, "SECONDS", 0.01)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")

    def call(*arguments):
        fresh_flags(monkeypatch)
        run.main(
            ["loadtest", f"--output={tmp_path / 'results'}", "--duration_s=0.5", "--warmup_s=0.1", *arguments]
        )

    return call


def test_a_running_server_is_measured_and_parameters_are_proposed_that_it_takes(
    command, base_path, tmp_path, capsys
):
    (tmp_path / "in.txt").write_bytes(b"a text\n\xff\n" + b"word " * 60 + b"\n")
    with server.serve("lengths", base_path, port=0) as running:
        command(
            f"--target={running.address}",
            "--model=lengths@1",
            f"--input={tmp_path / 'in.txt'}",
            "--rate=40,80",
            "--target_p99_ms=5000",
        )
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [step["rate"] for step in results["steps"]] == [40, 80]
    for step in results["steps"]:
        assert step["codes"] == {"OK": step["sent"]}
        assert set(step["latency_ms_by_bytes"]) == {"0-64", "257-512"}
    said = capsys.readouterr().out
    assert results["rate_at_target"] == 80 and "answers/s at 80.0 requests/s" in said
    assert "\n  257-512 bytes: " in said
    parameters = tmp_path / "results" / "batching_parameters.txt"
    read = read_parameters(parameters)
    assert results["batching"]["parameters"] == {
        name: getattr(read, name) for name in results["batching"]["parameters"]
    }
    assert (tmp_path / "results" / "latency.png").read_bytes().startswith(b"\x89PNG")
    with server.serve(
        "lengths", base_path, port=0, enable_batching=True, batching_parameters_file=str(parameters)
    ) as running:
        assert targets.text_inputs(targets.parse(running.address, "lengths"), "serving_default") == ("text",)


def test_a_server_over_tls_is_measured(command, tmp_path):
    write_certificates(tmp_path)
    pair = [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())]
    flags = ["--model=m", "--rate=20"]
    with stand_in(lambda *_: None, credentials=grpc.ssl_server_credentials(pair)) as address:
        command(f"--target={address}", *flags, f"--root_certificates={tmp_path / 'ca.pem'}")
    [step] = json.loads((tmp_path / "results" / "results.json").read_text())["steps"]
    assert step["codes"] == {"OK": step["sent"]}


def test_without_a_rate_the_highest_is_searched_for(command, monkeypatch, tmp_path):
    monkeypatch.setattr(loadtest, "MOST_RATE", 45.0)
    with stand_in(lambda *_: None) as address:
        command(f"--target={address}", "--model=m", "--target_p99_ms=9000")
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [step["rate"] for step in results["steps"]] == [10, 20, 40]
    assert results["rate_at_target"] == 40


def test_a_server_that_meets_no_rate_is_said_to(command, capsys, monkeypatch, tmp_path):
    is_full = threading.Event()

    def answer(request, context):
        if is_full.is_set():
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    propose = proposal.propose

    def propose_and_fill(*arguments):
        proposed = propose(*arguments)
        is_full.set()
        return proposed

    monkeypatch.setattr(proposal, "propose", propose_and_fill)
    with stand_in(answer) as address:
        command(f"--target={address}", "--model=m", "--rate=200", "--target_p99_ms=1000")
    assert "no rate met the target" in capsys.readouterr().out
    [step] = json.loads((tmp_path / "results" / "results.json").read_text())["steps"]
    assert step["shed"] == step["sent"] > 0 and step["failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=127.0.0.1:1"], "no model server answers there"),
        (["--model=other"], "no such model or version there"),
        (["--model=lengths@7"], "no such model or version there"),
        (["--rate=0"], "give one rate, or several that rise"),
        (["--duration_s=0"], "duration_s"),
        (["--target_p99_ms=nan"], "give a finite number"),
        (["--input=missing.txt"], "missing.txt: no such file"),
        (["--input=EMPTY"], "no text in it"),
        (["--signature=none"], "has no signature none; it has add, serving_default"),
        (["--signature=add"], r"takes x \(int32\); choose one that takes texts"),
        (["--output=TAKEN"], "is there already"),
        (["--root_certificates=missing.pem"], "missing.pem: can't be used for TLS"),
        (["--target=localhost"], "'localhost' is no address; write host:port"),
    ],
)
def test_a_mistake_is_told_in_one_line(command, base_path, tmp_path, arguments, message):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "taken" / "x").mkdir(parents=True)
    names = {"EMPTY": tmp_path / "empty.txt", "TAKEN": tmp_path / "taken"}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    with (
        server.serve("lengths", base_path, port=0) as running,
        pytest.raises(UserError, match=message) as caught,
    ):
        command(f"--target={running.address}", "--model=lengths", "--rate=5", *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_server_that_refuses_even_one_text_is_quoted(command, tmp_path):
    with (
        stand_in(lambda _, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad\nmodel")) as address,
        pytest.raises(UserError, match=r"answers no text: bad model \(INVALID_ARGUMENT\)"),
    ):
        command(f"--target={address}", "--model=m", "--rate=5")
    assert not (tmp_path / "results").exists()
