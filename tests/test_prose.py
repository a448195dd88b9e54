"""What users read, as snapshots: wording is reviewed here in one place, and other tests assert facts.

After a change of wording: `pytest -n 0 tests/test_prose.py --inline-snapshot=fix`, then read the diff.
"""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inline_snapshot import snapshot
from rich.console import Console
from torch import Tensor, nn

from casemate import FGSM, Classifier, DeepFool, evaluate_clean
from casemate.attacks import AttackResult, Passes, Status
from casemate.cli.evaluate.show import verdict_box
from casemate.cli.main import main
from casemate.errors import CasemateError, CasemateWarning
from casemate.evaluation import Curve, Severity, compare, share
from casemate.evaluation.findings import CHECKS
from casemate.norms import parse_eps
from test_verdict import finding, judged


def test_verdicts() -> None:
    weakens, voids = finding(Severity.WEAKENS), finding(Severity.VOIDS)
    verdicts = {
        "broken": judged(1000, 900, 10),
        "weak": judged(1000, 900, 300),
        "partly robust": judged(1000, 900, 600),
        "robust": judged(10_000, 9_500, 9_400),
        "across a border": judged(100, 90, 45),
        "quick": judged(100, 90, 60, budget="quick"),
        "own attacks": judged(100, 90, 60, budget="own"),
        "untrained": judged(100, 10, 0),
        "weakened": judged(1000, 900, 600, findings=(weakens,)),
        "void": judged(1000, 900, 600, findings=(voids,)),
        "fallen, though flattered": judged(1000, 900, 10, findings=(voids,)),
        "a check failed": judged(1000, 900, 600, findings=(finding(Severity.WEAKENS, failed=True),)),
    }
    assert {name: found.sentence for name, found in verdicts.items()} == snapshot(
        {
            "broken": "Broken at eps 8/255 (linf, budget standard): 1.1 % (0.6 to 2.0, n = 900) of the correctly classified images withstood everything tried; the interval ends below 10 %.",
            "weak": "Weak at eps 8/255 (linf, budget standard): 33.3 % (30.3 to 36.5, n = 900) of the correctly classified images withstood everything tried; the interval ends below 50 %.",
            "partly robust": "Partly robust at eps 8/255 (linf, budget standard): 66.7 % (63.5 to 69.7, n = 900) of the correctly classified images withstood everything tried; the interval lies between 50 % and 90 %.",
            "robust": "Robust as far as tested at eps 8/255 (linf, budget standard): 98.9 % (98.7 to 99.1, n = 9,500) of the correctly classified images withstood everything tried; the interval begins at 90 % or above.",
            "across a border": "Weak or partly robust at eps 8/255 (linf, budget standard): 50.0 % (39.9 to 60.1, n = 90) of the correctly classified images withstood everything tried; the interval lies across 50 %; more images would decide.",
            "quick": "Not broken by a quick look at eps 8/255 (linf, budget quick): 66.7 % (56.4 to 75.5, n = 90) of the correctly classified images withstood everything tried; only the standard budget can call a model robust.",
            "own attacks": "Not broken by these attacks at eps 8/255 (linf, attacks chosen by the caller): 66.7 % (56.4 to 75.5, n = 90) of the correctly classified images withstood everything tried; only the standard budget can call a model robust.",
            "untrained": "Untrained or mislabelled at eps 8/255 (linf, budget standard): 0.0 % (0.0 to 27.8, n = 10) of the correctly classified images withstood everything tried; the accuracy without an attack, 10.0 % (5.5 to 17.4, n = 100), is not shown to be above guessing the commonest class, 10.0 %.",
            "weakened": "Partly robust at eps 8/255 (linf, budget standard): 66.7 % (63.5 to 69.7, n = 900) of the correctly classified images withstood everything tried; the interval lies between 50 % and 90 %. The number is less certain than its interval says: see a-check.",
            "void": "This evaluation is not to be trusted, because a-check saw it.",
            "fallen, though flattered": "Broken at eps 8/255 (linf, budget standard): 1.1 % (0.6 to 2.0, n = 900) of the correctly classified images withstood everything tried; the interval ends below 10 %.",
            "a check failed": "Partly robust at eps 8/255 (linf, budget standard): 66.7 % (63.5 to 69.7, n = 900) of the correctly classified images withstood everything tried; the interval lies between 50 % and 90 %. 1 check could not be completed: a-check.",
        }
    )


