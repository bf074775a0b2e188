"""The page of a playground, made with Gradio: what is on it, and what its buttons do."""

from __future__ import annotations

import functools
import html
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it tells nobody that it runs

import gradio as gr

from erasediff_lora.errors import UserError
from erasediff_lora.playground.facts import Facts
from erasediff_lora.playground.wish import MOST_STEPS, STRONGEST, Wish, prompts_in
from erasediff_lora.storage.examples import add_example

if TYPE_CHECKING:
    from PIL import Image

    from erasediff_lora.playground.studio import Studio

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
CACHE = (600, 3600)
"""Every so many seconds, pictures of so many are deleted from Gradio's folder."""
SIDE = 384
STRENGTHS = f"0 leaves it out, 1 is as it was trained, {STRONGEST:g} is the most."


def said(function: F) -> F:
    """Show what goes wrong as a message on the page that stays until it is closed."""

    @functools.wraps(function)
    def answer(*given: Any) -> Any:
        try:
            return function(*given)
        except UserError as error:
            text = "; ".join(str(problem) for problem in error.problems)
        except Exception as error:
            log.exception("the playground could not do what it was asked for")
            text = f"{type(error).__name__}: {error}"
        raise gr.Error(
            html.escape(text, quote=False), duration=None, title="This cannot be done", print_exception=False
        )

    return answer  # type: ignore[return-value]


class Desk:
    """What the buttons do.

    Args:
        studio: Draws.
        facts: Of the run.
    """

    def __init__(self, studio: Studio, facts: Facts) -> None:
        self.studio, self.facts = studio, facts

    def draw(self, prompt: str, seed: float, steps: float, embedding: str | None, *strengths: float) -> Any:
        """The pair, and how long it took."""
        pair = self.studio.draw(_wish(prompt, seed, steps, embedding, *strengths))
        return _sent(pair.base), _sent(pair.erased), f"Drawn in {pair.seconds:.1f} s."

    def judge(self, prompt: str, seed: float, steps: float, embedding: str | None, *strengths: float) -> str:
        """What the run's judge sees in the pair."""
        pair = self.studio.draw(_wish(prompt, seed, steps, embedding, *strengths))
        base, erased = self.studio.judge([pair.base, pair.erased])
        return f"{self.facts.judge} sees: without the adapter **{_named(base)}**, with it **{_named(erased)}**."

    def attack(self, prompts: str, seed: float, steps: float, embedding: str | None, *strengths: float) -> Any:
        """A pair for each line, and what the judge sees there."""
        shown, rows = [], []
        for prompt in prompts_in(str(prompts or "")):
            pair = self.studio.draw(_wish(prompt, seed, steps, embedding, *strengths))
            shown += [(_sent(pair.base), f"without: {prompt}"), (_sent(pair.erased), f"with: {prompt}")]
            seen = self.studio.judge([pair.base, pair.erased]) if self.facts.judge else [["–"], ["–"]]
            rows.append([prompt, *map(_named, seen)])
        return shown, rows

    def save(self, prompt: str, seed: float) -> str:
        """Draw the pair as the recipe would, and keep it."""
        wish = self.studio.whole(prompt, _whole(seed))
        pair = self.studio.draw(wish)
        facts = {"kind": self.facts.kind_of(prompt), "prompt": prompt, "seed": wish.seed}
        count = add_example(self.facts.run, facts, {"base": pair.base, "erased": pair.erased})
        how = f"with all {wish.steps} steps and {self.facts.adapters[0]} alone, at strength 1"
        return f"Saved, drawn {how}. `erasediff-lora publish` shows {count} of yours."


def _wish(prompt: str, seed: float, steps: float, embedding: str | None, *strengths: float) -> Wish:
    """What the fields of the page say."""
    file = Path(embedding) if embedding else None
    return Wish(str(prompt or ""), _whole(seed), _whole(steps), tuple(float(s or 0) for s in strengths), file)


