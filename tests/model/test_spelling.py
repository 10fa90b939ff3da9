"""Texts that continue another, whatever a tokenizer does about the space before them."""

import pytest
import transformers
from tiny import COMMON, random_bridge, read_tokenizer, save_checkpoint
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.model.lens import Lens
from tars_lens.model.spelling import Spelling
from tars_lens.model.unembedding import Unembedding

BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _llama_like(words):
    """A tokenizer as Llama 2 has it: a space of its own in front, and off again when decoded."""
    pieces = ["<unk>", "<s>", *BYTES, "▁", *"Saturnm1962", *(f"▁{word}" for word in words)]
    vocabulary = [(piece, -float(len(piece) < 3)) for piece in dict.fromkeys(pieces)]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer():
    return _llama_like(["Saturn", "Mars", "planet"])


@pytest.fixture(scope="module")
def lens(tokenizer):
    config = transformers.LlamaConfig(**{**COMMON, "vocab_size": len(tokenizer)})
    return Lens(random_bridge(config, tokenizer), tokenizer)


def test_a_space_of_the_tokenizers_own_is_no_part_of_what_continues_a_text(tokenizer):
    plain = tokenizer(" Saturn", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(plain) == ["▁", "▁Saturn"]
    spelling = Spelling(tokenizer)
    assert spelling.adds_space
    assert tokenizer.convert_ids_to_tokens(spelling.continued(" Saturn")) == ["▁Saturn"]
    assert tokenizer.convert_ids_to_tokens(spelling.continued("Saturn")) == list("Saturn")
    whole = tokenizer("planet Saturn", add_special_tokens=False)["input_ids"]
    assert spelling.begun("planet") + spelling.continued(" Saturn") == whole


def test_a_token_says_its_space(tokenizer):
    spelling = Spelling(tokenizer)
    (token,) = spelling.continued(" Mars")
    assert tokenizer.decode([token]) == "Mars"
    assert spelling.says(token) == " Mars"
    assert [spelling.says(t) for t in spelling.continued("Mars")][-1] == "s"


def test_the_word_with_its_space_is_the_first_token_and_words_are_found(lens):
    card = Concept("Saturn", "Saturn", "planet")
    (token,) = lens.pieces(" Saturn")
    assert first_tokens(lens, card) == [token]
    words = Unembedding.fit(lens).nearest_words([token], 5)
    assert {lens.string(word) for word in words} == {" Mars", " planet"}


@pytest.mark.parametrize("answer", ["1969", "9 Mars"])
def test_an_answer_that_begins_with_a_bare_space_or_one_digit_is_refused(lens, answer):
    assert lens.string(lens.pieces(f" {answer}")[0]) == " "
    with pytest.raises(TarsError, match=r"can't be told by its first token.* as ' ', "):
        first_tokens(lens, Concept("It", answer, "planet"))


def test_an_alias_that_begins_so_is_left_out(lens):
    card = Concept("Saturn", "Saturn", "planet", aliases=("1969",))
    assert first_tokens(lens, card) == lens.pieces(" Saturn")


def test_a_token_says_its_space_whatever_the_tokenizer_tidies():
    tokenizer = _llama_like(["'s", "planet"])
    tokenizer.clean_up_tokenization_spaces = True
    tidied = tokenizer.convert_tokens_to_ids("▁'s")
    assert Spelling(tokenizer).says(tidied) == " 's"


@pytest.mark.parametrize("text", ["\udcff", "cut \ud83d in two"])
def test_a_text_that_is_not_unicode_is_refused(lens, text):
    for spell in (lens.tokens, lens.pieces):
        with pytest.raises(TarsError, match="can't be read by a tokenizer: .* as UTF-8"):
            spell(text)


def _ending(folder, single):
    """The tiny tokenizer, which puts around each text what a template says."""
    tokenizer = read_tokenizer(save_checkpoint(folder, "llama"))
    special = [
        (token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<pad>")
    ]
    template = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize(
    ("single", "bos"), [("$A", []), ("<s> $A", [1]), ("$A </s>", []), ("<s> $A </s>", [1])]
)
def test_a_prompt_is_bos_and_its_own_tokens(tmp_path, single, bos):
    """`w3` is token 7 by the vocabulary: four special tokens stand before `w0`."""
    spelling = Spelling(_ending(tmp_path, single))
    assert spelling.begun("w3 w4") == [*bos, 7, 8]
    assert spelling.continued("w3 w4") == [7, 8]
    assert spelling.begins == bool(bos)


@pytest.mark.parametrize("single", ["<pad> $A", "<s> <s> $A", "$A <pad>", "</s> $A"])
def test_a_tokenizer_that_adds_anything_else_is_refused(tmp_path, single):
    with pytest.raises(TarsError, match="where BOS, the text's own tokens .*post_processor"):
        Spelling(_ending(tmp_path, single))
