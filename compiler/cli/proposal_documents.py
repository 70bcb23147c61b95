"""What a graft proposes for every site of a Program, as plain values: for --json and for a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compiler.evidence.site_speed import SpeedMeter
    from compiler.program import Program
    from compiler.rewriting import Graft, PassContext, Replacement
    from compiler.sites import Site


def proposal_documents(
    graft: Graft, program: Program, context: PassContext, meter: SpeedMeter | None
) -> list[dict[str, Any]]:
    """In graph order; with the speed of each stand-in where there is a `meter`."""
    from compiler.selection.choose_sites import choose_sites
    from compiler.sites import Refusal, Site, find_sites

    found = find_sites(program, graft.site_kinds)
    chosen = choose_sites(graft, [site for site in found if isinstance(site, Site)], program, context)
    refusals = {refusal.node: refusal for refusal in chosen.left_out}
    proposed = dict(_proposed(graft, chosen.sites, program, context, meter))
    documents = []
    for site in found:
        refusal = site if isinstance(site, Refusal) else refusals.get(site.output.name)
        if refusal is not None:
            documents.append({"kind": refusal.kind, "site": refusal.name or refusal.node, "refused": refusal.reason})
        elif isinstance(site, Site):
            documents.append({"kind": site.kind, "site": site.name, **proposed[site.output.name]})
    return documents


def _proposed(
    graft: Graft, sites: Sequence[Site], program: Program, context: PassContext, meter: SpeedMeter | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    from compiler.rewriting import Replacement

    proposals = graft.propose_all(sites, program, context)
    for site in sites:
        context.progress(f"{graft.name}: {site.name}")
        proposal = next(proposals)
        if not isinstance(proposal, Replacement):
            yield site.output.name, {"refused": proposal.reason}
            continue
        document = _sizes(program, site, proposal)
        if meter is not None:
            context.progress(f"{graft.name}: {site.name}, speed")
            speeds = meter.compare(program, site, proposal.module.eval())
            document |= (
                {"speed_refused": speeds} if isinstance(speeds, str) else {"speed": [vars(one) for one in speeds]}
            )
        yield site.output.name, document


def _sizes(program: Program, site: Site, proposal: Replacement) -> dict[str, Any]:
    from compiler.cli.site_listing import site_bytes
    from compiler.program import storage_bytes

    return {
        "proposal": proposal.note,
        "bytes_before": site_bytes(program, site),
        "bytes_after": storage_bytes([*proposal.module.parameters(), *proposal.module.buffers()]),
        "has_gentler": proposal.gentler is not None,
    }


def proposals_shown(document: dict[str, Any]) -> list[RenderableType]:
    """What `explain` shows of a graft: its sites, sizes and speeds."""
    from compiler.cli.terminal import line, table

    sites = document["sites"]
    counts = next(([speed["tokens"] for speed in one["speed"]] for one in sites if "speed" in one), [])
    headers = (
        "site",
        "kind",
        "what it would do",
        ">MB before",
        ">MB after",
        *(f">{count:,} tokens" for count in counts),
    )
    rows = [
        (
            one["site"] or "",
            one["kind"],
            one.get("proposal") or f"refused: {one['refused']}",
            _megabytes(one.get("bytes_before")),
            _megabytes(one.get("bytes_after")),
            *(_gains(one, len(counts))),
        )
        for one in sites
    ]
    taken = [one for one in sites if "proposal" in one]
    saved = sum(one["bytes_before"] for one in taken), sum(one["bytes_after"] for one in taken)
    shown: list[RenderableType] = [
        line(f"{document['pass']} (graft)"),
        table(headers, rows),
        line(f"{len(taken)} of {len(rows)} sites: {_megabytes(saved[0])} MB before, {_megabytes(saved[1])} MB after"),
    ]
    if counts:
        told = f"speed in {document['backend']}: of a stand-in alone over that of its site, both as often in turns"
        shown.append(line(f"{told}; all sites together {_overall(taken, counts)}"))
    reasons = sorted({one["speed_refused"] for one in taken if "speed_refused" in one})
    return [*shown, *(line(f"not timed: {reason}") for reason in reasons)]


def _gains(document: dict[str, Any], count: int) -> list[str]:
    return [f"{one['gain']:.2f}x" for one in document["speed"]] if "speed" in document else [""] * count


def _overall(taken: Sequence[dict[str, Any]], counts: Sequence[int]) -> str:
    """Time of all sites that were timed over that of their stand-ins."""
    timed = [one["speed"] for one in taken if "speed" in one]
    sums = [
        [sum(speeds[index][key] for speeds in timed) for key in ("original_seconds", "stand_in_seconds")]
        for index in range(len(counts))
    ]
    return ", ".join(f"{one / other:.2f}x at {count:,}" for count, (one, other) in zip(counts, sums, strict=True))


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.3f}"
