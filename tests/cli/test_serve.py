"""The local page: what it answers, what it refuses, and what somebody sees of it in a browser."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
import torch
from commands import mistake
from patch_models import same, snapshot
from starlette.testclient import TestClient
from tiny_concept import world

from tars_lens.attribution.workbench import Workbench
from tars_lens.cli.serving.app import application
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.erasure import erase
from tars_lens.model.loading import load
from tars_lens.text.corpus import load_corpus

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, and the lens that it was made with."""
    place = world()
    lens = load(place.model, progress=False)
    cards = [Concept.load(place.card), Concept.load(place.other)]
    made = erase(lens, cards, corpus=load_corpus(place.corpus), kl_tokens=256)
    folder = tmp_path_factory.mktemp("run")
    made.save(folder)
    return folder, lens, made


@pytest.fixture(scope="module")
def bench(run):
    _, lens, made = run
    return Workbench(lens, made.patches)


@pytest.fixture(scope="module")
def client(bench):
    return TestClient(application(bench), base_url="http://127.0.0.1")


def _prompt(bench: Workbench) -> str:
    return bench.concepts[0].prompt


def test_the_answers_are_the_models_own(run, bench):
    _, lens, made = run
    prompt = _prompt(bench)
    before = snapshot(lens)
    found = bench.answer(prompt, tokens=1)
    batch = lens.prompts([prompt])
    plain = lens.next_logits(batch)[0].softmax(dim=-1)
    with made.patches[0].applied(lens), made.patches[1].applied(lens):
        edited = lens.next_logits(batch)[0].softmax(dim=-1)
    watched = sorted({token for card in bench.concepts for token in first_tokens(lens, card)})
    for side, expected in (("base", plain), ("edited", edited)):
        best = found[side]["next"][0]
        assert best["probability"] == pytest.approx(float(expected.max()), rel=1e-5)
        assert best["token"] == lens.string(int(expected.argmax()))
        token = found[side]["tokens"][0]
        assert token["concept"] == pytest.approx(float(expected[watched].sum()), rel=1e-4)
    assert same(before, snapshot(lens))


def test_a_neuron_that_is_off_is_the_base_s(run, bench):
    _, lens, made = run
    prompt, names = _prompt(bench), bench.neurons["neuron"].tolist()
    everything = bench.answer(prompt, names)
    assert everything["base"] == everything["edited"]
    off = names[-1]
    layer, neuron = map(int, re.fullmatch(r"L(\d+)N(\d+)", off).groups())
    batch = lens.prompts([prompt])
    with made.patches[0].applied(lens), made.patches[1].applied(lens), torch.no_grad():
        kept = {role: lens.vectors(layer, role)[neuron].clone() for role in lens.roles}
        for patch in made.patches:
            if (layer, "out") in patch.edits:
                for role in lens.roles:
                    rows = patch.edits[layer, role]
                    for index, old in zip(rows.neurons.tolist(), rows.old, strict=True):
                        if index == neuron:
                            lens.vectors(layer, role)[neuron] = old
        expected = lens.next_logits(batch)[0].softmax(dim=-1).max()
        for role, row in kept.items():
            lens.vectors(layer, role)[neuron] = row
    found = bench.answer(prompt, [off])["edited"]["next"][0]["probability"]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_the_page_and_its_parts_are_served_with_a_policy(client):
    page = client.get("/")
    assert page.status_code == 200 and "<title>tars_lens</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("page.css", "page.js"):
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/../app.py").status_code == 404


def test_every_question_is_answered_in_json(client, bench):
    state = client.get("/api/state").json()
    assert state["concepts"] == [card.name for card in bench.concepts]
    neuron = state["neurons"][0]["neuron"]
    card = client.post("/api/neuron", json={"neuron": neuron}).json()
    assert {row["role"] for row in card["vectors"]} == set(bench.lens.roles)
    asked = {"prompt": _prompt(bench), "concept": state["concepts"][0], "off": [neuron]}
    found = client.post("/api/flow", json=asked).json()
    assert len(found["before"]) == len(found["layers"]) == bench.lens.n_layers + 1
    assert len(found["after"][0]) == len(found["tokens"])
    assert client.post("/api/answer", json=asked).json()["edited"]["next"]


@pytest.mark.parametrize(
    ("path", "question", "said"),
    [
        ("answer", {"prompt": " "}, "prompt is empty"),
        ("answer", {"prompt": 3}, "prompt is empty"),
        ("answer", {"prompt": "w1 w2", "off": "L0N0"}, "off is a list"),
        ("answer", {"prompt": "w1 w2", "off": ["L0N9999"]}, "no edited neuron 'L0N9999'"),
        ("answer", {"prompt": "w1 " * 6000}, "tokens"),
        ("answer", {"prompt": "w" * 30000}, "at most 20,000 bytes"),
        ("flow", {"prompt": "w1 w2", "concept": "none"}, "no concept 'none'"),
        ("neuron", {"neuron": "x"}, "no edited neuron 'x'"),
        ("neuron", [], "a JSON object"),
    ],
)
def test_a_bad_question_is_one_message(client, path, question, said):
    found = client.post(f"/api/{path}", json=question)
    assert found.status_code == 400 and said in found.json()["error"]


