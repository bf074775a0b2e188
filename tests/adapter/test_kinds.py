"""Updates other than LoRA, made by the programs that train them, against what those programs compute with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import pipeline
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.kinds.base import Kind, Table, require
from erasediff_lora.registry import KINDS

UNET = "unet/diffusion_pytorch_model.safetensors"
BLOCK = "mid_block.attentions.0.transformer_blocks.0."
MODULES = (
    f"{BLOCK}attn1.to_q",
    f"{BLOCK}ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "mid_block.resnets.0.conv1",
    "up_blocks.0.resnets.0.conv_shortcut",
    "conv_in",
)
"""Linear, linear and wider, 1×1, 3×3 and square, 1×1 and wider, 3×3 and wider."""
NORMS = ("mid_block.resnets.0.norm1", f"{BLOCK}norm2", "conv_norm_out")
INPUTS = {"weight_decompose": True, "wd_on_out": False}
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "loha": ("LohaModule", {}),
    "loha, of higher rank": ("LohaModule", {"lora_dim": 17}),
    "loha, tucker": ("LohaModule", {"use_tucker": True}),
    "loha, rslora": ("LohaModule", {"rs_lora": True}),
    "loha, dora": ("LohaModule", {"weight_decompose": True}),
    "loha, dora by input": ("LohaModule", INPUTS),
    "lokr": ("LokrModule", {"factor": 4}),
    "lokr, both low-rank": ("LokrModule", {"factor": 4, "decompose_both": True, "lora_dim": 1}),
    "lokr, whole": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "lokr, tucker": ("LokrModule", {"factor": 4, "use_tucker": True, "lora_dim": 1}),
    "lokr, dora": ("LokrModule", {"factor": 4, "weight_decompose": True}),
    "locon": ("LoConModule", {}),
    "locon, tucker": ("LoConModule", {"use_tucker": True}),
    "locon, rslora": ("LoConModule", {"rs_lora": True}),
    "locon, dora": ("LoConModule", {"weight_decompose": True}),
    "locon, dora by input": ("LoConModule", INPUTS),
    "locon, tucker, dora by input": ("LoConModule", {"use_tucker": True} | INPUTS),
    "full": ("FullModule", {}),
}
TITLES = {"loha": "LoHa", "lokr": "LoKr", "locon": "LoRA", "full": "full differences"}
FAMILY = ("--family", "stable-diffusion-v1")  # which a tiny model does not tell
Seen = dict[str, tuple[Tensor, Tensor, Tensor]]


def trained(network: nn.Module, name: str, file: Path, paths: tuple[str, ...] = MODULES) -> Seen:
    """Put LyCORIS' modules with random weights on some of a network's, and save them as its networks do.

    Returns:
        Path -> an input, and the output before and after.
    """
    modules = pytest.importorskip("lycoris.modules")
    kind, options = ALGORITHMS.get(name, ("NormModule", {}))
    torch.manual_seed(0)
    seen: Seen = {}
    saved: dict[str, Tensor] = {}
    for path in paths:
        module = network.get_submodule(path)
        x = inputs(module)
        before = module(x).detach()
        key = f"lora_unet_{path.replace('.', '_')}"
        settings = {"lora_dim": 2, "alpha": 3.0, "bypass_mode": False} | options
        put = getattr(modules, kind)(key, module, 1.0, **settings)
        put.apply_to()
        for parameter in put.parameters():
            parameter.data += torch.randn_like(parameter) * 0.1
        after = module(x).detach()
        assert not torch.allclose(before, after, rtol=1e-2, atol=1e-2), f"{path}: the update must show"
        seen[path] = (x, before, after)
        saved |= {f"{key}.{part}": t.detach().clone().contiguous() for part, t in put.state_dict().items()}
    save_file(saved, file)
    return seen


def inputs(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.randn(3, module.in_features)
    if isinstance(module, nn.Conv2d):
        return torch.randn(2, module.in_channels, 5, 5)
    if isinstance(module, nn.GroupNorm):
        return torch.randn(2, module.num_channels, 5, 5)
    assert isinstance(module, nn.LayerNorm)
    return torch.randn(2, *module.normalized_shape)


@pytest.mark.parametrize("name", [*ALGORITHMS, "norms"])
def test_merged_computes_what_lycoris_computes(name: str, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "a.safetensors"
    seen = trained(pipeline(tiny_base).unet, name, file, NORMS if name == "norms" else MODULES)
    result = cli("merge", tiny_base, file, "--output", tmp_path / "out")
    assert result.status == 0, result.err
    merged = pipeline(tmp_path / "out").unet
    for path, (x, _, after) in seen.items():
        torch.testing.assert_close(merged.get_submodule(path)(x), after, rtol=2e-5, atol=2e-5, msg=path)
    result = cli("inspect", file)
    assert result.status == 0, result.err
    title = TITLES.get(name.partition(",")[0], "full differences")
    assert re.search(rf"kind +.*{'DoRA' if title == 'LoRA' and 'dora' in name else title}", result.out), result.out
    if "dora" not in name:
        old, new = (load_file(folder / UNET) for folder in (tiny_base, tmp_path / "out"))
        norm = sum(float((new[key].double() - old[key].double()).square().sum()) for key in old) ** 0.5
        assert float(re.search(r"norm of all ΔW +([\d.e+]+)", result.out)[1]) == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("strength", [0.0, 0.6, -1.0])
@pytest.mark.parametrize("name", ["lokr", "full", "locon, tucker", "locon, dora by input"])
def test_strength_mixes_what_is_changed(name: str, strength: float, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """As ComfyUI does: W + s (W' − W), also of DoRA and biases."""
    file = tmp_path / "a.safetensors"
    trained(pipeline(tiny_base).unet, name, file)
    for end, s in (("one", 1.0), ("some", strength)):
        assert cli("merge", tiny_base, f"{file}:{s}", "--output", tmp_path / end).status == 0
    old, one, some = (load_file(folder / UNET) for folder in (tiny_base, tmp_path / "one", tmp_path / "some"))
    for key, weight in old.items():
        torch.testing.assert_close(some[key], weight + strength * (one[key] - weight), rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
@pytest.mark.parametrize("effective", [False, True])
def test_files_of_peft(kind: str, effective: bool, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    import peft

    network = pipeline(tiny_base).unet
    options: dict[str, Any] = {"decompose_factor": 4} if kind == "LoKr" else {}
    config = getattr(peft, f"{kind}Config")(
        r=2,
        alpha=3,
        target_modules=list(MODULES),
        rank_pattern={"conv_in": 1},
        alpha_pattern={"to_q": 5},
        use_effective_conv2d=effective,
        init_weights=False,
        **options,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(network, config)
    model.save_pretrained(str(tmp_path / "a"))
    result = cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "out")
    assert result.status == 0, result.err
    expected = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / UNET)
    for key, weight in merged.items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6, msg=key)


def test_dora_of_peft(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    import peft

    network = pipeline(tiny_base).unet
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=list(MODULES), use_dora=True, init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(network, config)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    model.save_pretrained(str(tmp_path / "a"))
    assert cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "out").status == 0
    expected = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / UNET)
    for key, weight in merged.items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["loha", "lokr, dora", "locon, dora by input", "full"])
