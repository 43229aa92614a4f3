"""A run whose teacher is read layer by layer: what it can do, and where the teacher's files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from evaluators.importance.from_disk import check_basis_from_disk, check_method_from_disk
from evaluators.teacher import Teacher
from evaluators.teacher.layer_by_layer import TeacherFiles
from search.settings.methods import method_of
from search.settings.resolved import Resolved
from space.axes.axis_map import AxisMap
from space.input_error import InputError


def teacher_files(teacher: Teacher, axis_map: AxisMap, trust_remote_code: bool) -> TeacherFiles:
    """Return the files of a teacher, to be read layer by layer in the dtype of the model."""
    return TeacherFiles(
        teacher.directory,
        axis_map,
        teacher.residence.device,
        teacher.model.dtype,
        trust_remote_code=trust_remote_code,
    )


def final_states_of(
    files: TeacherFiles, precision: Callable[[], AbstractContextManager[object]]
) -> Callable[[Sequence[Tensor]], Iterator[Tensor]]:
    """Return a function from (B, T) batches of token ids to their final states (B, T, D).

    Args:
        files: the teacher's.
        precision: the context in which it runs, such as ``Accelerator.autocast``.
    """

    def final(batches: Sequence[Tensor]) -> Iterator[Tensor]:
        with files.opened() as layers, precision():
            yield from layers.final(batches)

    return final


def check_layer_by_layer(resolved: Resolved) -> None:
    """Check, before any work, that the run needs no more of its teacher than one layer at a time.

    Raises:
        InputError: it does; the message says for what.
    """
    if not resolved.placement.layer_by_layer:
        return
    config = resolved.config
    check_method_from_disk(method_of(config))
    check_basis_from_disk(resolved.axis_map, [resolved.basis])
    needs = {
        "--teacher-correction trains it": config.teacher_correction > 0,
        "--rounds prunes it in steps": config.rounds_order != "together",
        "--states compares its layers": bool(config.states),
        "--targets live runs it beside each student": config.targets == "live",
        "latency is compared with its own": config.measures_latency,
        "tasks score it (--benchmarks, --objectives)": bool(config.benchmarks),
    }
    if whole := [what for what, needed in needs.items() if needed]:
        raise InputError(
            "A teacher that does not fit into memory is read layer by layer, and nothing may need it whole",
            "; ".join(whole),
            "Leave that out, or take a device on which the whole teacher fits",
        )
