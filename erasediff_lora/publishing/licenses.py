"""The licence that a card names."""

from __future__ import annotations

from erasediff_lora import families
from erasediff_lora.adapter.weights import LoraAdapter
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.families import License

OTHER = "other"
DEMO = License("apache-2.0")
_KNOWN = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
"""
IDS = frozenset(_KNOWN.split())
"""What the hub knows. It refuses a card with another one."""


def parse(text: str) -> License:
    """A licence as `--license` takes it: an id of the hub, or 'other:NAME' or 'other:NAME:LINK'.

    Raises:
        UserError: If the hub has no licence of that id, or the link is none.
    """
    identifier, _, rest = text.partition(":")
    name, _, link = rest.partition(":")
    if identifier not in IDS or (rest and identifier != OTHER):
        remedy = f"{nearest(text, IDS)} Of any other licence write other:NAME:LINK."
        raise UserError(Problem("--license", text, "is no licence id of the hub.", remedy))
    if link and not link.startswith("https://"):
        raise UserError(
            Problem("--license", text, "links to no web page.", "Write other:NAME:https://… or leave the link out.")
        )
    return License(identifier, name or None, link or None)


def license_of(adapter: LoraAdapter, given: License | None) -> License | None:
    """What the adapter is published under.

    Args:
        adapter: The adapter; the licence of its base's family, if that has one.
        given: What was asked for, which wins; 'other' without a name is the family's own, if that is such a one.
    """
    found = families.of_architecture(adapter.architecture)
    own = DEMO if adapter.provenance.base_model == "demo" else found[1].license if found else None
    return own if given is None or (own is not None and given == License(own.id)) else given
