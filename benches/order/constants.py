"""Which sections of constants the linker took for a binary, and which of them some of its functions name."""
import bisect, re, subprocess

# The addend of these counts from the end of the field, which has four bytes.
RELATIVE = re.compile("PC32|PLT32|GOTPCREL")
HEADING = re.compile(r"Relocation section '\.rela\.(\w+)")
REFERENCE = re.compile(r"([0-9a-f]+) +[0-9a-f]+ (R_\w+) +([0-9a-f]+) \S+ ([+-] [0-9a-f]+)")
# What the linker merged has no name that can be asked for, and what C calls plainly `.rodata` only with that of its file.
SECTION = re.compile(
    r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+\d+\s+(?!<internal>)(?:\S*/)?(\S+?)(?:\((\S+)\))?:\((\.rodata(?:\.[^)]+)?)\)")


def lines(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()


class Constants:
    def __init__(self, binary, linked):
        """`binary` has symbols and relocations (ld --emit-relocs), `linked` is what ld's -Map wrote of it."""
        self.references = sorted(references(binary))
        self.sections = sorted(
            (int(match[1], 16), int(match[2], 16), (of_file(match[3], match[4], match[5]), match[5]))
            for match in map(SECTION.match, open(linked)) if match and int(match[2], 16))

    def targets(self, address, size):
        """The addresses that what is there refers to."""
        first = bisect.bisect_left(self.references, (address, 0))
        last = bisect.bisect_left(self.references, (address + size, 0))
        return [target for _, target in self.references[first:last]]

    def named(self, address, size):
        """The sections that what is there refers to."""
        for target in self.targets(address, size):
            at = bisect.bisect_right(self.sections, (target, float("inf"))) - 1
            if at >= 0 and target < self.sections[at][0] + self.sections[at][1]:
                yield self.sections[at]

    def of(self, functions):
        """The sections (file, name) that `functions`, (address, size) of each, refer to, and these to others, in that order."""
        found = {}
        waiting = list(reversed(functions))
        while waiting:
            new = [section for section in self.named(*waiting.pop()) if section not in found]
            found.update((section, None) for section in new)
            waiting.extend((address, size) for address, size, _ in reversed(new))
        return [name for _, _, name in found]


def of_file(archive, member, section):
    """The pattern of a linker script for where the section is from: one with a name of its own may be from anywhere."""
    if section != ".rodata":
        return "*"
    return f"*{archive}:{member}" if member else f"*{archive}"


def references(binary):
    """(where, to what) of code and of constants; debugging sections have addresses of their own."""
    wanted = False
    for line in lines("readelf", "-rW", binary):
        if heading := HEADING.match(line):
            wanted = heading[1] in ("text", "rodata", "data")
        elif wanted and (match := REFERENCE.match(line)):
            target = int(match[3], 16) + int(match[4].replace(" ", ""), 16)
            yield int(match[1], 16), target + (4 if RELATIVE.search(match[2]) else 0)
