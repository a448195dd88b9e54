"""The JSON documents: every one has a published schema, every schema describes every field, and docs/json.md says so.

That what commands print fits the schemas is checked wherever a test has a command print JSON (see `conftest`).
"""

import json
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from casemate import documents
from casemate.attacks import PGD, Square
from casemate.cli.selftest import show as self_test_screen
from casemate.documents import EVALUATION, document, read_schema, schema_names
from casemate.errors import RecordError, SettingError
from casemate.evaluation import evaluate, evaluation, share
from casemate.evaluation.verdict import SCHEMA, read_verdicts
from casemate.models import ModelMetadata, save
from casemate.report.evaluation_result import EvaluationResult
from casemate.selftest import CASES, Outcome
from conftest import tiny_images
from published import problems
from scripts import imported
from test_record import thirds
from test_study import Run, runner

ROOT = Path(__file__).resolve().parents[1]
NAMES = schema_names()
ATTACKS = {"pgd": PGD(eps=0.1, steps=5), "square": Square(eps=0.1, n_queries=20)}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model and its images; two quick attacks in every budget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "attacks_for", lambda *given, **options: ATTACKS)
    save(thirds(), tmp_path / "model.safetensors", ModelMetadata(architecture="linear", dataset="tiny"))
    images = tiny_images(30, noise=90.0)
    np.savez(tmp_path / "tiny.npz", images=images.pixels.numpy(), labels=images.labels.numpy())
    return tmp_path


