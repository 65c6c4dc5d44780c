"""The next character of a text by a small transformer: pre-normalised, causal.

References: Vaswani et al. (2017), "Attention is all you need"; Radford et al. (2019), "Language
models are unsupervised multitask learners" (where the norms stand, the start); Karpathy's char-rnn
(2015) and nanoGPT (2022) (the task).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optikit import losses
from optikit.calculus import composite
from optikit.core import Key, Params, memoized
from optikit.problems.batches import windows
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least
from optikit.problems.text import load_text

_DEVIATION = 0.02


@memoized
def transformer(heads: int):
    """(params, tokens (b, t)) -> logits (b, t, v) of each next token, from those up to it.

    params holds every weight as a matrix; "head" is absent where the embedding serves twice.
    """

    def predict(params: Params, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        positions = params["positions"][: tokens.shape[1]]
        hidden = params["embedding"][tokens] + positions[None]
        for layer in params["layers"]:
            hidden = hidden + attention(layer, normalised(layer["norm"], hidden), heads)
            wide = normalised(layer["wide norm"], hidden) @ layer["up"]
            wide = jax.nn.gelu(wide + layer["up bias"][None, None, :])
            hidden = hidden + wide @ layer["down"] + layer["down bias"][None, None, :]
        head = params["head"] if "head" in params else params["embedding"].T
        return normalised(params["norm"], hidden) @ head

    return predict


def attention(layer: Params, inputs: Float[Array, "b t d"], heads: int) -> Float[Array, "b t d"]:
    """Every position looks at itself and those before it, in several heads."""
    b, t, d = inputs.shape

    def split(name: str) -> Array:
        return (inputs @ layer[name]).reshape(b, t, heads, d // heads)

    scores = jnp.einsum("bthe,bshe->bhts", split("query"), split("key")) / (d // heads) ** 0.5
    seen = jnp.tril(jnp.ones((t, t), bool))[None, None]
    shares = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min), axis=-1)
    return jnp.einsum("bhts,bshe->bthe", shares, split("value")).reshape(b, t, d) @ layer["out"]


def normalised(norm: Params, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Layer normalisation with scale and shift."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + 1e-5)
    return unit * norm["scale"][None, None, :] + norm["shift"][None, None, :]


def char_transformer(
    text: str = "python-manual",
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    context: int = 64,
    batch: int | None = 32,
    tied: bool = False,
    characters: int | None = None,
    judged: int = 128,
) -> Problem:
    """Cross-entropy (nats per character) of the next character of a text.

    Steps see windows at random places of the first nine tenths; points are judged on windows of the
    last tenth, which no method sees. Weights start normal with deviation 0.02, those that end on
    the residual stream with 0.02 / sqrt(2 layers).

    Args:
      text: a text's name or address: `python-manual`, `tinyshakespeare`, `file:notes.txt`, a web
        address, `my_lab.data:book`.
      layers, width, heads, context: of the transformer. For a GPU: 6, 384, 6 and 256.
      batch: windows a step sees; null for all of the text.
      tied: whether the embedding is the last layer too.
      characters: of the text, from its beginning; all by default.
      judged: windows that points are judged on, at most, spread over the last tenth.

    Raises:
      ValueError: heads do not divide the width, or the text is too short.
    """
    at_least(1, layers=layers, width=width, heads=heads, context=context)
    at_least(1, batch=batch, characters=characters, judged=judged)
    if width % heads:
        msg = f"width must be a multiple of heads; got {width} and {heads}."
        raise ValueError(msg)
    content = load_text(text)[:characters]
    alphabet, tokens = np.unique(np.array(list(content)), return_inverse=True)
    tokens = tokens.astype(np.int32)
    cut = len(tokens) * 9 // 10
    seen, unseen = _cut(tokens[:cut], context), _cut(tokens[cut:], context)
    if not len(unseen[0]):
        msg = f"{text!r} is too short: {len(tokens)} characters for a context of {context}."
        raise ValueError(msg)
    places = np.unique(np.linspace(0, len(unseen[0]) - 1, judged).astype(int))
    shapes = _shapes(len(alphabet), layers, width, context, tied=tied)
    return Problem(
        composite(transformer(heads), losses.softmax_cross_entropy),
        lambda key: _start(key, shapes, layers),
        seen,
        description=f"{layers} layers of width {width} on {len(tokens)} characters of {text}",
        batches=None if batch is None else windows(batch),
        held_out=tuple(part[places] for part in unseen),
    )


def _cut(tokens: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows one after the other, and the same ones a character later."""
    count = max(len(tokens) - 1, 0) // context
    inputs, targets = tokens[: count * context], tokens[1 : count * context + 1]
    return inputs.reshape(count, context), targets.reshape(count, context)


def _shapes(alphabet: int, layers: int, width: int, context: int, *, tied: bool) -> Params:
    norm = {"scale": (width,), "shift": (width,)}
    layer = {
        "norm": norm, "wide norm": norm,
        "query": (width, width), "key": (width, width), "value": (width, width),
        "out": (width, width),
        "up": (width, 4 * width), "up bias": (4 * width,),
        "down": (4 * width, width), "down bias": (width,),
    }  # fmt: skip
    shapes = {
        "embedding": (alphabet, width),
        "positions": (context, width),
        "layers": [layer] * layers,
        "norm": norm,
    }
    return shapes if tied else shapes | {"head": (width, alphabet)}


def _start(key: Key, shapes: Params, layers: int) -> Params:
    named, structure = jax.tree_util.tree_flatten_with_path(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    keys = jax.random.split(key, len(named))

    def draw(path: tuple, shape: tuple[int, ...], k: Key) -> Array:
        name = path[-1].key
        if len(shape) == 1:
            return jnp.ones(shape) if name == "scale" else jnp.zeros(shape)
        ends = name in ("out", "down")  # on the residual stream, to which each layer adds twice
        return _DEVIATION / ((2 * layers) ** 0.5 if ends else 1) * jax.random.normal(k, shape)

    drawn = [draw(path, shape, k) for (path, shape), k in zip(named, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)