def test_the_box_of_a_verdict() -> None:
    console = Console(file=io.StringIO(), width=90)
    console.print(verdict_box([judged(1000, 900, 300)]))
    assert isinstance(console.file, io.StringIO)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == snapshot(
        [
            "╭─ Verdict at eps 8/255: WEAK ───────────────────────────────────────────────────────────╮",
            "│ Can it be trusted?  Yes: no check voids it.                                            │",
            "│ The number          33.3 % (30.3 to 36.5, n = 900) of the correctly classified images  │",
            "│                     withstood everything tried, at eps 8/255 (linf, budget standard).  │",
            "│                     Of all images 30.0 % (27.2 to 32.9, n = 1,000) are classified      │",
            "│                     correctly under attack (robust accuracy) and 90.0 % (88.0 to 91.7) │",
            "│                     without one. Ranges are 95 % intervals.                            │",
            "│ The grade           Weak: the interval ends below 50 %.                                │",
            "│                     Borders between grades: 10 %, 50 %, 90 % (a convention); of the    │",
            "│                     165 defended Linf models on RobustBench 5 keep less than a tenth,  │",
            "│                     41 less than half, 119 less than nine tenths, none more.           │",
            "╰────────────────────────────────────────────────────────────────────────────────────────╯",
        ]
    )


def test_the_titles_of_checks() -> None:
    assert {name: check.title for name, check in CHECKS.items()} == snapshot(
        {
            "training-mode": "The model was in evaluation mode",
            "batch-dependence": "An image gets the same logits whatever else is in its batch",
            "memory": "An image gets the same logits whatever the model saw before it",
            "way-of-calling": "An image gets the same logits whether gradients are computed or not",
            "probabilities": "The model returns logits",
            "non-finite": "No logit is NaN or plus infinity",
            "masked-classes": "The same classes are masked on all images",
            "eps-unit": "eps is in the unit of the pixels",
            "labels": "The labels number the classes as the model does",
            "normalisation": "The pixels are on the scale that the network was trained on",
            "frozen-copy": "The copy that is attacked has the model's logits",
            "saturation": "The logits are close enough together for a float32 softmax",
            "sample-size": "There are enough images",
            "randomized": "The same image gets the same logits every time",
            "stateful-model": "The model gives the logits that it gave before the attacks",
            "fixed-randomness": "Robustness does not depend on keeping the random draws secret",
            "eot-samples": "More draws per gradient do not help the attack",
            "inference-time-optimization": "The model does not optimise at inference",
            "zero-gradients": "Every image has a gradient to follow",
            "precision": "float32 is precise enough for the gradients",
            "finite-differences": "The gradient is that of the model",
            "jumps": "The logits do not jump on the way to a random point of the ball",
            "one-step": "Many steps fool at least as many images as one",
            "label-leaking": "FGSM does not raise the accuracy",
            "more-steps": "Twice the steps fool no more images",
            "still-rising": "The loss has stopped rising on the robust images",
            "best-not-last": "Images that PGD fools on the way are still fooled at its end",
            "larger-eps": "A larger eps leaves a lower accuracy",
            "unbounded-attack": "Without a limit on the change every image is fooled",
            "losses": "Attacks on different losses fool about as many images",
            "black-box-stronger": "Square fools nothing that attacks by gradient missed",
            "nothing-found": "Minimum-norm attacks find an adversarial image",
            "noise": "Random points of the ball fool no robust image",
            "re-checked": "Adversarial examples reproduce at batch size 1 and after 8-bit rounding",
            "transfer": "Adversarial examples of an undefended model fool no robust image",
            "attack-works": "The same attack fools an undefended model",
            "noise-10k": "Ten thousand random points of the ball fool no robust image",
            "decision-based": "An attack that sees only decisions fools no robust image",
        }
    )


def test_an_estimate() -> None:
    found = share(torch.arange(100).numpy() < 62)
    assert [f"{found}", f"{found:n}", f"{found:.0%}", f"{found:.3f}"] == snapshot(
        ["62.0 % (52.2 to 70.9)", "62.0 % (52.2 to 70.9, n = 100)", "62 % (52 to 71)", "0.620 (0.522 to 0.709)"]
    )


def attacked(robust: int, name: str = "PGD") -> AttackResult:
    """The result of an attack on 100 images, of which so many withstood."""
    success, images = torch.arange(100) >= robust, torch.zeros(100, 1, 2, 2)
    return AttackResult(
        adversarial=images,
        prediction=success.long(),
        success=success,
        status=torch.where(success, Status.SUCCESS, Status.FAILED).to(torch.uint8),
        loss=torch.zeros(100),
        norm=torch.zeros(100),
        passes=Passes(4000, 3900),
        attack={"name": name, "eps": parse_eps("8/255"), "norm": "linf"},
        clean=images,
        labels=torch.zeros(100, dtype=torch.int64),
    )


