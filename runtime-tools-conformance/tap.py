"""Judges what one validation program printed."""
import re

CHECK = re.compile(r"(not )?ok (\d+)[^#]*(?:#\s*(skip|todo)\b)?", re.I)
PLAN = re.compile(r"1\.\.(\d+)\s*$")


def judge(status, text):
    """`pass`, `skip`, or `fail: ` and what failed. A pass is an exit status of 0 and as many checks as planned, all held.

    Some programs make no check: they print a block, or end with another status, only if something is wrong.
    """
    checks, skipped, plan, failed, block = 0, 0, None, [], False
    for line in text.splitlines():
        if found := PLAN.match(line):
            plan = int(found[1])
        elif found := CHECK.match(line):
            word = (found[3] or "").lower()
            checks += 1
            skipped += word == "skip"
            if found[1] and word != "todo":
                failed.append(found[2])
        block |= line == "  ---"
    if status is None:
        return "fail: deadline"
    why = ["not ok " + " ".join(failed)] if failed else []
    if status:
        why.append(f"exit {status}")
    if block and not checks:
        why.append("block")
    if not why and checks != (plan or 0):
        why.append("no plan" if plan is None else f"{checks} checks of {plan} planned")
    if why:
        return "fail: " + ", ".join(why)
    return "skip" if skipped and skipped == checks else "pass"
