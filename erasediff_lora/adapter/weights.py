"""An adapter, whatever file it came from: as it lies in the file, and in memory.

Both forms have the same structure. What is stored can be described, checked and measured without torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np

from erasediff_lora import families
from erasediff_lora.adapter.composite import Composite, CompositeLayer, StoredComposite
from erasediff_lora.adapter.kinds.base import Table
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families.names import squeezed as squeezed
from erasediff_lora.storage.tensors import StoredTensor, all_finite

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

RANK_LIMIT = 16
"""Times the height and width of a weight: no stack of adapters needs more, and a file can claim anything."""
FLOAT32_MAX = float(np.finfo(np.float32).max)
BIAS = ".bias"
"""Behind the name of a module, its bias instead of its weight."""

T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Layer(Generic[T]):
    """The update of one weight: ΔW = scale · up @ down.

    Attributes:
        down: A, (r, in) for a linear layer or (r, in, kh, kw) for a convolution.
        up: B, (out, r) or (out, r, 1, 1).
        alpha: Numerator of the scale.
        rslora: Whether the scale is alpha / sqrt(r) instead of alpha / r.
        magnitude: DoRA's magnitude vector, in memory as peft keeps it, (out,) or (1, out, 1, 1); None without DoRA.
        nominal: alpha and rslora that the layer goes by in files that keep them, if not by those above: see
            `adapter.scaling`. They don't change ΔW.
        by_input: Whether the magnitudes are those of the inputs, in memory (1, in) or (1, in, 1, 1), as OneTrainer and
            old LyCORIS have them.
    """

    down: T
    up: T
    alpha: float
    rslora: bool = False
    magnitude: T | None = None
    nominal: tuple[float, bool] | None = None
    by_input: bool = False

    @property
    def title(self) -> str:
        return "LoRA" if self.magnitude is None else "DoRA"

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the adapted weight, (out, in) or (out, in, kh, kw)."""
        return (int(self.up.shape[0]), *self.down.shape[1:])


@dataclass(frozen=True)
class LoraLayer(Layer["Tensor"]):
    """A layer in memory."""

    def delta(self) -> Tensor:
        """ΔW in float32, of `shape`."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return (up @ down).mul_(self.scale).reshape(self.shape)

    def add_to(self, block: Tensor, first: int, factor: float) -> None:
        """Add `factor` · ΔW's rows from `first` on to a matrix of as many rows and columns, in place."""
        rows = self.up[first : first + len(block)].flatten(1).to(block.dtype)
        block.addmm_(rows, self.down.flatten(1).to(block.dtype), alpha=factor * self.scale)


@dataclass(frozen=True)
class StoredLayer(Layer[StoredTensor]):
    """A layer in a file."""

    def load(self) -> LoraLayer:
        """The layer in memory."""
        magnitude = self.magnitude
        if magnitude is not None:
            shape = magnitude_shape(self.down.ndim, self.by_input)
        return LoraLayer(
            down=self.down.tensor(),
            up=self.up.tensor(),
            alpha=self.alpha,
            rslora=self.rslora,
            magnitude=None if magnitude is None else magnitude.tensor().reshape(shape),
            nominal=self.nominal,
            by_input=self.by_input,
        )

    @property
    def path(self) -> Path:
        return self.down.path

    @property
    def dtype_name(self) -> str:
        return self.down.dtype_name

    def squared_norm(self) -> float:
        """‖ΔW‖² (Frobenius) in float64; the factors are read, ΔW is formed only where it is the smaller one.

        Raises:
            ValueError: If a factor, which is named, holds NaN or Inf.
        """
        down, up = (_finite(getattr(self, name), letter) for name, letter in (("down", "A"), ("up", "B")))
        is_wide = self.rank**2 > up.shape[0] * down.shape[1]
        squares = (up @ down) ** 2 if is_wide else (up.T @ up) * (down @ down.T)  # tr(Bᵀ B · A Aᵀ)
        return self.scale**2 * max(0.0, float(squares.sum()))


AnyLayer = LoraLayer | CompositeLayer
AnyStored = StoredLayer | StoredComposite
L = TypeVar("L", bound=Layer[Any] | Composite[Any])


