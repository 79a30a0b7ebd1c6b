"""Slow, evident twin of the DRAM kernel: one channel, clock by clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dre_sim.dram import DramConfig

NEVER = -(10**12)


def locate(c: DramConfig, address: int) -> tuple[int, int, int, int, int]:
    """(channel, pseudo-channel, bank group, bank, row) of a byte address, digit by digit."""
    block, offset = divmod(address % c.capacity_bytes, c.interleave_bytes)
    rest, channel = divmod(block, c.n_channels)
    rest = rest * c.interleave_bytes + offset
    rest //= c.row_bytes if c.address_map == "page" else 64
    rest, pseudo = divmod(rest, c.n_pseudo_channels)
    rest, group = divmod(rest, c.n_bank_groups)
    if c.address_map == "bank_group":
        rest //= c.row_bytes // 64
    rest, bank = divmod(rest, c.n_banks_per_group)
    return channel, pseudo, group, bank, rest % c.n_rows


@dataclass
class Txn:
    where: tuple[int, int, int]  # pseudo-channel, bank group, bank
    row: int
    write: bool
    arrival: int
    unit_end: int = 0
    age: int = -1
    done: int = -1


class NaiveChannel:
    """One channel. A command may issue when every rule about the commands before it holds."""

    def __init__(self, c: DramConfig, txns: list[Txn]) -> None:
        self.c, self.txns = c, txns
        self.open: dict[tuple[int, int, int], int] = {}
        self.owner: dict[tuple[int, int, int], Txn] = {}
        self.last: dict[tuple[object, ...], int] = {}
        self.acts: dict[int, list[int]] = {}
        self.queue: dict[bool, list[Txn]] = {False: [], True: []}
        self.todo: list[tuple[int, ...]] = []
        self.refresh_at = self.hits = self.activates = self.age = self.head = self.tail = 0
        self.synced_until = self.busy_until = 0
        self.drain = False
        self.act2: tuple[tuple[int, int, int], int] | None = None
        self.rules = self._rules()

    def _rules(self) -> list[tuple[str, str, str, int]]:
        """(before, after, scope, clocks)."""
        c = self.c
        write_data = c.n_cwl + c.n_bl
        per_bank = c.refresh == "per_bank"
        return [
            *[(x, x, "rank", max(c.n_ccd_s, c.n_bl)) for x in ("RD", "WR")],
            *[(x, x, "group", max(c.n_ccd_l, c.n_bl)) for x in ("RD", "WR")],
            ("RD", "WR", "rank", c.n_cl + c.n_bl + c.n_rtw_gap - c.n_cwl),
            ("WR", "RD", "rank", write_data + c.n_wtr_s),
            ("WR", "RD", "group", c.n_cwl + (c.n_bl_max or c.n_bl) + c.n_wtr_l),
            ("RD", "PRE", "bank", c.n_rtp),
            ("WR", "PRE", "bank", write_data + c.n_wr),
            ("ACT", "RD", "bank", c.n_rcd_rd),
            ("ACT", "WR", "bank", c.n_rcd_wr),
            ("ACT", "PRE", "bank", c.n_ras),
            ("ACT", "ACT", "bank", c.n_rc),
            ("ACT", "ACT", "group", c.n_rrd_l),
            ("ACT", "ACT", "rank", c.n_rrd_s),
            ("PRE", "ACT", "bank", c.n_rp),
            ("PRE", "PRE", "channel", c.n_ppd),
            ("PRE", "REF", "bank", c.n_rp),
            ("ACT", "REF", "bank", c.n_rc),
            ("REF", "REF", "channel", c.n_pbr2pbr if per_bank else 0),
            ("REF", "REF", "bank", c.n_rfc_pb if per_bank else c.n_rfc),
            ("REF", "ACT", "bank", c.n_rfc_pb if per_bank else c.n_rfc),
            ("REF", "ACT", "rank", c.n_pbr2act if per_bank else c.n_rfc),
        ]

    def _scope(self, scope: str, where: tuple[int, int, int]) -> tuple[int, ...]:
        return where[: {"channel": 0, "rank": 1, "group": 2, "bank": 3}[scope]]

    def _may(self, command: str, where: tuple[int, int, int], clock: int) -> bool:
        clock += self.c.n_act - 1 if command == "ACT" else 0
        for before, after, scope, clocks in self.rules:
            seen = self.last.get((before, scope, self._scope(scope, where)), NEVER)
            if after == command and clock < seen + clocks and not (command == "PRE" and self.todo):
                return False
            if after == command and clock < seen + clocks and scope != "channel":
                return False
        acts = self.acts.get(where[0], [])
        return command != "ACT" or len(acts) < 4 or clock >= acts[-4] + self.c.n_faw

    def _note(self, command: str, where: tuple[int, int, int], clock: int) -> None:
        for scope in ("channel", "rank", "group", "bank"):
            self.last[command, scope, self._scope(scope, where)] = clock

    def run(self, backlog: int = 0) -> None:
        self.tail = 0 if backlog else len(self.txns)
        clock = 0
        while any(t.done < 0 for t in self.txns):
            two_buses = self.c.command_bus == "row_and_column"
            # The clock in which a column command follows its synchronising command is skipped whole.
            if two_buses or clock >= self.busy_until:
                self._admit(clock, backlog)
            self._request_refresh(clock)
            if two_buses:
                self._issue(self._choose(clock, ("RD", "WR")), clock)
                if clock >= self.busy_until:
                    self._issue(self._choose(clock, ("ACT", "PRE", "REF")), clock)
            elif clock >= self.busy_until:
                self._single_bus(clock)
            clock += 1

    def _admit(self, clock: int, backlog: int) -> None:
        for _ in range(4):
            if self.head == self.tail:
                break
            t = self.txns[self.head]
            room = len(self.queue[t.write]) < (self.c.write_queue if t.write else self.c.read_queue)
            if t.arrival + self.c.n_front > clock or not room:
                break
            t.age = self.age
            self.age += 1
            self.head += 1
            self.queue[t.write].append(t)
        while backlog and self.tail - self.head < backlog and self.tail < len(self.txns):
            end = self.txns[self.tail].unit_end
            for t in self.txns[self.tail : end]:
                t.arrival = clock
            self.tail = end

    def _request_refresh(self, clock: int) -> None:
        c = self.c
        interval = {"none": 0, "all_bank": c.n_refi, "per_bank": c.n_refi_pb}[c.refresh]
        if not interval or clock == 0 or clock % interval:
            return
        if c.refresh == "all_bank":
            self.todo += [(p,) for p in range(c.n_pseudo_channels)]
        else:
            n = self.refresh_at
            self.refresh_at = (n + 1) % c.n_banks
            n, bank = divmod(n, c.n_banks_per_group)
            self.todo.append((*divmod(n, c.n_bank_groups), bank))

    def _set_drain(self) -> None:
        reads, writes = len(self.queue[False]), len(self.queue[True])
        if not self.drain:
            self.drain = writes > self.c.write_high * self.c.write_queue or reads == 0
        elif writes < self.c.write_low * self.c.write_queue and reads > 0:
            self.drain = False

    def _choose(self, clock: int, kinds: tuple[str, ...]) -> tuple[str, Txn | None, tuple[int, ...]] | None:
        """The command to issue now among `kinds`: owners, then refresh, then the oldest request that can go."""
        self._set_drain()
        owners = [t for t in self.owner.values() if not (self.act2 and self.act2[0] == t.where)]
        for t in sorted(owners, key=lambda t: t.age):
            command = "WR" if t.write else "RD"
            if command in kinds and self._may(command, t.where, clock):
                return command, t, t.where
        if self.todo:
            return self._choose_refresh(clock) if "REF" in kinds else None
        for t in self.queue[self.drain]:
            command = self._next_command(t)
            if command in kinds and self._may(command, t.where, clock):
                return command, t, t.where
        return None

    def _next_command(self, t: Txn) -> str:
        row = self.open.get(t.where)
        if row is None:
            return "none" if self.act2 else "ACT"
        if row == t.row:
            return "WR" if t.write else "RD"
        return "none" if t.where in self.owner else "PRE"

    def _choose_refresh(self, clock: int) -> tuple[str, Txn | None, tuple[int, ...]] | None:
        scope = self.todo[0]
        banks = [w for w in self._banks() if w[: len(scope)] == scope]
        if any(w in self.owner for w in banks):
            return None
        opened = [w for w in banks if w in self.open]
        command = "PRE" if opened else "REF"
        if all(self._may(command, w, clock) for w in opened or banks):
            return "REF_" + command, None, scope
        return None

    def _banks(self) -> list[tuple[int, int, int]]:
        c = self.c
        shape = c.n_pseudo_channels, c.n_bank_groups, c.n_banks_per_group
        return [tuple(int(i) for i in w) for w in np.ndindex(shape)]  # type: ignore[misc]

    def _single_bus(self, clock: int) -> None:
        choice = self._choose(clock, ("RD", "WR", "ACT", "PRE", "REF"))
        column = choice is not None and choice[0] in ("RD", "WR")
        syncs = column and self.c.n_sync_post is not None and clock >= self.synced_until
        if self.act2:
            by = self.act2[1]
            if choice is None or clock >= by or (syncs and clock + 1 >= by):
                self.act2 = None
                return
        self._issue(choice, clock + 1 if syncs else clock)
        self.busy_until = clock + 2 if syncs else clock + 1

    def _issue(self, choice: tuple[str, Txn | None, tuple[int, ...]] | None, clock: int) -> None:
        if choice is None:
            return
        command, t, scope = choice
        if command.startswith("REF_"):
            self._issue_refresh(command[4:], scope, clock)
        elif t is not None and command == "PRE":
            del self.open[t.where]
            self._note("PRE", t.where, clock)
        elif t is not None and command == "ACT":
            self._issue_activate(t, clock)
        elif t is not None:
            self._issue_column(command, t, clock)

    def _issue_refresh(self, command: str, scope: tuple[int, ...], clock: int) -> None:
        for where in [w for w in self._banks() if w[: len(scope)] == scope]:
            if command == "REF":
                self._note("REF", where, clock)
            elif where in self.open:
                del self.open[where]
                self._note("PRE", where, clock)
        if command == "REF":
            self.todo.pop(0)

    def _issue_activate(self, t: Txn, clock: int) -> None:
        self.queue[t.write].remove(t)
        self.owner[t.where], self.open[t.where] = t, t.row
        whole = clock + self.c.n_act - 1
        self._note("ACT", t.where, whole)
        self.acts.setdefault(t.where[0], []).append(whole)
        self.activates += 1
        self.busy_until = clock + self.c.n_act
        if self.c.n_aad:
            self.act2 = t.where, clock + self.c.n_aad

    def _issue_column(self, command: str, t: Txn, clock: int) -> None:
        if self.owner.get(t.where) is t:
            del self.owner[t.where]
        else:
            self.queue[t.write].remove(t)
            self.hits += 1
        self._note(command, t.where, clock)
        t.done = clock + (self.c.n_cwl if t.write else self.c.n_cl) + self.c.n_bl
        self.synced_until = max(self.synced_until, t.done + (self.c.n_sync_post or 0))
