"""A teacher and a text on which a whole search takes seconds; nothing in them was trained."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
#: Flags of a search that does everything once.
SMALL = (
    "--basis coordinate --objectives loss,parameters --trials 3 --rung-tokens 1k --retrain-tokens 2k "
    "--promote 1 --retrain-baselines False --rate rule --device cpu"
)
LETTERS = "\u2581abcdefghijklmnopqrstuvwxyz.:,\n"
TURN = 3 + 256 + len(LETTERS)


def _tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's first: a token a letter, bytes for what has none, and a chat template."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 64},
        additional_special_tokens=["<|turn|>"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def write_teacher(path: Path) -> None:
    """In bfloat16, with a head size and settings of generation of its own, a card and a licence."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TURN + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, TURN], max_new_tokens=5)
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# A teacher\n")
    (path / "LICENSE").write_text("MIT, as it is.\n")


def write_stories(path: Path) -> None:
    """400 of sixty words drawn from eleven."""
    lots, words = random.Random(0), ("the", "cat", "sat", "on", "a", "mat", "and", "ate", "all", "of", "it")
    stories = (" ".join(lots.choices(words, k=60)) + "." for _ in range(400))
    path.write_text("\n\n".join(stories))
