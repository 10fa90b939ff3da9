"""A chat on a screen: two columns that grow, in colour, or plain lines in a pipe."""

from collections.abc import Iterable
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tars_lens.attribution.chat import HELP, Chat, Side
from tars_lens.common.errors import TarsError
from tars_lens.common.printable import printable
from tars_lens.model.generation import Token

_SIDES: tuple[Side, ...] = ("base", "edited")
_LEVELS = ((0.5, "black on #d55e00"), (0.1, "black on #e69f00"), (0.01, "black on #f0e442"))
"""Probability of the concept, and the colour of the token that stands where it has it."""

Answers = dict[Side, list[Token]]


def converse(
    chat: Chat,
    console: Console,
    prompts: Iterable[str],
    *,
    top: int = 0,
    typed: bool = False,
) -> None:
    """Answers prompts and obeys commands until there are no more, or one says to quit.

    Args:
        chat: The model and its patches.
        console: Where to; colours and columns on a terminal, plain lines elsewhere.
        prompts: What the user writes, a line at a time.
        top: How many of the likeliest first tokens are shown beside each answer; 0 for none.
        typed: Whether somebody sits at the keyboard: a mistake is told, and the next line read.

    Raises:
        TarsError: A mistake in a prompt or a command that wasn't typed.
    """
    for line in prompts:
        text = line.strip()
        if text in ("/quit", "/exit"):
            return
        try:
            if text.startswith("/"):
                console.print(_command(chat, text), markup=False)
            elif text:
                answer(chat, console, text, top=top)
        except TarsError as error:
            if not typed:
                raise  # a script is to see that it failed
            console.print(Text(f"error: {error}"))


def answer(chat: Chat, console: Console, text: str, *, top: int = 0) -> None:
    """Answers one prompt; Ctrl-C stops the answer, and what there is of it stays."""
    replies = chat.reply(text)  # refuses a bad prompt before anything is drawn
    found: Answers = {side: [] for side in _SIDES}
    if not console.is_terminal:
        for side, token in replies:
            found[side].append(token)
        _print_plain(chat, console, text, found)
    else:
        with Live(console=console, refresh_per_second=12, vertical_overflow="crop") as live:
            with suppress(KeyboardInterrupt):
                for side, token in replies:
                    found[side].append(token)
                    live.update(_columns(chat, found))
            live.update(_columns(chat, found))
    if top:
        console.print(_likeliest(chat, text, top))


def _command(chat: Chat, text: str) -> RenderableType:
    name, *rest = text.split()
    if name == "/help":
        return Text(HELP)
    if name == "/patches":
        return _patches(chat)
    if name == "/toggle":
        if len(rest) != 1 or not rest[0].isdecimal():
            raise TarsError(f"/toggle needs the number of one patch, 1 to {len(chat.patches)}.")
        number = int(rest[0])
        state = "on" if chat.toggle(number) else "off"
        return Text(f"{number} {chat.patches[number - 1].label}: {state}")
    raise TarsError(f"unknown command {name!r}. There is: /toggle N, /patches, /help, /quit.")


def _print_plain(chat: Chat, console: Console, text: str, found: Answers) -> None:
    """The prompt, then an answer a line, the concept's largest probability before it."""
    out = [f"> {printable(text)}"]
    for side in _SIDES:
        said = "".join(token.text for token in found[side])
        out.append(f"{side} ({_largest(chat, found[side])}):{_spaced(printable(said))}")
    console.print("\n".join(out), soft_wrap=True, markup=False)


def _columns(chat: Chat, found: Answers) -> RenderableType:
    table = Table.grid(expand=True)
    panels = []
    for side in _SIDES:
        table.add_column(ratio=1)
        labels = [patch.label for patch in chat.active] if side == "edited" else []
        title = f"edited: {', '.join(labels) or 'no patch is on'}" if side == "edited" else "base"
        subtitle = Text(_largest(chat, found[side]), style="dim")
        panels.append(
            Panel(_coloured(found[side]), title=Text(title), subtitle=subtitle, title_align="left")
        )
    table.add_row(*panels)
    return Group(table, _legend(chat)) if chat.watched else table


def _coloured(tokens: list[Token]) -> Text:
    text = Text()
    for token in tokens:
        style = next((style for least, style in _LEVELS if token.watched >= least), "")
        text.append(printable(token.text, lines=True), style=style)
    text.rstrip()
    return text


def _legend(chat: Chat) -> Text:
    legend = Text(f"p({_names(chat)}) in a token's place: ", style="dim")
    for least, style in reversed(_LEVELS):
        legend.append(f" {least:.0%} ", style=f"not dim {style}")
        legend.append(" or more  ")
    return legend


def _largest(chat: Chat, tokens: list[Token]) -> str:
    if not chat.watched:
        return "no concept to watch"
    p = max((token.watched for token in tokens), default=0.0)
    return f"p({_names(chat)}) at most {p:.4f}"


def _names(chat: Chat) -> str:
    return ", ".join(chat.names)


def _patches(chat: Chat) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "state", "patch", "removes", "vectors"):
        table.add_column(title)
    for row in chat.to_frame().itertuples():
        state = "on" if row.on else "off"
        names = (Text(str(row.patch)), Text(str(row.concepts)))  # they may look like markup
        table.add_row(str(row.number), state, *names, str(row.vectors))
    return table


def _likeliest(chat: Chat, text: str, top: int) -> Table:
    """What each answer might have begun with."""
    frame = chat.likeliest(text, top)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for title in ("", "base", "p", "edited", "p"):
        table.add_column(title, justify="right" if title == "p" else "left")
    for rank, rows in frame.groupby("rank"):
        cells = [c for r in rows.itertuples() for c in (Text(repr(str(r.token))), f"{r.p:.4f}")]
        table.add_row(str(rank), *cells)
    return table


def _spaced(text: str) -> str:
    return text if text.startswith(" ") else f" {text}"
