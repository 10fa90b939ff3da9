"""What a model goes on to say: greedy or sampled continuations, a token at a time or whole."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import set_aside, undisturbed
from tars_lens.model.lens import Lens

_BATCH = 16

Prompt = str | Sequence[int]
"""A text, or the token ids of one."""

_Step = Callable[[Sequence[int]], Float[Tensor, "batch d_vocab"]]
"""Takes the token that was chosen for each prompt (none at first), gives the next logits."""


class Token(NamedTuple):
    """One token of one continuation.

    Attributes:
        prompt: The index of the prompt that it continues.
        token: Its id.
        text: What it adds to the text; `""` while a character is incomplete.
        probability: That the model gave it, whatever the temperature.
        watched: The summed probability of the watched tokens in its place.
    """

    prompt: int
    token: int
    text: str
    probability: float
    watched: float


def generate(
    lens: Lens,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    watch: Sequence[int] = (),
) -> Iterator[Token]:
    """Continues prompts together, and yields their tokens as they come.

    The model is run only when a token is asked for, as it stands at that moment; what it has read
    before is kept. So an edit must be in it from the first token to the last.

    Args:
        lens: The model.
        prompts: Texts, or token ids.
        max_tokens: At most so many tokens a prompt.
        temperature: 0 takes the likeliest token; 1 draws from the model's own distribution.
        seed: Of the draws. A prompt's draws depend on it and on the prompt's index alone, so two
            models that differ by an edit are given the same luck.
        stop: Texts that end a continuation, and are not part of it. The end of a text as the
            tokenizer or the model's generation settings know it always does.
        watch: Tokens whose probability is told beside each token.

    Raises:
        TarsError: No prompt or an empty one, a setting that makes no sense, or more tokens than
            the model can read.
    """
    if not prompts:
        raise TarsError("there is nothing to continue: give at least one prompt.")
    if max_tokens < 1 or temperature < 0 or not all(stop):
        raise TarsError(
            "generation needs max_tokens >= 1, temperature >= 0 and stop texts that aren't empty, "
            f"got max_tokens={max_tokens}, temperature={temperature}, stop={list(stop)}."
        )
    sequences = [lens.tokens(p) if isinstance(p, str) else list(p) for p in prompts]
    _check_lengths(lens, sequences, max_tokens)
    draw = _Draw(temperature, seed, len(sequences))
    rows = [_Row(lens, ids, tuple(stop)) for ids in sequences]
    step = _stepper(lens, sequences)
    return _run(step, draw, rows, max_tokens, _ends(lens), list(watch))


def continuations(lens: Lens, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
    """The greedy continuation of each prompt, for reports.

    Raises:
        TarsError: As `generate`.
    """
    texts = [""] * len(prompts)
    for start in range(0, len(prompts), _BATCH):
        for token in generate(lens, prompts[start : start + _BATCH], max_tokens=max_tokens):
            texts[start + token.prompt] += token.text
    return texts


def _run(
    step: _Step,
    draw: "_Draw",
    rows: list["_Row"],
    max_tokens: int,
    ends: frozenset[int],
    watch: list[int],
) -> Iterator[Token]:
    going = set(range(len(rows)))
    chosen: list[int] = []
    for count in range(1, max_tokens + 1):
        logits = step(chosen)
        chosen = draw(logits)
        probabilities = logits.softmax(dim=-1)
        for index in sorted(going):
            token, row = chosen[index], rows[index]
            if token in ends:
                going.discard(index)
                continue
            text = row.add(token, last=count == max_tokens)
            if row.stopped:
                going.discard(index)
            p = probabilities[index]
            yield Token(index, token, text, float(p[token]), float(p[watch].sum()))
        if not going:
            return


class _Draw:
    """Picks the next token of each prompt, from a generator of each prompt's own."""

    def __init__(self, temperature: float, seed: int, prompts: int) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(prompts)]

    @undisturbed
    def __call__(self, logits: Float[Tensor, "batch d_vocab"]) -> list[int]:
        if not self.temperature:
            return logits.argmax(dim=-1).tolist()
        probabilities = (logits / self.temperature).softmax(dim=-1).cpu()
        # the largest p / e, with e exponential, falls on a token with its probability p
        noise = [torch.empty(logits.shape[1]).exponential_(generator=g) for g in self.generators]
        return (probabilities / torch.stack(noise)).argmax(dim=-1).tolist()


class _Row:
    """The text of one continuation as it grows."""

    def __init__(self, lens: Lens, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self.lens = lens
        self.ids = [prompt[-1]]  # some tokenizers drop the space before a text's first token
        self.shown = len(self._decoded())
        self.begin = self.shown
        self.stop = stop
        self.stopped = False

    def add(self, token: int, *, last: bool) -> str:
        """What a token adds; characters that need further tokens are held back."""
        self.ids.append(token)
        whole = self._decoded()
        hits = [at for text in self.stop if (at := whole.find(text, self.begin)) >= 0]
        if hits:
            self.stopped = True
            whole = whole[: min(hits)]
        elif whole.endswith("\ufffd") and not last:
            return ""
        new, self.shown = whole[self.shown :], max(self.shown, len(whole))
        return new

    def _decoded(self) -> str:
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self.lens.tokenizer.decode(self.ids, **options))


def _stepper(lens: Lens, sequences: list[list[int]]) -> _Step:
    """A bridge's own Hugging Face model keeps what it has read; else all is read each time."""
    hf = getattr(lens.model, "original_model", None)
    return _rerun(lens, sequences) if hf is None else _cached(lens, hf, sequences)


def _rerun(lens: Lens, sequences: list[list[int]]) -> _Step:
    grown = [list(ids) for ids in sequences]

    def step(chosen: Sequence[int]) -> Float[Tensor, "batch d_vocab"]:
        for ids, token in zip(grown, chosen, strict=bool(chosen)):
            ids.append(token)
        return lens.next_logits(lens.batch(grown))

    return step


def _cached(lens: Lens, hf: Any, sequences: list[list[int]]) -> _Step:
    """Padded on the left, so that every prompt's next token stands in the same place."""
    width = max(map(len, sequences))
    rows = [[0] * (width - len(ids)) + ids for ids in sequences]
    real = [[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]
    ids = torch.tensor(rows, device=lens.device)
    mask = torch.tensor(real, device=lens.device)
    past: Any = None

    def step(chosen: Sequence[int]) -> Float[Tensor, "batch d_vocab"]:
        nonlocal ids, mask, past
        if chosen:
            ids = torch.tensor(chosen, device=lens.device)[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        with set_aside(), torch.no_grad():
            out = hf(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            )
        past = out.past_key_values
        return out.logits[:, -1].float()

    return step


def _ends(lens: Lens) -> frozenset[int]:
    """The tokens that end a text."""
    hf = getattr(lens.model, "original_model", None)
    settings = getattr(hf, "generation_config", None)
    found: list[int] = []
    for source in (lens.tokenizer, settings):
        token = getattr(source, "eos_token_id", None)
        found += token if isinstance(token, list) else [token] if token is not None else []
    return frozenset(found)


def _check_lengths(lens: Lens, sequences: list[list[int]], max_tokens: int) -> None:
    if not all(sequences):
        raise TarsError("an empty prompt gives the model nothing to read: write some text.")
    limit = int(getattr(lens.model.cfg, "n_ctx", 0) or 0)
    longest = max(map(len, sequences))
    if limit and longest + max_tokens > limit:
        raise TarsError(
            f"a prompt of {longest} tokens and {max_tokens} new ones are more than the {limit} "
            f"that {lens.name} can read: shorten the prompt, or ask for fewer tokens."
        )
