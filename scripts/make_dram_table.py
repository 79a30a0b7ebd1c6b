"""Write dre_sim/data/dram_steady_state.json: steady states of the bundled memories over the grid of patterns.

Run after a change of the DRAM model or of configs/memory:  python scripts/make_dram_table.py
"""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

import yaml

from dre_sim.dram import AccessPattern, DramConfig
from dre_sim.dram.steady import measure, table_key

ROOT = Path(__file__).parent.parent
CHUNKS = (0, *(1 << k for k in range(6, 21)))
WRITE_SHARES = (0.0, 1.0)


def main() -> None:
    entries = {}
    for path in sorted((ROOT / "configs" / "memory").glob("*.yaml")):
        config = DramConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
        for share in WRITE_SHARES:
            for chunk in CHUNKS:
                access = AccessPattern(chunk, share)
                state = measure(config, access)
                entries[table_key(config, access)] = astuple(state)
                print(f"{config.name:22s} chunk {chunk:8d} write {share:.0f}  {state.efficiency:.3f} of peak")
    note = "Written by scripts/make_dram_table.py: bandwidth B/s, efficiency, activates per byte, mean latency ps."
    target = ROOT / "dre_sim" / "data" / "dram_steady_state.json"
    target.write_text(json.dumps({"note": note, "entries": entries}, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
