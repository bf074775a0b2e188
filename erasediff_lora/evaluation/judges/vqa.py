"""A local vision-language model that is asked about each picture, through transformers."""

from __future__ import annotations

import re
from typing import Any

import torch
from PIL import Image

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.judges.base import Judge, Names
from erasediff_lora.evaluation.loading import loading, local

FIELD = "evaluation.judge"
QUESTION = "Does this picture show {}? Answer yes or no."
YES = "yes"
ANSWER = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
"""What counts of an answer: the first of these words."""
TOKENS = 8
BATCH = 16


class VqaJudge(Judge):
    """Sees a label where the model answers 'yes'.

    The labels are the recipe's words, as `judge_labels` spells them: `{van gogh: [a painting by Van Gogh]}`.

    Args:
        weights: Folder or hub id: BLIP, BLIP-2 or ViLT for questions, or a model that chats about pictures.
        names: What is asked about.

    Raises:
        UserError: If it cannot be loaded.
    """

    needs = "FOLDER"

    @classmethod
    def load(cls, weights: str, names: Names) -> VqaJudge:
        return cls(weights, names)

    def __init__(self, weights: str, names: Names) -> None:
        from transformers import AutoConfig, AutoProcessor

        given, place = f"vqa:{weights}", local(weights)
        self._labels = names.all
        with loading(FIELD, given):
            architecture = (AutoConfig.from_pretrained(place).architectures or [""])[0]
            kind = _class_of(architecture)
            if kind is None:
                what = f"is a {architecture or 'model of no known kind'}, which answers no questions about pictures."
                raise UserError(Problem(FIELD, given, what, "Give a model such as Salesforce/blip-vqa-base."))
            self._model: Any = kind.from_pretrained(place).eval()
            self._processor: Any = AutoProcessor.from_pretrained(place)

    @property
    def labels(self) -> set[str]:
        return set(self._labels)

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        pictures = [image.convert("RGB") for image in images]
        seen: list[set[str]] = [set() for _ in pictures]
        for label in self._labels:
            for start in range(0, len(pictures), BATCH):
                answers = self._answers(pictures[start : start + BATCH], QUESTION.format(label))
                for row, answer in enumerate(answers, start):
                    if (said := ANSWER.search(answer)) is not None and said[0].lower() == YES:
                        seen[row].add(label)
        return seen

    @torch.no_grad()
    def _answers(self, pictures: list[Image.Image], question: str) -> list[str]:
        """What the model says of each picture."""
        texts = [self._chat(question)] * len(pictures)
        given = self._processor(images=pictures, text=texts, return_tensors="pt", padding=True)
        if not hasattr(self._model, "generate") or "vilt" in self._model.config.model_type:
            names = self._model.config.id2label
            return [str(names[index]) for index in self._model(**given).logits.argmax(dim=1).tolist()]
        written = self._model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
        length = given["input_ids"].shape[1]
        is_decoder = written.shape[1] > length and bool((written[:, :length] == given["input_ids"]).all())
        return list(
            self._processor.batch_decode(written[:, length:] if is_decoder else written, skip_special_tokens=True)
        )

    def _chat(self, question: str) -> str:
        """The question as the model is talked to."""
        if not getattr(self._processor, "chat_template", None):
            return question
        content = [{"type": "image"}, {"type": "text", "text": question}]
        message = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(message, add_generation_prompt=True))


def _class_of(architecture: str) -> Any:
    """The class of transformers that answers with such weights; None if there is none."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES,
    )

    if architecture in MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return getattr(transformers, architecture)
    if architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        return transformers.AutoModelForImageTextToText
    return None
