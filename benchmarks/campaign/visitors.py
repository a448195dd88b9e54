"""Many visitors of the playground at once: right answers, none waits for ever, and bad uploads are refused.

The visitors send what the page sends, over HTTP: each has a session of its own, chooses images, moves the controls and
uploads pictures. What comes back must be the text that `casemate.play.answers.Answers` gives for the same controls.
"""

import io
import json
import random
import signal
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import httpx
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.inside import inside, write_result
from benchmarks.campaign.parts import Setting
from benchmarks.campaign.rooms import wait_until
from PIL import Image

from casemate.data.fashion_mnist import CLASSES

_TIMEOUT = 600.0
"""Seconds after which an answer counts as hung: fifty visitors wait for each other."""
_START, _END = 180.0, 60.0
_CHOICES = 8
"""Different settings that visitors choose from; what each must show is computed once."""
_MOVES = 3
"""Settings that each visitor looks at."""
_MORE_MEMORY = 600_000
"""KiB that the server may take beyond its memory after the first visitor."""
_API = "/gradio_api"


def run(setting: Setting) -> list[Counts]:
    """Serve the playground, and let visitors come."""
    room, draw = setting.room(), setting.draw("visitors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    visits, uploads = Counts("visitors of the playground at once"), Counts("uploads that are no pictures")
    with setting.observer.work("Visitors", setting.size.visitors + len(_bad_files())) as advance:
        choices = [_choice(draw) for _ in range(_CHOICES)]
        expected = _expected(setting, choices)
        server = room.start("play", "--no-browser", "--port", str(port))
        try:
            if not wait_until(lambda: _answers(port), server, _START):
                raise RuntimeError(f"the playground does not start: {(room.root / 'said').read_text()}")
            site = Site(port)
            visits.add(_visit(site, choices, expected, 0))
            before = _memory(server.pid)
            with ThreadPoolExecutor(setting.size.visitors) as pool:
                gate = threading.Barrier(setting.size.visitors)
                each = [
                    pool.submit(_visit, site, choices, expected, number + 1, gate)
                    for number in range(setting.size.visitors)
                ]
                for visit in each:
                    visits.add(visit.result())
                    advance(1, "")
            for name, raw in _bad_files().items():
                uploads.add(_refused(site, name, raw, choices[0], expected[0]))
                advance(1, name)
            after = _memory(server.pid)
        finally:
            server.send_signal(signal.SIGINT)
            ended = room.ended(server, _END)
    visits.numbers = {"server before, MB": before / 1024, "at most, MB": after / 1024}
    end = Trial("the server", hung=ended.code is None, traceback=ended.has_traceback, strays=room.strays("tmp/gradio"))
    if ended.code not in (0, 130, None):
        end.lost.append(f"it ended with {ended.code}")
    if after - before > _MORE_MEMORY:
        end.lost.append(f"its memory grew by {after - before} KiB")
    visits.add(end)
    room.remove()
    return [visits, uploads]


@final
class Site:
    """The playground as its page uses it."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        config = httpx.get(f"{self.address}/config", timeout=_TIMEOUT).json()
        places = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
        self._events = {
            places[each["outputs"][0]] or "image": each["id"] for each in config["dependencies"] if each["outputs"]
        }
        """The number of each event, by the first part of the page that it fills; that of the image has no name."""

    def answer(self, session: str, part: str, *controls: Any) -> list[Any]:
        """What the page gets for a part after a change of the controls."""
        given = {"data": list(controls), "fn_index": self._events[part], "session_hash": session}
        found = httpx.post(f"{self.address}{_API}/run/predict", json=given, timeout=_TIMEOUT)
        found.raise_for_status()
        return found.json()["data"]

    def upload(self, name: str, raw: bytes) -> httpx.Response:
        """Upload a file as the page does."""
        return httpx.post(f"{self.address}{_API}/upload", files={"files": (name, raw, "image/png")}, timeout=_TIMEOUT)


def _uploaded(path: str, name: str, raw: bytes) -> dict[str, Any]:
    """An uploaded file as the page names it."""
    return {"path": path, "orig_name": name, "size": len(raw), "meta": {"_type": "gradio.FileData"}}


def _choice(draw: random.Random) -> dict[str, Any]:
    """Values of all controls."""
    norm = draw.choice(["Linf", "L2"])
    return {
        "kind": draw.choice(CLASSES),
        "number": draw.randrange(1, 9),
        "model": draw.choice(["undefended", "fast", "trades", "certified"]),
        "attack": draw.choice(["FGSM", "BIM", "PGD", "MI-FGSM"]),
        "norm": norm,
        "eps": round(draw.uniform(0, 0.3 if norm == "Linf" else 3), 3),
        "steps": draw.randrange(1, 15),
        "factor": draw.randrange(1, 100),
        "within": round(draw.uniform(0, 0.3), 3),
    }


def _settings(choice: dict[str, Any]) -> tuple[Any, ...]:
    """The controls of the first tab as the page sends them: there is a slider of eps for each norm."""
    eps = {"Linf": 0.05, "L2": 1.0} | {choice["norm"]: choice["eps"]}
    return choice["model"], None, choice["attack"], choice["norm"], choice["steps"], *eps.values()


def _expected(setting: Setting, choices: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the library answers for each choice."""
    room = setting.room()
    result = room.root / "result.json"
    ended = inside(room, library_answers, str(result), choices, seconds=_TIMEOUT)
    if ended.code != 0:
        raise RuntimeError(f"the library does not answer: {ended.said}")
    return json.loads(result.read_text())


def library_answers(result: str, choices: list[dict[str, Any]]) -> int:
    """What the library answers for each choice, in a file. Runs in a process of its own."""
    from casemate.cli.play.request import PlayRequest
    from casemate.cli.play.run import prepare
    from casemate.progress import NULL_OBSERVER

    answers = prepare(PlayRequest(), NULL_OBSERVER)
    found = []
    for each in choices:
        chosen = answers.sample(each["kind"], each["number"])
        own, said = answers.upload(picture(each["number"]), each["kind"])
        settings = each["attack"], each["norm"], each["eps"], each["steps"]
        found.append(
            {
                "about": answers.about(each["model"]),
                "result": answers.attacked(each["model"], chosen, *settings),
                "smallest": answers.smallest(chosen, each["norm"]),
                "masked": answers.masked(each["model"], chosen, each["factor"], each["within"]),
                "note": f"<p>{said}</p>",
                "own": answers.attacked(each["model"], own, *settings),
            }
        )
    write_result(result, found)
    return 0


def picture(number: int) -> bytes:
    """A picture that a visitor uploads."""
    levels = bytes((x * number + 3 * y) % 256 for y in range(28) for x in range(28))
    out = io.BytesIO()
    Image.frombytes("L", (28, 28), levels).save(out, "PNG")
    return out.getvalue()


def _visit(
    site: Site, choices: list[dict[str, Any]], expected: list[dict[str, str]], number: int, gate: Any = None
) -> Trial:
    """One visitor, who looks at some settings and uploads a picture."""
    trial, session, draw = Trial(f"visitor {number}"), f"visitor{number}", random.Random(number)
    if gate is not None:
        gate.wait()
    try:
        for _ in range(_MOVES):
            place = draw.randrange(len(choices))
            each, wanted = choices[place], expected[place]
            site.answer(session, "image", each["kind"], each["number"], None, 0)
            site.answer(session, "eps", each["norm"])  # shows the slider of the norm
            settings = _settings(each)
            found = {
                "about": site.answer(session, "about", each["model"]),
                "result": site.answer(session, "result", *settings),
                "masked": site.answer(session, "masked", each["model"], None, each["factor"], each["within"]),
            }
            if draw.random() < 0.2:
                found["smallest"] = site.answer(session, "smallest", None, each["norm"])
            name, raw = "mine.png", picture(each["number"])
            (path,) = site.upload(name, raw).json()
            _, found["note"], *_ = (
                [value]
                for value in site.answer(session, "image", each["kind"], each["number"], _uploaded(path, name, raw), 1)
            )
            found["own"] = site.answer(session, "result", *settings)
            trial.lost += [f"{part} differs" for part, (text, *_) in found.items() if text != wanted[part]]
    except httpx.TimeoutException:
        trial.hung = True
    except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:
        trial.lost.append(f"{type(error).__name__}: {error}"[:300])
    return trial


def _refused(site: Site, name: str, raw: bytes, choice: dict[str, Any], expected: dict[str, str]) -> Trial:
    """Upload a bad file: it is refused with a reason, and the next visitor gets an answer."""
    trial, session = Trial(f"upload of {name}"), f"uploads {name}"
    try:
        site.answer(session, "image", choice["kind"], choice["number"], None, 0)
        answered = site.upload(name, raw)
        if answered.status_code == 200:
            found = site.answer(
                session, "image", choice["kind"], choice["number"], _uploaded(answered.json()[0], name, raw), 1
            )
            trial.ended = "refused"
            if "notice" not in str(found[1]) and "alert" not in str(found[1]):
                trial.lost.append(f"not refused: {str(found[1])[:200]}")
        elif answered.status_code in (400, 413, 422):
            trial.ended = "refused by the upload"
        else:
            trial.lost.append(f"status {answered.status_code}: {answered.text[:200]}")
    except httpx.HTTPStatusError as error:  # of the event: the page shows its text
        trial.ended = "refused by the server"
        if error.response.status_code != 500 or not error.response.json().get("error"):
            trial.lost.append(f"status {error.response.status_code}: {error.response.text[:200]}")
    except httpx.HTTPError as error:
        trial.hung = isinstance(error, httpx.TimeoutException)
        trial.ended = f"{type(error).__name__}"
    try:
        if site.answer(session, "result", *_settings(choice))[0] != expected["result"]:
            trial.lost.append("afterwards, the image has changed")
    except httpx.HTTPError as error:
        trial.lost.append(f"afterwards, the server does not answer: {error}")
    return trial


def _bad_files() -> dict[str, bytes]:
    """Files that are no pictures, or none that the page takes."""
    animated = io.BytesIO()
    frames = [Image.new("L", (28, 28), level) for level in (0, 128, 255)]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    return {
        "empty.png": b"",
        "text.png": b"this is no picture",
        "cut.png": picture(3)[:-100],
        "bomb.png": _bomb(60_000),
        "large bomb.png": _bomb(2**31 - 1, rows=1),
        "large.png": bytes(20_000_000),
        "animated.png": animated.getvalue(),
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "noise.png": random.Random(0).randbytes(100_000),
        "../../outside.png": b"not a picture either",
    }


def _bomb(side: int, rows: int | None = None) -> bytes:
    """A small PNG file that states a picture of `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(min(side // 8 + 1, 10_000_000))
    packed = b"".join(packer.compress(row) for _ in range(rows or side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _answers(port: int) -> bool:
    """Whether the server answers."""
    time.sleep(0.2)
    with suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/config", timeout=5).status_code == 200
    return False


def _memory(pid: int) -> int:
    """The most memory that a process ever had, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
