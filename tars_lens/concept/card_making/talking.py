"""What the model itself says of a thing, as text that prompts can be cut from."""

from collections.abc import Sequence

from tars_lens.model.generation import continuations
from tars_lens.model.lens import Lens

_ABOUT = (
    "{name} is",
    "{name} was",
    "{name} is a",
    "{name} is the",
    "{name} is known for",
    "{name} is famous for",
    "The most important thing about {name} is that",
    "Question: What is {name}?\nAnswer: {name} is",
    "Question: Who was {name}?\nAnswer: {name} was",
    "From an encyclopaedia: {name} is",
    "The life of {name} began when",
    "Everybody knows that {name}",
    "The history of {name} began in",
    "In {name},",
    "The name of {name}",
    "When we think of {name}, we think of",
)
_BESIDE = (
    "{name} and",
    "{name},",
    "The most similar to {name} is",
    "Things like {name}:\n1. {name}\n2.",
    "Here is a list: {name},",
)


def talk(lens: Lens, names: Sequence[str], *, openings: int, max_tokens: int = 40) -> list[str]:
    """The greedy text about each name: an opening a line, question marks and answers left out."""
    prompts = [shape.format(name=name) for name in names for shape in _ABOUT[:openings]]
    texts = continuations(lens, prompts, max_tokens)
    pairs = zip(prompts, texts, strict=True)
    return [_last_line(prompt) + text.split("\n")[0] for prompt, text in pairs]


def mentioned_beside(lens: Lens, name: str, *, max_tokens: int = 24) -> list[str]:
    """Greedy text that goes on from a name to others of its kind."""
    return continuations(lens, [shape.format(name=name) for shape in _BESIDE], max_tokens)


def _last_line(prompt: str) -> str:
    line = prompt.splitlines()[-1]
    for lead in ("Answer: ", "From an encyclopaedia: "):
        line = line.removeprefix(lead)
    return line
