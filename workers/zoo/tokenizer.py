"""Byte-level BPE for the mini models: no unknown token, no token added unless asked for."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1_024
# One token begins, ends and pads: it closes every training document, so it stands before every next one as well.
END_OF_TEXT = "<|endoftext|>"
IMAGE = "<image>"  # stands for one patch; the first token after the vocabulary, for a model that sees


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Byte-pair encoding of `texts`; END_OF_TEXT is token 0 and counts in `vocab_size` (Sennrich et al. 2016)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def fast_tokenizer(tokenizer: Tokenizer, max_length: int, *, sees: bool = False) -> Any:
    """As transformers has it; save_pretrained writes what AutoTokenizer reads. sees: IMAGE is one more token."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **({"extra_special_tokens": {"image_token": IMAGE}} if sees else {}),
    )
