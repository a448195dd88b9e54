"""The layout of the page with Gradio: its controls, and which of them change which part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base

from casemate.errors import CasemateError
from casemate.play.answers import MASKED, NO_STUDY, Answers, Chosen
from casemate.play.explore import ATTACKS, MOST_STEPS, NORMS, AttackChoice
from casemate.play.views import notice_view

STYLE = Path(__file__).parent / "templates" / "style.css"
_EPS = {"Linf": (0.05, 0.5), "L2": (1.0, 5.0)}
"""First and largest eps of the slider by norm, for pixels in [0, 1]."""
_FIRST = AttackChoice()
_SAMPLES = 8
"""Images of each class that are offered, at most."""
_DELETED = (60, 300)
"""How often uploaded files are deleted, and how old they are then at least, in seconds."""
_AT_ONCE: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""Of events that are answered while a control is moved."""
_MASKING = """\
An attack follows the gradient of the loss. A network that is very sure of itself has probabilities that float32 rounds
to 0 and 1: the loss computed from them is flat, its gradient is zero, and the attack fails, though the network is as
easy to fool as before. Multiplying the logits makes any network sure of itself (defensive distillation does the same),
and changes none of its predictions. Computed from the logits, the same loss has a gradient again."""


def theme() -> Base:
    """Gradio's plain theme with the fonts of the visitor's system, so that nothing is loaded from elsewhere."""
    fonts = ["system-ui", "sans-serif"]
    return Base(font=fonts, font_mono=["ui-monospace", "monospace"], primary_hue="blue", neutral_hue="slate")


def build(answers: Answers) -> gr.Blocks:
    """The page for the models and images that `answers` has."""
    subjects = answers.subjects
    names, classes, width = list(subjects.models), list(subjects.classes), subjects.width

    def slider(norm: str) -> gr.Slider:
        """The eps of a norm. Each norm has its own: if one slider changed its range, Gradio would refuse what the page
        sends between the change of the norm and that of the slider.
        """
        (first, largest), place = _EPS[norm], "eps" if norm == "Linf" else f"eps-{norm.lower()}"
        shown = {"label": "eps", "elem_id": place, "visible": norm == "Linf"}
        return gr.Slider(0, largest * width, first * width, step=width / 200, **shown)

    many = min(_SAMPLES, max(len(subjects.of_class(label)) for label in range(len(classes))))
    with gr.Blocks(
        title="casemate playground", analytics_enabled=False, fill_width=True, delete_cache=_DELETED
    ) as page:
        gr.Markdown("# casemate playground\nAttack an image, and see what holds. Everything runs on this machine.")
        chosen = gr.State(answers.sample(classes[0], 1))
        replacements = gr.Number(0, visible="hidden")  # unqueued events do not report that a state changed
        with gr.Row():
            model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
            kind = gr.Dropdown(classes, value=classes[0], label="Class of the image", elem_id="kind")
            number = gr.Slider(1, many, 1, step=1, label="Which image of the class", elem_id="number")
            upload = gr.UploadButton(
                "Upload a picture of this class", file_types=["image"], type="binary", elem_id="upload"
            )
            exchanged = gr.Checkbox(False, label="Exchange black and white", elem_id="exchanged")
        about = gr.Markdown(answers.about(names[0]), elem_id="about")
        note = gr.HTML(elem_id="note")
        with gr.Tab("Attack an image"):
            with gr.Row():
                attack = gr.Dropdown(list(ATTACKS), value=_FIRST.attack, label="Attack", elem_id="attack")
                norm = gr.Radio(list(NORMS), value="Linf", label="Norm", elem_id="norm")
                radii = {each: slider(each) for each in NORMS}
                steps = gr.Slider(1, MOST_STEPS, _FIRST.steps, step=1, label="Iterations (FGSM: 1)", elem_id="steps")
            result, smallest = gr.HTML(elem_id="result"), gr.HTML(elem_id="smallest")
        with gr.Tab("Why gradients vanish"):
            gr.Markdown(_MASKING)
            with gr.Row():
                factor = gr.Slider(1, 100, 10, step=1, label="Logits multiplied by", elem_id="factor")
                within = gr.Slider(
                    0, 0.5 * width, MASKED.eps * width, step=width / 200, label="eps (Linf)", elem_id="within"
                )
            masked = gr.HTML(elem_id="masked")
        with gr.Tab("The study's curves"):
            titles = [] if answers.study is None else [each.title for each in answers.study.figures.values()]
            scale = "" if answers.study is None else f"Scale {answers.study.scale}, from {answers.study.folder}."
            gr.Markdown(scale or NO_STUDY)
            figure = gr.Dropdown(titles, label="Figure", elem_id="figure", visible=bool(titles))
            curves = gr.HTML(answers.figure(titles[0]) if titles else "", elem_id="curves")

        def replaced(kind: str, number: float, raw: bytes | None, earlier: float) -> tuple[Any, str, float, None]:
            """The image chosen last, a note, the number of replacements, and no upload: it is done with."""
            if raw is None:
                return answers.sample(kind, int(number)), "", earlier + 1, None
            try:
                found, done = answers.upload(raw, kind)
            except CasemateError as error:
                return gr.skip(), notice_view(str(error)), earlier, None
            return found, f"<p>{done}</p>", earlier + 1, None

        def shown(norm: str) -> list[Any]:
            return [gr.Slider(visible=each == norm) for each in radii]

        def attacked(name: str, image: Chosen, negative: bool, *settings: Any) -> str:
            attack, norm, steps, *eps = settings
            radius = dict(zip(radii, eps, strict=True))[norm]
            return answers.attacked(name, answers.shown(image, negative=negative), attack, norm, radius, steps)

        def smallest_of(image: Chosen, negative: bool, norm: str) -> str:
            return answers.smallest(answers.shown(image, negative=negative), norm)

        def masked_of(name: str, image: Chosen, negative: bool, factor: float, eps: float) -> str:
            return answers.masked(name, answers.shown(image, negative=negative), factor, eps)

        def on(triggers: list[Any], function: Callable[..., Any], inputs: list[Any], outputs: Any) -> None:
            # One event for each part of the page, and the last change answered last: a late answer to an earlier
            # change never replaces a newer one.
            gr.on(triggers, function, inputs, outputs, trigger_mode="always_last", **_AT_ONCE)

        def changed(inputs: list[Any]) -> list[Any]:
            watched = [replacements if each is chosen else each for each in inputs]
            return [page.load, *(each.change for each in watched)]

        settings = [model, chosen, exchanged, attack, norm, steps, *radii.values()]
        fooling, masking = [chosen, exchanged, norm], [model, chosen, exchanged, factor, within]
        image = [chosen, note, replacements, upload]
        on([model.change], answers.about, [model], about)
        on([figure.change], answers.figure, [figure], curves)
        on([norm.change], shown, [norm], list(radii.values()))
        on([kind.change, number.change, upload.upload], replaced, [kind, number, upload, replacements], image)
        on(changed(settings), attacked, settings, result)
        on(changed(fooling), smallest_of, fooling, smallest)
        on(changed(masking), masked_of, masking, masked)
    return page
