"""The playground in a browser: a visitor moves its controls, and reads the numbers that the library computes."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
from PIL import Image

from browser import DESKTOP, PHONE, Opened, needs_browser, opened
from casemate.data.fashion_mnist import CLASSES, first_test_images
from casemate.play.answers import Answers
from casemate.play.subjects import on_one_page, packaged_subjects

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a playground that a command of its own serves, with the images that come with the package."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = probe.getsockname()[1]
    environment = os.environ | {"CASEMATE_DATA": "", "CASEMATE_CACHE": str(tmp_path_factory.mktemp("cache"))}
    line = [sys.executable, "-m", "casemate", "play", "--no-browser", "--port", str(found)]
    line += ["--study", str(_study(tmp_path_factory.mktemp("study")))]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        for said in server.stdout:
            if "playground is at" in said:
                break
        else:
            pytest.fail(f"the server ended with {server.wait()}")
        _wait_for(found)
        yield found
        server.send_signal(signal.SIGINT)
        rest = server.stdout.read()
        assert "Traceback" not in rest
        assert server.wait(timeout=30) in (0, 130)


def _study(folder: Path) -> Path:
    """The report of a study with two figures."""
    titles = {"first": "First", "second": "Second"}
    figures = [{"name": name, "title": title, "caption": "What it shows."} for name, title in titles.items()]
    (folder / "summary.json").write_text(json.dumps({"scale": "quick", "figures": figures}))
    (folder / "figures").mkdir()
    for name in titles:
        svg = "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='20'></svg>"
        (folder / "figures" / f"{name}.svg").write_text(svg)
    return folder


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server does not answer")


def _status(port: int, method: str, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=b"" if method == "POST" else None, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_server_answers_its_own_page(port: int) -> None:
    assert _status(port, "GET", "/", {}) == 200
    own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert _status(port, "GET", "/", own) == 200
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert _status(port, "GET", "/", linked) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.org"},  # a name that resolves to this machine: DNS rebinding
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Origin": "http://example.org"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload")])
def test_the_server_refuses_other_sites(port: int, method: str, path: str, headers: dict[str, str]) -> None:
    assert _status(port, method, path, headers) in (400, 403)


def test_only_this_machine_is_listened_to(port: int) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    listening = [local for _, local, _, state, *_ in rows if state == "0A" and local.endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]  # 127.0.0.1


def test_a_port_in_use_is_an_error(port: int) -> None:
    line = [sys.executable, "-m", "casemate", "play", "--no-browser", "--port", str(port)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"port {port} is not free: another program uses it" in done.stderr


@final
@dataclass
class Visit:
    """A visit of the playground in a browser."""

    opened: Opened

    @property
    def page(self) -> Any:
        """The page, for Playwright."""
        return self.opened.page

    def shown(self, place: str, words: str | re.Pattern[str]) -> str:
        """The text of a part of the page, once it contains some words."""
        found = self.page.locator(f"#{place}").filter(has_text=words)
        found.wait_for(timeout=30_000)
        return found.inner_text()

    def settles(self, place: str, wanted: list[str]) -> None:
        """Wait until the numbers in the cells of a part are these."""
        seen: list[str] = []
        for _ in range(100):
            cells = self.page.locator(f"#{place} td .number").all_inner_texts()
            seen = [each.split()[0].rstrip(":") for each in cells]
            if seen == wanted:
                return
            time.sleep(0.1)
        assert seen == wanted

    def choose(self, place: str, value: str) -> None:
        """Choose an entry of a dropdown."""
        self.page.locator(f"#{place} input").click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def set(self, place: str, value: str) -> None:
        """Set a slider by the number beside it."""
        box = self.page.locator(f"#{place} input[type=number]")
        box.fill(value)
        box.press("Enter")


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def visit(port: int, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A visit by a desktop's or a phone's browser, which may load nothing from elsewhere."""
    address = f"http://127.0.0.1:{port}/"

    def own(url: str) -> bool:
        return url.startswith((address, "data:", "blob:"))

    with opened(address, width=request.param, own=own) as page:
        found = Visit(page)
        found.shown("result", "Probability of each class")
        yield found


@pytest.fixture(scope="module")
def answers() -> Answers:
    """The library's answers to the same questions."""
    return Answers(on_one_page(packaged_subjects(), first_test_images(), CLASSES))


def expected(page: str) -> list[str]:
    """The numbers in the cells of a view's HTML."""
    return re.findall(r'"number">\s*([\d.]+)', page)


@needs_browser
def test_moving_the_controls_shows_the_librarys_numbers(visit: Visit, answers: Answers) -> None:
    visit.choose("kind", "Trouser")
    visit.choose("attack", "BIM")
    visit.set("steps", "5")
    for model, eps, word in (
        ("undefended", "0.1", "Fooled"),
        ("certified", "0.1", "Not fooled"),
        ("fast", "0.4", "Fooled"),
    ):
        visit.choose("model", model)
        visit.set("eps", eps)
        want = answers.attacked(model, answers.sample("Trouser", 1), "BIM", "Linf", float(eps), 5)
        visit.shown("result", re.compile(rf"\b{word}"))
        visit.settles("result", expected(want))
    assert "Trained by" in visit.shown("about", "Trained by")
    visit.settles("smallest", expected(answers.smallest(answers.sample("Trouser", 1), "Linf")))


