"""What layers are made of: TensorFlow's kernels where that is Keras' backend, keras.ops elsewhere."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_bert_app.model.kernels import dense, lay_out, normalize, run_block
else:
    from keras_bert_app.model.portable import dense, lay_out, normalize, run_block

__all__ = ["dense", "lay_out", "normalize", "run_block"]
