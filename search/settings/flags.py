"""The command-line flags of a run, as one dataclass whose field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from search.terminal.command import flag_help


def _arg(metavar: str, *aliases: str, name: str | None = None) -> Any:
    """Configure a flag for tyro without a printed default; the help text states it where needed."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", aliases=aliases, name=name)


@flag_help
@dataclass(frozen=True, kw_only=True)
class Flags:
    """Find the best smaller model inside a big one."""

    budget: Annotated[str, _arg("SIZE")] = ""
    """Size of the model to be found: 4B, 350M, 800k, a plain number, or 60% of the teacher; of memory 8GB,
    or 64kB. Several, as in 6B,4B,2B, are a family, each cut from what the one before it chose."""
    model: Annotated[tuple[str, ...], _arg("DIR_OR_HUB_ID ...")] = ()
    """The teacher, also a GGUF file; of several sizes the nearest above the budget, of several checkpoints of
    one training the last, in its order. Default: the smallest known one of at least 1.25 times the budget."""
    data: Annotated[tuple[str, ...], _arg("TEXT[=SHARE] ...")] = ()
    """Texts and conversations to distil on: files, folders, or data sets of the hub; of several each has its
    share of the tokens, as in books.jsonl=0.3 chats.jsonl=0.7. Default: Python's standard library for the
    embedded teacher; for others HuggingFaceFW/fineweb-edu, with conversations of HuggingFaceTB/smoltalk if
    the teacher has a chat template."""
    learn: Literal["all", "answers"] = "all"
    """What of conversations is learnt: every token, or what the assistant writes alone."""
    block: Annotated[str | None, _arg("TOKENS")] = None
    """Length of the sequences that are read and trained on (4096). Default: by the teacher's size and the
    hours."""
    batch_tokens: Annotated[str | None, _arg("TOKENS")] = None
    """Tokens of a step of training. Default: by the teacher's size and the hours."""
    long_context: Annotated[str | None, _arg("TOKENS=SHARE")] = None
    """The last part of retraining on longer sequences, with the teacher beside the student: 32768=5%."""
    calibration_samples: Annotated[int | None, _arg("N")] = None
    """Sequences that importance is measured on. Default: by the teacher's size and the hours, at most
    1024."""
    plan: bool = False
    """Say what the run would do, and how long it would take, as ten seconds on this device tell."""
    hours: Annotated[float | None, _arg("HOURS")] = None
    """Hours of the whole run on this device, whose pace is measured: tokens, candidates and samples follow.
    Default: what suits the teacher's size, but at most 8."""
    search_tokens: Annotated[str | None, _arg("TOKENS")] = None
    """Tokens of all short distillations together (100M): rungs and candidates follow. Default: by the
    teacher's size and the hours."""
    retrain_tokens: Annotated[str | None, _arg("TOKENS")] = None
    """Tokens of retraining for each promoted model. Default: by the teacher's size and the hours."""
    promote: Annotated[int | None, _arg("N")] = None
    """How many candidates are retrained at the end. Default: by the teacher's size and the hours."""
    objectives: Annotated[str | None, _arg("NAME,NAME")] = None
    """What to make small: loss, latency, parameters, memory, flops, and tasks: TASK by the margin of its
    right answers, TASK:kl by the divergence from the teacher at them. Default: loss,latency, without what
    --max bounds."""
    max: Annotated[tuple[str, ...], _arg("NAME=AMOUNT ...")] = ()
    """The most that is allowed of latency, parameters, memory, flops: latency=20ms memory=8GB."""
    min: Annotated[tuple[str, ...], _arg("TASK=SCORE ...")] = ()
    """The least score on a task that the chosen model has after retraining: blimp=0.7."""
    try_: Annotated[tuple[str, ...], _arg("AXIS=SIZE,... ...", name="try")] = ()
    """Architectures to try as well: hidden=3072,mlp=9216. Other sizes stay the teacher's, as far as the
    budget allows."""
    keep: Annotated[tuple[str, ...], _arg("AXIS ...")] = ()
    """Axes that stay as they are (heads kv_heads), of hidden, mlp, heads, kv_heads, layers, experts,
    expert_mlp, shared_mlp, head_dim."""
    sizes: Annotated[tuple[str, ...], _arg("AXIS=SIZES ...")] = ()
    """Sizes that axes may have: hidden=2048..3584 layers=28,30,32 mlp=2.5x,3x,4x (multiples of hidden)."""
    multiples: Literal["auto", "deploy", "fine"] = "auto"
    """Other sizes: deploy for what serves models best (hidden and MLP in multiples of 256, heads of 8), or
    fine, in small steps. Default: deploy from a billion parameters on, where the budget allows it."""
    tolerance: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.02
    """How far a candidate may lie from the budget, as a share of it."""
    budget_of: Literal["total", "non-embedding", "active", "weights", "kv-cache"] = "total"
    """What the budget counts: parameters (all, without the vocabulary's, or those that work on a token), or
    bytes (of all weights, or of the KV cache for each token)."""
    budget_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, _arg("{float32,bfloat16,float16}")
    ] = None
    """Precision in which a budget of bytes is counted. Default: the teacher's."""
    preset: Annotated[Path | None, _arg("FILE.toml")] = None
    """Flags from a file, such as those under studies/; flags on the command line win."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Folder of the runs."""
    study_name: Annotated[str | None, _arg("NAME")] = None
    """Name of the run. Default: teacher and budget."""
    json: bool = False
    """Print the result, or the plan, as one line of JSON."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Say only the result and errors."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Say more."""
    device: Annotated[str | None, _arg("NAME")] = None
    """cpu, cuda, cuda:1, mps. Default: the best there is."""
    device_memory: Annotated[str | None, _arg("SIZE")] = None
    """The most of the device's memory that the run may take (80GB). With --plan, the device may be a CUDA
    card of that size that is not here."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, _arg("{float32,bfloat16}")] = None
    """Precision of the arithmetic of training. Default: by device and size."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of everything random."""
    storage: Annotated[str | None, _arg("URL")] = None
    """Optuna storage: a path that ends in .journal, postgresql://USER@HOST/NAME or another SQLAlchemy URL, or
    grpc://HOST:PORT. Default: $OPTUNA_STORAGE, or study.journal in the run."""
    sampler: Literal["tpe", "gp", "nsga2", "qmc", "random"] = "nsga2"
    """How candidates are chosen: by a model of Optuna's (tpe, gp), by evolution (nsga2), spread evenly over
    all architectures (qmc), or by lot."""
    search: Literal["rungs", "nested"] = "rungs"
    """How candidates are trained: each alone, at rungs, or all as slices of shared weights, from which those
    that are retrained go on."""
    trials: Annotated[int | None, _arg("N")] = None
    """Architectures to score straight after pruning. Default: twice those that are distilled."""
    rung_tokens: Annotated[tuple[str, ...], _arg("TOKENS ...")] = ()
    """Tokens of short distillation, one number a rung (64k 256k). Default: by the teacher's size and the
    hours, each rung four times the one before."""
    retrain_baselines: Annotated[bool | None, _arg("{True,False}")] = None
    """Retrain the hand-made baselines and random weights too. Default: if the teacher is small."""
    benchmarks: Annotated[tuple[str, ...], _arg("NAME ...")] = ()
    """Tasks that teacher and retrained models are scored by at the end: of lm-evaluation-harness, in YAML of
    its kind, or files of examples (.jsonl). --objectives may name them too."""
    task_samples: Annotated[int, _arg("N")] = 500
    """Examples of a task that candidates are scored by, the same ones at every rung."""
    basis: Literal["auto", "coordinate", "principal", "weighted"] = "auto"
    """Which directions of hidden students keep: the best coordinates, or those of the largest variance, plain
    or weighted by how much they are read. Default: the first or the last of the three, as a short
    distillation of students tells, if the hours allow."""
    width_by: Literal["activations", "taylor", "magnitude", "random"] = "activations"
    """What hidden, neurons, heads and experts are scored by."""
    aggregation: Annotated[str, tyro.conf.arg(metavar="BATCH,SEQUENCE")] = "l2,l2"
    """How activations become one score: mean, l2 or var along the batch, and along the sequence."""
    depth_by: Annotated[str, tyro.conf.arg(metavar="NAME")] = "perplexity"
    """What layers are scored by: perplexity, divergence, influence (each also greedy-...), block-influence or
    block-perplexity (layers in a row), random, or a task of lm-evaluation-harness."""
    rounds: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Rounds of scoring and pruning from which the ranking is made."""
    rounds_order: Literal["together", "width-depth", "depth-width"] = "together"
    """Whether a round scores and prunes widths and layers together or in turn."""
    repair: Annotated[
        tuple[Literal["none", "least-squares", "norm-scale", "head-residual"], ...], _arg("NAME ...")
    ] = ()
    """Repair students after cutting: least-squares, norm-scale, head-residual, or none. Default:
    least-squares, where the moments that it needs take at most a quarter of the free disk."""
    loss: Annotated[str, tyro.conf.arg(metavar="TERMS")] = "forward-kl"
    """What distillation lowers: forward-kl, reverse-kl, jensen-shannon, mse, cosine, cross-entropy, or a sum
    such as 0.5*forward-kl+0.5*cross-entropy."""
    temperature: Annotated[float, tyro.conf.arg(metavar="TAU")] = 1.0
    """That the logits of teacher and student are divided by in the divergences."""
    states: Annotated[
        tuple[Literal["auto", "none", "late", "embedding", "attention"], ...], _arg("NAME ...")
    ] = ("auto",)
    """Intermediate states that are compared besides: late (a late block), embedding, attention, or none.
    Default: none."""
    targets: Literal["auto", "hidden", "sampled", "top-k", "live"] = "auto"
    """How the teacher's answers are kept: its final states, tokens drawn from its predictions, the likeliest
    tokens, or not at all. Default: by vocabulary and free disk."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate: a cosine, or warm-up, stable, decay, where each rung goes on from the one below."""
    rate: Annotated[str, tyro.conf.arg(metavar="auto|rule|RATE")] = "rule"
    """Learning rate at its peak: rule takes it from the student's size; auto finds it by short trainings of a
    student in each basis, if they take little of the run; or a number, for every training."""
    optimizer: Literal["auto", "adamw", "adamw-8bit"] = "auto"
    """What training takes its steps by: AdamW, at 16 bytes of memory a parameter, or AdamW with weights in
    bfloat16 and moments in 8 bits, at 6. Default: the first."""
    taught_by: Literal["original", "previous"] = "original"
    """Whose targets a family's later models learn: the teacher's that it began with, or those of the model
    that they are cut from."""
    teacher_tokens: Annotated[str | None, _arg("TOKENS")] = None
    """What the teacher of a family was trained on, for the table of what the family cost. Default: known of
    the teachers that a budget picks."""
    revision: Annotated[tuple[str, ...], _arg("NAME ...")] = ()
    """Branch, tag or commit of the teacher on the hub; of several, in the order of its training, the last."""
    correct_teacher: Annotated[str | None, _arg("TOKENS")] = None
    """Train the teacher on so many tokens of the text before it is used. Default: none."""
    keep_towers: bool = False
    """Write each retrained model a second time as a whole, with the parts of the teacher that read pictures
    or sound: they stay as they are, but for the projectors' outputs."""
    trust_remote_code: bool = False
    """Run code that comes with a model from the hub."""
