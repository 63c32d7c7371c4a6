"""One readable Python file per run. Each `get_config()` changes `keras_bert_app.config.default()`."""
