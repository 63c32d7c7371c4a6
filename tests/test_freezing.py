import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.export import bundle, freezing, saved_model
from keras_bert_app.export.freezing import FrozenNetwork
from keras_bert_app.tasks.signatures import with_pooled
from keras_bert_app.training import workdir as folders


@pytest.fixture(scope="module")
def run(tiny_run):
    """The description and the model of a small run."""
    return folders.load_best_model(tiny_run, "float32")


@pytest.fixture(scope="module")
def inputs(run):
    return run[0].packer()([tf.constant(["good film", "", "so dull " * 9, "a poor plot . " * 3, "bad"])])


@pytest.mark.parametrize("most", [0, 50e6])
def test_constant_or_not_the_network_answers_as_the_model(run, inputs, most, monkeypatch):
    monkeypatch.setattr(freezing, "_MOST_CONSTANT_BYTES", most)
    model = run[1]
    network = FrozenNetwork(model)
    for name, value in with_pooled(model)(inputs, training=False).items():
        np.testing.assert_allclose(network(inputs)[name], value, atol=2e-6, err_msg=name)
    tables = ["embeddings", "embeddings", "position"]
    names = [weight.path.rsplit("/", 1)[-1] for weight in model.weights]
    assert len(network.weights) == (len(tables) if most else len(names))


def test_all_signatures_share_the_constants(run, tmp_path):
    description, model = run
    network, packer = FrozenNetwork(model), description.packer()
    signatures = description.task.signatures(network, packer)
    tf.saved_model.save(bundle.Bundle(network, packer, signatures), str(tmp_path), signatures=signatures)
    kernel = model.get_layer("encoder").blocks[0].intermediate.kernel.numpy()
    found = 0
    graph = saved_model.read(tmp_path).graph_def
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            if node.op == "Const" and list(kernel.shape) == [
                size.size for size in node.attr["value"].tensor.tensor_shape.dim
            ]:
                found += np.array_equal(tf.make_ndarray(node.attr["value"].tensor), kernel)
    assert found == 1


def test_what_the_model_learns_later_doesn_t_change_the_network(run, inputs):
    model = run[1]
    network = FrozenNetwork(model)
    before = network(inputs)[features.LOGITS].numpy()
    kernel = model.get_layer("head").dense.kernel
    value = kernel.numpy()
    kernel.assign(value + 1)
    np.testing.assert_array_equal(network(inputs)[features.LOGITS], before)
    kernel.assign(value)