def _slider(low: float, high: float, value: float, **options: Any) -> gr.Slider:
    """A slider whose value is refused with the rest of the wish: Gradio's own refusal names no field."""
    slider = gr.Slider(low, high, value, **options)
    slider.preprocess = lambda payload: payload
    return slider


def page(studio: Studio, facts: Facts) -> gr.Blocks:
    """The page.

    Args:
        studio: Draws.
        facts: Of the run.
    """
    desk = Desk(studio, facts)
    with gr.Blocks(title=facts.title, analytics_enabled=False, delete_cache=CACHE) as blocks:
        gr.Markdown(facts.headline())
        with gr.Row():
            options = {"lines": 2, "max_lines": 4, "scale": 4, "min_width": 300}
            prompt = gr.Textbox(facts.prompts[0], label="Prompt", elem_id="prompt", **options)
            seed = gr.Number(0, label="Seed", scale=1, elem_id="seed")
        strengths = [
            _slider(0, STRONGEST, 1 if number == 0 else 0, step=0.05, label=f"Strength of {name}", info=STRENGTHS)
            for number, name in enumerate(facts.adapters)
        ]
        with gr.Row():
            steps = _slider(1, MOST_STEPS, facts.steps, step=1, label="Steps (fewer for a quick look)", scale=3)
            button = gr.Button("Draw", variant="primary", scale=1, elem_id="draw")
        with gr.Row():
            base = _picture("Without the adapter")
            erased = _picture("With the adapter")
        done = gr.Markdown(elem_id="done")
        with gr.Row():
            judge = gr.Button("Judge this", elem_id="judge")
            save = gr.Button("Save as an example for the card", elem_id="save")
        answer = gr.Markdown(elem_id="answer")
        with gr.Accordion("A found embedding", open=False):
            gr.Markdown(
                "A safetensors file of token embeddings (textual inversion); in the prompt, `<*>` stands for it."
            )
            embedding = gr.File(label="Embedding", file_types=[".safetensors"], type="filepath", elem_id="embedding")
        with gr.Accordion("Attack prompts", open=False):
            prompts = gr.Textbox(label="One a line", lines=4, max_lines=8, elem_id="prompts")
            attack = gr.Button("Try them", elem_id="attack")
            gallery = gr.Gallery(
                label="Without and with the adapter", columns=4, object_fit="contain", format="png", height="auto"
            )
            table = gr.Dataframe(headers=["prompt", "without", "with"], label="What the judge sees", interactive=False)
        gr.Examples([[text] for text in facts.prompts], [prompt], label="Prompts of the recipe")
        fields = [prompt, seed, steps, embedding, *strengths]
        _press(button, desk.draw, fields, [base, erased, done], "draw")
        prompt.submit(said(desk.draw), fields, [base, erased, done], api_visibility="private", concurrency_id="studio")
        _press(judge, desk.judge, fields, [answer], "judge")
        _press(save, desk.save, fields[:2], [answer], "save")
        _press(attack, desk.attack, [prompts, *fields[1:]], [gallery, table], "attack")
    return blocks.queue(default_concurrency_limit=4, max_size=64)


def _press(button: gr.Button, function: Callable[..., Any], given: list[Any], shown: list[Any], name: str) -> None:
    button.click(said(function), given, shown, api_name=name, concurrency_id="studio", concurrency_limit=1)


def _picture(label: str) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=label,
        format="png",
        height=SIDE,
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def _whole(value: float | None) -> Any:
    """A whole number as such; what is none is refused with the rest of the wish."""
    return int(value) if value is not None and float(value).is_integer() else value


def _sent(image: Image.Image) -> Image.Image:
    """A picture as large as its place (those of the embedded model are stamps), and marked as nobody else's.

    Gradio names files by what is in them and writes them anew each time: who is sent the same picture as somebody else
    at that moment would read half of it.
    """
    factor = max(1.0, SIDE / max(image.size))
    sent = image.resize((round(image.width * factor), round(image.height * factor))) if factor > 1 else image.copy()
    sent.info["sent"] = uuid.uuid4().hex
    return sent


def _named(seen: list[str]) -> str:
    return ", ".join(seen) or "nothing that it knows"