@dataclass(frozen=True)
class Adapter(Generic[L]):
    """The layers of an adapter by the weight's name, such as 'unet.mid_block.attentions.0.proj_in'.

    Attributes:
        layers: Name -> layer. A name is the pipeline's component, a dot, and the module's path in diffusers; that of a
            bias has '.bias' behind it.
        provenance: Where the adapter comes from.
        header: What else stood in the file's header, such as another trainer's notes.
        possible: Architectures that the file's spelling and header leave, where they leave several.
    """

    layers: Mapping[str, L]
    provenance: Provenance = field(default_factory=Provenance)
    header: dict[str, str] = field(default_factory=dict)
    possible: tuple[str, ...] = ()

    @property
    def components(self) -> list[str]:
        """The adapted parts of the pipeline, such as ['unet']."""
        return sorted({name.partition(".")[0] for name in self.layers})

    @property
    def network(self) -> str | None:
        """The component that predicts, such as 'unet'; None if only text encoders are adapted."""
        return next((name for name in families.networks() if name in self.components), None)

    @property
    def uses_dora(self) -> bool:
        return any(layer.magnitude is not None for layer in self.layers.values())

    @property
    def rank(self) -> Any:
        """The rank that most layers have."""
        return Counter(layer.rank for layer in self.layers.values()).most_common(1)[0][0]

    def component(self, component: str) -> dict[str, L]:
        """The layers of one component, by module path."""
        prefix = component + "."
        return {name.removeprefix(prefix): layer for name, layer in self.layers.items() if name.startswith(prefix)}

    @property
    def architecture(self) -> str | None:
        """Modelspec id of the base's architecture: as recorded, or told from the layers; None: it cannot be told."""
        left = self.candidates
        return left[0] if len(left) == 1 else None

    @property
    def candidates(self) -> tuple[str, ...]:
        """The architectures that it can be for: the recorded one, or those that the file leaves, or the layers fit."""
        recorded = self.provenance.architecture
        return self.possible or candidates_of(self.layers) if recorded is None else (recorded,)

    def require_architecture(self) -> str:
        """The architecture, where it must be known.

        Raises:
            UserError: If it cannot be told.
        """
        left = self.candidates
        if len(left) != 1:
            named = ", ".join(left) or ", ".join(families.architectures())
            raise UserError(
                Problem(
                    "--family",
                    None,
                    "must be given: neither the adapter's layers nor its header tell what base it is for.",
                    f"It is one of: {named}.",
                )
            )
        return left[0]

    def with_history(self, line: str) -> Self:
        """A copy whose provenance has one line more."""
        return replace(self, provenance=replace(self.provenance, history=(*self.provenance.history, line)))

    def plain(self, verb: str, source: str, *, dora: bool = True) -> LoraAdapter:
        """The adapter, if all of it is LoRA.

        Args:
            verb: What needs that, for the message.
            source: What the user calls the adapter.
            dora: Whether DoRA will do.

        Raises:
            UserError: If it is not.
        """
        layers: dict[str, LoraLayer] = {}
        for name, layer in self.layers.items():
            if isinstance(layer, LoraLayer):
                layers[name] = layer
        biases: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            if isinstance(layer, CompositeLayer) and name.endswith(BIAS) and name.removesuffix(BIAS) in layers:
                biases[name.removesuffix(BIAS)] = layer.delta()
        others: dict[str, Any] = {
            name: layer
            for name, layer in self.layers.items()
            if (name not in layers and name.removesuffix(BIAS) not in biases)
            or (layer.magnitude is not None and not dora)
        }
        if others:
            titles = sorted({layer.title for layer in others.values()})
            first = min(others)
            raise UserError(
                Problem(
                    "adapter",
                    source,
                    f"has {' and '.join(titles)} at {len(others)} of {len(self.layers)} weights, first at {first};"
                    f" {verb} takes plain LoRA{' and DoRA' if dora else ''} only.",
                    "Make it a LoRA with convert --as lora --rank RANK"
                    + (" --base BASE" if any(layer.magnitude is not None for layer in self.layers.values()) else "")
                    + ", or merge it.",
                )
            )
        return LoraAdapter(layers, self.provenance, self.header, self.possible, biases)


