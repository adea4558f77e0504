"""From samples to a table and a plot."""
import statistics

# row: (what is runw's, what it is measured against, most or least the ratio may be). The bars are issue 6's.
BARS = [
    ("native run", "runw", "crun", "<=", 0.5),
    ("native run", "runw", "runc", "<=", 0.2),
    ("native run", "runw", "floor", "<=", 1.5),
    ("create + start + delete", "runw", "crun", "<=", 0.5),
    ("create + start + delete", "runw", "runc", "<=", 0.2),
    ("delete --force", "runw", "crun", "<=", 0.4),
    ("exec", "runw", "crun", "<=", 0.5),
    ("warm wasm run", "hello", "native by crun", "<=", 0.8),
    ("warm wasm run", "0.8 MB", "hello", "<=", 1.3),
    ("cold wasm run", "runw", "wasmtime compile", "<=", 1.1),
    ("containers per second by 4 workers", "runw", "crun", ">=", 1.7),
    ("system calls of create and start", "runw", "crun", "<=", 0.5),
    ("--version", "runw", "crun", "<=", 1.5),
]
# What issue 6 only hopes for.
STRETCH = {("native run", "floor"), ("warm wasm run", "hello")}


def p95(values):
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.95))]


def table(samples, host):
    lines = [f"{host}. Milliseconds unless the row says otherwise; one run of each in turn.", "",
             "| row | who | runs | median | p95 |", "|---|---|---|---|---|"]
    for row, by in samples.items():
        for who, values in by.items():
            lines.append(f"| {row} | {who} | {len(values)} | {statistics.median(values):.2f} | {p95(values):.2f} |")
    lines += ["", "| row | ratio of medians | bar | |", "|---|---|---|---|"]
    for row, ours, theirs, sign, bar in bars(samples):
        ratio = median_ratio(samples, row, ours, theirs)
        met = ratio <= bar if sign == "<=" else ratio >= bar
        kind = " (stretch)" if (row, theirs) in STRETCH else ""
        lines.append(f"| {row}: {ours} / {theirs} | {ratio:.2f} | {sign} {bar}{kind} | {'met' if met else 'missed'} |")
    return "\n".join(lines) + "\n"


def bars(samples):
    more = [(row, "runw", "wasmtime", ">=" if "requests" in row else "<=", 0.95 if "requests" in row else 1.0)
            for row in samples if row.startswith("serve")]
    return [bar for bar in BARS + more if bar[1] in samples.get(bar[0], {}) and bar[2] in samples.get(bar[0], {})]


def median_ratio(samples, row, ours, theirs):
    return statistics.median(samples[row][ours]) / statistics.median(samples[row][theirs])


def plot(samples, host):
    """Horizontal bars: each row's medians as parts of the peer's."""
    chosen = bars(samples)
    height = 40 + 26 * len(chosen)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="820" height="{height}" font-family="sans-serif" font-size="12">',
           f'<rect width="820" height="{height}" fill="white"/>', f'<text x="10" y="20">{host}: ratio of medians, the line is the bar</text>']
    for index, (row, ours, theirs, _, bar) in enumerate(chosen):
        ratio, y = median_ratio(samples, row, ours, theirs), 34 + 26 * index
        scale = 380 / max(2.0, ratio, bar)
        out += [f'<text x="330" y="{y + 14}" text-anchor="end">{row}: {ours} / {theirs}</text>',
                f'<rect x="340" y="{y}" width="{ratio * scale:.1f}" height="18" fill="#4878a8"/>',
                f'<line x1="{340 + bar * scale:.1f}" x2="{340 + bar * scale:.1f}" y1="{y - 3}" y2="{y + 21}" stroke="#c03030" stroke-width="2"/>',
                f'<text x="{346 + max(ratio, bar) * scale:.1f}" y="{y + 14}">{ratio:.2f}</text>']
    return "\n".join(out + ["</svg>"]) + "\n"
