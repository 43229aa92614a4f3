"""Train the embedded teacher: a small Llama on the standard library's source.

    python -m studies.demo.train --out studies/demo/teacher

Everything but the validation split is read (see ``evaluators.corpus.blocks``), so the modules of the
validation split are unseen. Matrices inside the blocks are trained by Muon, all else by AdamW, with
a constant rate after the warm-up and a linear fall to zero over the last part. A checkpoint is
written every few minutes; the same command goes on from it.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluators.corpus.blocks import Split, pack, split_of
from evaluators.corpus.documents import standard_library

SEPARATOR = "<|endoftext|>"
LOG_EVERY = 100
CONFIG = LlamaConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=0,
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the embedded teacher is trained."""

    out: Path
    """Where the model goes."""
    tokens: int = 11_500_000
    """Tokens to train on, passes over the text included."""
    block: int = 256
    """Tokens a block."""
    batch: int = 16
    """Blocks a step."""
    muon_rate: float = 0.02
    """Peak learning rate of the matrices inside the blocks (Muon); 0 trains them by AdamW too."""
    adamw_rate: float = 3e-3
    """Peak learning rate of everything else (AdamW)."""
    fall: float = 0.4
    """Share of the steps over which the rate falls to zero."""
    seed: int = 0
    """Of the initial weights and the order of the blocks."""
    threads: int = 1
    """Of PyTorch."""
    save_seconds: float = 300.0
    """Between checkpoints."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of ``CONFIG.vocab_size`` tokens for the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG.vocab_size,
            special_tokens=[SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        model_max_length=CONFIG.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def optimizers(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and ".layers." in name and training.muon_rate > 0
        (inner if matrix else outer).append(parameter)
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(outer, lr=training.adamw_rate, betas=(0.9, 0.95), weight_decay=0.01)
    ]
    if inner:
        chosen.append(torch.optim.Muon(inner, lr=training.muon_rate, weight_decay=0.01))
    return chosen


def rate_at(step: int, steps: int, fall: float) -> float:
    """Share of the peak learning rate at a step: 100 steps up, level, then linearly to zero."""
    return min(1.0, (step + 1) / 100, (steps - step) / max(1.0, fall * steps))


def order(blocks: int, step: int, batch: int, seed: int) -> Tensor:
    """(batch,) indices of the blocks of a step: a new permutation every pass over the text."""
    passes, start = divmod(step * batch, blocks // batch * batch)
    generator = torch.Generator().manual_seed(seed * 1000 + passes)
    return torch.randperm(blocks, generator=generator)[start : start + batch]


class Run:
    """A training of the teacher: model, optimisers, and how far they have come."""

    def __init__(self, training: Training, blocks: Tensor) -> None:
        self.training, self.blocks = training, blocks
        self.model = LlamaForCausalLM(CONFIG)
        # On a CPU plain attention, compiled, takes half the time of the fused kernel's backward pass.
        self.model.set_attn_implementation("eager")
        self.compiled = torch.compile(self.model, dynamic=False)
        self.optimizers = optimizers(self.model, training)
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.steps = training.tokens // (training.batch * training.block)
        self.checkpoint = training.out / "checkpoint.pt"
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            self._resume()

    def learn(self) -> float:
        """One step; its loss in nats per token.

        Raises:
            RuntimeError: the loss is no number.
        """
        training = self.training
        numbers = order(len(self.blocks), self.step, training.batch, training.seed)
        batch = self.blocks[numbers].long()
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate_at(self.step, self.steps, training.fall)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss: Tensor = self.compiled(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss at step {self.step} is {loss.item()}")
        self.step += 1
        return loss.item()

    def save(self, seconds: float) -> None:
        """Write a checkpoint; the one before stays until this one is whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": seconds,
        }
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def train(training: Training) -> None:
    """Run the training; see the module's docstring."""
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    training.out.mkdir(parents=True, exist_ok=True)
    texts = [d.text for d in standard_library() if split_of(d.name) is not Split.VALIDATION]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(training.out)
    run = Run(training, pack(texts, tokenizer, training.block))
    began, saved_at = time.monotonic() - run.seconds, time.monotonic()
    losses: list[float] = []
    with (training.out / "train.jsonl").open("a") as log:
        while run.step < run.steps:
            losses.append(run.learn())
            seconds = time.monotonic() - began
            if run.step % LOG_EVERY == 0 or run.step == run.steps:
                log.write(json.dumps(_row(run, losses, seconds)) + "\n")
                log.flush()
                losses = []
            if time.monotonic() - saved_at > training.save_seconds:
                run.save(seconds)
                saved_at = time.monotonic()
    run.model.save_pretrained(training.out)
    run.checkpoint.unlink(missing_ok=True)


def _row(run: Run, losses: list[float], seconds: float) -> dict[str, float]:
    return {
        "step": run.step,
        "tokens": run.step * run.training.batch * run.training.block,
        "loss": round(sum(losses) / len(losses), 4),
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    train(tyro.cli(Training))
