"""The verbs that work on adapter files and checkpoints."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from erasediff_lora.cli.verb import Verb, require_none, user_path
from erasediff_lora.errors import Problem, UserError

if TYPE_CHECKING:
    from erasediff_lora.adapter import LoraAdapter, Weighted
    from erasediff_lora.adapter.formats import Asked

log = logging.getLogger(__name__)
_WEIGHTED = "adapter file or run folder, with :STRENGTH behind it if that is not 1"


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=user_path, help="adapter file, or folder with one")
    parser.add_argument(
        "--for",
        dest="programs",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="say what a program will not read, or read otherwise: comfyui, diffusers and so on, or all",
    )
    _add_asked(parser)


def _add_family(parser: argparse.ArgumentParser, told_by: str = "the file") -> None:
    parser.add_argument(
        "--family", help=f"what base it is for, such as stable-diffusion-v1, where {told_by} does not tell"
    )


def _add_asked(parser: argparse.ArgumentParser) -> None:
    _add_family(parser)
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="leave out all but these, such as unet")


def _asked(parsed: argparse.Namespace) -> Asked:
    from erasediff_lora.adapter.formats import Asked

    return Asked.parse(parsed.family, parsed.only)


def _inspect(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    from erasediff_lora.adapter import formats, programs
    from erasediff_lora.cli.losses import lines_for

    targets = programs.asked(parsed.programs)
    name, adapter = formats.describe(parsed.adapter, _asked(parsed))
    layers = adapter.layers.values()
    rows = {
        "file": formats.locate(parsed.adapter),
        "format": name,
        "architecture": adapter.architecture or f"{' or '.join(adapter.candidates)}: say which with --family",
        "components": ", ".join(f"{c} ({len(adapter.component(c))} weights)" for c in adapter.components),
        "kind": ", ".join(f"{title} ({count})" for title, count in Counter(layer.title for layer in layers).items()),
        "rank": ", ".join(map(str, sorted({layer.rank for layer in layers if layer.rank is not None}))) or "none",
        "scale": ", ".join(f"{scale:g}" for scale in sorted({round(layer.scale, 6) for layer in layers})),
        "dtype": ", ".join(sorted({layer.dtype_name for layer in layers})),
        "norm of all ΔW": f"{adapter.norm():.4g}",
        **adapter.provenance.header(),
    }
    for label, value in rows.items():
        print(f"{label:27} {value}")
    for line in lines_for(targets, name, adapter):
        print(line)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=user_path, help="adapter file of any format, or folder with one")
    parser.add_argument("output", type=user_path, help="new folder, or new file where the format is one file")
    parser.add_argument("--format", required=True, help="file format, such as diffusers, kohya or peft")
    parser.add_argument(
        "--as", dest="kind", choices=("lora",), help="make a plain LoRA of DoRA, LoHa, LoKr or whole differences by SVD"
    )
    parser.add_argument("--rank", type=int, help="with --as: the most that a layer may have")
    parser.add_argument("--energy", type=float, help="with --as: share of a layer's change to keep, such as 0.99")
    parser.add_argument("--base", type=user_path, help="with --as: the model that a DoRA is for")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    _add_asked(parser)


def _convert(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    from erasediff_lora.adapter import formats
    from erasediff_lora.cli.losses import lines_of_file

    if parsed.kind is None:
        for flag in ("rank", "energy", "base"):
            if getattr(parsed, flag) is not None:
                raise UserError(Problem(f"--{flag}", getattr(parsed, flag), "needs --as.", "Add --as lora."))
        adapter = formats.read(parsed.adapter, _asked(parsed))
    else:
        _check_size(parsed)
        formats.require_output(parsed.output, parsed.format)
        adapter = _as_lora(parsed)
    written = formats.write(adapter, parsed.output, parsed.format, overwrite=parsed.overwrite)
    for file in written:
        print(file)
    for line in lines_of_file(written[0]):
        print(line)


def _as_lora(parsed: argparse.Namespace) -> LoraAdapter:
    from erasediff_lora.adapter import formats
    from erasediff_lora.adapter.reduction import as_lora

    mixed = formats.read_any(parsed.adapter, _asked(parsed))
    made = as_lora(mixed, str(parsed.adapter), rank=parsed.rank, energy=parsed.energy, base=parsed.base)
    ranks = [layer.rank for layer in made.adapter.layers.values()]
    print(
        f"made       {len(ranks)} layers of LoRA, rank {min(ranks)} to {max(ranks)}, {made.energy:.4%} of the energy"
        f" kept; {made.exact} were LoRA already"
    )
    _tell_of_unheld(made.unheld)
    return made.adapter


def _tell_of_unheld(names: list[str]) -> None:
    if names:
        log.warning(
            "warning: %d changed biases, norms or embeddings are left out, as no LoRA holds them, such as %s",
            *(len(names), names[0]),
        )


def _check_size(parsed: argparse.Namespace) -> None:
    """Refuse sizes that no factorisation has.

    Raises:
        UserError: With all complaints.
    """
    problems = []
    if parsed.rank is None and parsed.energy is None:
        problems.append(Problem("--rank", None, "or --energy must be given.", "Try --rank 32 or --energy 0.95."))
    if parsed.rank is not None and parsed.rank < 1:
        problems.append(Problem("--rank", parsed.rank, "must be at least 1.", "Try 32."))
    if parsed.energy is not None and not 0 < parsed.energy <= 1:
        problems.append(Problem("--energy", parsed.energy, "must lie in (0, 1].", "Try 0.95."))
    if problems:
        raise UserError(*problems)


def _stack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help=_WEIGHTED)
    parser.add_argument("--output", type=user_path, help="new file or folder; omit for the interference report alone")
    parser.add_argument("--format", default="diffusers", help="file format, such as diffusers, kohya or peft")
    parser.add_argument("--rank", type=int, help="compress the stack to this rank by SVD; it is exact otherwise")
    parser.add_argument("--report", type=user_path, help="write the interference report, layer by layer, as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    _add_asked(parser)


def _stack(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    from erasediff_lora.adapter import formats, stacking
    from erasediff_lora.cli.losses import lines_of_file
    from erasediff_lora.storage.files import require_free, write_text

    if parsed.rank is not None and parsed.rank < 1:
        raise UserError(Problem("--rank", parsed.rank, "must be at least 1.", "Omit it for an exact stack."))
    if parsed.output is not None:
        formats.require_output(parsed.output, parsed.format)
    if parsed.report is not None:
        require_free(parsed.report, "--report", overwrite=parsed.overwrite)
    adapters = _weighted(parsed.adapters, _asked(parsed))
    stacked = stacking.stack(adapters)
    reports = []
    for one, other in itertools.combinations(adapters, 2):
        reports.append(stacking.summary(one, other, stacking.interference(one, other)))
        _print_interference(reports[-1])
    if parsed.report is not None:
        write_text(parsed.report, json.dumps(reports, indent=2) + "\n")
        print(f"report     {parsed.report}")
    if parsed.output is None:
        return
    if parsed.rank is not None:
        stacked, energy = stacking.compress(stacked, parsed.rank)
        print(f"compressed to rank {parsed.rank}: {energy:.4%} of the energy kept")
    files = formats.write(stacked, parsed.output, parsed.format, overwrite=parsed.overwrite)
    for file in files:
        print(f"stacked    {file}")
    for line in lines_of_file(files[0]):
        print(line)


def _print_interference(report: dict[str, Any]) -> None:
    one, other = report["adapters"]
    print(f"interference of {one} and {other}: {report['shared_layers']} shared layers of {report['layers']}")
    if not report["shared_layers"]:
        print("  none: they change different weights")
        return
    print(
        f"  input overlap {report['input_overlap']:.3f} (by chance {report['input_chance']:.3f}),"
        f" output overlap {report['output_overlap']:.3f} (by chance {report['output_chance']:.3f}),"
        f" cosine of the updates {report['cosine']:+.3f}"
    )
    times = report["interference"] / report["interference_chance"]
    if times > 2:
        print(f"  {times:.1f} times what chance gives: they act on the same features. Look at what the stack draws,")
        print("  and lower the strengths if the rest suffers.")
    else:
        print("  about what chance gives: they should not disturb each other much")
    print(f"  {'layers that interfere most':62} {'input':>6} {'output':>6} {'cosine':>7}   norms")
    for row in report["per_layer"][:5]:
        print(
            f"  {row['layer']:62} {row['input_overlap']:6.3f} {row['output_overlap']:6.3f} {row['cosine']:+7.3f}"
            f"   {row['norms'][0]:.3g}, {row['norms'][1]:.3g}"
        )


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=user_path, help="diffusers folder, single-file checkpoint, or bare UNet file")
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help=_WEIGHTED)
    parser.add_argument("--output", type=user_path, required=True, help="new file or folder, laid out as the model is")
    parser.add_argument("--unmerge", action="store_true", help="take the adapters out of a merged model instead")
    parser.add_argument("--compare", type=user_path, help="report how far the result is from this model")
    parser.add_argument("--strict", action="store_true", help="refuse an adapter that was trained on another base")
    parser.add_argument(
        "--drop_ema", action="store_true", help="leave out a checkpoint's running averages instead of changing them too"
    )
    parser.add_argument(
        "--eval_learn",
        type=user_path,
        metavar="RUN",
        help="a folder for eval-learn's free_run: the merged model, a configuration, the prompts of this run's recipe",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    _add_asked(parser)


def _merge_for_eval_learn(parsed: argparse.Namespace) -> None:
    from erasediff_lora.publishing.eval_learn import write_free_run
    from erasediff_lora.recipe import Recipe

    for flag in ("unmerge", "compare", "drop_ema"):
        if getattr(parsed, flag):
            raise UserError(Problem(f"--{flag}", True, "cannot go with --eval_learn.", "Leave one of them out."))
    recipe = Recipe.of_run(parsed.eval_learn)
    adapters = _weighted(parsed.adapters, _asked(parsed))
    file = write_free_run(recipe, parsed.model, adapters, parsed.output, overwrite=parsed.overwrite)
    print(f"merged     {parsed.output / 'model'}")
    print(f"to run     cd {parsed.output}; eval-learn run --config {file.name}")


def _merge(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    from erasediff_lora.adapter import Checkpoint, compare, merge

    if parsed.eval_learn is not None:
        _merge_for_eval_learn(parsed)
        return
    if parsed.compare is not None:
        Checkpoint(parsed.compare)
    output = merge(
        parsed.model,
        _weighted(parsed.adapters, _asked(parsed)),
        parsed.output,
        unmerge=parsed.unmerge,
        strict=parsed.strict,
        overwrite=parsed.overwrite,
        drop_ema=parsed.drop_ema,
    )
    print(f"{'unmerged' if parsed.unmerge else 'merged'}   {output}")
    if parsed.compare is not None:
        difference = compare(output, parsed.compare, through=parsed.model if parsed.unmerge else None)
        print(f"greatest difference from {parsed.compare}: {difference}")
    elif parsed.unmerge:
        print("equal to the base up to rounding; --compare BASE tells by how much")


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "base", type=user_path, help="the model before: diffusers folder, single file, or bare UNet file"
    )
    parser.add_argument("tuned", type=user_path, help="the model after")
    parser.add_argument("--output", type=user_path, required=True, help="new file or folder")
    parser.add_argument("--rank", type=int, help="the most that a layer may have")
    parser.add_argument("--energy", type=float, help="share of a layer's change to keep, such as 0.99")
    parser.add_argument("--concepts", nargs="+", default=[], metavar="NAME", help="what was erased, for the header")
    _add_family(parser, told_by="the base")
    parser.add_argument("--format", default="diffusers", help="file format, such as diffusers, kohya or peft")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _extract(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    from erasediff_lora.adapter import extract, formats
    from erasediff_lora.adapter.formats import Asked
    from erasediff_lora.cli.losses import lines_of_file

    _check_size(parsed)
    formats.require_output(parsed.output, parsed.format)
    family = Asked.parse(parsed.family).family
    concepts = tuple(parsed.concepts)
    found = extract(parsed.base, parsed.tuned, rank=parsed.rank, energy=parsed.energy, concepts=concepts, family=family)
    written = formats.write(found.adapter, parsed.output, parsed.format, overwrite=parsed.overwrite)
    ranks = [layer.rank for layer in found.adapter.layers.values()]
    print(f"extracted  {len(ranks)} weights, rank {min(ranks)} to {max(ranks)}, {found.energy:.4%} of the energy kept")
    _tell_of_unheld(found.unheld)
    for file in written:
        print(f"adapter    {file}")
    for line in lines_of_file(written[0]):
        print(line)


def _publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, help="folder of a run, or any folder with an adapter")
    parser.add_argument("--repo", required=True, help="user/name on the hub")
    parser.add_argument("--dry_run", action="store_true", help="make the folder RUN/hub and upload nothing")
    parser.add_argument("--public", action="store_true", help="let everybody see it; it is private otherwise")
    parser.add_argument(
        "--force", action="store_true", help="make public also what failed or was not measured; the card says so"
    )
    parser.add_argument("--base_model", help="hub id of the base, if the recipe does not have it")
    _add_family(parser)
    parser.add_argument("--license", help="licence id, or other:NAME:LINK; that of the base's family otherwise")
    parser.add_argument(
        "--pictures",
        choices=("both", "after", "none", "unblurred"),
        default="both",
        help="'after' leaves out what the base draws for the erased concept; 'unblurred' shows both as they are, where "
        "nudity is the subject too",
    )
    parser.add_argument(
        "--training_images", action="store_true", help="include the contact sheets of the forget and the retain set"
    )


def _publish(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    from erasediff_lora.publishing import publish

    if parsed.offline and not parsed.dry_run:
        raise UserError(Problem("--offline", True, "cannot go with an upload.", "Leave it out, or add --dry_run."))
    folder = publish(
        parsed.run,
        parsed.repo,
        dry_run=parsed.dry_run,
        public=parsed.public,
        force=parsed.force,
        base_model=parsed.base_model,
        license=parsed.license,
        pictures=parsed.pictures,
        training_images=parsed.training_images,
        family=parsed.family,
    )
    print(f"hub folder {folder}")
    if not parsed.dry_run:
        print(f"published  https://huggingface.co/{parsed.repo} ({'public' if parsed.public else 'private'})")


def _weighted(texts: list[str], asked: Asked) -> list[Weighted]:
    """Read 'PATH:STRENGTH' arguments, all complaints at once."""
    from erasediff_lora.adapter import Weighted

    adapters: list[Weighted] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            adapters.append(Weighted.parse(text, asked))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return adapters


VERBS = {
    "inspect": Verb("show what an adapter file holds and where it comes from", _inspect_arguments, _inspect),
    "convert": Verb("write an adapter in another format", _convert_arguments, _convert),
    "stack": Verb("report how adapters interfere, and make one of several", _stack_arguments, _stack),
    "merge": Verb("merge adapters into a copy of a checkpoint, or take them out", _merge_arguments, _merge),
    "extract": Verb("make an adapter of the difference of two checkpoints", _extract_arguments, _extract),
    "publish": Verb("assemble an adapter's hub folder and upload it", _publish_arguments, _publish),
}
