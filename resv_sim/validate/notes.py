"""Words around the tables of `report`: what a model is compared with, how to read it, where it falls short and why."""

WHAT = {
    "dram": "DRAM, against request-level simulators, their address streams replayed",
    "ssd": "SSD, against MQSim",
    "link": "PCIe link, against payload ceilings and measured copies",
    "gpu": "GPU, against measured steps and kernels",
    "energy": "Area and energy, against published figures and other estimators",
}

NOTES = {
    "dram": """\
Saturated: the source is never empty, or offers more than the memory takes. Unsaturated: open loop below that.
Latencies of saturated open-loop rows grow with the run's length and are not compared. The model's controller is
Ramulator's; DRAMsim3 has another (a queue per bank behind a transaction queue, its own write drain), holds more
requests, and so differs most where queues are full.""",
    "ssd": """\
The tables' random numbers are not documented, so rows are drawn anew. The drive was fresh: a page has its place in a
plane from the order in which pages were first touched, and planes are read together where their counts agree. That is a
random walk, which moves the mean latency of large random reads at great depth by up to ten points between seeds of ours
(1 MiB at depth 128: 20.4 to 22.4 ms, MQSim's 20.5), that of large reads among writes by up to a factor of two, of other
rows by a few points.""",
    "link": """\
Rows of mode memcpy and gather use the per-extent costs of the bundled A100 platform. Long gathers come out too
fast: the model gives them the packets' full payload rate, the measured kernel reaches nine tenths of it. The cost of
a memcpy call was read off the same curve as its rows, so those show that the form fits, not a prediction.""",
    "gpu": """\
The Orin runs in MAXN. Most authors do not state module and power mode; 'if at 50 W' shows the same rows in that
mode. No validated row has set a constant: constants come from the kernel rows marked calibrate, the host time of an
eager operator on the Orin from Fig. 16 of the paper. TinyChat's INT4 rows run PyTorch modules around hand-written
kernels, and INT4 products take the blocks that AWQ's kernel takes for a number of rows: 16 rows up to 64, each block
unpacking its weights anew (both read in llm-awq d6e797a after the rows had been compared; of Edge-LLM's and MLC's
kernels assumed). Where the model falls short, it is mostly too fast: TinyChat's few rows after a long history; small
models, the time outside the layers. A100: TinyChat INT4 waits for a host whose speed nobody states; its own 2B model,
which takes as long as the 8B one of as many layers, tells it (row marked calibrate, 14 us a kernel). llama.cpp of May
2024 holds few bytes in flight; how many, and what a kernel costs beside them, was read off two models on H100 cards of
the same tables (dre_sim/gpu_kernels.py), before the A100's rows were compared with it, though after they had been seen
to be wrong. Roles follow the conditions that an author states (head of the table), and were settled after a first
comparison: the mean with the rows of unknown conditions stands beside the one without.""",
    "energy": """\
Rows marked calibrate hold by construction or are residuals of a fit. Lower power modes lower the clock, and with it
what switching draws; that they also lower voltage and idle power is in no source that gives figures, and the rails at
50 and 30 W show it. Two of the area estimates are bounds, one
below and one above.""",
}

INTRODUCTION = """\
Written by `resv-sim validate all --markdown docs/validation.md`. An error is ours over the reference, less one; median,
mean, p90 and worst are of absolute errors. "Asked" is what the table's own spread allows to ask for: the median, and
behind a slash p90; or the mean. The reference tables, with the configuration of the simulators and the
sources of the measurements, are in `resv_sim/data/reference/`.

`resv-sim validate MODEL --data DIR` compares with the CSV tables of DIR instead. Columns decide which model a table is
for, and its bundled sisters show them; the file name up to the first dot is the table's name. A DRAM table's name gives
its memory: `dram_[system_]DEVICE[_VARIANT...]`, as in `dram_lpddr5_6400_q128` or `dram_system_lpddr5_6400_x16ch`."""
