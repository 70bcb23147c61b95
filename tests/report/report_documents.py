"""Reports to look at: a real compile's, and one whose every text is hostile."""

from __future__ import annotations

from typing import Any

HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">&amp;{{7*7}}"


def fidelity(mean: float, worst: float) -> dict[str, Any]:
    """As `fidelity_document` gives it."""
    return {
        "mean_cosine": mean, "worst_cosine": worst, "largest_error": 0.02, "row_count": 64,
        "top1_agreement": None, "neighbour_agreement": 0.9375, "drop": 1 - mean,
        "perplexity": None, "perplexity_ratio": None, "kl_divergence": None,
    }  # fmt: skip


def evidence(mean: float, weight_bytes: int) -> dict[str, Any]:
    """As `Evidence.to_json` gives it."""
    return {
        "fidelity": fidelity(mean, mean - 0.01), "weight_bytes": weight_bytes, "flops": 2_800_000_000,
        "seconds": 4.25, "peak_memory_bytes": 900_000_000, "probes": {},
    }  # fmt: skip


def ranking(text: str) -> dict[str, Any]:
    """As `SiteRanking.to_json` gives it, of three sites; the last is broken."""
    costs = [(0.004, {"needle": 0.5, "copying": -0.25}), (0.001, {"needle": 0.0, "copying": 0.125}), (None, {})]
    sites = [
        {
            "site": f"{text}.{index}", "replaced": index == 1, "error": error, "recall": recall,
            "score": None if error is None else 100 * error + sum(max(0.0, nats) for nats in recall.values()),
            "parts": {"error": 100 * (error or 0.0)} | {name: max(0.0, nats) for name, nats in recall.items()},
        }
        for index, (error, recall) in enumerate(costs)
    ]  # fmt: skip
    return {
        "rank": "recall", "error": "KL", "error_weight": 100.0,
        "data": f"2 calibration windows; {text}", "seconds": 95.5, "reused": 1,
        "sites": sites,
    }  # fmt: skip


def healing(text: str) -> dict[str, Any]:
    """A healing of two sites."""
    site = {"site": text, "before": 0.2, "after": 0.1, "steps": 40, "seconds": 5.0, "kept": True}
    return {
        "budget_seconds": 900.0, "seconds": 899.0, "capture_seconds": 40.0, "site_seconds": 10.0,
        "end_to_end_seconds": 800.0, "steps": 600, "tokens": 614_400, "parameters": 921_600, "unit": text,
        "start": 0.0854, "after_sites": 0.07, "end": 0.0412, "curve": [[0.0, 0.0854], [99.0, 0.07], [899.0, 0.0412]],
        "sites": [site, site | {"kept": False}], "optimizer": text, "lora": 16, "half": True, "resumed": False,
        "interrupted": False, "stopped_early": True, "notes": [text],
    }  # fmt: skip


def mix(text: str) -> dict[str, Any]:
    """As `MixRecord.to_json` gives it, of three places and two limits."""
    places = [
        {
            "site": f"{text}.{index}", "kind": "linear", "choice": choice, "cost": cost, "bytes": size,
            "original_bytes": 4_000_000,
        }
        for index, (choice, cost, size) in enumerate(((text, 2e-3, 5e5), (text, 1e-3, 5e5), ("", 0.0, 4e6)))
    ]  # fmt: skip
    limits = [
        {"quantity": quantity, "text": f"{quantity}={text}", "whole": w, "allowed": a, "expected": e, "measured": m}
        for quantity, w, a, e, m in [("size", 12e6, 6e6, 5e6, 5.1e6), ("latency", 0.02, 0.012, 0.011, 0.0115)]
    ]
    return {
        "places": places, "limits": limits, "expected": 0.003, "error_name": text,
        "frontier": [{"amount": 1.5e6, "cost": 0.1}, {"amount": 5e6, "cost": 0.003}, {"amount": 12e6, "cost": 0.0}],
        "corrections": {text: 1.1}, "candidate_count": 17, "reused": 3, "seconds": 95.5,
    }  # fmt: skip


def report(text: str = "encoder", site_count: int = 40) -> dict[str, Any]:
    """A report with every part, where each name and reason is or starts with `text`."""
    states = ("grafted", "softened", "returned", "refused")
    sites = [
        {
            "pass": text, "site": f"{text}.layer.{index}.attention.output.dense", "kind": text,
            "state": states[index % 4], "note": text, "drop": index * 1e-4 if index % 4 < 3 else None,
        }
        for index in range(site_count)
    ]  # fmt: skip
    passes = [
        {
            "name": text, "text": f"{text}:bits={index}", "make": make, "changed_count": 3, "notes": [text],
            "states": {} if make == "rewrite" else {"grafted": 30, "softened": 4, "returned": 3, "refused": 3},
            "evidence": evidence(1.0 - 0.001 * index, 90_000_000 // (index + 1)),
            "ranking": ranking(text) if make == "graft" else None,
            "healing": healing(text) if make == "graft" else None,
            "mix": mix(text) if make == "graft" else None,
        }
        for index, make in enumerate(("rewrite", "rewrite", "graft"))
    ]  # fmt: skip
    spread = {"median": 0.0051, "lower": 0.005, "upper": 0.0056}
    return {
        "format": "regraft report 1", "regraft": "0.1.0",
        "model": {"source": text, "role": text, "inputs": [f"{text}: int64[batch, sequence]"], "outputs": [text]},
        "backend": text, "target": text, "runtime": {"name": text, "requires": {text: "1"}},
        "data": {"name": text, "shipped": True, "sample_count": 64, "unit": "sample"},
        "before": {"weight_bytes": 90_900_000, "flops": 2_800_000_000,
                   "bytes_by_kind": {"linear": 42_000_000, "embedding": 48_000_000, "norm": 900_000},
                   "probes": {text: 1.0}, "fidelity": fidelity(1.0, 1.0)},
        "after": {"weight_bytes": 22_700_000, "flops": 2_800_000_000, "payload_bytes": 22_800_000,
                  "bytes_by_kind": {"linear": 10_600_000, "embedding": 12_000_000, "other": 100_000},
                  "probes": {text: 0.875}, "fidelity": fidelity(0.9981, 0.991)},
        "payload": fidelity(0.998, 0.99), "max_drop": 0.0025, "passes": passes, "sites": sites,
        "latency": {"shapes": {text: [1, 128]}, "rounds": 15,
                    "sides": [{"name": text, **spread}, {**spread, "name": "torch"}]},
        "kernels": {text: 36, "LayerNormalization": 13}, "recipe": f'model = "{text}"\n',
        "seconds": 31.5, "peak_memory_bytes": 1_100_000_000, "notes": [text],
    }  # fmt: skip


def language_report(text: str = "causal-lm") -> dict[str, Any]:
    """A report of a language model."""
    document = report(text)
    lossless = {"perplexity": 24.2, "perplexity_ratio": 1.0, "kl_divergence": 2e-8, "top1_agreement": 1.0}
    lossy = {"perplexity": 24.789, "perplexity_ratio": 1.02434, "kl_divergence": 0.03123, "top1_agreement": 0.9023}
    found = [document["before"]["fidelity"], *(one["evidence"]["fidelity"] for one in document["passes"])]
    for one in found:
        one.update({"neighbour_agreement": None, "row_count": 2048} | lossless)
    for one in (document["after"]["fidelity"], document["payload"], found[-1]):
        one.update({"neighbour_agreement": None, "row_count": 2048} | lossy)
    document["data"] |= {"unit": "window", "sample_count": 8}
    return document
