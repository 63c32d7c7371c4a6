"""The tokenizer's files in a Hugging Face BERT folder <-> vocabulary and options, or what can't be honoured.

Honoured are lower-casing, accent stripping, Chinese splitting and added tokens; truncation and padding are
the config's business. The standard special tokens are never among the added ones: where a text has [MASK]
literally, it is special to transformers, but punctuation and letters here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from keras_bert_app.convert.weight_files import read_json
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import MAX_WORD_CHARACTERS, TokenizerOptions
from keras_bert_app.text.vocabulary import (
    CLASSIFY,
    MASK,
    PAD,
    SEPARATE,
    SPECIAL_TOKENS,
    UNKNOWN,
    Vocabulary,
)

VOCABULARY, TOKENIZER, CONFIG = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
SPECIAL_NAMES, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"

# Settings of each file, and the only values that our tokenizer honours. None: not stated.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
FIXED = {
    CONFIG: {
        "tokenizer_class": (
            *(
                f"{family}Tokenizer{kind}"
                for family in ("Bert", "DistilBert", "Electra")
                for kind in ("", "Fast")
            ),
            *_GENERIC_CLASSES,
            None,
        ),
        "do_basic_tokenize": (True, None),
        "never_split": (None, []),
    },
    TOKENIZER: {
        "normalizer.type": ("BertNormalizer",),
        "normalizer.clean_text": (True,),
        "pre_tokenizer.type": ("BertPreTokenizer",),
        "post_processor.type": ("TemplateProcessing", "BertProcessing", None),
        "model.type": ("WordPiece", None),
        "model.unk_token": (UNKNOWN,),
        "model.continuing_subword_prefix": ("##",),
        "model.max_input_chars_per_word": (MAX_WORD_CHARACTERS,),
    },
}
# Each file's key for each of our options.
OPTIONS = {
    CONFIG: {
        "lower_case": "do_lower_case",
        "strip_accents": "strip_accents",
        "split_chinese": "tokenize_chinese_chars",
    },
    TOKENIZER: {
        "lower_case": "normalizer.lowercase",
        "strip_accents": "normalizer.strip_accents",
        "split_chinese": "normalizer.handle_chinese_chars",
    },
}
SPECIAL_KEYS = {
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "cls_token": CLASSIFY,
    "sep_token": SEPARATE,
    "mask_token": MASK,
}
_MORE_SPECIAL_KEYS = ("additional_special_tokens", "extra_special_tokens")


def load_tokenizer(folder: Path) -> tuple[Vocabulary, TokenizerOptions]:
    """Read vocab.txt or tokenizer.json, and what these and the files beside them say of the tokenizer.

    Raises:
        UserError: a file is missing or broken, two of them disagree, or one asks for what our tokenizer
            doesn't do; the message names file, key and value.
    """
    names = (TOKENIZER, CONFIG, SPECIAL_NAMES, ADDED_TOKENS)
    files = {name: read_json(folder / name) for name in names if (folder / name).exists()}
    for name, settings in FIXED.items():
        for key, allowed in settings.items():
            if name in files and (value := _at(files[name], key)) not in allowed:
                raise UserError(f"{folder / name}: {key} is {value!r}; only {allowed[0]!r} can be honoured")
    vocabulary = _vocabulary(folder, files.get(TOKENIZER))
    for name in (CONFIG, SPECIAL_NAMES):
        for key, wanted in SPECIAL_KEYS.items():
            token = files.get(name, {}).get(key)
            content = token.get("content") if isinstance(token, dict) else token
            if content not in (None, wanted):
                raise UserError(f"{folder / name}: {key} is {content!r}; only {wanted!r} can be honoured")
    options = _options(folder, files)
    never_split = _never_split(folder, files, vocabulary)
    return vocabulary, TokenizerOptions(**vars(options) | {"never_split": never_split})


def save_tokenizer(folder: Path, vocabulary: Vocabulary, options: TokenizerOptions, max_length: int) -> None:
    """Write vocab.txt, tokenizer.json and tokenizer_config.json, from which transformers makes the tokenizer.

    There the standard special tokens are found in raw text too; here, if `options.never_split` says so.
    """
    vocabulary.save(folder / VOCABULARY)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            dict(vocabulary.ids), unk_token=UNKNOWN, max_input_chars_per_word=MAX_WORD_CHARACTERS
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.split_chinese,
        strip_accents=options.strip_accents,
        lowercase=options.lower_case,
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{CLASSIFY}:0 $A:0 {SEPARATE}:0",
        pair=f"{CLASSIFY}:0 $A:0 {SEPARATE}:0 $B:1 {SEPARATE}:1",
        special_tokens=[(token, vocabulary.ids[token]) for token in (CLASSIFY, SEPARATE)],
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    special = dict.fromkeys((*SPECIAL_TOKENS, *options.never_split))
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / TOKENIZER))
    more = [token for token in special if token not in SPECIAL_TOKENS]
    settings = SPECIAL_KEYS | {OPTIONS[CONFIG][name]: getattr(options, name) for name in OPTIONS[CONFIG]}
    settings |= {"tokenizer_class": "BertTokenizer", "model_max_length": max_length}
    settings |= {"additional_special_tokens": more} if more else {}
    text = json.dumps(dict(sorted(settings.items())), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _at(content: Any, path: str) -> Any:
    """What stands at a path such as "model.type"; None where there is no such thing."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _vocabulary(folder: Path, tokenizer: Mapping[str, Any] | None) -> Vocabulary:
    path = folder / VOCABULARY
    if tokenizer is None:
        return Vocabulary.load(path)
    where, ids = folder / TOKENIZER, _at(tokenizer, "model.vocab")
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise UserError(f"{where}: model.vocab doesn't give each piece one of the ids from 0 on")
    vocabulary = Vocabulary(tuple(sorted(ids, key=ids.get)), str(where))
    if path.exists():
        listed = Vocabulary.load(path)
        for piece in {**vocabulary.ids, **listed.ids}:
            one, other = listed.ids.get(piece), vocabulary.ids.get(piece)
            if one != other:
                raise UserError(
                    f"{folder}: the id of {piece!r} is {one} by {VOCABULARY}, but {other} by {TOKENIZER}; "
                    "remove the file that doesn't belong to the weights"
                )
        return listed
    broken = next((piece for piece in ids if "\n" in piece or piece.endswith("\r")), None)
    if broken is not None:
        raise UserError(f"{where}: the piece {broken!r} has a line end, so that no {VOCABULARY} can hold it")
    return vocabulary


