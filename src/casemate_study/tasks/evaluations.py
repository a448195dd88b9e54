"""Producer of whole evaluations: the worst case over strong attacks, the checks and the verdict of
`casemate.evaluate`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.engine import Artifact, Context
from casemate.evaluation import evaluate
from casemate.tables import write_table
from casemate_study.tasks.inputs import batch_size, classifier_for, tested, with_seeded_randomness


@with_seeded_randomness
def judge_model(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Run `casemate.evaluate` on the configured model and test images; return the evaluation as JSON.

    Writes the table `examples`: per image the label, the position of the first attack that fooled it (-1: none did; -2:
    misclassified without one), and for each eps whether it withstood all attacks.
    """
    del working
    model, test = classifier_for(config, needs, context), tested(config, context)
    found = evaluate(
        model,
        test,
        eps=config["values"],
        budget=config["budget"],
        force=True,
        seed=config["seed"],
        batch_size=batch_size(context),
        observer=context.observer,
    )
    columns = {"label": test.labels.numpy(), "first_success": found.cascade.first_success}
    held = {f"held_{eps:g}": found.cascade.robust[:, column] for column, eps in enumerate(found.values)}
    write_table(columns | held, folder / "examples")
    return found.as_json()
