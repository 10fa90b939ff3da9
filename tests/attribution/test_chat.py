from io import StringIO

import pytest
import torch
from commands import mistake, run
from patch_models import boot, random_patch, same, save_model, snapshot
from rich.console import Console
from tiny import tiny_lens
from typer.testing import CliRunner

from tars_lens.attribution.chat import Chat
from tars_lens.cli.app import app
from tars_lens.cli.chat_view import answer, converse
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.model.generation import generate

CARD = Concept(name="Seven", answer="w7", prompt="w3 w4 w5")
PROMPT = "w3 w5 w9"


def _lens():
    lens = tiny_lens("llama")
    lens.tokenizer.eos_token = None
    lens.model.original_model.generation_config.eos_token_id = None
    return lens


def _patch(lens, seed: int = 0, label: str = "one"):
    where = {(layer, "out"): list(range(12 * seed, 12 * seed + 12)) for layer in range(3)}
    patch = random_patch(lens, where, seed, concepts=[CARD], label=label)
    for rows in patch.edits.values():
        rows.new.mul_(20)  # loud enough to change what a random model says
    return patch


def _sides(chat: Chat, prompt: str = PROMPT):
    found = {"base": [], "edited": []}
    for side, token in chat.reply(prompt):
        found[side].append(token)
    return found


def _printed(chat: Chat, lines, *, terminal: bool = False, **options) -> str:
    colours = "truecolor" if terminal else None
    console = Console(force_terminal=terminal, width=100, color_system=colours, highlight=False)
    with console.capture() as captured:
        converse(chat, console, lines, **options)
    return captured.get()


def test_each_answer_is_that_of_its_own_model():
    lens = _lens()
    patch = _patch(lens)
    found = _sides(Chat(lens, [patch], max_tokens=6))
    watch = [lens.pieces("w7")[0]]
    assert found["base"] == list(generate(lens, [PROMPT], max_tokens=6, watch=watch))
    with patch.applied(lens):
        assert found["edited"] == list(generate(lens, [PROMPT], max_tokens=6, watch=watch))
    assert [t.token for t in found["base"]] != [t.token for t in found["edited"]]
    p = lens.next_logits(lens.prompts([PROMPT])).softmax(-1)[0, watch[0]]
    assert found["base"][0].watched == pytest.approx(float(p), rel=1e-4)


def test_the_model_is_its_base_between_tokens_and_when_an_answer_is_dropped():
    lens = _lens()
    chat = Chat(lens, [_patch(lens)], max_tokens=6)
    before = snapshot(lens)
    replies = chat.reply(PROMPT)
    for _ in range(5):
        next(replies)
        assert same(before, snapshot(lens))
    replies.close()
    assert same(before, snapshot(lens))


def test_a_patch_is_switched_off_and_on():
    lens = _lens()
    chat = Chat(lens, [_patch(lens), _patch(lens, 1, "two")], max_tokens=6)
    both = _sides(chat)["edited"]
    assert chat.toggle(1) is False
    assert [patch.label for patch in chat.active] == ["two"]
    assert _sides(chat)["edited"] != both
    chat.toggle(2)
    found = _sides(chat)
    assert found["edited"] == found["base"]
    assert chat.toggle(1) and chat.toggle(2)
    assert _sides(chat)["edited"] == both
    with pytest.raises(TarsError, match="no patch 3: there are 1 to 2"):
        chat.toggle(3)


def test_both_answers_are_given_the_same_luck():
    lens = _lens()
    chat = Chat(lens, [_patch(lens)], max_tokens=8, temperature=1.0, seed=4)
    chat.toggle(1)
    found = _sides(chat)
    assert found["base"] == found["edited"]
    assert len({t.token for t in found["base"]}) > 1


def test_a_chat_template_stands_about_the_prompt():
    lens = _lens()
    with pytest.raises(TarsError, match="no chat template: leave --chat out"):
        Chat(lens, [_patch(lens)], template=True)
    lens.tokenizer.chat_template = (
        "w1 {% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} w2{% endif %}"
    )
    asked = _sides(Chat(lens, [_patch(lens)], max_tokens=4, template=True))["base"]
    plain = _sides(Chat(lens, [_patch(lens)], max_tokens=4), f"w1 {PROMPT} w2")["base"]
    assert asked == plain


def test_what_cannot_be_compared_is_refused(tmp_path):
    lens, patch = _lens(), _patch(_lens())
    with pytest.raises(TarsError, match="at least one patch"):
        Chat(lens, [])
    with pytest.raises(TarsError, match="given twice"):
        Chat(lens, [patch, patch])
    other, _ = boot(save_model(tmp_path, "llama", seed=1))
    with pytest.raises(TarsError, match="another base"):
        Chat(other, [patch])
    assert Chat(other, [patch], force=True).active == (patch,)
    with pytest.raises(TarsError, match="empty prompt"):
        Chat(lens, [patch]).reply("")


def test_a_pipe_gets_plain_lines():
    lens = _lens()
    chat = Chat(lens, [_patch(lens)], max_tokens=4)
    found = _sides(chat)
    out = _printed(chat, [f"{PROMPT}\n", "\n", "/patches", "/quit", "w9 never read"])
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == f"> {PROMPT}"
    for line, side in zip(lines[1:3], ("base", "edited"), strict=True):
        largest = max(token.watched for token in found[side])
        said = "".join(token.text for token in found[side])
        assert line == f"{side} (p(Seven) at most {largest:.4f}):{said}"
    assert "one" in out and "Seven" in out and "never" not in out


