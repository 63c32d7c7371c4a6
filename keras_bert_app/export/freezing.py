"""The network of a bundle: one graph for all its signatures, its weights mostly constants."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.tasks.signatures import with_pooled

# oneDNN lays constants out for its products once, variables at each call: a fifth of the time of one text.
# But they take five times their size for each signature that is asked, so larger ones stay variables.
_MOST_CONSTANT_BYTES = 50e6


class FrozenNetwork(tf.Module):
    """A model as signatures ask it: the encoder's inputs -> the model's outputs, and `pooled` [B, H].

    `weights` are those that aren't constants of the graph: tables of embeddings, of which only some
    rows are read, and all weights of a large model. They are TensorFlow's variables, not Keras': exporting
    one of those makes a second variable, and in a session it is the second that is restored, while the graph
    reads the first.
    """

    def __init__(self, model: keras.Model):
        super().__init__(name="network")
        network = with_pooled(model)
        replaced = {
            id(weight)
            for layer in model._flatten_layers()
            if hasattr(layer, "integers")
            for weight in layer.weights
        }
        weights = [weight for weight in model.weights if id(weight) not in replaced]
        constants = [weight for weight in weights if not _is_table(weight)]
        if sum(weight.numpy().nbytes for weight in constants) > _MOST_CONSTANT_BYTES:
            constants = []
        values = [(weight, weight.numpy()) for weight in constants]
        frozen = {id(weight) for weight in constants}
        self.weights = [weight.value for weight in weights if id(weight) not in frozen]
        specs = {name: tf.TensorSpec([None, None], value.dtype) for name, value in network.input.items()}

        @tf.function(input_signature=[specs])
        def answer(inputs):
            with keras.StatelessScope([(weight, tf.constant(value)) for weight, value in values]):
                return network(inputs, training=False)

        # One, where saving would trace another with the constants once more.
        self._answer = answer.get_concrete_function()

    def __call__(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> Mapping[str, tf.Tensor]:
        """See the class; `training` is False."""
        return self._answer({name: inputs[name] for name in features.ENCODER_INPUTS})


def _is_table(weight: keras.Variable) -> bool:
    """Whether rows are looked up in it."""
    return weight.path.rsplit("/", 1)[-1] in ("embeddings", "position")
