"""Token ids of chunks of documents: those of the tokenizer, whatever the script."""

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app.data.documents import split_sentences
from keras_bert_app.data.tokenized import ChunkTokenizer
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary


@pytest.mark.parametrize("lower_case", [True, False])
def test_chunks_have_the_ids_of_the_tokenizer_in_any_script(minilm, reviews, lower_case):
    tokenizer = BertTokenizer(Vocabulary.load(minilm / "vocab.txt"), TokenizerOptions(lower_case))
    random = np.random.default_rng(0)
    every_ascii = ["".join(f"a{chr(code)}B" for code in random.permutation(range(1, 128))) for _ in range(50)]
    others = ["Ünïcode Ⅻ ½ 中文字。ΣΑΣ ﬁ\u200b\u0301", "\ufffd only", "naïve\x07 café\tX", "İstanbul"] * 3
    documents = [*reviews[:300], *every_ascii, *others, "\x01\x02"]
    encoded = [document.encode() for document in documents]
    chunk = ChunkTokenizer(tokenizer, "split").tokenise(encoded, [b"0" * 16] * len(encoded))
    ends = np.cumsum(chunk["document_lengths"])[:-1]
    num_tokens = [lengths.sum() for lengths in np.split(chunk["sentence_lengths"], ends)]
    found = np.split(chunk["tokens"], np.cumsum(num_tokens)[:-1])
    wanted = tokenizer(tf.constant([" ".join(split_sentences(document)) for document in documents])).to_list()
    assert [ids.tolist() for ids in found] == wanted and wanted[-1] == []
