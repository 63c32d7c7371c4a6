"""Tokenizers as transformers writes them: every option, every file, and what is refused."""

import itertools
import json

import pytest
import tokenizers
import transformers

from keras_bert_app.convert.huggingface_tokenizer import load_tokenizer
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

PIECES = (*SPECIAL_TOKENS, "[E1]", "good", "##s", "中", "é", "\u2028")
CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"


def write_tokenizer(folder, change=lambda tokenizer: None, **settings):
    """What transformers saves, and the vocab.txt that its earlier versions save."""
    ids = {piece: number for number, piece in enumerate(PIECES)}
    tokenizer = transformers.BertTokenizer(vocab=ids, **settings)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    Vocabulary(PIECES).save(folder / "vocab.txt")


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path)
    return tmp_path


def change_json(path, at, value):
    """Set what stands at a path such as "model.type"."""
    content = json.loads(path.read_text()) if path.exists() else {}
    *parents, last = at.split(".")
    section = content
    for key in parents:
        section = section[key]
    section[last] = value
    path.write_text(json.dumps(content))


OPTIONS = list(itertools.product([True, False], [None, True, False], [True, False]))


@pytest.mark.parametrize("left_out", [(), (CONFIG,), (TOKENIZER,), ("vocab.txt",), ("vocab.txt", CONFIG)])
@pytest.mark.parametrize(("lower_case", "strip_accents", "split_chinese"), OPTIONS)
def test_every_option_is_read_from_either_file(tmp_path, lower_case, strip_accents, split_chinese, left_out):
    settings = {"do_lower_case": lower_case, "strip_accents": strip_accents}
    write_tokenizer(tmp_path, **settings, tokenize_chinese_chars=split_chinese)
    for name in left_out:
        (tmp_path / name).unlink()
    vocabulary, options = load_tokenizer(tmp_path)
    assert tuple(vocabulary.pieces) == PIECES
    assert options == TokenizerOptions(lower_case, strip_accents, split_chinese)


def test_real_files_are_those_of_an_uncased_tokenizer(minilm):
    vocabulary, options = load_tokenizer(minilm)
    assert (len(vocabulary), options) == (30522, TokenizerOptions())


def test_without_any_settings_the_options_are_berts(folder):
    (folder / CONFIG).unlink()
    (folder / TOKENIZER).unlink()
    assert load_tokenizer(folder)[1] == TokenizerOptions()


def test_added_tokens_of_the_vocabulary_are_never_split_and_standard_special_tokens_are(tmp_path):
    write_tokenizer(tmp_path, lambda tokenizer: tokenizer.add_tokens(["[E1]"], special_tokens=True))
    assert load_tokenizer(tmp_path)[1].never_split == ("[E1]",)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / TOKENIZER))
    assert reference.encode("good[E1]", add_special_tokens=False).tokens == ["good", "[E1]"]


