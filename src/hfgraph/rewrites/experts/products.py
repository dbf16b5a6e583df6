"""A product of rows, each with the matrix of its own expert: by one operator on rows sorted by expert, or by `bmm` on matrices gathered for each row."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
from torch._ops import OpOverload
from torch.fx import Node

from hfgraph.graph.recogniser import View
from hfgraph.graph.unify import label
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.rewrites.experts.reading import Unlike, behind_cast, index_of, unturned

aten = torch.ops.aten
# Rows (S, I), matrices (E, I, O) and where each expert's rows end. Not all of them are registered in every process.
GROUPED = frozenset({"aten::_grouped_mm", "transformers::grouped_mm_fallback", "hfgraph::grouped_mm"})
# Whole numbers up to this are exact in float32.
_EXACT = 1 << 24


@dataclass(frozen=True, eq=False)
class Product:
    """`rows` times their experts' matrices; `ids` says for each row which.

    Attributes:
        end: the result, with the bias.
        matrix: (E, O, I), or (E, I, O) where it is `turned`.
        order: of rows sorted by expert, the place that each had before.
        flat: the ids in the order before; `ids` itself where nothing was sorted.
        bare: the node of the product itself; `nodes` all that belong to it alone, `shared` those that say where rows belong.
    """

    end: Node
    rows: Node
    matrix: Node
    turned: bool
    bias: Node | None
    ids: Node
    flat: Node
    order: Node | None
    bare: Node
    nodes: tuple[Node, ...]
    shared: tuple[Node, ...]

    @property
    def experts(self) -> int:
        return val(self.matrix).shape[0]

    @property
    def width(self) -> int:
        """What the matrices take."""
        return val(self.matrix).shape[1 if self.turned else 2]


def is_grouped(node: Node) -> bool:
    """A product of rows that are sorted by expert."""
    return isinstance(node.target, OpOverload) and node.target._schema.name in GROUPED


def read_product(node: Node, view: View) -> Product | None:
    """The product that ends in `node`; None where it is none. Raises Unlike."""
    bare = _bare(node, view)
    if bare is not None or node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return bare
    for at in (0, 1):
        one, other = node.args[at], node.args[1 - at]
        found = _bare(one, view) if isinstance(one, Node) else None
        if found is not None:
            return _biased(found, node, other, view)
    return None


def _biased(found: Product, node: Node, bias: object, view: View) -> Product:
    picked = index_of(bias)
    if picked is None or not view.same(picked[1], found.ids):
        raise Unlike("what is added to a product is not the bias of each row's own expert", node)
    if val(picked[0]).ndim != 2 or not same_size(val(picked[0]).shape[0], found.experts):
        raise Unlike(f"there is not one bias for each of {found.experts} experts", node)
    return replace(found, end=node, bias=picked[0], nodes=(*found.nodes, node, bias))  # type: ignore[arg-type]


def biased(found: Product, view: View) -> Product:
    """The product with the bias that is added to it, if there is one."""
    for user in found.end.users:
        if user.target is aten.add.Tensor and any(index_of(a) is not None for a in user.args):
            return read_product(user, view) or found
    return found


def _bare(node: Node, view: View) -> Product | None:
    return _of_sorted(node, view) if is_grouped(node) else _of_gathered(node)


def _of_sorted(node: Node, view: View) -> Product:
    given = arguments(node)
    if given.get("bias") is not None or given.get("out_dtype") is not None:
        raise Unlike(f"{label(node)} has a bias or a dtype of its own", node)
    rows, right, ends = list(given.values())[:3]
    if not isinstance(ends, Node) or val(right).ndim != 3 or val(rows).ndim != 2:
        raise Unlike(f"{label(node)} does not take rows sorted by expert", node)
    matrix, turned = unturned(right)
    ids, shared = _sorted_ids(ends, val(matrix).shape[0], view)
    sort: Node = ids.args[0]  # type: ignore[assignment]
    order = next((u for u in sort.users if u.target is operator.getitem and u.args[1] == 1), None)
    if order is None:
        raise Unlike("rows are not sorted by the places that the sort of their experts gives", sort)
    behind = (right,) if right is not matrix else ()
    return Product(node, rows, matrix, turned, None, ids, sort.args[0], order, node, (node,), (*behind, *shared, ids, order, sort))  # type: ignore[arg-type]


def _sorted_ids(ends: Node, experts: int, view: View) -> tuple[Node, tuple[Node, ...]]:
    """The sorted ids whose running count `ends` is."""
    ends_of = arguments(ends) if ends.target is aten.cumsum.default else None
    counts = ends_of["self"] if ends_of is not None else None
    if ends_of is None or not isinstance(counts, Node) or ends_of["dim"] not in (0, -1) or counts.target is not aten.histc.default:
        raise Unlike("where each expert's rows end is not the running sum of a histogram", ends)
    given = arguments(counts)
    if (given["bins"], given["min"], given["max"]) != (experts, 0, experts - 1):
        raise Unlike(f"the histogram counts {given['bins']} experts from {given['min']} to {given['max']}, and there are {experts}", counts)
    counted = behind_cast(given["self"])
    if val(given["self"]).dtype not in (torch.float32, torch.float64, torch.int32, torch.int64) or experts > _EXACT:
        raise Unlike("ids are counted in a dtype that does not hold all of them", counts)
    sort = counted.args[0] if counted.target is operator.getitem and counted.args[1] == 0 else None
    if not isinstance(sort, Node) or sort.target not in (aten.sort.default, aten.sort.stable):
        raise Unlike("the histogram is not one of sorted ids", counts)
    asked = arguments(sort)
    if asked["descending"] or asked["dim"] not in (-1, 0) or val(asked["self"]).ndim != 1:
        raise Unlike("ids are not sorted upwards", sort)
    return counted, (ends, counts, *((given["self"],) if given["self"] is not counted else ()))


def _of_gathered(node: Node) -> Product | None:
    """`bmm(matrix[ids], x[:, :, None])[:, :, 0]`, or the other way round with matrices that lie transposed."""
    product = node.args[0] if node.target is aten.squeeze.dim else None
    if not isinstance(product, Node) or product.target is not aten.bmm.default or val(product).ndim != 3:
        return None
    last = node.args[1] % 3 == 2  # type: ignore[operator]
    left, right = product.args[0], product.args[1]
    gathered, widened = (left, right) if last else (right, left)
    picked = index_of(gathered)
    if picked is None or not isinstance(widened, Node) or widened.target is not aten.unsqueeze.default or widened.args[1] != (-1 if last else -2):
        return None
    matrix, ids = picked
    if val(matrix).ndim != 3 or val(ids).ndim != 1 or node.args[1] % 3 == 0:  # type: ignore[operator]
        return None
    return Product(node, widened.args[0], matrix, not last, None, ids, ids, None, product, (node, product, gathered, widened), ())  # type: ignore[arg-type]
