"""Tables and the chart of docs/performance.md, from the rows of a results file."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import speed
from rows import MODES, NETWORKS

Row = dict[str, Any]


def best_peer(row: Row) -> tuple[str, float] | None:
    """The quickest other library with a right result."""
    known = [(p["ms"], n) for n, p in row["peers"].items() if n != "twofold" and counts(p)]
    return (min(known)[1], min(known)[0]) if known else None


def counts(found: dict | None) -> bool:
    """Whether an entry is a measurement of right results."""
    return found is not None and "ms" in found and "error" not in found


def ratio(row: Row) -> float | None:
    """The best peer's median over ours."""
    best, ours = best_peer(row), row["peers"].get("twofold")
    return best[1] / ours["ms"] if best and counts(ours) else None


def span(row: Row) -> tuple[float, float]:
    """The ratio between opposite quartiles: what it may be, given how the row's times spread."""
    best = best_peer(row)
    assert best is not None
    theirs, ours = row["peers"][best[0]]["quartiles_ms"], row["peers"]["twofold"]["quartiles_ms"]
    return theirs[0] / ours[1], theirs[1] / ours[0]


def tables(rows: list[Row]) -> str:
    """Markdown: a table for each mode and number of threads, and geometric means."""
    parts, shares = [], speed.shares(rows)
    for mode in MODES:
        for threads in sorted({r["threads"] for r in rows}, reverse=True):
            chosen = [r for r in rows if r["mode"] == mode and r["threads"] == threads]
            if chosen:
                parts.append(_table(f"{mode}, {threads} thread{'s' * (threads > 1)}", chosen, shares))
    return "\n\n".join(parts)


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(n for r in rows for n in r["peers"]))


def _markdown(header: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]]


def _table(title: str, rows: list[Row], shares: dict[int, float]) -> str:
    names, lines = _names(rows), []
    for row in rows:
        cells = [_cell(row["peers"].get(n)) for n in names]
        batch = f" ({row['batch']})" if row["network"] == "lenet5" else ""
        lines.append([row["network"] + batch, *cells, _ratio_cell(row) + _slow(shares.get(id(row), 1.0))])
    ratios = [q for q in map(ratio, rows) if q]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(["geometric mean", *("" for _ in names), f"**{mean:.2f}** (least {min(ratios):.2f})"])
    header = ["network", *names, "best peer / twofold"]
    return "\n".join([f"### {title} (ms a step)", "", *_markdown(header, lines)])


def _ratio_cell(row: Row) -> str:
    best, value = best_peer(row), ratio(row)
    if best is None or value is None:
        return "-"
    low, high = span(row)
    return f"**{value:.2f}** ({best[0]}; {low:.2f} to {high:.2f})"


def _slow(share: float) -> str:
    """A remark on a row during which the machine itself was slow."""
    return "" if share >= speed.SLOW else f"; machine at {share:.0%}"


def _cell(found: dict | None) -> str:
    if found is None or not counts(found):
        return "-"
    return f"{found['ms']:.3g}" if found["ms"] < 1000 else f"{found['ms']:.0f}"


def costs(rows: list[Row]) -> str:
    """Markdown: what else a library costs: its import, the first step (compilation included), the most memory."""
    chosen = [r for r in rows if r["threads"] == max(q["threads"] for q in rows)]
    names = _names(chosen)
    lines = [[f"{r['network']} {r['mode']}", *(_costs(r["peers"].get(n)) for n in names)] for r in chosen]
    title = "### Seconds to import, seconds to the first step, most memory in MiB while loading and in steps"
    return "\n".join([title, "", *_markdown(["network", *names], lines)])


def _costs(found: dict | None) -> str:
    if found is None or not counts(found):
        return "-"
    peaks = [found.get(f"peak_{when}_mib") or math.nan for when in ("loading", "steps")]
    return f"{found['import']:.1f}, {found['first']:.1f}, {peaks[0]:.0f}, {peaks[1]:.0f}"


def gaps(rows: list[Row]) -> str:
    """Markdown: why there is a `-`, for each peer and reason the rows."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, found in row["peers"].items():
            if not counts(found):
                reason = found.get("error", "was not measured").replace("\n", " ").replace("|", "/")
                reasons.setdefault((name, reason), []).append(f"{row['network']} {row['mode']} {row['threads']}t")
    lines = [f"- {name}: {reason} ({', '.join(where)})" for (name, reason), where in reasons.items()]
    return "\n".join(["### Not measured, and why", "", *lines]) if lines else ""


def chart(rows: list[Row], path: Path) -> None:
    """Bars: the best peer's time over ours, a group for each network, a panel for each number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = sorted({r["threads"] for r in rows}, reverse=True)
    networks = [n for n in NETWORKS if any(r["network"] == n for r in rows)]
    figure, panels = plt.subplots(len(threads), figsize=(11, 3.6 * len(threads) + 0.6), sharex=True, squeeze=False)
    for axes, n in zip(panels[:, 0], threads):
        for k, mode in enumerate(MODES):
            known = {r["network"]: ratio(r) for r in rows if (r["mode"], r["threads"]) == (mode, n)}
            heights = [known.get(name) or 0.0 for name in networks]
            axes.bar(np.arange(len(networks)) + (k - 1) * 0.27, heights, 0.25, label=mode)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_ylabel("best peer's time / twofold's")
        axes.set_title(f"{n} thread{'s' * (n > 1)}: above 1, twofold is quicker than the quickest other library")
        axes.legend()
    panels[-1, 0].set_xticks(range(len(networks)), networks, rotation=25, ha="right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(rows: list[Row], page: Path) -> None:
    """Put the tables between the page's markers, and the chart into its images."""
    order = {key: i for i, key in enumerate((n, m) for m in MODES for n in NETWORKS)}
    rows = sorted(rows, key=lambda r: order[r["network"], r["mode"]])
    (page.parent / "images").mkdir(exist_ok=True)
    chart(rows, page.parent / "images" / "performance.png")
    insert(page, "results", [about(rows), tables(rows), gaps(rows), costs(rows)])


def insert(page: Path, name: str, parts: list[str]) -> None:
    """Put texts between the page's markers ``<!-- name -->`` and ``<!-- end of name -->``."""
    before, rest = page.read_text().split(f"<!-- {name} -->")
    after = rest.split(f"<!-- end of {name} -->")[1]
    middle = "\n\n".join(part for part in parts if part)
    page.write_text(f"{before}<!-- {name} -->\n{middle}\n<!-- end of {name} -->{after}")


def about(rows: list[Row]) -> str:
    """Machine and versions."""
    versions = {n: p["version"] for r in rows for n, p in r["peers"].items() if "version" in p}
    libraries = ", ".join(f"{n} {v}" for n, v in versions.items())
    return f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}; {libraries}."


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
