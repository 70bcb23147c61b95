"""report.html: the report as one self-contained page. No network, no fonts, no data in scripts; all is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from compiler.report import charts, formats
from compiler.report.healing_text import learned_from
from compiler.report.mix_text import AMOUNTS, choice_rows, frontier_caption, limit_lines

TEMPLATE = Path(__file__).parent / "report.html.j2"
LISTED_SITES = 250
"""Rows of the table of sites; report.json has them all."""

LISTED_DROPS = 12


def html_page(document: dict[str, Any]) -> str:
    """The page. `document` is what `report_document` gives."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters = (
        formats.megabytes,
        formats.operations,
        formats.cosine,
        formats.share,
        formats.milliseconds,
        formats.duration,
        formats.perplexity,
        formats.ratio,
        formats.nats,
    )
    environment.filters.update({filter.__name__: filter for filter in (*filters, formats.drop, formats.states)})
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=document,
        language=_judges_language(document),
        sites=_listed_sites(document["sites"]),
        states=sorted({site["state"] for site in document["sites"]}),
        charts=_charts(document),
        facts=_headline(document),
        budgets=[(choice_rows(one["mix"]), limit_lines(one)) for one in document["passes"] if one["mix"] is not None],
    )


def _listed_sites(sites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was given back or refused first, when not all can be shown."""
    if len(sites) <= LISTED_SITES:
        return sites
    order = {"returned": 0, "softened": 1, "refused": 2}
    return sorted(sites, key=lambda site: order.get(site["state"], 3))[:LISTED_SITES]


def _headline(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, figure and explanation of the page's first row."""
    before, after = document["before"], document["after"]
    size = after["payload_bytes"] or after["weight_bytes"]
    facts = [("Size", formats.megabytes(size), f"was {formats.megabytes(before['weight_bytes'])} of weights")]
    latency = document["latency"]
    if latency is not None:
        first, *others = latency["sides"]
        told = [f"{side['name']}: {formats.milliseconds(side['median'])}" for side in others]
        facts.append(("Latency", formats.milliseconds(first["median"]), "; ".join(told)))
    fidelity = document["payload"] or after["fidelity"]
    if fidelity is not None:
        facts += _fidelity_facts(document, fidelity)
    seconds = formats.duration(document["seconds"])
    return [*facts, ("Compiled in", seconds, f"peak memory {formats.megabytes(document['peak_memory_bytes'])}")]


def _judges_language(document: dict[str, Any]) -> bool:
    """Whether there are perplexities to show."""
    return (document["before"]["fidelity"] or {}).get("perplexity") is not None


def _fidelity_facts(document: dict[str, Any], fidelity: dict[str, Any]) -> list[tuple[str, str, str]]:
    if fidelity["perplexity"] is not None:
        before = f"was {formats.perplexity(document['before']['fidelity']['perplexity'])}"
        ratio, kl = formats.ratio(fidelity["perplexity_ratio"]), formats.nats(fidelity["kl_divergence"])
        facts = [
            ("Perplexity", formats.perplexity(fidelity["perplexity"]), f"{ratio}; {before}"),
            ("KL divergence", kl, "nats a token from the captured model"),
        ]
        counted = f"of {fidelity['row_count']:,} tokens"
    else:
        worst = f"worst row {formats.cosine(fidelity['worst_cosine'])}"
        facts = [("Mean cosine", formats.cosine(fidelity["mean_cosine"]), worst)]
        counted = f"of {document['data']['sample_count']} samples"
    for key, name in (("top1_agreement", "Top-1 kept"), ("neighbour_agreement", "Neighbour kept")):
        if fidelity[key] is not None:
            facts.append((name, formats.share(fidelity[key]), counted))
    return facts


def _charts(document: dict[str, Any]) -> list[tuple[str, Markup, str]]:
    """Title, picture and caption of each chart that there are numbers for."""
    before, after = document["before"], document["after"]
    found = [
        (
            "Size",
            charts.size_chart(before["bytes_by_kind"], after["bytes_by_kind"]),
            "Weights by the kind of layer that reads them.",
        )
    ]
    latency = document["latency"]
    if latency is not None:
        sides = [charts.Spread(**side) for side in latency["sides"]]
        shapes = ", ".join(f"{name} {shape}" for name, shape in latency["shapes"].items())
        caption = f"Median and quartiles of {latency['rounds']} alternating rounds; {shapes}."
        found.append(("Latency", charts.latency_chart(sides), caption))
    steps = _steps(document)
    if steps:
        found.append(
            (
                "Fidelity",
                charts.fidelity_chart(steps),
                "Cosine to the captured model. Blue: mean; orange: worst row.",
            )
        )
    probes = [(name, document["before"]["probes"].get(name, score), score) for name, score in after["probes"].items()]
    if probes:
        caption = "Scores before any pass (grey) and after all of them (blue); 1 is all right."
        found.append(("Probes", charts.probe_chart(probes), caption))
    for one in document["passes"]:
        if one["ranking"] is not None:
            found.append(
                (f"Layers: {one['name']}", charts.ranking_chart(one["ranking"]["sites"]), ranking_caption(one))
            )
    found += [
        _frontier_chart(one["mix"]) for one in document["passes"] if one["mix"] is not None and one["mix"]["frontier"]
    ]
    found += [_healing_chart(one["name"], one["healing"]) for one in document["passes"] if one["healing"] is not None]
    drops = sorted((site for site in document["sites"] if site["drop"] is not None), key=lambda site: -site["drop"])
    if drops:
        worst = [(site["site"], site["state"], site["drop"]) for site in drops[:LISTED_DROPS]]
        caption = f"Drop when only this site is grafted; the worst {len(worst)} of {len(drops)}. Orange: given back."
        found.append(("Cost of single sites", charts.drop_chart(worst), caption))
    return found


def ranking_caption(one: dict[str, Any]) -> str:
    """What the columns of a ranking mean."""
    ranking = one["ranking"]
    error = f"{ranking['error_weight']:g} times the error"
    lost = f"nats lost by each probe and {error}" if ranking["rank"] == "recall" else error
    return (
        f"What each site costs when it alone is replaced: {lost} ({ranking['error']}), on {ranking['data']}. "
        "In the order of the graph; a mark below says that the site is replaced."
    )


def _frontier_chart(mix: dict[str, Any]) -> tuple[str, Markup, str]:
    first = mix["limits"][0]
    points = [(point["amount"], point["cost"]) for point in mix["frontier"]]
    picture = charts.frontier_chart(points, (first["expected"], mix["expected"]), AMOUNTS[first["quantity"]])
    return f"Budget: {first['text']}", picture, frontier_caption(mix)


def _healing_chart(name: str, healing: dict[str, Any]) -> tuple[str, Markup, str]:
    points = [(seconds, loss) for seconds, loss in healing["curve"] if loss is not None]
    together = healing["seconds"] - healing["end_to_end_seconds"]
    picture = charts.curve_chart(points, [(together, "all together")] if healing["sites"] else [])
    caption = (
        f"{healing['unit']}, on data that {name} was not trained on; "
        f"{healing['parameters']:,} numbers learned from {learned_from(healing)}."
    )
    return "Healing", picture, caption


def _steps(document: dict[str, Any]) -> list[tuple[str, float, float]]:
    rows = [(one["name"], one["evidence"]["fidelity"]) for one in document["passes"]]
    rows.append(("lowered", document["payload"]))
    return [
        (name, f["mean_cosine"], f["worst_cosine"])
        for name, f in rows
        if f is not None and f["mean_cosine"] is not None
    ]
