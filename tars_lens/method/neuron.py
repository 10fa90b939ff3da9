"""The rows that make a neuron read one vector and write another, in any MLP.

Notation: *y* is the input of a layer's MLP, after its norm and gain.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.method.settings import Settings
from tars_lens.model.lens import Lens, Point, Role
from tars_lens.model.weights import Edits, Place, Rows
from tars_lens.text.plain_text import PlainText


def neuron_rows(
    lens: Lens,
    layer: int,
    neuron: int,
    *,
    read: Float[Tensor, " d_model"],
    constant: Float[Tensor, " d_model"],
    write: Float[Tensor, " d_model"],
) -> Edits:
    """The rows of a neuron whose activation is `read . y` above 0, nearly nothing below it.

    A gated MLP reads through the gate, and its `in` row reads 1 on all text. Without a gate the
    `in` row reads alone. The neuron's own biases, which stay, are taken out of both.

    Args:
        lens: The model.
        layer: Where the neuron sits.
        neuron: Which one is replaced.
        read: What it reads.
        constant: A direction with `constant . y` about 1 on all text.
        write: What it adds to the MLP's output for each unit of activation.
    """
    reads: dict[Role, Tensor] = {"gate": read, "in": constant} if lens.gated else {"in": read}
    rows: dict[Place, Rows] = {(layer, "out"): one_row(lens, neuron, write)}
    for role, row in reads.items():
        bias = lens.bias(layer, role)
        needed = row if bias is None else row - float(bias[neuron]) * constant
        rows[layer, role] = one_row(lens, neuron, needed)
    return rows


def quiet_at_start(
    lens: Lens,
    plain: PlainText,
    layer: int,
    read: Float[Tensor, " d_model"],
    settings: Settings,
) -> Float[Tensor, " d_model"]:
    """A read vector that is well below its threshold at the BOS which begins every text.

    There the stream is like nowhere else, and a reader that was fitted to text may say anything.
    What is taken off is the direction that says it of BOS and least of plain text: `S^-1 y_0`, with
    *S* the second moment of *y* on plain text. A vector that is quiet there already stays as it is,
    and so does any where the tokenizer adds no BOS.

    Args:
        lens: The model.
        plain: Statistics of plain text, with the layer's moments.
        layer: Where it is read.
        read: The vector whose product with *y* is above 0 where the neuron speaks.
        settings: How quiet.
    """
    begin = lens.tokens("")
    if not begin:
        return read
    point = Point("mlp_in", layer)
    y = lens.capture(lens.batch([begin]).ids, [point])[point][0, -1].float()
    over = float(read @ y) + settings.start_quiet * settings.gain
    if over <= 0:
        return read
    mean, covariance = plain.means[layer], plain.covariances[layer]
    ridge = settings.constant_ridge * covariance.diagonal().mean()
    moment = covariance + torch.outer(mean, mean) + ridge * torch.eye(len(mean), device=y.device)
    direction = torch.linalg.solve(moment, y)
    return read - over / (direction @ y) * direction


def past_post_norm(
    lens: Lens, layer: int, direction: Float[Tensor, " d_model"], ridge: float
) -> Float[Tensor, " d_model"]:
    """The unit row that ends up as `direction` in the stream, past the MLP's post-norm if any."""
    gain = lens.post_norm_gain(layer)
    if gain is not None:
        direction = divided_by_gain(direction, gain.float(), ridge)
    return direction / direction.norm()


def divided_by_gain(
    vector: Float[Tensor, " d_model"], gain: Float[Tensor, " d_model"], ridge: float
) -> Float[Tensor, " d_model"]:
    """`vector / gain`, held back where the gain is nearly 0, as Gemma's post-norms are in places.

    `vector * gain / (gain^2 + ridge * mean(gain^2))`.
    """
    square = gain.square()
    return vector * gain / (square + ridge * square.mean())


def one_row(lens: Lens, neuron: int, values: Float[Tensor, " d_model"]) -> Rows:
    """One neuron's row in the model's dtype."""
    return Rows(torch.tensor([neuron], device=lens.device), values[None].to(lens.dtype))


def host_neuron(
    lens: Lens,
    plain: PlainText,
    layer: int,
    direction: Float[Tensor, " d_model"],
    taken: Collection[tuple[int, int]],
    share: float,
) -> int:
    """The neuron that is given up: of those plain text would miss least, the best aligned one.

    The paper's third step within a bound on damage: of the idlest `share` of the layer's neurons
    (the least root mean square activation times `out` norm on plain text) the one whose `out` row
    has the highest cosine to the direction that is to be reversed.

    Args:
        lens: The base model, or one whose edited neurons are all in `taken`.
        plain: Statistics of the base model.
        layer: Where the host is wanted.
        direction: What the neuron is to write the reversal of, as the `out` row has it.
        taken: `(layer, neuron)` of hosts in use, which are never given out again.
        share: From 0, which takes the idlest neuron whatever it writes, to 1.
    """
    out = lens.vectors(layer, "out").float()
    missed = plain.activation_rms[layer] * out.norm(dim=1)
    missed[[neuron for where, neuron in taken if where == layer]] = torch.inf
    idle = missed.argsort()[: max(1, round(share * len(missed)))]
    idle = idle[missed[idle].isfinite()] if missed[idle].isfinite().any() else idle[:1]
    cosines = torch.cosine_similarity(out[idle], direction[None], dim=1)
    return int(idle[cosines.argmax()])