def test_made_a_lora_by_svd(name: str, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """Against PyTorch's SVD of what merging changes."""
    file = tmp_path / "a.safetensors"
    trained(pipeline(tiny_base).unet, name, file)
    assert cli("merge", tiny_base, file, "--output", tmp_path / "merged").status == 0
    old, new = (load_file(folder / UNET) for folder in (tiny_base, tmp_path / "merged"))
    base = ("--base", tiny_base) if name != "full" else ()
    command = ("convert", file, tmp_path / "x", "--format", "kohya", *FAMILY, "--as", "lora", "--rank", 3)
    result = cli(*command, *base)
    assert result.status == 0, result.err
    found = formats.read(tmp_path / "x")
    assert sorted(found.layers) == sorted(f"unet.{path}" for path in MODULES)
    kept = total = 0.0
    for path in MODULES:
        key = f"{path}.weight"
        exact = (new[key].double() - old[key].double()).flatten(1)
        u, s, vt = torch.linalg.svd(exact, full_matrices=False)
        best = (u[:, :3] * s[:3]) @ vt[:3]
        layer = found.layers[f"unet.{path}"]
        assert layer.shape == old[key].shape
        made = layer.delta().double().flatten(1)
        torch.testing.assert_close(made, best, rtol=1e-3, atol=1e-4 * float(s[0]), msg=path)
        kept, total = kept + float(s[:3].square().sum()), total + float(s.square().sum())
    said = float(re.search(r"rank 3 to 3, ([\d.]+)% of the energy kept", result.out)[1])
    assert said == pytest.approx(100 * kept / total, abs=1e-2)
    assert ("changed biases" in result.err) == (name == "full")
    if "dora" in name:
        refused(
            cli(*command[:2], tmp_path / "y", *command[3:]), "--base = None: must be given", "has DoRA at 6 weights"
        )


def test_dora_keeps_its_axis_or_is_refused(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    trained(pipeline(tiny_base).unet, "locon, dora by input", file)
    assert cli("convert", file, again, "--format", "kohya", *FAMILY).status == 0
    one, other = load_file(file), load_file(again)
    assert {key: t.shape for key, t in one.items() if "dora" in key} == {
        key: t.shape for key, t in other.items() if "dora" in key
    }
    for format in ("diffusers", "peft"):
        refused(
            cli("convert", file, tmp_path / "x", "--format", format),
            "is a DoRA with a magnitude for each input; peft and diffusers know one for each output only",
            "Write it as kohya",
        )
    assert not (tmp_path / "x").exists()


def test_what_takes_lora_only_says_what_would_work(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "a.safetensors"
    trained(pipeline(tiny_base).unet, "loha", file)
    for command in (("convert", file, tmp_path / "x", "--format", "diffusers"), ("stack", file, file)):
        refused(
            cli(*command),
            f"adapter = '{file}': has LoHa at 6 of 6 weights, first at unet.conv_in;",
            "Make it a LoRA with convert --as lora --rank RANK, or merge it.",
        )
    assert not (tmp_path / "x").exists()


def test_unmerged_is_the_base(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "a.safetensors"
    trained(pipeline(tiny_base).unet, "lokr, tucker", file)
    assert cli("merge", tiny_base, file, "--output", tmp_path / "merged").status == 0
    result = cli("merge", tmp_path / "merged", file, "--output", tmp_path / "b", "--unmerge", "--compare", tiny_base)
    assert result.status == 0, result.err
    old, back = (load_file(folder / UNET) for folder in (tiny_base, tmp_path / "b"))
    assert all(torch.allclose(old[key], back[key], atol=1e-6) for key in old)


class Outer(Kind):
    """A toy: ΔW = u vᵀ."""

    title = "outer products"
    parts = marks = frozenset(("outer_u", "outer_v"))

    def shape(self, parts: Mapping[str, Table]) -> tuple[int, ...]:
        require(parts, "outer_u", "outer_v", ndim=1)
        return parts["outer_u"].shape[0], parts["outer_v"].shape[0]

    def rank(self, parts: Mapping[str, Table]) -> int | None:
        return 1

    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        return parts["outer_u"][first:last, None] * parts["outer_v"][None]


OUTER = Outer()


def test_a_kind_of_another_package(tiny_base: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("outer", f"{__name__}:OUTER", "erasediff_lora.kinds")
    monkeypatch.setitem(vars(KINDS), "_plugins", {"outer": point})
    u, v = torch.randn(32), torch.randn(32)
    file = tmp_path / "a.safetensors"
    save_file({f"{KEY}.outer_u": u, f"{KEY}.outer_v": v, f"{KEY}.alpha": torch.tensor(0.5)}, file)
    assert "outer products (1)" in cli("inspect", file).out
    assert cli("merge", tiny_base, file, "--output", tmp_path / "out").status == 0
    old, new = (load_file(folder / UNET)[f"{MODULES[0]}.weight"] for folder in (tiny_base, tmp_path / "out"))
    torch.testing.assert_close(new, old + 0.5 * torch.outer(u, v))
    monkeypatch.undo()
    refused(cli("inspect", file), "unknown layout", "outer_u")


@pytest.mark.parametrize(
    ("kind", "family"), [("LohaModule", "stable-diffusion-v1"), ("LokrModule", "stable-diffusion-v1")]
)
def test_family_by_the_shapes_of_other_kinds(kind: str, family: str, tmp_path: Path, cli: Cli) -> None:
    modules = pytest.importorskip("lycoris.modules")
    with torch.device("meta"):
        layers = {"attentions_0_transformer_blocks_0_attn2_to_k": nn.Linear(768, 1280, bias=False)}
        layers["resnets_0_conv1"] = nn.Conv2d(1280, 1280, 3)  # type: ignore[assignment]
    saved: dict[str, Tensor] = {}
    for name, module in layers.items():
        put = getattr(modules, kind)("x", module.to_empty(device="cpu"), 1.0, lora_dim=2, alpha=1.0)
        saved |= {f"lora_unet_mid_block_{name}.{part}": t.detach().clone() for part, t in put.state_dict().items()}
    save_file(saved, tmp_path / "a.safetensors")
    assert re.search(r"architecture +stable-diffusion-v1\n", cli("inspect", tmp_path / "a.safetensors").out)


KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2)}, "hada_w2_b is missing"),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (3, 8)}, "lokr_w2_a is [8, 2] and lokr_w2_b [3, 8]"),
        ({"lokr_w1": (4,), "lokr_w2": (8, 8)}, "lokr_w1 is [4]"),
        ({"lokr_w1": (4, 4), "lokr_w2": (8, 8), "lokr_w2_b": (0, 8)}, "lokr_w2_b beside lokr_w2"),
        ({"lora_down.weight": (2, 32), "hada_w1_a": (32, 2)}, "lora_down.weight beside hada_w1_a"),
        ({"lokr_w1": (10000, 1), "lokr_w2": (1, 10000)}, "its weight would be [10000, 10000]"),
        ({"lokr_w1": (1, 10000), "lokr_w2": (1, 6000)}, "its weight would be [1, 60000000]"),
        ({"diff": (2, 2, 2)}, "its difference is [2, 2, 2]"),
        ({"diff": (2,), "dora_scale": (1, 2)}, "dora_scale beside diff"),
    ],
)
def test_parts_that_do_not_fit(parts: dict[str, tuple[int, ...]], words: str, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "bad.safetensors"
    tensors = {f"{KEY}.{part}": torch.ones(1).expand(shape) for part, shape in parts.items()}
    save_file({key: tensor.to(torch.float8_e4m3fn).contiguous() for key, tensor in tensors.items()}, file)
    refused(cli("inspect", file), f"adapter = '{file}': has parts that do not fit at {KEY}", words)


def test_not_finite_parts_are_named(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "bad.safetensors"
    save_file({f"{KEY}.diff": torch.full((32, 32), torch.inf)}, file)
    refused(cli("merge", tiny_base, file, "--output", tmp_path / "x"), "has NaN or Inf in diff of unet.mid_block")
    refused(cli("inspect", file), "has NaN or Inf in diff of unet.mid_block")
    parts = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
    save_file({f"{KEY}.{part}": torch.full(shape, 3e38) for part, shape in parts.items()}, file)
    refused(cli("inspect", file), "has NaN or Inf in the product of the parts of unet.mid_block")
    refused(cli("merge", tiny_base, file, "--output", tmp_path / "x"), "would hold NaN or Inf")