def test_other_sites_are_refused(client):
    strange = client.get("/api/state", headers={"host": "example.org"})
    assert strange.status_code == 400
    form = client.post("/api/answer", content='{"prompt": "w1"}')
    assert form.status_code == 400 and "application/json" in form.json()["error"]
    broken = {"content-type": "application/json"}
    assert client.post("/api/answer", content="{", headers=broken).status_code == 400


def test_a_patch_without_a_card_is_refused(run):
    _, lens, made = run
    bare = replace(made.patches[0], concepts=())
    with pytest.raises(TarsError, match="no concept card"):
        Workbench(lens, [bare])


def test_the_command_refuses_what_is_no_run_and_a_port_that_is_taken(run, tmp_path):
    folder, _, _ = run
    assert "there is no folder" in mistake("serve", tmp_path / "none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ("--model", world().model, "--quiet")
        (tmp_path / "report.json").write_bytes((folder / "report.json").read_bytes())
        assert "holds no patch of" in mistake("serve", tmp_path, *words)
        assert f"port {port} can't be used" in mistake("serve", folder, "--port", port, *words)


# --- in a browser: no dependency of the package, and what it shows is tested above without one ----


@pytest.fixture(scope="module")
def server(run):
    """The command's own process; yields its address and the process."""
    folder, _, _ = run
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from tars_lens.cli import main; main()"
    words = ["serve", str(folder), "--model", str(world().model), "--port", str(port), "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", command, *words])
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield address, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    """A tab on the page; what it complains of fails the test."""
    context = browser.new_context(viewport={"width": 400, "height": 900})
    tab, complaints = context.new_page(), []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(server[0])
    tab.wait_for_selector("#neurons li")
    yield tab
    context.close()
    assert not complaints


ANSWERED = "#edited-next tr:nth-of-type(4)"


def test_typing_and_asking_by_keyboard_alone(page, bench):
    prompt = _prompt(bench)
    page.focus("#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type(prompt)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(ANSWERED)
    found = bench.answer(prompt)
    for side in ("base", "edited"):
        shown = page.inner_text(f"#{side}-next tr:nth-of-type(2) td:nth-of-type(2)")
        assert shown == f"{found[side]['next'][0]['probability']:.4f}"
    width = page.locator("body").evaluate("() => document.documentElement.scrollWidth")
    assert width <= 400  # nothing sticks out of a telephone's screen


def test_toggling_neurons_gives_the_base_back(page, bench):
    page.fill("#prompt", _prompt(bench))
    for box in page.locator("#neurons input").all():
        with page.expect_response("**/api/answer") as answered:
            box.uncheck()
        assert answered.value.ok
    page.wait_for_selector(ANSWERED)
    page.locator("#status:empty").wait_for(state="attached")
    assert page.inner_text("#base-next") == page.inner_text("#edited-next")
    page.locator("#neurons button").first.click()
    page.wait_for_selector("dialog[open]")
    assert bench.neurons["neuron"][0] in page.inner_text("#card-title")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_bad_prompt_is_told_and_the_next_one_answered(page, bench):
    page.fill("#prompt", "   ")
    page.click("#ask button")
    page.wait_for_selector("#error:not(:empty)")
    assert "prompt is empty" in page.inner_text("#error")
    page.fill("#prompt", _prompt(bench))
    page.click("#map")
    page.wait_for_selector("#map-after tbody tr")
    assert page.locator("#map-after tbody tr").count() == bench.lens.n_layers + 1
    assert page.inner_text("#error") == ""


def test_two_tabs_do_not_disturb_each_other(page, bench):
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#neurons li")
    for tab in (page, other):
        tab.fill("#prompt", _prompt(bench))
    for box in other.locator("#neurons input").all():
        with other.expect_response("**/api/answer"):
            box.uncheck()
    page.click("#ask button")
    page.wait_for_selector(ANSWERED)
    shown = page.inner_text("#edited-next tr:nth-of-type(2) td:nth-of-type(2)")
    assert shown == f"{bench.answer(_prompt(bench))['edited']['next'][0]['probability']:.4f}"


def test_a_server_that_is_gone_is_told(page, server):  # the last: it ends the server
    server[1].kill()
    server[1].wait()
    page.click("#ask button")
    page.wait_for_selector("#error:not(:empty)")
    assert "tars-lens serve" in page.inner_text("#error")