def test_results_in_python() -> None:
    result = attacked(59)
    verdicts = (judged(100, 90, 59), judged(100, 88, 74))
    compared = replace(compare(result, attacked(74), names=("before", "after")), verdicts=verdicts)
    curve = Curve(
        axis="eps",
        attack=result.attack,
        values=(parse_eps("2/255"), parse_eps("0.10")),
        worst=torch.arange(100).numpy()[:, None] < [80, 10],
        last=None,
        passes=Passes(200, 100),
    )
    shown = {
        "a result": repr(result),
        "a result in a notebook": result._repr_html_().splitlines(),
        "a curve": repr(curve),
        "a curve in a notebook": curve._repr_html_().splitlines(),
        "a comparison": repr(compared),
        "its summary": compared.summary().splitlines(),
        "within chance": compare(result, attacked(60)).conclusion,
        "other attacks": compare(result, attacked(30, "Square")).summary().splitlines()[-1],
    }
    assert shown == snapshot(
        {
            "a result": "AttackResult(PGD, eps 8/255 (linf); robust accuracy 59.0 % (49.2 to 68.1, n = 100); passes 4,000 forward, 3,900 backward)",
            "a result in a notebook": [
                "<table>",
                "<caption>Result of an attack</caption>",
                "<tbody>",
                "<tr><td>attack</td><td>PGD, eps 8/255 (linf)</td></tr>",
                "<tr><td>robust accuracy</td><td>59.0 % (49.2 to 68.1, n = 100)</td></tr>",
                "<tr><td>passes</td><td>4,000 forward, 3,900 backward</td></tr>",
                "</tbody>",
                "</table>",
            ],
            "a curve": "Curve(PGD, 2 values of eps; robust accuracy 80.0 % (71.1 to 86.7, n = 100) at eps 2/255 to 10.0 % (5.5 to 17.4, n = 100) at eps 0.10; passes 200 forward, 100 backward)",
            "a curve in a notebook": [
                "<table>",
                "<caption>PGD over eps</caption>",
                "<thead><tr><th>eps</th><th>robust accuracy (worst)</th></tr></thead>",
                "<tbody>",
                "<tr><td>2/255</td><td>80.0 % (71.1 to 86.7, n = 100)</td></tr>",
                "<tr><td>0.10</td><td>10.0 % (5.5 to 17.4, n = 100)</td></tr>",
                "</tbody>",
                "</table>",
            ],
            "a comparison": "ModelComparison(after minus before, eps 8/255 (linf): robust accuracy +15.0 points (+7.3 to +22.1), McNemar p = 6.1e-05, n = 100)",
            "its summary": [
                "The same 100 images, eps 8/255 (linf); ranges are 95 % intervals.",
                "                 before                 after                                     difference",
                "robust accuracy  59.0 % (49.2 to 68.1)  74.0 % (64.6 to 81.6)                     +15.0 points (+7.3 to +22.1), McNemar p = 6.1e-05",
                "verdict          partly robust          partly robust or robust as far as tested",
                "Under attack 15 images are correct with after only, 0 with before only.",
                "after is more robust than before, beyond chance.",
            ],
            "within chance": "No difference in robust accuracy is shown: it is within chance.",
            "other attacks": "Nothing follows: they were attacked differently, PGD and Square.",
        }
    )


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = {}
    for command in ("", "attack fgsm", "harden", "verify"):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        found[command] = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert found == snapshot(
        {
            "": [
                "usage: casemate [-h] {train,harden,attack,evaluate,verify,selftest,data,store,info,report,study}",
                "",
                "Train image classifiers, attack them, and say how far to trust the result.",
                "- `casemate COMMAND --help` explains a command, `casemate --version` prints",
                "  the version. Results go to stdout, progress and messages to stderr.",
                "- Exit codes: 0 success, 2 an error that you can fix, 3 a model or a record",
                "  that falls short (evaluate --fail-under, verify), 130 stopped with Ctrl-C,",
                "  1 a bug in casemate.",
                "",
                "Examples:",
                "  casemate study --scale smoke     the whole study in small, a few minutes",
                "  casemate train --epochs 10       train the study's network",
                "  casemate attack pgd model.safetensors --eps 4/255 8/255",
                "  casemate evaluate model.safetensors --budget quick",
                "",
                " options",
                " ------------------------------------------------------------------------------",
                "  -h, --help    show this help message and exit",
                "",
                " subcommands",
                " ------------------------------------------------------------------------------",
                "  (required)",
                "    • train     Train a network by a recipe, and measure its accuracy on the",
                "                test images.",
                "    • harden    Fine-tune a trained model against attacks, and measure whether",
                "                that helped.",
                "    • attack    Attack a model, and measure the accuracy that is left.",
                "    • evaluate  Measure how robust a model is, and whether the result can be",
                "                trusted.",
                "    • verify    Check a record of adversarial examples against its model.",
                "    • selftest  Run the evaluation on deliberately misleading models, and on",
                "                honest ones.",
                "    • data      List, download and draw the data sets.",
                "    • store     List and clean the store of finished artifacts.",
                "    • info      Show versions, device, folders, data sets, networks, recipes,",
                "                attacks.",
                "    • report    Write the study's report from the artifacts that are finished so",
                "                far.",
                "    • study     Reproduce the paper's study: train, attack, report.",
                "",
            ],
            "attack fgsm": [
                "usage: casemate attack fgsm [-h] [OPTIONS] MODEL",
                "",
                "Fast gradient sign method: one step to the edge of the ball.",
                "- Goodfellow et al. 2015.",
                "",
                "Examples:",
                "  casemate attack fgsm model.safetensors --eps 8/255",
                "",
                " positional arguments",
                " ------------------------------------------------------------------------------",
                "  MODEL           A .safetensors file written by casemate, with its JSON file",
                "                  beside it; package.module:name or file.py:name, a function",
                "                  without arguments that returns a PyTorch module or a",
                "                  casemate.Classifier, or a network's class (with its",
                "                  --weights); a .onnx or .keras file; timm:NAME; a Hugging Face",
                "                  folder; a .pt2 program by torch.export. Your own code is",
                "                  imported and run, from the current folder and among the",
                "                  installed modules; a file that could run code is loaded only",
                "                  with --trust-code. (required)",
                "",
                " options",
                " ------------------------------------------------------------------------------",
                "  -h, --help      show this help message and exit",
                "  --eps EPS ...   Radii in pixel units, for pixels in [0, 1]; fractions such as",
                "                  8/255 are fine. (default: linf: 0.01 0.025 0.05 0.1; l2: 0.1",
                "                  0.25 0.5 1; l1: 1 2.5 5 10)",
                "  --target CLASS  Aim at this class, given by name or index; images of the class",
                "                  itself are left out. (default: any wrong class)",
                "  --images N      Attack the first N images. (default: 1000)",
                "  --dataset NAME  The test images of this data set, one of `casemate data list`.",
                "                  (default: the one the model was trained on)",
                "  --data FILE     Your own images: a .npz or .safetensors file with the arrays",
                "                  images, (n, channels, height, width), as bytes or as numbers",
                "                  in [0, 1], and labels. (default: a data set)",
                "  --data-dir FOLDER",
                "                  Search only this folder for Fashion-MNIST. (default:",
                "                  $CASEMATE_DATA, else the usual places)",
                "  --inference {stochastic-affine,noise}",
                "                  Randomise the model. stochastic-affine: apply a random affine",
                "                  transform to every input; noise: leave the model's",
                "                  noise layers on, as in training. (default: the model as it is)",
                "  --seed N        Seed of all random numbers. (default: 0)",
                "  --out FOLDER    The folder for results, images and a contact sheet. (default:",
                "                  nothing is written)",
                "  --overwrite     Replace the results of another run in OUT.",
                "  --dry-run       Attack nothing; print the settings and the cost.",
                "  --json          Print one JSON document instead of tables.",
                "",
                " attack options",
                " ------------------------------------------------------------------------------",
                "  The fields of casemate.attacks.presets.FGSM.",
                "  ------------------------------------------------------------------------------",
                "  --norm {linf,l2,l1}",
                "                  Norm of the ball and of the step: Linf (the sign, as",
                "                  published), L2 or L1. (default: linf)",
                "  --loss {ce,torch-ce,prob-ce,margin,dlr}",
                "                  Loss to maximise. (default: ce)",
                "  --keep {first_success,last}",
                "                  `first_success` does not change images that are misclassified",
                "                  already; `last` does, as other tools do. (default:",
                "                  first_success)",
                "",
                " wrapper options",
                " ------------------------------------------------------------------------------",
                "  Attacks wrapped around this one.",
                "  ------------------------------------------------------------------------------",
                "  --eot-samples N",
                "                  Passes whose gradients are averaged at every step. (EOT:",
                "                  expectation over transformation: another attack with averaged",
                "                  gradients.) (default: not used)",
                "  --restarts N    Number of runs. (Restarts: runs another attack several times:",
                "                  on the images not yet fooled, or, for a minimum-norm attack,",
                "                  on all.) (default: not used)",
                "",
                " loading options",
                " ------------------------------------------------------------------------------",
                "  How MODEL is loaded, and what its file does not say of it.",
                "  ------------------------------------------------------------------------------",
                "  --weights FILE  Weights for a network that code or a name builds:",
                "                  .safetensors, or a state dict, of which nothing is run.",
                "                  (default: the model has its own)",
                "  --trust-code    Load a MODEL that can run code while it is loaded.",
                "  --black-box     MODEL names a function that takes images and returns scores or",
                "                  predicted classes: it has no gradient.",
                "  --queries N     The largest number of images that a black box may be called",
                "                  with. (default: any number)",
                "  --mean X ...    Subtracted from the pixels before the network: one number, or",
                "                  one per channel. (default: none, or the file's)",
                "  --std X ...     Divides the pixels after that: one number, or one per channel.",
                "                  (default: none, or the file's)",
                "  --bounds LOW HIGH",
                "                  Smallest and largest pixel that the network takes, such as 0",
                "                  255; mean and std are in its units, eps is not. (default: 0 1,",
                "                  or the file's)",
                "  --output WHAT   What the network returns: logits, probabilities, or the index",
                "                  or key of the part that holds the logits. (default: found out)",
                "  --classes N     The number of classes, or their names in the order of the",
                "                  outputs. (default: found out)",
                "  --channels-last",
                "                  The network takes height, width, channels.",
                "  --size H W      Height and width of the images that the network takes, or one",
                "                  number for both. (default: found out)",
                "",
                " machine options",
                " ------------------------------------------------------------------------------",
                "  The device and the number of threads.",
                "  ------------------------------------------------------------------------------",
                "  --device {auto,cpu,cuda}",
                "                  Where to compute; auto uses a GPU if there is one. (default:",
                "                  auto)",
                "  --threads N     Number of CPU threads. (default: PyTorch's choice)",
                "",
            ],
            "harden": [
                "usage: casemate harden [-h] [OPTIONS] MODEL",
                "",
                "Fine-tune a trained model against attacks, and measure whether that helped.",
                "- Your model is evaluated; then copies of it are fine-tuned, one by each recipe",
                "  and one, the control, as long by ordinary training; these are evaluated on",
                "  the same images. The report says whether the recipe helped, and the price.",
                "- The epoch is chosen by robust accuracy on images set aside, never by the test",
                "  images. Without --test these are set aside too: if your model was trained on",
                "  them, give --test with images that are new to it.",
                "- Writes report.html, harden.json and the weights of control and hardened model",
                "  as safetensors. Your model does not change.",
                "- Finished steps and epochs are kept in OUT/steps: after a kill or Ctrl-C the",
                "  same command continues from there.",
                "",
                "Examples:",
                "  casemate harden model.safetensors --eps 0.1 --budget quick",
                "  casemate harden mine.nets:load --data mine.npz --eps 8/255",
                "  casemate harden mine.nets:load --data train.npz --test test.npz --eps 8/255 \\",
                "      --recipe adversarial-training adversarial-regularization --epochs 20",
                "",
                " positional arguments",
                " ------------------------------------------------------------------------------",
                "  MODEL           A .safetensors file written by casemate, with its JSON file",
                "                  beside it; or package.module:function, a function without",
                "                  arguments that returns a PyTorch module, or a",
                "                  casemate.Classifier around one that normalises its images.",
                "                  Only the second form runs code: the module is searched in the",
                "                  current folder and among the installed ones. (required)",
                "",
                " options",
                " ------------------------------------------------------------------------------",
                "  -h, --help      show this help message and exit",
                "  --out FOLDER    The folder for the files. (default: runs/harden-MODEL)",
                "  --overwrite     Replace the results of another run in OUT.",
                "  --dry-run       Train and attack nothing; print the settings, and the time",
                "                  that each step would take.",
                "  --json          Print one JSON document instead of tables.",
                "",
                " hardening options",
                " ------------------------------------------------------------------------------",
                "  What to harden, against which perturbations, and how it is evaluated.",
                "  ------------------------------------------------------------------------------",
                "  --eps EPS       The radius to harden against, in pixel units, for pixels in",
                "                  [0, 1]; fractions such as 8/255 are fine. (required)",
                "  --norm {linf,l2,l1}",
                "                  The norm in which eps limits the perturbation. (default: linf)",
                "  --recipe NAME ...",
                "                  One or more of adversarial-regularization,",
                "                  adversarial-training; each makes a hardened model. (default:",
                "                  adversarial-training)",
                "  --steps N       Gradient steps of the attack in adversarial training; fewer",
                "                  are faster, and may harden less. (default: 7)",
                "  --budget {quick,standard,thorough}",
                "                  Which attacks the evaluations run: standard is AutoAttack,",
                "                  quick only a first look. (default: standard)",
                "  --no-images     Show no test images in the report.",
                "  --seed N        Seed of all random numbers. (default: 0)",
                "",
                " images options",
                " ------------------------------------------------------------------------------",
                "  The images to train on, to choose the epoch by, and to test on.",
                "  ------------------------------------------------------------------------------",
                "  --dataset NAME  Training and test images of this data set, one of `casemate",
                "                  data list`. (default: the model's)",
                "  --data FILE     Your own images: a .npz or .safetensors file with the arrays",
                "                  images, (n, channels, height, width), as bytes or as",
                "                  numbers in [0, 1], and labels. (default: a data set)",
                "  --test FILE     Your own test images, a file like DATA; best images that the",
                "                  model was not trained on. (default: a fifth of DATA)",
                "  --data-dir FOLDER",
                "                  Search only this folder for Fashion-MNIST. (default:",
                "                  $CASEMATE_DATA, else the usual places)",
                "  --train-images N",
                "                  Use a stratified random sample of N images for training and",
                "                  validation. (default: all)",
                "  --images N      Test on a stratified random sample of N images. (default: 500)",
                "",
                " training options",
                " ------------------------------------------------------------------------------",
                "  The fine-tuning, of the control too.",
                "  ------------------------------------------------------------------------------",
                "  --epochs N      Passes over the training images. (default: 10)",
                "  --batch-size N  Images per training step. (default: 128)",
                "  --optimizer {adam,adamw,sgd}",
                "                  Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019),",
                "                  or SGD with Nesterov momentum 0.9. (default: sgd)",
                "  --learning-rate X",
                "                  Largest learning rate, scaled by the schedule. (default: 0.01)",
                "  --schedule STR  A name (constant, linear, cosine, one-cycle), or in Python a",
                "                  function of the share of steps done. (default: one-cycle)",
                "  --weight-decay X",
                "                  Weight decay of kernels, not biases or batch normalisation;",
                "                  decoupled with adamw, else part of the gradient. (default:",
                "                  0.0005)",
                "  --ema X         Decay per step (such as 0.999) of a moving average of the",
                "                  weights, to be validated and returned; None: no average.",
                "                  (default: 0.995)",
                "  --precision {float32,bfloat16}",
                "                  Precision of convolutions and matrix products in training",
                "                  steps (Micikevicius et al. 2018); weights, optimiser, losses",
                "                  and validation use float32. Some processors multiply bfloat16",
                "                  several times as fast. (default: float32)",
                "",
                " machine options",
                " ------------------------------------------------------------------------------",
                "  The device and the number of threads.",
                "  ------------------------------------------------------------------------------",
                "  --device {auto,cpu,cuda}",
                "                  Where to compute; auto uses a GPU if there is one. (default:",
                "                  auto)",
                "  --threads N     Number of CPU threads. (default: PyTorch's choice)",
                "",
            ],
            "verify": [
                "usage: casemate verify [-h] [OPTIONS] RECORD MODEL",
                "",
                "Check a record of adversarial examples against its model.",
                "- Recomputes every claim of the record: checksums of the files, distances in",
                "  float64, the class of every image in a batch of its own, and the highest",
                "  robust accuracy that the examples allow.",
                "- A record holds the clean and the adversarial images. One written with",
                "  `casemate evaluate --no-images` holds hashes only and can only be checked by",
                "  hash: of the model, and with --data of the images.",
                "- Exits with 0 if every claim holds, 3 if one does not, 2 if files cannot",
                "  be read or do not belong together.",
                "",
                "Examples:",
                "  casemate verify runs/evaluate-model/record.json model.safetensors",
                "  casemate verify record.json mine.nets:load --data mine.npz",
                "",
                " positional arguments",
                " ------------------------------------------------------------------------------",
                "  RECORD                    The record.json that `casemate evaluate` wrote, with",
                "                            adversarial.safetensors beside it. (required)",
                "  MODEL                     A .safetensors file written by casemate, with its",
                "                            JSON file beside it; package.module:name or",
                "                            file.py:name, a function without arguments that",
                "                            returns a PyTorch module or a casemate.Classifier,",
                "                            or a network's class (with its --weights); a .onnx",
                "                            or .keras file; timm:NAME; a Hugging Face folder; a",
                "                            .pt2 program by torch.export. Your own code is",
                "                            imported and run, from the current folder and among",
                "                            the installed modules; a file that could run code is",
                "                            loaded only with --trust-code. (required)",
                "",
                " options",
                " ------------------------------------------------------------------------------",
                "  -h, --help      show this help message and exit",
                "  --data PATH     Your own images: a folder with a subfolder for each class; a",
                "                  .csv file of paths and labels; a .npz or .safetensors file",
                "                  with the arrays images, (n, channels, height, width), as bytes",
                "                  or as numbers in [0, 1], and labels; IDX or Parquet files; or",
                "                  CIFAR's binary files. (default: a data set)",
                "  --subset HOW    Which images of --data are taken: first, or stratified for a",
                "                  random sample with the shares of the classes; stratified:7",
                "                  draws it with the seed 7. (default: first, or stratified if",
                "                  the images are sorted by class)",
                "  --data-dir FOLDER",
                "                  Search only this folder for Fashion-MNIST. (default:",
                "                  $CASEMATE_DATA, else the usual places)",
                "  --seed N        Seed of all random numbers. (default: 0)",
                "  --json          Print one JSON document instead of tables.",
                "",
                " reading options",
                " ------------------------------------------------------------------------------",
                "  How the images of --data are read.",
                "  ------------------------------------------------------------------------------",
                "  --labels FILE   The labels of a folder of pictures (.csv), or of an IDX file.",
                "                  (default: found beside the images)",
                "  --split NAME    The part of the data, such as test, where it has several.",
                "                  (default: none, or test)",
                "  --resize N [N]  Resize the images: to N pixels along the shorter side, or to",
                "                  this height and width. (default: as they are)",
                "  --crop N [N]    Then cut out a square of this side, or this height and width,",
                "                  at the centre. (default: all of them)",
                "  --interpolation {nearest,bilinear,bicubic,lanczos,box}",
                "                  How pixels are interpolated when images are resized. (default:",
                "                  bilinear)",
                "  --channels {1,3}",
                "                  Convert the images to grey (1) or colour (3). (default: the",
                "                  model's, or the images')",
                "",
                " loading options",
                " ------------------------------------------------------------------------------",
                "  How MODEL is loaded, and what its file does not say of it.",
                "  ------------------------------------------------------------------------------",
                "  --weights FILE            Weights for a network that code or a name builds:",
                "                            .safetensors, or a state dict, of which nothing is",
                "                            run. (default: the model has its own)",
                "  --trust-code              Load a MODEL that can run code while it is loaded.",
                "  --black-box               MODEL names a function that takes images and returns",
                "                            scores or predicted classes: it has no gradient.",
                "  --queries N               The largest number of images that a black box may be",
                "                            called with. (default: any number)",
                "  --mean X ...              Subtracted from the pixels before the network: one",
                "                            number, or one per channel. (default: none, or the",
                "                            file's)",
                "  --std X ...               Divides the pixels after that: one number, or one",
                "                            per channel. (default: none, or the file's)",
                "  --bounds LOW HIGH         Smallest and largest pixel that the network takes,",
                "                            such as 0 255; mean and std are in its units, eps is",
                "                            not. (default: 0 1, or the file's)",
                "  --output WHAT             What the network returns: logits, probabilities, or",
                "                            the index or key of the part that holds the logits.",
                "                            (default: found out)",
                "  --classes N               The number of classes, or their names in the order",
                "                            of the outputs. (default: found out)",
                "  --channels-last           The network takes height, width, channels.",
                "  --size H W                Height and width of the images that the network",
                "                            takes, or one number for both. (default: found out)",
                "",
                " machine options",
                " ------------------------------------------------------------------------------",
                "  The device and the number of threads.",
                "  ------------------------------------------------------------------------------",
                "  --device {auto,cpu,cuda}",
                "                  Where to compute; auto uses a GPU if there is one. (default:",
                "                  auto)",
                "  --threads N     Number of CPU threads. (default: PyTorch's choice)",
                "",
            ],
        }
    )


