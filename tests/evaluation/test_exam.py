"""Exams that others wrote: their formats, their mistakes, and scores counted by hand."""

import json

import pytest
import torch
from commands import mistake, run
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.evaluation import exam as module
from tars_lens.evaluation import patched, untouched
from tars_lens.evaluation.exam import examine
from tars_lens.evaluation.exam_file import ExamQuestion, load_exam
from tars_lens.model.loading import load
from tars_lens.model.weights import Rows
from tars_lens.patch.patch import Patch


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))


@pytest.fixture(scope="module")
def tiny():
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def patch(tiny):
    rows = torch.randn(1, tiny.d_model, generator=torch.Generator().manual_seed(1))
    edits = {(1, "out"): Rows(torch.tensor([3]), 5 * rows)}
    return Patch.build(tiny, edits, concepts=[Concept.load(world().card)])


def _file(folder, content) -> str:
    file = folder / "questions.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


# --- files --------------------------------------------------------------------------------------


def test_choices_by_concept_and_split_are_read_however_the_answer_is_given(tmp_path):
    options = ["Mars", "Saturn", "Venus"]
    lettered = dict(zip("ABC", options, strict=True))
    items = [
        {"q": "Rings?", "options": options, "correct_answer": "Saturn"},
        {"question": "Rings?", "choices": lettered, "answer": "B"},
        {"question": "Rings?", "choices": options, "answer": "b."},
        {"prompt": "Rings?", "choices": options, "answer": 1},
    ]
    found = load_exam(_file(tmp_path, {"Saturn": {"QA_test": items}}))
    expected = ExamQuestion(
        "choice", "Saturn / QA_test", "Rings?", ("Saturn",), ("Mars", "Saturn", "Venus")
    )
    assert found == [expected] * 4
    assert found[0].right == 1


def test_open_questions_and_plain_lists_are_read(tmp_path):
    (found,) = load_exam(_file(tmp_path, [{"q": "Who?", "a": "Doyle"}]))
    assert found == ExamQuestion("open", "all", "Who?", ("Doyle",))


def test_a_relation_is_every_template_with_every_sample(tmp_path):
    relation = {
        "name": "moon of",
        "prompt_templates": ["{} orbits", "{} is a moon of"],
        "samples": [
            {"subject": "Titan", "object": "Saturn"},
            {"subject": "Io", "object": "Jupiter"},
        ],
    }
    found = load_exam(_file(tmp_path, [relation]))
    assert [(q.kind, q.group) for q in found] == [("relation", "moon of")] * 4
    assert [q.text for q in found[:2]] == ["Titan orbits", "Titan is a moon of"]
    assert found[3].answers == ("Jupiter",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read the questions"),
        ("[]", "holds no question"),
        ("3", "neither questions nor a relation"),
        ([3], "a question is an object"),
        ([{"q": ""}], "'q' or 'question' or 'prompt' is missing"),
        ([{"q": "Who?"}], "'correct_answer' or 'a' or 'answer' or 'object' is missing"),
        ([{"q": "Who?", "options": ["a"], "answer": "a"}], "2 to 26 different texts"),
        ([{"q": "Who?", "options": ["a", "a"], "answer": "a"}], "2 to 26 different texts"),
        ([{"q": "Who?", "options": ["x", "y"], "answer": "z"}], "none of the options"),
        ([{"q": "Who?", "options": ["x", "y"], "answer": True}], "none of the options"),
        ({"Saturn": {"test": 3}}, "Saturn / test"),
        ({"name": "r", "prompt_templates": ["no"], "samples": []}, "prompt_templates"),
        ({"name": "r", "prompt_templates": ["{}"], "samples": 3}, "a list of samples"),
        ({"prompt_templates": ["{}"], "samples": [{"subject": "x"}]}, "'object' is missing"),
    ],
)
def test_a_bad_file_is_one_message_with_its_place(tmp_path, content, said):
    with pytest.raises(TarsError, match=said):
        load_exam(_file(tmp_path, content))


# --- scores -------------------------------------------------------------------------------------

WAYS = ("w7", "w21 w3", "w30 w2 w9")


def _by_hand(lens, prompt: str, way: str) -> float:
    """The log-probability of a continuation, one token at a time."""
    begun, total = lens.tokens(prompt), 0.0
    for token in lens.pieces(" " + way):
        logits = lens.next_logits(lens.batch([begun]))[0].double()
        total += float(logits.log_softmax(dim=-1)[token])
        begun = [*begun, token]
    return total