def parts(schema: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its place, without the outermost."""
    for name, each in schema.get("properties", {}).items():
        yield f"{path}.{name}", each
        yield from parts(each, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(each := schema.get(keyword), dict):
            yield f"{path}[]", each
            yield from parts(each, f"{path}[]")
    for name, each in schema.get("$defs", {}).items():
        yield f"{path}#{name}", each
        yield from parts(each, f"{path}#{name}")


def example(schema: dict[str, Any], whole: dict[str, Any]) -> Any:
    """The smallest value that fits a schema."""
    if "$ref" in schema:
        return example(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], whole)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    match kind if isinstance(kind, str) else kind[0]:
        case "object":
            return {name: example(schema["properties"][name], whole) for name in schema.get("required", ())}
        case "array":
            return [example(schema["items"], whole)] * max(1, schema.get("minItems", 0))
        case "string":
            return "0" * 64
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return schema.get("minimum", 0)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON document."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(each)


# The schemas ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_strict_and_describes_every_field(name: str) -> None:
    schema = read_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == schema["properties"]["schema"]["const"] == name
    assert "common.json" not in json.dumps(schema)
    for path, each in parts(schema):
        assert len(each["description"]) > 4, path
        assert each["description"].endswith("."), path
        if '"null"' in json.dumps([each.get("type"), each.get("anyOf")]):
            assert "null" in each["description"].lower(), f"{path} does not say what null means"
        if "properties" in each and "name" not in each["properties"]:
            assert each["additionalProperties"] is False, path
        missing = set(each.get("properties", ())) - set(each.get("required", ()))
        for field in missing:
            assert re.search("missing|only", each["properties"][field]["description"], re.IGNORECASE) or each[
                "description"
            ].endswith(("are missing.", "depends on the attack.", "or else its function.")), f"{path}.{field}"


def test_every_document_of_the_source_has_a_schema_and_every_schema_a_document() -> None:
    sources = list((ROOT / "src").rglob("*.py"))
    stated = {name for path in sources for name in re.findall(r'"(casemate(?:-study)?/[a-z-]+/\d+)"', path.read_text())}
    assert stated - {"casemate/attack/1"} == set(NAMES) - {"casemate/attack/1"}
    shown = [line for path in sources for line in re.findall(r"show_json\(", path.read_text())]
    assert len(shown) - 1 == len(NAMES)  # one is its definition


@pytest.mark.parametrize("name", NAMES)
def test_a_mutilated_document_does_not_fit(name: str) -> None:
    whole = read_schema(name)
    made = example(whole, whole)
    assert problems(made) == []
    for field in [field for field in made if field != "schema"]:
        kept = made.pop(field)
        assert problems(made) == [f"$: {field!r} is a required property"]
        made[field] = {"no": {"such": ["type"]}}
        assert problems(made), field
        made[field] = kept
    strict = [each for each in objects(made) if each and set(each) != {"name"}]  # but mappings, and settings of attacks
    for each in strict:
        each["undocumented"] = {"no": {"such": ["type"]}}
    refused = [each for each in problems(made) if "undocumented" in each]
    free = name == "casemate/info/1"  # to which other packages may add
    assert len(refused) >= len({id(each) for each in strict}) - free
    assert all("undocumented" in each for each in problems(made))


def test_the_page_says_what_the_schemas_say() -> None:
    tool = imported("tools/json_page.py")
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    assert text == tool.page(text), "run python tools/json_page.py"
    lines = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    headings = {re.sub(r"[^\w -]", "", line).replace(" ", "-") for line in lines}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
    for name in NAMES:
        for path, _ in parts(read_schema(name)):
            field = path.rpartition(".")[2].removesuffix("[]")
            assert field.startswith("$") or f"{field}`" in text or f"### {field.partition('#')[2]}" in text, path


# casemate schema ------------------------------------------------------------------------------------------------------
def test_the_command_lists_and_prints(run: Run) -> None:
    code, out, _ = run("schema")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "/" in line.split(" ")[1]] == NAMES
    for name in ("evaluation", "evaluation/1", "casemate/evaluation", "casemate/evaluation/1"):
        code, out, _ = run("schema", name)
        assert code == 0
        assert json.loads(out) == read_schema(EVALUATION)
    code, out, err = run("schema", "evalution")
    assert (code, out) == (2, "")
    assert "did you mean evaluation?" in err
    assert run("schema", "evaluation/9")[0] == 2


def test_packages_add_schemas_and_the_newest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "another_package" / "schemas"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('imported')")
    for version in (9, 10):
        (folder / f"sound-{version}.json").write_text(
            json.dumps({"title": str(version), "properties": {"passes": {"$ref": "common.json#/$defs/attempt"}}})
        )
    (folder / "notes.txt").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "one_module.py").write_text("raise SystemExit('imported')")
    points = [
        EntryPoint("one", f"{name}.cli", "casemate.commands") for name in ("another_package", "one_module", "gone")
    ]
    monkeypatch.setattr(documents, "extensions", lambda group: points)
    assert schema_names()[:2] == ["another-package/sound/9", "another-package/sound/10"]
    found = read_schema("sound")
    assert found["title"] == "10"
    assert set(found["$defs"]) == {"attempt", "passes"}  # and what they take from the common file
    assert read_schema("sound/9")["title"] == "9"
    with pytest.raises(SettingError, match="no schema 'study'"):
        read_schema("study")


# Documents ------------------------------------------------------------------------------------------------------------
def test_what_is_printed_is_what_is_written(run: Run, here: Path) -> None:
    command = ("model.safetensors", "--data", "tiny.npz", "--eps", "2/255", "0.1")
    code, out, err = run("evaluate", *command, "--out", "evaluated", "--json")
    assert code == 0, err
    written = json.loads((here / "evaluated" / "result.json").read_text())
    assert written["schema"] == EVALUATION
    assert problems(written) == []
    assert json.loads(out) == {**written, "folder": "evaluated"}
    code, out, err = run("attack", "pgd", *command, "--steps", 3, "--out", "attacked", "--json")
    assert code == 0, err
    written, shown = json.loads((here / "attacked" / "result.json").read_text()), json.loads(out)
    assert problems(written) == []
    assert {name: each for name, each in written.items() if name in shown} == shown
    assert run("verify", "evaluated/record.json", *command[:3], "--json")[0] == 0
    assert run("evaluate", *command, "--dry-run", "--json")[0] == 0
    evaluated = evaluate(thirds(), tiny_images(12), eps=0.1, attacks=ATTACKS)
    page = evaluated.report(here / "from-python")
    assert problems(json.loads((page.parent / "result.json").read_text())) == []


def test_the_self_test_prints_what_its_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(thirds(), tiny_images(12), eps=0.1, attacks=ATTACKS)
    number = share(np.ones(12, dtype=bool))
    outcomes = [
        Outcome(case=case, claim=claim, evaluation=found, truth=number, seconds=1.0)
        for case, claim in ((CASES[0], number), (CASES[-1], None))
    ]
    self_test_screen.show(outcomes, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "casemate/self-test/1"
    assert shown["models"][0]["evaluation"]["schema"] == SCHEMA


# Reading --------------------------------------------------------------------------------------------------------------
def test_results_of_before_are_read_and_others_refused(run: Run, here: Path) -> None:
    code, _, err = run("evaluate", "model.safetensors", "--data", "tiny.npz", "--eps", "0.1", "--out", "out")
    assert code == 0, err
    written = json.loads((here / "out" / "result.json").read_text())
    for schema in (EVALUATION, SCHEMA):
        found = EvaluationResult.from_json({**written, "schema": schema}, "result.json")
        assert found.verdicts == read_verdicts(written, "result.json")
    for schema in ("casemate/evaluation/2", "casemate/attack/1", ""):
        with pytest.raises(RecordError, match=rf"result\.json states the schema {schema}; expected {EVALUATION}"):
            EvaluationResult.from_json({**written, "schema": schema}, "result.json")
    for schema in (3, None, [], {}, 2.5):
        with pytest.raises(RecordError, match=r"result\.json was written by another casemate"):
            EvaluationResult.from_json({**written, "schema": schema}, "result.json")


def test_a_document_names_its_schema_first() -> None:
    made = document("casemate/info/1", {"a": 1, "schema": "another"})
    assert list(made.items()) == [("schema", "casemate/info/1"), ("a", 1)]
