"""Damage to files: flipped, cut and inserted bytes, and lies where a format states sizes; archives stay consistent."""

import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

_NUMBERS = [b"0", b"-1", b"1", b"7", b"1000000000", b"99999999999999999999", b"1e400", b"0.5", b"null", b'"x"', b"[]"]
"""What a number in JSON is replaced by; zeros make axes without size."""
_WORDS = [b'""', b'"os"', b'"system"', b'"../x"', b'"/dev/zero"', b"null", b"3", b"{}", b'"float128"']
"""What a text in JSON is replaced by."""
_BOMB = 400_000_000
"""Unpacked size of a decompression bomb, in bytes."""


def damaged(good: bytes, attempt: int, source: random.Random) -> bytes:
    """The content of a file with one damage, of a kind that depends on the number of the attempt and on the format.

    Half of the damages are to the bytes themselves, the others to what the format states.
    """
    if attempt % 2 == 0:
        return damaged_bytes(good, attempt // 2, source)
    if good[:2] == b"PK":
        return _archive(good, attempt // 2, source)
    return _stated(good, attempt // 2, source)


def damaged_bytes(good: bytes, attempt: int, source: random.Random) -> bytes:
    """Bytes flipped, cut, lost, repeated or overwritten, in two of three attempts near an end, where headers are."""
    raw = bytearray(good)
    ends = [(0, len(raw)), (0, min(len(raw), 200)), (max(0, len(raw) - 400), len(raw))]
    place = source.randrange(*ends[attempt % 3]) if raw else 0
    match attempt % 7:
        case 0:
            raw[place : place + 1] = bytes([(raw[place] if raw else 0) ^ 1 << source.randrange(8)])
        case 1:
            del raw[place:]
        case 2:
            raw[place : place + 8] = source.randbytes(8)
        case 3:
            raw[place : place + 1] = bytes([source.choice(b'09-[]{}",.eN\\\n\0')])
        case 4:
            raw[place : place + 4] = source.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"9999"])
        case 5:
            del raw[place : place + source.randrange(1, 40)]
        case 6:
            raw[place:place] = raw[place // 2 : place // 2 + source.randrange(1, 400)]
    return bytes(raw)


def _stated(good: bytes, attempt: int, source: random.Random) -> bytes:
    """A lie about sizes, types or names, where the format is JSON, safetensors or a pickle; else damaged bytes."""
    if good[:1] == b"{":
        return _json(good, attempt, source)
    length = int.from_bytes(good[:8], "little")
    if good[8:9] == b"{" and length < len(good):
        header = _safetensors(good[8 : 8 + length], attempt, source)
        return len(header).to_bytes(8, "little") + header + good[8 + length :]
    if good[:1] == b"\x80":
        return _pickle(good, source)
    return damaged_bytes(good, source.randrange(21), source)


def _json(good: bytes, attempt: int, source: random.Random) -> bytes:
    """JSON with another number or text, an entry that is missing or twice, or values nested deeply."""
    match attempt % 6:
        case 0 | 1 | 2:
            return _replaced(good, rb"(?<=[\s\[:,])-?\d[\d.e-]*", _NUMBERS, source)
        case 3:
            return _replaced(good, rb'"[^"]*"(?!\s*:)', _WORDS, source)
        case 4:
            found = json.loads(good)
            holder = found
            while isinstance(holder, dict) and holder:
                name = source.choice(sorted(holder))
                if not isinstance(holder[name], dict) or source.random() < 0.3:
                    holder.pop(name)
                    break
                holder = holder[name]
            return json.dumps(found).encode()
        case _:
            depth = source.choice([10, 200, 100_000])
            return _replaced(good, rb"(?<=[\s\[:,])-?\d[\d.e-]*", [b"[" * depth + b"]" * depth], source)


def _replaced(good: bytes, pattern: bytes, choices: list[bytes], source: random.Random) -> bytes:
    found = list(re.finditer(pattern, good))
    if not found:
        return good[: len(good) // 2]
    at = source.choice(found)
    return good[: at.start()] + source.choice(choices) + good[at.end() :]


def _safetensors(header: bytes, attempt: int, source: random.Random) -> bytes:
    """The header of a .safetensors file with one lie; also axes without size, which fit the offsets."""
    if attempt % 3:
        return _json(header, attempt, source)
    found = json.loads(header)
    name = source.choice([each for each in found if each != "__metadata__"])
    entry = found[name]
    match source.randrange(4):
        case 0:
            begin = entry["data_offsets"][0]
            entry |= {"shape": source.choice([[0], [10**9, 0], [0, 10**9], [10**12, 0, 0, 0]])}
            entry["data_offsets"] = [begin, begin]
        case 1:
            entry["shape"] = source.choice([[], [1] * 100, [10**9, 10**9], entry["shape"][::-1], [*entry["shape"], 1]])
        case 2:
            entry["dtype"] = source.choice(["F64", "I8", "BF16", "C64", "F8_E4M3", "BOOL", "U64"])
        case _:
            found[name * source.choice([2, 5000])] = found.pop(name)
    return json.dumps(found).encode()


def _pickle(good: bytes, source: random.Random) -> bytes:
    """A pickle with other whole numbers, which are sizes, strides and offsets, or another name of a global."""
    places = [each.start() for each in re.finditer(rb"[KMJ]", good)]
    if not places or source.random() < 0.2:
        return good.replace(b"torch._utils", source.choice([b"os", b"builtins", b"torch.hub", b"torch._weights"]), 1)
    at = source.choice(places)
    width = {75: 1, 77: 2, 74: 4}[good[at]]
    number = source.choice([0, 1, 2, 255, 10**6, 2**31 - 1, -1])
    long = b"\x8a\x08" + (10**17).to_bytes(8, "little", signed=True)
    made = long if source.random() < 0.2 else b"J" + number.to_bytes(4, "little", signed=True)
    return good[:at] + made + good[at + 1 + width :]


def _archive(good: bytes, attempt: int, source: random.Random) -> bytes:
    """A zip archive with one damaged entry and right checksums, or with lies about an entry, or a bomb."""
    match attempt % 8:
        case 0:
            return _with_lie(good, source)
        case 1 if attempt % 5 == 1:
            return _rewritten(good, source, bomb=True)
        case 2:
            return good[: (at := source.randrange(len(good)))] + source.randbytes(4) + good[at + 4 :]
        case _:
            return _rewritten(good, source, change=lambda content: damaged(content, source.randrange(50), source))


def _rewritten(
    good: bytes, source: random.Random, *, change: Callable[[bytes], bytes] | None = None, bomb: bool = False
) -> bytes:
    """The archive with one entry changed, missing, renamed, or replaced by a bomb, and with right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as archive, zipfile.ZipFile(stream, "w") as target:
        entries = archive.infolist()
        likely = [each for each in entries if each.filename.endswith((".pkl", ".json", ".h5"))]
        chosen = source.choice(likely if likely and source.random() < 0.7 else entries)
        what = source.randrange(12)
        for each in entries:
            content = archive.read(each)
            if each is not chosen:
                target.writestr(each.filename, content, each.compress_type)
            elif bomb:
                _write_bomb(target, each.filename)
            elif what == 0:
                continue
            elif what == 1:
                target.writestr(each.filename + "x" * source.choice([1, 5000]), content)
            elif change is not None:
                target.writestr(each.filename, change(content), each.compress_type)
    return stream.getvalue()


@cache
def _bomb() -> tuple[bytes, int]:
    """Many zeros, deflated, and their checksum."""
    packer, crc, chunk = zlib.compressobj(1, wbits=-15), 0, bytes(10_000_000)
    packed = bytearray()
    for _ in range(_BOMB // len(chunk)):
        packed += packer.compress(chunk)
        crc = zlib.crc32(chunk, crc)
    return bytes(packed + packer.flush()), crc


def _write_bomb(target: zipfile.ZipFile, name: str) -> None:
    """Write a compressed entry that unpacks to `_BOMB` zeros."""
    packed, crc = _bomb()
    info = zipfile.ZipInfo(name)
    target.writestr(info, packed)
    info.compress_type, info.file_size, info.CRC = zipfile.ZIP_DEFLATED, _BOMB, crc
    assert target.fp is not None
    end = target.fp.tell()
    target.fp.seek(info.header_offset)
    target.fp.write(info.FileHeader(False))
    target.fp.seek(end)


def _with_lie(good: bytes, source: random.Random) -> bytes:
    """The archive with another version, method, size or offset in the directory's record of one of its entries."""
    raw = bytearray(good)
    places = [each.start() for each in re.finditer(rb"PK\x01\x02", good)]
    at = source.choice(places)
    field, width = source.choice([(4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)])
    lie = source.choice([b"\xff" * 4, bytes(4), b"\x63\0\0\0", b"\0\0\0\x40", source.randbytes(4)])
    raw[at + field : at + field + width] = lie[:width]
    return bytes(raw)