def test_errors_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = (
        "attak",
        "attack pdg model.safetensors",
        "attack pgd model.safetensors",
        "attack pgd",
        "evaluate model.safetensors --eps 0",
        "train --dataset digit",
        "train --recipe adversarial",
        "verify record.json model.safetensors",
        "study --only E99",
    )
    found = {}
    for command in commands:
        try:
            code = main(command.split())
        except SystemExit as left:
            code = left.code
        assert code == 2
        found[command] = " ".join(capsys.readouterr().err.replace("Loading PyTorch ...", "").split())
    assert found == snapshot(
        {
            "attak": "error: casemate 'attak': expected a command first, one of train, harden, attack, evaluate, verify, selftest, data, store, info, report, study; did you mean attack?",
            "attack pdg model.safetensors": "error: unknown attack 'pdg'; known: apgd, auto-attack, bim, carlini-wagner, corner-noise, deep-fool, ead, fab, fgsm, hop-skip-jump, lbfgs, mifgsm, pgd, spatial, square, targeted-apgd, targeted-fab, uniform-noise; did you mean pgd?",
            "attack pgd model.safetensors": "error: model.safetensors does not exist; expected a .safetensors file written by casemate, or package.module:function such as networks.mine:load",
            "attack pgd": "Required options ------------------------------------------------------------------------------ Missing from casemate attack pgd: MODEL A .safetensors file written by casemate, with its JSON file beside it; package.module:name or file.py:name, a function without arguments that returns a PyTorch module or a casemate.Classifier, or a network's class (with its --weights); a .onnx or .keras file; timm:NAME; a Hugging Face folder; a .pt2 program by torch.export. Your own code is imported and run, from the current folder and among the installed modules; a file that could run code is loaded only with --trust-code. (required) ------------------------------------------------------------------------------ For full helptext, run: casemate attack pgd --help",
            "evaluate model.safetensors --eps 0": "error: model.safetensors does not exist; expected a .safetensors file written by casemate, or package.module:function such as networks.mine:load",
            "train --dataset digit": "error: unknown data set 'digit'; known: fashion-mnist, digits; did you mean digits?",
            "train --recipe adversarial": "error: unknown recipe 'adversarial'; known: cross-entropy, adversarial-regularization, adversarial-training, at-temperature, distillation; did you mean adversarial-training?",
            "verify record.json model.safetensors": "error: record.json does not exist",
            "study --only E99": "error: unknown experiment 'E99'; known: E1, E1+, E2, E3, E4, E5, E6, E7, E8, E9, E10, E11, E12, E13; did you mean E9?",
        }
    )


