"""How a mixture sends tokens to its experts, as far as that bounds how few experts may be left."""

from __future__ import annotations

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.axes.fields import TOP_K, named, read
from space.axes.layout import Each, Layout, Together
from space.input_error import InputError


def experts_per_token(axis_map: AxisMap) -> int:
    """How many of the routed experts work on a token.

    Raises:
        InputError: the config does not say.
    """
    field = named(axis_map.config, TOP_K)
    if field is None:
        raise InputError(
            "The config of a mixture has to say how many experts a token is sent to",
            f"in {axis_map.config.model_type!r}, no known field does",
            "Choose another teacher with --model",
        )
    return int(read(axis_map.config, field))


def expert_groups(axis_map: AxisMap) -> int:
    """In how many groups experts are routed; each keeps an equal share of its experts."""
    groups = (_groups(layout) for tensor in axis_map.tensors for layout in tensor.dimensions)
    return next((found for found in groups if found), 1)


def _groups(layout: Layout) -> int:
    match layout:
        case Each(None, units, Each(Axis.EXPERTS, _, _)):
            return units
        case Each(_, _, inner):
            return _groups(inner)
        case Together(parts):
            return max(map(_groups, parts))
    return 0


def fewest_experts(axis_map: AxisMap) -> int:
    """A token is sent to so many; in groups, those that it may choose from have to hold as many.

    Groups are chosen by their two best experts, so that each has to have two.
    """
    chosen, groups = experts_per_token(axis_map), expert_groups(axis_map)
    if groups == 1:
        return chosen
    open_groups = read(axis_map.config, "topk_group") or groups
    return groups * max(2, -(-chosen // open_groups))
