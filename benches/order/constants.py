"""Which sections of constants the linker took for a binary, and which of them some of its functions name."""
import bisect, re, struct
from pathlib import Path

FUNCTIONS = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
PC_RELATIVE = (2, 4, 9, 41, 42)  # R_X86_64_PC32, PLT32, GOTPCREL and its relaxed kinds: the addend counts from the field's end


class Constants:
    def __init__(self, binary, linked):
        """`binary` is a static ELF with symbols and relocations (ld --emit-relocs), `linked` what ld's -Map wrote of it."""
        self.data = Path(binary).read_bytes()
        (start,), (size, count, names) = struct.unpack_from("<Q", self.data, 40), struct.unpack_from("<HHH", self.data, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", self.data, start + at * size) for at in range(count)]
        text = self.content(headers[names])
        self.headers = {text[header[0]:text.index(b"\0", header[0])].decode(): header for header in headers}
        self.symbols = list(struct.iter_unpack("<IBBHQQ", self.content(self.headers[".symtab"])))
        self.references = sorted(
            (field, self.target(info >> 32, info & 0xffffffff, addend))
            for name in (".rela.text", ".rela.rodata", ".rela.data", ".rela.data.rel.ro") if name in self.headers
            for field, info, addend in struct.iter_unpack("<QQq", self.content(self.headers[name])))
        self.sections = sorted(self.listed(linked))

    def content(self, header):
        return self.data[header[4]:header[4] + header[5]]

    def target(self, symbol, kind, addend):
        return self.symbols[symbol][4] + addend + (4 if kind in PC_RELATIVE else 0)

    def listed(self, linked):
        """(address, size, name) of every input section with a name that can be asked for: those that the linker merged have none."""
        line = re.compile(r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+\d+\s+(?!<internal>)\S.*:\((\.rodata\.[^)]+)\)")
        for match in map(line.match, open(linked)):
            if match and int(match[2], 16):
                yield int(match[1], 16), int(match[2], 16), match[3]

    def named(self, address, size):
        """The sections that what is there refers to."""
        first = bisect.bisect_left(self.references, (address, 0))
        last = bisect.bisect_left(self.references, (address + size, 0))
        for _, target in self.references[first:last]:
            at = bisect.bisect_right(self.sections, (target, float("inf"))) - 1
            if at >= 0 and target < self.sections[at][0] + self.sections[at][1]:
                yield self.sections[at]

    def of(self, functions):
        """The names of the sections that `functions`, addresses, refer to, and these to others, in that order."""
        sizes = {symbol[4]: symbol[5] for symbol in self.symbols if symbol[1] & 15 in FUNCTIONS}
        found = {}
        waiting = [(address, sizes[address]) for address in reversed(functions)]
        while waiting:
            new = [section for section in self.named(*waiting.pop()) if section not in found]
            found.update((section, None) for section in new)
            waiting.extend((address, size) for address, size, _ in reversed(new))
        return [name for _, _, name in found]
