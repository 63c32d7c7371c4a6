"""Which devices a run uses: the one place that knows tf.distribute's strategies."""

import functools
import json
import os
import signal

import tensorflow as tf

from keras_bert_app.config import TrainConfig
from keras_bert_app.errors import UserError


def make_strategy(train: TrainConfig) -> tf.distribute.Strategy:
    """The strategy that the config names; call it before anything else touches TensorFlow's devices.

    `none` is one device. `mirrored` is a replica on each GPU; where there is no GPU, `num_devices` logical
    CPU devices stand in, which is for trying things out: they share the cores and are no faster.
    `multi_worker` is a replica on each GPU of each process that TF_CONFIG names, or one on its CPU.

    Raises:
        UserError: more devices are asked for than there are, CPU replicas after the devices are set up, or no
            usable TF_CONFIG.
    """
    if train.strategy == "multi_worker":
        return _multi_worker(os.environ.get("TF_CONFIG", ""))
    gpus = tf.config.list_physical_devices("GPU")
    if train.strategy == "none":
        if train.num_devices not in (None, 1):
            raise UserError(
                f"config.train.num_devices is {train.num_devices}, but config.train.strategy is none, "
                "which has one; set config.train.strategy=mirrored"
            )
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    count = train.num_devices or len(gpus)
    if gpus:
        if count > len(gpus):
            raise UserError(f"config.train.num_devices is {count}, but there are {len(gpus)} GPUs")
        return _mirrored(tuple(f"GPU:{number}" for number in range(count)))
    if not count:
        raise UserError(
            "config.train.strategy is mirrored and there is no GPU; set config.train.num_devices for "
            "replicas on logical CPU devices, or config.train.strategy=none"
        )
    _make_logical_cpus(count)
    return _mirrored(tuple(f"CPU:{number}" for number in range(count)))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One a process for the same devices: two would number their collectives alike, which aborts them."""
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker(cluster: str) -> tf.distribute.Strategy:
    try:
        description = json.loads(cluster)
        workers, index = description["cluster"]["worker"], description["task"]["index"]
        usable = description["task"]["type"] == "worker" and 0 <= index < len(workers)
    except (ValueError, LookupError, TypeError):
        usable = False
    if not usable:
        raise UserError(
            f"config.train.strategy is multi_worker, but TF_CONFIG is {cluster!r}; it takes "
            '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}; on one '
            "machine `run.py launch` sets it"
        )
    # TensorFlow takes SIGTERM for itself there.
    handler = signal.getsignal(signal.SIGTERM)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGTERM, handler)
    return strategy


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files: the first worker, or the only process."""
    resolver = strategy.cluster_resolver
    return resolver is None or resolver.task_id in (None, 0)


def mean_over_replicas(strategy: tf.distribute.Strategy, value: float) -> float:
    """The mean of what all processes say, each for its replicas; all wait for the last."""

    @tf.function
    def mean():
        def on_replica():
            replica = tf.distribute.get_replica_context()
            share = tf.constant(value, tf.float64) / replica.num_replicas_in_sync
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, share)

        return strategy.experimental_local_results(strategy.run(on_replica))[0]

    return float(mean())


def _make_logical_cpus(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise UserError(
            f"{count} logical CPU devices were asked for after TensorFlow started; make the strategy first"
        ) from error
