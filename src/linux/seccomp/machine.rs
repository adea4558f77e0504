//! A filter judged and run without the kernel: classic BPF as far as our stub and libseccomp use it. For tests and
//! fuzzing only.

use super::{Filter, JUMP, LOAD, RETURN};

const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;

/// Of struct seccomp_data, in bytes.
const DATA: u32 = 64;

/// What the kernel asks of a program (net/core/filter.c bpf_check_classic, kernel/seccomp.c seccomp_check_filter).
/// Jumps only lead forward, so a program that passes ends.
pub fn check(filter: &Filter) -> Result<(), String> {
    let program = &filter.program;
    let last = program.last().ok_or("empty")?;
    if program.len() > libc::BPF_MAXINSNS as usize || u32::from(last.code) != RETURN {
        return Err(format!("{} instructions, the last is {:#x}", program.len(), last.code));
    }
    for (at, step) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        let valid = match u32::from(step.code) {
            LOAD => step.k % 4 == 0 && step.k < DATA,
            JUMP => (step.k as usize) < left,
            AND | RETURN => true,
            code if compare(code, 0, 0).is_some() => usize::from(step.jt.max(step.jf)) < left,
            _ => false,
        };
        if !valid {
            return Err(format!("instruction {at} of {}: {step:?}", program.len()));
        }
    }
    Ok(())
}

/// The answer to one call.
pub fn run(filter: &Filter, arch: u32, number: u32, args: &[u64]) -> u32 {
    let mut data = [0u32; DATA as usize / 4];
    (data[0], data[1]) = (number, arch);
    for (i, arg) in args.iter().enumerate() {
        data[4 + 2 * i] = *arg as u32;
        data[5 + 2 * i] = (arg >> 32) as u32;
    }
    let (mut accumulator, mut at) = (0, 0);
    loop {
        let step = &filter.program[at];
        at += 1;
        match u32::from(step.code) {
            LOAD => accumulator = data[step.k as usize / 4],
            AND => accumulator &= step.k,
            JUMP => at += step.k as usize,
            RETURN => return step.k,
            code => {
                let yes = compare(code, accumulator, step.k).expect("an instruction that check knows");
                at += usize::from(if yes { step.jt } else { step.jf });
            }
        }
    }
}

fn compare(code: u32, accumulator: u32, k: u32) -> Option<bool> {
    const CONDITIONAL: u32 = libc::BPF_JMP | libc::BPF_K;
    Some(match code.checked_sub(CONDITIONAL)? {
        libc::BPF_JEQ => accumulator == k,
        libc::BPF_JGT => accumulator > k,
        libc::BPF_JGE => accumulator >= k,
        libc::BPF_JSET => accumulator & k != 0,
        _ => return None,
    })
}