class TwoHeads(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), images.flatten(2)


@pytest.mark.usefixtures("unchecked")
def test_errors_and_warnings_of_the_library() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model = Classifier(network, input_shape=(1, 4, 4), classes=("a", "b", "c"))
    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    bad = {
        "no network": lambda: FGSM(eps=0.1)(network.forward, images, labels),  # type: ignore[arg-type]
        "labels as fractions": lambda: FGSM(eps=0.1)(network, images, labels.float()),
        "several eps": lambda: FGSM(eps=[0.1, 0.2]),  # type: ignore[arg-type]
        "images alone": lambda: evaluate_clean(network, images),
        "a tuple": lambda: Classifier(TwoHeads())(images),
        "bytes as floats": lambda: FGSM(eps=0.1)(model, images * 255, labels),
        "labels from 1": lambda: FGSM(eps=0.1)(model, images, labels + 2),
        "an image without a batch": lambda: FGSM(eps=0.1)(model, images[0], labels),
        "an attack that has no target": lambda: DeepFool()(model, images, labels, targets=labels),
        "an unknown loss": lambda: FGSM(eps=0.1, loss="hinge")(model, images, labels),  # type: ignore[arg-type]
        "a negative eps": lambda: FGSM(eps=-1)(model, images, labels),
        "one logit": lambda: Classifier(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), input_shape=(1, 4, 4), classes=("a", "b", "c")
        )(images),
    }
    said = {}
    for name, call in bad.items():
        with pytest.raises(CasemateError) as caught:
            call()
        said[name] = str(caught.value)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", CasemateWarning)
        FGSM(eps=8)(model, images, labels)
    said["eps of 8 for 8/255"] = [str(each.message) for each in given]
    assert said == snapshot(
        {
            "no network": "the model is a method; expected an object of a torch.nn.Module that maps images within [0, 1] to logits, or a casemate.Classifier around it for other images: Classifier(network, mean=..., std=...) or bounds=.... Put the function into the forward of a torch.nn.Module",
            "labels as fractions": "labels of type torch.float32 and shape (2,); expected one whole number per image: labels.long(), if they are whole numbers",
            "several eps": "eps = [0.1, 0.2], which is 2 numbers; expected one eps per attack: for several, eps_curve or sweep_eps takes them as values, and evaluate as eps=",
            "images alone": "images without labels; give the true classes too, as the labels after the images or labels=",
            "a tuple": "the model returns a tuple of 2: (2, 16), (2, 1, 16) for 2 images; expected one logit for each class, of shape (2, classes). Say which part are the logits: Classifier(network, output=0 or output=1)",
            "bytes as floats": "pixels from 127.5 to 127.5, but the model's bounds are (0.0, 1.0). Scale the images (bytes by 1/255) and put any normalisation into the Classifier (mean=, std=), not into the images: Classifier(network, mean=..., std=...). If the pixels are meant to have this range, give it as bounds=",
            "labels from 1": "labels from 2 to 3; with 3 classes they run from 0 to 2",
            "an image without a batch": "images of shape (1, 4, 4); expected (n, 1, 4, 4): images[None] for a single image, images[:, None] for grey ones",
            "an attack that has no target": "DeepFool cannot be targeted; leave out the targets, or use PGD or APGD",
            "an unknown loss": "loss = 'hinge'; expected ce, torch-ce, prob-ce, margin or dlr",
            "a negative eps": "eps = -1; expected zero or more and finite, in units of pixels within [0, 1]",
            "one logit": "the model returns a tensor of shape (2, 1) for 2 images; expected one logit for each of its 3 classes, of shape (2, 3). One logit per image stands for two classes: name two, or classes=2",
            "eps of 8 for 8/255": [
                "eps 8 in linf is more than the 1 that any two images differ by (the pixels run from 0 to 1), so that every image may become any other. For 8 grey levels of 255 write 8/255."
            ],
        }
    )
