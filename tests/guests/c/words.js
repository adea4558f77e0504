// Counts the words of args[1], writes the report to args[2]: files read and written by a real engine.
const counts = new Map();
for (const w of read(args[1]).toLowerCase().match(/[a-z]+/g) ?? []) counts.set(w, (counts.get(w) ?? 0) + 1);
const top = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
write(args[2], JSON.stringify(top) + "\n");
print("words", top.length, "most", top[0].join("="));
