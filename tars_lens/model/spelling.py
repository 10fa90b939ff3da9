"""How a tokenizer spells a text that begins or continues, and what its tokens say.

SentencePiece tokenizers of the Llama 2 kind put a space of their own before every text, and take
the first space off whatever they decode. There " Saturn" alone would be a bare space and " Saturn",
and the token " Saturn" would say "Saturn". What continues a text is therefore spelt, and read,
behind a line break there.
"""

from functools import cached_property
from typing import Any

from tars_lens.common.errors import TarsError, told

_ANCHOR = "\n"
_SAMPLE = "a"
_SHOWN = 20


class Spelling:
    """A tokenizer, seen through texts that begin or continue.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Attributes:
        bos: The token that the tokenizer puts before each text: its BOS, or nothing.

    Raises:
        TarsError: The tokenizer puts anything else around a text than its BOS and its EOS.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos = self._before()

    def begun(self, text: str) -> list[int]:
        """The ids of a text that begins: the BOS that the tokenizer adds, if any, and its own.

        The EOS that some tokenizers add says that a text has ended, which a prompt hasn't.

        Raises:
            TarsError: The text has bytes that aren't UTF-8, or half of a character.
        """
        _check_whole(text)
        return [*self.bos, *self._plain(text)]

    def continued(self, text: str) -> list[int]:
        """The ids of a text that continues another: no special tokens.

        Raises:
            TarsError: As `begun`.
        """
        _check_whole(text)
        return self._after_anchor(text) if self.adds_space else self._plain(text)

    def says(self, token: int) -> str:
        """What a token says, its space included."""
        if not self.adds_space:
            return self._decode([token])
        return self._decode([*self._anchor, token])[len(self._decode(self._anchor)) :]

    @property
    def begins(self) -> bool:
        """Whether the tokenizer puts a token of its own before each text."""
        return bool(self.bos)

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer spells a text as if a space stood before it."""
        return self._plain("a") == self._after_anchor(" a")

    def _before(self) -> list[int]:
        """The BOS that is added, from what is made of a text with and without special tokens."""
        whole, plain = self._ids(_SAMPLE), self._plain(_SAMPLE)
        ends = [[], [getattr(self._tokenizer, "eos_token_id", None)]]
        for bos in ([], [getattr(self._tokenizer, "bos_token_id", None)]):
            if not self._plain("") and whole in [[*bos, *plain, *eos] for eos in ends]:
                return whole[: len(bos)]
        raise TarsError(
            f"the tokenizer makes {self._named(whole)} of {_SAMPLE!r}, where BOS, the text's own "
            f"tokens {self._named(plain)} and EOS are all that is allowed. Take the rest out of "
            "its post_processor (tokenizer.json), or name its bos_token and eos_token "
            "(tokenizer_config.json)."
        )

    def _named(self, ids: list[int]) -> list[str]:
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids)]

    @cached_property
    def _anchor(self) -> list[int]:
        return self._plain(_ANCHOR)

    def _after_anchor(self, text: str) -> list[int]:
        whole, lead = self._plain(f"{_ANCHOR}{text}"), len(self._anchor)
        return whole[lead:] if whole[:lead] == self._anchor else self._plain(text)

    def _plain(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=False)

    def _ids(self, text: str, **options: Any) -> list[int]:
        with told(f"the tokenizer fails on {text[:_SHOWN]!r}", "Get the model's tokenizer again."):
            return list(self._tokenizer(text, **options)["input_ids"])

    def _decode(self, ids: list[int]) -> str:
        with told(f"the tokenizer fails on the tokens {ids}", "Get the model's tokenizer again."):
            return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _check_whole(text: str) -> None:
    """Refuses what a tokenizer can't be given."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - _SHOWN) : error.end + _SHOWN]
        raise TarsError(
            f"{near!r} can't be read by a tokenizer: it has bytes that aren't UTF-8, or half of a "
            "character. Write it again as UTF-8."
        ) from error