@dataclass(frozen=True)
class LoraAdapter(Adapter[LoraLayer]):
    """An adapter in memory, all of it LoRA or DoRA.

    Attributes:
        biases: Of some of the layers' modules, what is added to the base's bias, (out,) in float32.
    """

    biases: Mapping[str, Tensor] = field(default_factory=dict)

    def biases_of(self, component: str) -> dict[str, Tensor]:
        """Those of one component, by module path."""
        prefix = component + "."
        return {name.removeprefix(prefix): bias for name, bias in self.biases.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class MixedAdapter(Adapter[AnyLayer]):
    """An adapter in memory, of any kinds."""


@dataclass(frozen=True)
class StoredAdapter(Adapter[AnyStored]):
    """An adapter in its file."""

    def load(self) -> MixedAdapter:
        """The adapter in memory.

        Raises:
            UserError: If a factor holds NaN or Inf.
        """
        layers = {name: self._loaded(name, layer) for name, layer in self.layers.items()}
        return MixedAdapter(layers, self.provenance, self.header, self.possible)

    def _loaded(self, name: str, stored: AnyStored) -> AnyLayer:
        if isinstance(stored, StoredComposite):
            try:
                composite = stored.load()
            except ValueError as error:
                raise not_finite(stored.path, str(error), name) from None
            return as_lora_layer(composite) or composite
        layer = stored.load()
        for factor, tensor in (("A", layer.down), ("B", layer.up)):
            if not all_finite(tensor.float()):
                raise not_finite(stored.path, factor, name)
        return layer

    def norm(self) -> float:
        """The norm of all ΔW together.

        Raises:
            UserError: If a factor holds NaN or Inf.
        """
        total = 0.0
        for name, layer in self.layers.items():
            try:
                total += layer.squared_norm()
            except ValueError as error:
                raise not_finite(layer.path, str(error), name) from None
        return math.sqrt(total)


def as_lora_layer(layer: CompositeLayer) -> LoraLayer | None:
    """The same update as factors, where its kind is LoRA in effect."""
    factors = layer.kind.factors(layer.parts, layer.shape)
    if factors is None:
        return None
    down, up = factors
    magnitude = layer.magnitude
    if magnitude is not None:
        magnitude = magnitude.reshape(magnitude_shape(down.ndim, layer.by_input))
    return LoraLayer(down, up, layer.scale * down.shape[0], magnitude=magnitude, by_input=layer.by_input)


def magnitude_shape(ndim: int, by_input: bool) -> tuple[int, ...]:
    """Shape of DoRA's magnitudes in memory for a weight of that many dimensions; -1 for their number."""
    return (1, -1, 1, 1) if ndim == 4 else (1, -1) if by_input else (-1,)


def candidates_of(layers: Mapping[str, Layer[Any] | Composite[Any]]) -> tuple[str, ...]:
    """Modelspec ids of the architectures that layers fit; none if there is no telling."""
    shapes = {
        name.removesuffix(BIAS): None if name.endswith(BIAS) or isinstance(layer, Composite) else layer.shape
        for name, layer in layers.items()
    }
    try:
        return families.recognise(shapes, {}).candidates
    except families.Unfit:
        return ()


def unusable(source: object, what: str, remedy: str = "Export the file again.") -> UserError:
    """What is wrong with an adapter's file."""
    return UserError(Problem("adapter", str(source), what, remedy))


def not_finite(source: object, factor: str, name: str) -> UserError:
    """The complaint about a layer that holds NaN or Inf."""
    return unusable(source, f"has NaN or Inf in {factor} of {name}.", "Train or export the file again.")


def checked(layers: Mapping[str, L], source: object) -> dict[str, L]:
    """The layers, in the order of their names.

    Raises:
        UserError: If there are none, the factors do not fit, or an alpha is not finite.
    """
    if not layers:
        raise unusable(source, "holds no LoRA layer.", "Give an adapter file, not a checkpoint.")
    for name, layer in layers.items():
        if isinstance(layer, Layer):
            _check_factors(name, layer, source)
        if layer.magnitude is not None:
            _check_magnitudes(name, layer, source)
        if not abs(layer.scale) <= FLOAT32_MAX:
            raise not_finite(source, "alpha", name)
    return dict(sorted(layers.items()))


def _check_factors(name: str, layer: Layer[Any], source: object) -> None:
    down, up = layer.down, layer.up
    if down.ndim not in (2, 4) or up.ndim != down.ndim or tuple(up.shape[1:]) != (layer.rank, *[1] * (up.ndim - 2)):
        raise unusable(
            source,
            f"has factors that do not fit at {name}: A {list(down.shape)}, B {list(up.shape)}.",
            "The second dimension of B must be the first of A, and of a kernel only A has the extent; export the file"
            " again.",
        )
    if not 0 < layer.rank <= RANK_LIMIT * (layer.shape[0] + math.prod(layer.shape[1:])):
        raise unusable(source, f"has rank {layer.rank} at {name}, whose weight is {list(layer.shape)}.")


def _check_magnitudes(name: str, layer: Layer[Any] | Composite[Any], source: object) -> None:
    """One for each output, or each input: of flat kinds, kernels are among the inputs."""
    count = 0 if layer.magnitude is None else math.prod(layer.magnitude.shape)
    is_flat = isinstance(layer, Composite) and layer.kind.is_flat
    expected = layer.shape[1] if layer.by_input else layer.shape[0]
    if count != expected and not (layer.by_input and is_flat and count and expected % count == 0):
        raise unusable(source, f"has {count} magnitudes at {name}, whose weight is {list(layer.shape)}.")


def _finite(stored: StoredTensor, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values as a matrix, one row for each entry of the first dimension."""
    values = stored.array().reshape(stored.shape[0], -1).astype(np.float64)
    if not float(np.abs(values).max(initial=0.0)) <= FLOAT32_MAX:
        raise ValueError(name)
    return values
