"""The README's first table, from the results of the main job: `python scripts/readme_table.py results/orin_vs_dre`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

OURS = ("vrex8", "resv")
AGX = {"FlexGen": "flexgen_stream", "InfiniGenP": "infinigenp", "ReKV": "rekv_vrex", "ReSV": "resv"}
REST = ("V-Rex8 + ReSV", "published", "error", "speedup", "energy gain", "V-Rex8 decode", "retrieved")


def table(folder: Path) -> str:
    """Markdown: frame latencies in ms by cache length, and what V-Rex8 gains."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = {(r["platform"], r["policy"], r["stage"], int(r["kv_len_tokens"])): r for r in csv.DictReader(file)}
    facts = json.loads((folder / "results.json").read_text(encoding="utf-8"))["published"]
    published = {p["kv_len_tokens"]: p for p in facts if p["item"].startswith("V-Rex8 frame latency")}
    header = ("cache", *AGX, *REST)
    lines = [f"| {' | '.join(header)} |", f"|{'---:|' * len(header)}"]
    for length in sorted({key[3] for key in rows}):
        frame, decode = rows[*OURS, "frame", length], rows[*OURS, "decode", length]
        cells = [f"{length // 1000}K"]
        cells += [_ms(rows["agx_orin", policy, "frame", length]["latency_s"]) for policy in AGX.values()]
        cells += [_ms(frame["latency_s"]), _ms(published[length]["published"]), f"{published[length]['error']:+.0%}"]
        cells += [f"{float(frame[gain]):.1f} x" for gain in ("speedup", "energy_gain")]
        cells += [_ms(decode["latency_s"]), f"{float(share):.0%}" if (share := frame["retrieval_ratio"]) else ""]
        lines.append(f"| {' | '.join(cells)} |".replace("%", " %"))
    return "\n".join(lines)


def _ms(seconds: str | float) -> str:
    return f"{1000 * float(seconds):.0f}"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
