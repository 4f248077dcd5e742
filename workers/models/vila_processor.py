"""What VILA is shown: text cut at its images, pixels as SigLIP wants them.

From the public code (NVlabs/VILA): the pieces of text are tokenized one by one, only the first with its begin token,
and the images' features stand between them; images are stretched to the tower's square; a user's turn is Vicuna's for
the 7B and 13B models, with a line break behind each image. A directory with a chat_template.jinja of its own has its
say.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BatchFeature

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% for message in messages %}"
    "{{ ' USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


class VilaProcessor:
    """Has what the rest of the code asks of a processor of Transformers."""

    image_token = "<image>"

    def __init__(self, tokenizer: Any, image_processor: Any, chat_template: str, image_token: int, places: int) -> None:
        """image_token: the id that stands for a part of an image; places: how often it does."""
        self.tokenizer, self.image_processor, self.chat_template = tokenizer, image_processor, chat_template
        self.image_token_id = image_token
        self._image = [image_token] * places

    @classmethod
    def from_pretrained(cls, directory: Path, **kwargs: Any) -> "VilaProcessor":
        """Of a directory whose parts lie side by side. kwargs: of Transformers' from_pretrained."""
        config = AutoConfig.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        own = (Path(directory) / "chat_template.jinja").is_file()
        template = str(tokenizer.chat_template) if own else VICUNA
        images = AutoImageProcessor.from_pretrained(directory, **kwargs)
        return cls(tokenizer, images, template, config.image_token_index, config.image_seq_length)

    def save_pretrained(self, directory: Path) -> None:
        """Write the files of the tokenizer and of the image processor into their parts, the template beside these."""
        self.tokenizer.save_pretrained(directory / "llm")
        self.image_processor.save_pretrained(directory / "vision_tower")
        (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, `image_token` where it shows an image."""
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )

    def __call__(
        self, *, text: list[str], images: list[Any] | None = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """input_ids and attention_mask [1, L]; pixel_values [images, 3, size, size] where there are some.

        text: one, in which `image_token` stands once for each of `images`.
        """
        (whole,) = text
        first, *others = whole.split(self.image_token)
        tokens = list(self.tokenizer(first).input_ids)
        for piece in others:
            tokens += self._image + list(self.tokenizer(piece, add_special_tokens=False).input_ids)
        data = {"input_ids": [tokens], "attention_mask": [[1] * len(tokens)]}
        if images:
            data |= self.image_processor(images)
        return BatchFeature(data, tensor_type=return_tensors)