@pytest.mark.parametrize("right", [0, 1, 2])
def test_options_are_scored_by_their_log_probability(tiny, right):
    question = ExamQuestion("choice", "g", "w1 w2", (WAYS[right],), WAYS)
    items = examine(tiny, untouched(), [question]).items
    prompt = "Question: w1 w2\nAnswer:"
    scores = [_by_hand(tiny, prompt, way) for way in WAYS]
    by_length = [score / len(way) for score, way in zip(scores, WAYS, strict=True)]
    assert items["option_before"][0] == float(max(scores) == scores[right])
    assert items["option_by_length_before"][0] == float(max(by_length) == by_length[right])
    assert items["chance"][0] == pytest.approx(1 / 3)


@pytest.mark.real
def test_letters_are_scored_after_the_options_were_listed(real_lens):
    options = ("Mars", "Saturn", "Venus", "Mercury")
    listed = "Question: Rings?\nA. Mars\nB. Saturn\nC. Venus\nD. Mercury\nAnswer:"
    logits = real_lens.next_logits(real_lens.prompts([listed]))[0]
    letters = [int(real_lens.pieces(f" {letter}")[0]) for letter in "ABCD"]
    best = int(logits[letters].argmax())
    asked = [ExamQuestion("choice", "g", "Rings?", (option,), options) for option in options]
    found = examine(real_lens, untouched(), asked).items["letter_before"]
    assert found.tolist() == [float(index == best) for index in range(4)]


def test_open_answers_are_scored_by_the_words_of_their_first_line(tiny, monkeypatch):
    said = ["\n The Planet, Saturn!\nNeptune", " it is Jupiter"]
    monkeypatch.setattr(module, "continuations", lambda *_: said)
    asked = [
        ExamQuestion("open", "g", "Rings?", ("planet saturn",)),
        ExamQuestion("open", "g", "Largest?", ("it was Jupiter",)),
    ]
    items = examine(tiny, untouched(), asked).items
    assert items["recall_before"].tolist() == pytest.approx([1.0, 2 / 3])
    assert items["contains_before"].tolist() == [1.0, 0.0]


def test_relations_are_scored_in_both_models(tiny, patch):
    texts = [f"w{i} w{i + 1}" for i in range(6)]
    logits = tiny.next_logits(tiny.prompts(texts)).softmax(dim=-1)
    words = [tiny.string(int(token)).strip() for token in logits.argmax(dim=1)]
    asked = [ExamQuestion("relation", "r", t, (w,)) for t, w in zip(texts, words, strict=True)]
    found = examine(tiny, patched(tiny, [patch]), asked)
    assert found.items["said_before"].tolist() == [1.0] * 6
    with patch.applied(tiny):
        after = tiny.next_logits(tiny.prompts(texts)).softmax(dim=-1)
    expected = [float(row[best]) for row, best in zip(after, logits.argmax(dim=1), strict=True)]
    assert found.items["p_after"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    (total,) = found.report["all"]
    assert total["n"] == 6 and total["said_before"] == 1.0
    assert total["said_after"] == pytest.approx(found.items["said_after"].mean())


def test_a_stopped_exam_goes_on(tiny, patch, tmp_path, monkeypatch):
    asked = [
        ExamQuestion("relation", "r", "w1 w2", ("w3",)),
        ExamQuestion("choice", "c", "w", ("w7",), WAYS),
    ]
    subject = patched(tiny, [patch])
    first = examine(tiny, subject, asked, keep=tmp_path)
    monkeypatch.setattr(module, "_ANSWERING", {})  # nothing can be asked again
    again = examine(tiny, subject, asked, keep=tmp_path, resume=True)
    assert again.report == first.report and again.items.equals(first.items)
    with pytest.raises(KeyError):  # another exam is not this one
        examine(tiny, subject, asked[:1], keep=tmp_path, resume=True)


def test_the_command_writes_what_was_found(patch, tmp_path):
    file = tmp_path / "patch.safetensors"
    patch.save(file)
    exam = _file(tmp_path, {"c": [{"q": "w1", "options": list(WAYS), "answer": "A"}]})
    words = ("evaluate", file, "--model", world().model, "--questions", exam)
    code, said, err = run(*words, "--out", tmp_path / "out")
    assert (code, err) == (0, "") and "option_by_length" in said
    report = json.loads((tmp_path / "out" / "exam.json").read_text())
    assert report["groups"][0]["group"] == "c" and report["subject"]["name"] == "edited"
    assert (tmp_path / "out" / "exam.csv").is_file()
    assert "no verdict" in mistake(*words, "--fail-under", "0.5")
    assert "cannot read" in mistake(*words[:-1], tmp_path / "none.json")
