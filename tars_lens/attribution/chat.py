"""A prompt answered twice, with and without patches, and the concept's probability by token."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from tars_lens.common.errors import TarsError, told
from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.model.generation import Prompt, Token, generate
from tars_lens.model.lens import Lens
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch

Side = Literal["base", "edited"]

HELP = """\
Type a prompt: the base model goes on on the left, the edited one on the right.
/toggle N   switch patch N on or off
/patches    the patches, and which are on
/help       this
/quit       end (so does Ctrl-D); Ctrl-C stops an answer"""


class Reply(NamedTuple):
    """The next token of one of the two answers."""

    side: Side
    token: Token


class Chat:
    """Patches on one model, each of which can be switched on and off.

    The model is its base whenever the caller has control: patches are in it only while it writes
    a token of the edited answer, and are taken out bit by bit.

    Args:
        lens: The model.
        patches: What it may be edited by; all are on at first.
        max_tokens: Of an answer.
        temperature: 0 for the likeliest tokens.
        seed: Of the draws; both answers are given the same luck.
        template: Put prompts into the tokenizer's chat template, for models that were made to
            chat; else the model goes on with the text.
        force: Take patches that were made for another base.

    Raises:
        TarsError: No patch, one twice or for another base, or a template that isn't there.
    """

    def __init__(
        self,
        lens: Lens,
        patches: Sequence[Patch],
        *,
        max_tokens: int = 60,
        temperature: float = 0.0,
        seed: int = 0,
        template: bool = False,
        force: bool = False,
    ) -> None:
        if not patches:
            raise TarsError("there is nothing to compare the model with: give at least one patch.")
        if len({patch.sha256 for patch in patches}) < len(patches):
            raise TarsError("a patch is given twice: give each once.")
        for patch in patches:
            stack.check(lens, patch, force=force)
        if template and not getattr(lens.tokenizer, "chat_template", None):
            raise TarsError(
                f"the tokenizer of {lens.name} has no chat template: leave --chat out, and write "
                "the beginning of a text."
            )
        self.lens = lens
        self.patches = tuple(patches)
        self.on = [True] * len(patches)
        self.settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        self.template = template
        cards = [Concept.from_dict(card, where=p.label) for p in patches for card in p.concepts]
        self.names = tuple(dict.fromkeys(card.name for card in cards))
        self.watched = sorted({token for card in cards for token in first_tokens(lens, card)})

    @property
    def active(self) -> tuple[Patch, ...]:
        """The patches that are on."""
        return tuple(patch for patch, on in zip(self.patches, self.on, strict=True) if on)

    def toggle(self, number: int) -> bool:
        """Switches a patch, counted from 1; returns whether it is on now.

        Raises:
            TarsError: No such patch.
        """
        if not 1 <= number <= len(self.patches):
            raise TarsError(f"no patch {number}: there are 1 to {len(self.patches)}.")
        self.on[number - 1] = not self.on[number - 1]
        return self.on[number - 1]

    def reply(self, text: str) -> Iterator[Reply]:
        """Both answers to a prompt, a token of each in turn.

        Raises:
            TarsError: An empty prompt, or one that is too long.
        """
        prompt = self._prompt(text)
        # two generators that remember what they have read, each under its own patches
        sides: dict[Side, tuple[Iterator[Token], tuple[Patch, ...]]] = {
            "base": (self._answer(prompt), ()),
            "edited": (self._answer(prompt), self.active),
        }
        return self._alternate(sides)

    def likeliest(self, text: str, top: int) -> pd.DataFrame:
        """The likeliest first tokens of each answer: columns side, rank, token, p.

        Raises:
            TarsError: `top` below 1, or an empty prompt.
        """
        if top < 1:
            raise TarsError(f"at least 1 of the likeliest tokens can be shown, got {top}.")
        batch = self.lens.batch([self._ids(self._prompt(text))])
        lines = []
        sides: tuple[tuple[Side, tuple[Patch, ...]], ...] = (("base", ()), ("edited", self.active))
        for side, patches in sides:
            with stack.holding(self.lens, patches):
                probabilities = self.lens.next_logits(batch)[0].softmax(dim=-1)
            best = probabilities.topk(min(top, len(probabilities)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            for rank, (token, p) in enumerate(pairs, start=1):
                lines.append((side, rank, self.lens.string(token), p))
        return pd.DataFrame(lines, columns=["side", "rank", "token", "p"])

    def to_frame(self) -> pd.DataFrame:
        """The patches: columns number, on, patch, concepts, vectors."""
        lines = [
            (n, on, p.label, ", ".join(str(card["name"]) for card in p.concepts), p.n_rows)
            for n, (on, p) in enumerate(zip(self.on, self.patches, strict=True), start=1)
        ]
        return pd.DataFrame(lines, columns=["number", "on", "patch", "concepts", "vectors"])

    def _answer(self, prompt: Prompt) -> Iterator[Token]:
        return generate(self.lens, [prompt], watch=self.watched, **self.settings)

    def _alternate(
        self, sides: dict[Side, tuple[Iterator[Token], tuple[Patch, ...]]]
    ) -> Iterator[Reply]:
        while sides:
            for side, (tokens, patches) in list(sides.items()):
                with stack.holding(self.lens, patches):
                    token = next(tokens, None)
                if token is None:
                    del sides[side]
                else:
                    yield Reply(side, token)

    def _prompt(self, text: str) -> Prompt:
        if not self.template:
            return text
        written = self._templated(text)
        if text.strip() not in written:  # some templates take a message's parts instead
            written = self._templated([{"type": "text", "text": text}])
        if text.strip() not in written:
            raise TarsError(
                f"the chat template of {self.lens.name} leaves the prompt out. Mend the template, "
                "or leave --chat out."
            )
        return self.lens.pieces(written)  # the template writes the special tokens itself

    def _templated(self, content: Any) -> str:
        turn = [{"role": "user", "content": content}]
        options = {"tokenize": False, "add_generation_prompt": True}
        with told(f"the chat template of {self.lens.name} fails", "Mend it, or leave --chat out."):
            return str(self.lens.tokenizer.apply_chat_template(turn, **options))

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.lens.tokens(prompt) if isinstance(prompt, str) else list(prompt)