def test_controls_of_the_norm_before_are_not_refused(port: int) -> None:
    # The page sends the controls as they are when the norm changes, which may be before or after the sliders follow.
    config = _sent(port, "GET", "/config", None)
    places = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    values = {each["id"]: each["props"].get("value") for each in config["components"]}
    events = {places[each["outputs"][0]]: each for each in config["dependencies"]}
    norm = next(number for number, place in places.items() if place == "norm")

    def answered(part: str | None) -> list[Any]:
        event = events[part]
        given = {"data": [values[each] for each in event["inputs"]], "fn_index": event["id"], "session_hash": "norms"}
        return _sent(port, "POST", "/gradio_api/run/predict", given)["data"]

    answered(None)  # the image, whose first part has no name
    for name in ("L2", "Linf", "L2"):
        values[norm] = name
        followed = zip(events["eps"]["outputs"], answered("eps"), strict=True)
        assert "Probability of each class" in answered("result")[0]
        values |= {each: found["value"] for each, found in followed if "value" in found}
        assert "Probability of each class" in answered("result")[0]


def _sent(port: int, method: str, path: str, content: Any) -> Any:
    """The JSON with which the server answers, which must be 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = None if content is None else json.dumps(content)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    assert answer.status == 200, raw
    return json.loads(raw)


def test_each_part_of_the_page_has_one_event(port: int) -> None:
    # Two events that write the same part can end in the other order: the answer to an earlier change would stay.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/config")
    events = json.loads(connection.getresponse().read())["dependencies"]
    connection.close()
    assert set(Counter(part for event in events for part in event["outputs"]).values()) == {1}
    assert {event["trigger_mode"] for event in events} == {"always_last"}


@needs_browser
def test_the_slider_can_be_dragged_by_keys(visit: Visit) -> None:
    slider = visit.page.locator("#eps input[type=range]")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    assert float(visit.page.locator("#eps input[type=number]").input_value()) == pytest.approx(0.065)
    visit.shown("result", "Linf 0.065")


@needs_browser
def test_a_picture_can_be_uploaded(visit: Visit, answers: Answers, tmp_path: Path) -> None:
    picture = tmp_path / "bag.png"
    Image.fromarray(first_test_images().pixels[18, 0].numpy()).resize((56, 56)).save(picture)
    visit.choose("kind", "Bag")
    with visit.page.expect_file_chooser() as chooser:
        visit.page.locator("#upload").click()
    chooser.value.set_files(picture)
    visit.shown("note", "Your picture")
    chosen, _ = answers.upload(picture.read_bytes(), "Bag")
    visit.settles("result", expected(answers.attacked("undefended", chosen, "FGSM", "Linf", 0.05, 10)))
    visit.page.get_by_label("Exchange black and white").check()
    negative = answers.shown(chosen, negative=True)
    visit.settles("result", expected(answers.attacked("undefended", negative, "FGSM", "Linf", 0.05, 10)))


@needs_browser
def test_a_file_that_is_no_picture_is_refused_with_the_reason(visit: Visit, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    out = io.BytesIO()
    Image.new("L", (28, 28)).save(out, "PNG")
    broken.write_bytes(out.getvalue()[:40])
    with visit.page.expect_file_chooser() as chooser:
        visit.page.locator("#upload").click()
    chooser.value.set_files(broken)
    visit.shown("note", "cannot read the picture")


@needs_browser
def test_the_second_tab_shows_a_masked_gradient(visit: Visit) -> None:
    visit.choose("kind", "Pullover")
    tab = visit.page.get_by_role("tab", name="Why gradients vanish")
    if not tab.is_visible():  # a phone hides it behind a button
        visit.page.get_by_role("button", name="More tabs").click()
        tab = visit.page.locator(".overflow-dropdown button", has_text="Why gradients vanish")
    tab.click()
    visit.set("factor", "50")
    visit.shown("masked", "A masked gradient")
    assert "100 % of its gradient is exactly zero" in visit.shown("masked", "100 %")


@needs_browser
def test_the_third_tab_shows_the_study(visit: Visit) -> None:
    tab = visit.page.get_by_role("tab", name="The study's curves")
    if not tab.is_visible():  # a phone hides it behind a button
        visit.page.get_by_role("button", name="More tabs").click()
        tab = visit.page.locator(".overflow-dropdown button", has_text="The study's curves")
    tab.click()
    visit.choose("figure", "Second")
    assert "What it shows." in visit.shown("curves", "Second")
    picture = visit.page.locator("#curves img")
    assert picture.evaluate("each => each.complete && each.naturalWidth") == 40


@needs_browser
def test_the_page_is_no_wider_than_the_screen(visit: Visit) -> None:
    visit.shown("smallest", "certified")
    assert visit.opened.too_wide() == []


@needs_browser
def test_nothing_keeps_people_out(visit: Visit) -> None:
    visit.shown("smallest", "certified")
    assert visit.opened.barriers() == []