@pytest.mark.parametrize("name", [CONFIG, "special_tokens_map.json"])
@pytest.mark.parametrize("tokens", [["[E1]"], [{"content": "[E1]"}], {"entity": "[E1]"}])
def test_further_special_tokens_are_found_wherever_files_list_them(folder, name, tokens):
    change_json(folder / name, "additional_special_tokens", tokens)
    assert load_tokenizer(folder)[1].never_split == ("[E1]",)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            CONFIG,
            "tokenizer_class",
            "BertJapaneseTokenizer",
            "'BertJapaneseTokenizer'; only 'BertTokenizer' can",
        ),
        (CONFIG, "do_basic_tokenize", False, "do_basic_tokenize is False; only True can be honoured"),
        (CONFIG, "never_split", ["good"], "never_split is ['good']; only None can be honoured"),
        (CONFIG, "do_lower_case", "yes", "do_lower_case is 'yes'; only true and false can be honoured"),
        (CONFIG, "pad_token", "<pad>", "pad_token is '<pad>'; only '[PAD]' can be honoured"),
        (CONFIG, "mask_token", {"content": "<mask>"}, "mask_token is '<mask>'; only '[MASK]' can be"),
        ("special_tokens_map.json", "unk_token", "<unk>", "unk_token is '<unk>'; only '[UNK]' can be"),
        (CONFIG, "additional_special_tokens", ["<x>"], "has '<x>', id None, which the vocabulary doesn't"),
        (TOKENIZER, "normalizer", None, "normalizer.type is None; only 'BertNormalizer' can be honoured"),
        (TOKENIZER, "normalizer.type", "NFKC", "normalizer.type is 'NFKC'; only 'BertNormalizer' can be"),
        (TOKENIZER, "normalizer.clean_text", False, "normalizer.clean_text is False; only True can be"),
        (
            TOKENIZER,
            "pre_tokenizer",
            {"type": "Whitespace"},
            "pre_tokenizer.type is 'Whitespace'; only 'Bert",
        ),
        (TOKENIZER, "post_processor.type", "RobertaProcessing", "post_processor.type is 'RobertaProcessing'"),
        (TOKENIZER, "model.type", "BPE", "model.type is 'BPE'; only 'WordPiece' can be honoured"),
        (TOKENIZER, "model.unk_token", "<unk>", "model.unk_token is '<unk>'; only '[UNK]' can be honoured"),
        (TOKENIZER, "model.continuing_subword_prefix", "@@", "continuing_subword_prefix is '@@'; only '##'"),
        (TOKENIZER, "model.max_input_chars_per_word", 200, "max_input_chars_per_word is 200; only 100 can"),
        (TOKENIZER, "model.vocab.good", 70, "model.vocab doesn't give each piece one of the ids from 0 on"),
        (TOKENIZER, "model.vocab", [], "model.vocab doesn't give each piece one of the ids from 0 on"),
        (TOKENIZER, "added_tokens", ["[E1]"], "can't read the added tokens of its tokenizer"),
        ("added_tokens.json", "new", 11, "added_tokens.json has 'new', id 11, which the vocabulary doesn't"),
    ],
)
def test_what_ours_does_not_do_is_refused_with_file_key_and_value(folder, name, key, value, message):
    change_json(folder / name, key, value)
    refused = refusal(folder)
    assert message in refused
    assert name in refused or "can't read the added tokens" in refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "do_lower_case",
            False,
            "do_lower_case is False by tokenizer_config.json, but normalizer.lowercase is ",
        ),
        (
            "strip_accents",
            False,
            "strip_accents is False by tokenizer_config.json, but normalizer.strip_acce",
        ),
        ("tokenize_chinese_chars", False, "but normalizer.handle_chinese_chars is True by tokenizer.json"),
    ],
)
def test_files_that_disagree_are_refused_with_what_each_says(folder, key, value, message):
    change_json(folder / CONFIG, key, value)
    assert message in refusal(folder)


def test_what_only_one_file_states_and_what_comes_to_the_same_is_no_disagreement(tmp_path):
    write_tokenizer(tmp_path, do_lower_case=False, tokenize_chinese_chars=False)
    for key in ("tokenize_chinese_chars", "do_lower_case"):
        change_json(tmp_path / CONFIG, key, None)
    change_json(tmp_path / TOKENIZER, "normalizer.strip_accents", False)
    assert load_tokenizer(tmp_path)[1] == TokenizerOptions(False, False, False)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (
            (*PIECES, "more"),
            "the id of 'more' is 11 by vocab.txt, but None by tokenizer.json; remove the file",
        ),
        (PIECES[:-1], r"the id of '\u2028' is None by vocab.txt, but 10 by tokenizer.json"),
        (
            (*PIECES[:5], "good", "[E1]", *PIECES[7:]),
            "the id of '[E1]' is 6 by vocab.txt, but 5 by tokenizer.",
        ),
    ],
)
def test_two_vocabularies_are_refused_with_the_first_difference(folder, pieces, message):
    Vocabulary(pieces).save(folder / "vocab.txt")
    assert message in refusal(folder)


def test_a_piece_that_no_vocab_txt_can_hold_is_refused(folder):
    (folder / "vocab.txt").unlink()
    change_json(folder / TOKENIZER, "model.vocab.a\nb", len(PIECES))
    assert r"tokenizer.json: the piece 'a\nb' has a line end" in refusal(folder)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("new", "tokenizer.json has 'new', id 11, which the vocabulary doesn't"),
        (tokenizers.AddedToken("good", normalized=True), "has 'good', to be found as 'normalized' says"),
        (tokenizers.AddedToken("good", normalized=False, single_word=True), "as 'single_word' says"),
        (tokenizers.AddedToken("good", normalized=False, lstrip=True), "as 'lstrip' says, which can't be"),
    ],
)
def test_added_tokens_that_ours_does_not_find_as_theirs_does_are_refused(tmp_path, token, message):
    write_tokenizer(tmp_path, lambda tokenizer: tokenizer.add_tokens([token]))
    assert message in refusal(tmp_path)


def test_the_added_tokens_of_the_configuration_count_without_the_other_file(folder):
    (folder / TOKENIZER).unlink()
    token = {"content": "[E1]", "special": True, "normalized": False, "rstrip": True}
    change_json(folder / CONFIG, "added_tokens_decoder", {"5": token})
    assert "tokenizer_config.json has '[E1]', to be found as 'rstrip' says" in refusal(folder)
    change_json(folder / CONFIG, "added_tokens_decoder", {"5": token | {"rstrip": False}})
    assert load_tokenizer(folder)[1].never_split == ("[E1]",)