def _options(folder: Path, files: Mapping[str, Any]) -> TokenizerOptions:
    """What both files say, or the one that is there."""
    stated = {name: _stated_options(folder / name, files.get(name, {}), OPTIONS[name]) for name in OPTIONS}
    options = TokenizerOptions(**stated[TOKENIZER] | stated[CONFIG])
    if TOKENIZER in files:
        other = TokenizerOptions(**stated[TOKENIZER])
        for name in stated[CONFIG]:
            one, two = getattr(options, name), getattr(other, name)
            if one != two:
                raise UserError(
                    f"{folder}: {OPTIONS[CONFIG][name]} is {one} by {CONFIG}, but "
                    f"{OPTIONS[TOKENIZER][name]} is {two} by {TOKENIZER}; change the one that is wrong"
                )
    return options


def _stated_options(
    where: Path, content: Mapping[str, Any], keys: Mapping[str, str]
) -> dict[str, bool | None]:
    stated = {}
    for ours, key in keys.items():
        value = _at(content, key)
        # For accents null has a meaning, the one that our default has too: as lower-casing says.
        if value is None and (ours != "strip_accents" or key not in content):
            continue
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}; only true and false can be honoured")
        stated[ours] = value
    return stated


def _never_split(folder: Path, files: Mapping[str, Any], vocabulary: Vocabulary) -> Sequence[str]:
    """The added tokens, which stand for themselves in raw text, but the standard ones."""
    found = {}
    try:
        for where, token in _added_tokens(files):
            content, number = token["content"], token.get("id")
            if content in SPECIAL_TOKENS:
                continue
            place = f"{folder / where} has {content!r}"
            if number not in (None, vocabulary.ids.get(content)) or content not in vocabulary.ids:
                raise UserError(f"{place}, id {number}, which the vocabulary doesn't; such can't be honoured")
            flags = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]
            flags += ["normalized"] * token.get("normalized", not token.get("special", False))
            if flags:
                raise UserError(f"{place}, to be found as {flags[0]!r} says, which can't be honoured")
            found[content] = None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: can't read the added tokens of its tokenizer: {error!r}") from error
    return tuple(found)


def _added_tokens(files: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """File, and an added token with the keys that tokenizer.json has for it."""
    for token in files.get(TOKENIZER, {}).get("added_tokens") or []:
        yield TOKENIZER, token
    for number, token in (files.get(CONFIG, {}).get("added_tokens_decoder") or {}).items():
        yield CONFIG, {"id": int(number)} | token
    for content, number in files.get(ADDED_TOKENS, {}).items():
        yield ADDED_TOKENS, {"content": content, "id": number}
    for name in (CONFIG, SPECIAL_NAMES):
        for key in _MORE_SPECIAL_KEYS:
            tokens = files.get(name, {}).get(key) or []
            for token in tokens.values() if isinstance(tokens, dict) else tokens:
                yield name, {"special": True} | (token if isinstance(token, dict) else {"content": token})
