from keras_bert_app.evaluation import classification_metrics  # TEMP
