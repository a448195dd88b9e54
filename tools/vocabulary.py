"""Check the words and names of the project against `tools/vocabulary.toml`.

Prints one line a finding and exits with 1 when there is any:

- a word agreed to be private (it means something only to its author) in the source, the README, CONTRIBUTING or docs/;
- a public class defined twice;
- a public function defined twice, unless its name is listed as an interface that several modules share.

In Markdown, code between backticks is not read: it quotes names, and the source they come from is read itself.

    python tools/vocabulary.py [ROOT] [PART ...]

ROOT is the checkout (default: the one this file is in); PARTs keep only the paths that begin with one.
"""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_SOURCES = ("*.py", "*.pyi", "*.html", "*.jinja", "*.j2", "*.css", "*.md")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def pattern_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds each of the words as a whole word, also as part of a name in code."""
    parts = [re.escape(word).replace(r"\*", "[a-z]*").replace(r"\ ", r"[\s_]+") for word in sorted(words, key=len)]
    return re.compile(rf"(?<![a-z])(?:{'|'.join(reversed(parts))})(?![a-z])", re.IGNORECASE)


def _without_code(markdown: str) -> str:
    """The text with code blanked out, lines kept."""
    return _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code.group()), markdown)


def private_words(files: Mapping[str, str], words: Mapping[str, str]) -> Iterator[str]:
    """One line for each private word in the files (path: text)."""
    pattern = pattern_of(words)
    for path, text in files.items():
        read = _without_code(text) if path.endswith(".md") else text
        for found in pattern.finditer(read):
            line = read.count("\n", 0, found.start()) + 1
            better = next(better for word, better in words.items() if pattern_of([word]).fullmatch(found.group()))
            yield f"{path}:{line}: private word '{' '.join(found.group().split())}' (write: {better})"


def repeated_names(files: Mapping[str, str], interfaces: Mapping[str, str]) -> Iterator[str]:
    """One line for each public class or function that several modules define at their top level."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, text in files.items():
        if not path.endswith(".py"):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                places["class", node.name].append(f"{path}:{node.lineno}")
            elif isinstance(node, ast.FunctionDef):
                places["function", node.name].append(f"{path}:{node.lineno}")
    for (kind, name), where in sorted(places.items()):
        several = len({place.rpartition(":")[0] for place in where}) > 1
        if several and not name.startswith("_") and not (kind == "function" and name in interfaces):
            yield f"{where[0]}: {kind} {name} is also defined in {', '.join(where[1:])}"


def read_project(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The texts that are checked, and of them the source: both by path from the root."""
    source = sorted(path for kind in _SOURCES for path in (root / "src").rglob(kind))
    texts = [*source, root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    read = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in texts if path.is_file()}
    return read, {path: text for path, text in read.items() if path.startswith("src/")}


def main(arguments: list[str]) -> int:
    """Print what is found; 1 if anything is."""
    root = Path(arguments[0] if arguments else Path(__file__).parent.parent).resolve()
    vocabulary = tomllib.loads((Path(__file__).parent / "vocabulary.toml").read_text(encoding="utf-8"))
    texts, source = read_project(root)
    findings = [*private_words(texts, vocabulary["words"]), *repeated_names(source, vocabulary["interfaces"])]
    shown = [line for line in findings if not arguments[1:] or line.startswith(tuple(arguments[1:]))]
    print("\n".join(shown or ["no private words, no name defined twice"]))
    return int(bool(shown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