def test_commands_are_obeyed_and_slips_do_not_end_the_chat():
    lens = _lens()
    chat = Chat(lens, [_patch(lens)], max_tokens=2)
    lines = ["/toggle 1", "/toggle", "/toggle 9", "/what", "/help", "w1 " * 70, PROMPT]
    out = _printed(chat, lines, typed=True)
    assert "1 one: off" in out
    assert "/toggle needs the number" in out and "no patch 9" in out
    assert "unknown command '/what'" in out and "Ctrl-C stops an answer" in out
    assert "error: a prompt of 70 tokens" in out
    assert out.rstrip().splitlines()[-1].startswith("edited")


@pytest.mark.parametrize("label", ["[/bold] Foo", "[red]Foo"])
def test_a_label_that_looks_like_markup_is_shown_as_it_is(label):
    lens = _lens()
    chat = Chat(lens, [_patch(lens, label=label)], max_tokens=1)
    for terminal in (False, True):
        assert label in _printed(chat, ["/patches"], terminal=terminal)


def test_the_likeliest_first_tokens_are_those_of_each_model():
    lens = _lens()
    patch = _patch(lens)
    chat = Chat(lens, [patch], max_tokens=2)
    frame = chat.likeliest(PROMPT, 3)
    with patch.applied(lens):
        p = lens.next_logits(lens.prompts([PROMPT])).softmax(-1)[0]
    edited = frame[frame["side"] == "edited"]
    assert edited["token"].tolist() == [lens.string(int(t)) for t in p.topk(3).indices]
    assert edited["p"].tolist() == pytest.approx(p.topk(3).values.tolist(), rel=1e-4)
    assert repr(edited["token"].iloc[0]) in _printed(chat, [PROMPT], top=3)
    with pytest.raises(TarsError, match="at least 1 of the likeliest tokens .* got 0"):
        chat.likeliest(PROMPT, 0)


def test_a_terminal_colours_the_tokens_by_the_concepts_probability():
    lens = _lens()
    orange = "48;2;213;94;0"
    chat = Chat(lens, [_patch(lens)], max_tokens=3)
    shown = _printed(chat, [PROMPT], terminal=True)
    assert "edited: one" in shown and shown.count(orange) == shown.count("50% ")
    chat.watched = list(range(64))  # now the concept has all of the probability
    shown = _printed(chat, [PROMPT], terminal=True)
    assert shown.count(orange) > shown.count("50% ")


def test_ctrl_c_stops_an_answer_and_keeps_what_there_is(monkeypatch):
    lens = _lens()
    chat = Chat(lens, [_patch(lens)], max_tokens=50)
    whole, before = chat.reply(PROMPT), snapshot(lens)

    def interrupted(_text):
        for _ in range(4):
            yield next(whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "reply", interrupted)
    console = Console(force_terminal=True, width=100, color_system=None)
    with console.capture() as captured:
        answer(chat, console, PROMPT)
    assert "base" in captured.get() and "edited: one" in captured.get()
    assert same(before, snapshot(lens))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A patch file, for the command; its base is the model that is loaded."""
    lens = _lens()
    monkeypatch.setattr("tars_lens.model.loading.load", lambda *_, **__: lens)
    _patch(lens).save(tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def test_the_command_reads_prompts_from_a_pipe(file):
    ran = CliRunner().invoke(
        app, ["chat", str(file), "--max-tokens", "3"], input=f"{PROMPT}\nw8 w9\n"
    )
    assert ran.exit_code == 0, ran.output
    assert [line[:2] for line in ran.stdout.splitlines()] == ["> ", "ba", "ed"] * 2
    prompts = ["--prompt", "w1 w2", "--prompt", "w3", "--max-tokens", "2"]
    ran = CliRunner().invoke(app, ["chat", str(file), *prompts])
    assert [line for line in ran.stdout.splitlines() if line[0] == ">"] == ["> w1 w2", "> w3"]


@pytest.mark.parametrize("given", [("--top", 0), ("--max-tokens", 0), ("--temperature", -1)])
def test_an_option_that_makes_no_sense_is_refused(file, given):
    code, out, err = run("chat", file, "--prompt", PROMPT, *given)
    assert (code, out) == (2, "") and f"Invalid value for '{given[0]}'" in err


def test_a_bad_prompt_that_was_not_typed_is_an_error(file, monkeypatch):
    assert mistake("chat", file, "--prompt", "w1 " * 70).startswith("a prompt of 70 tokens and 60")
    assert "no patch 9" in mistake("chat", file, "--prompt", "/toggle 9")
    monkeypatch.setattr("sys.stdin", StringIO(f"{'w1 ' * 70}\n{PROMPT}\n"))
    assert mistake("chat", file).startswith("a prompt of 70 tokens")  # in a pipe


@pytest.mark.real
def test_smollm2_goes_on_with_the_name_until_it_is_edited(real_lens):
    card = Concept.load("saturn")
    tokens = real_lens.pieces(" Saturn")
    rows = torch.zeros(1, real_lens.d_model)
    patch = random_patch(real_lens, {(23, "out"): [1368]}, concepts=[card])
    patch.edits[(23, "out")].new.copy_(rows)
    before = snapshot(real_lens)
    found = _sides(Chat(real_lens, [patch], max_tokens=3), card.prompt)
    base = list(generate(real_lens, [card.prompt], max_tokens=3))
    assert [t.token for t in found["base"]] == [t.token for t in base]
    assert found["base"][0].token == tokens[0] and found["base"][0].watched > 0.1
    assert found["edited"][0].watched != pytest.approx(found["base"][0].watched, rel=1e-3)
    assert same(before, snapshot(real_lens))
