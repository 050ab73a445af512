//! What an instruction that is said to have failed would have touched: enough of the x86-64 encoding to compute the address
//! of its memory operand, or its divisor. A guest asks here before it believes an exception, because a host can invent any.
//!
//! Only encodings that compiled Wasm uses are understood; for all others the answer is that nobody knows. Encodings: Intel SDM
//! vol. 2, 2.1 to 2.3 and appendix A.

/// The general registers in the order of their numbers: rax rcx rdx rbx rsp rbp rsi rdi r8 to r15.
pub type Registers = [u64; 16];

/// The prefixes and the opcode of an instruction, and what follows.
struct Opcode<'c> {
    map: Map,
    opcode: u8,
    /// REX.W or its VEX counterpart.
    wide: bool,
    /// Operand size prefix.
    small: bool,
    /// REX.X and REX.B as numbers 0 or 8.
    index_high: usize,
    base_high: usize,
    /// ModRM and what comes behind it.
    rest: &'c [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Map {
    One,
    Two,
    /// 0F 38, 0F 3A, and everything in VEX.
    Vector,
}

fn decode(code: &[u8]) -> Option<Opcode<'_>> {
    let prefixes = code.iter().take_while(|byte| matches!(byte, 0x66 | 0xf0 | 0xf2 | 0xf3)).count();
    let (prefixes, rest) = code.split_at(prefixes);
    let small = prefixes.contains(&0x66);
    let vex = |x: u8, b: u8, wide: bool, map: Map, rest: &[u8]| -> Option<(u8, u8, bool, Map, u8, usize)> {
        Some((x, b, wide, map, *rest.first()?, 1))
    };
    let (x, b, wide, map, opcode, used, rest) = match rest {
        [0xc5, _, rest @ ..] => with(vex(0, 0, false, Map::Vector, rest)?, rest),
        // R, X and B are stored inverted.
        [0xc4, p1, p2, rest @ ..] => {
            let (x, b) = (!p1 >> 6 & 1, !p1 >> 5 & 1);
            with(vex(x, b, p2 >> 7 != 0, Map::Vector, rest)?, rest)
        }
        _ => {
            let (rex, rest) = match rest {
                [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
                _ => (0, rest),
            };
            let (map, opcode, used) = match rest {
                [0x0f, 0x38 | 0x3a, opcode, ..] => (Map::Vector, *opcode, 3),
                [0x0f, opcode, ..] => (Map::Two, *opcode, 2),
                [opcode, ..] => (Map::One, *opcode, 1),
                [] => return None,
            };
            (rex >> 1 & 1, rex & 1, rex & 8 != 0, map, opcode, used, rest)
        }
    };
    let (index_high, base_high) = (usize::from(x) * 8, usize::from(b) * 8);
    Some(Opcode { map, opcode, wide, small, index_high, base_high, rest: rest.get(used..)? })
}

type Found<'c> = (u8, u8, bool, Map, u8, usize, &'c [u8]);

fn with((x, b, wide, map, opcode, used): (u8, u8, bool, Map, u8, usize), rest: &[u8]) -> Found<'_> {
    (x, b, wide, map, opcode, used, rest)
}

/// Whether the opcode reads or writes the memory that its ModRM byte names.
fn uses_memory(map: Map, opcode: u8) -> bool {
    match map {
        Map::One => match opcode {
            0x00..=0x3f => opcode & 7 < 4,
            0x63 | 0x69 | 0x6b | 0x80 | 0x81 | 0x83..=0x8b | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 => true,
            0xf6 | 0xf7 | 0xfe | 0xff => true,
            _ => false,
        },
        // Not hints, no-operations, flushes, and bit strings, which reach beyond their operand.
        Map::Two => matches!(opcode,
            0x10..=0x17 | 0x28..=0x2f | 0x40..=0x76 | 0x78..=0x7f | 0x90..=0x9f | 0xaf..=0xb1 | 0xb6..=0xb8
            | 0xbc..=0xc7 | 0xd0..=0xfe),
        // Not the gathers, whose operand is not one address.
        Map::Vector => !(0x90..=0x93).contains(&opcode),
    }
}

/// The address of the instruction's memory operand; `None` if it has none, or none that is understood.
#[must_use]
pub fn memory_operand(code: &[u8], registers: &Registers) -> Option<u64> {
    let Opcode { map, opcode, index_high, base_high, rest, .. } = decode(code)?;
    if !uses_memory(map, opcode) {
        return None;
    }
    let (modrm, rest) = rest.split_first()?;
    let (mode, low) = (modrm >> 6, usize::from(modrm & 7));
    if mode == 3 {
        return None;
    }
    let (address, rest) = match low {
        4 => {
            let (sib, rest) = rest.split_first()?;
            let index = usize::from(sib >> 3 & 7) + index_high;
            // Number 4 without its high bit means none.
            let scaled = if index == 4 { 0 } else { registers[index] << (sib >> 6) };
            let base = usize::from(sib & 7);
            // Base 5 in mode 0 is a displacement without a base.
            let base = if base == 5 && mode == 0 { return None } else { registers[base + base_high] };
            (base.wrapping_add(scaled), rest)
        }
        // Relative to the next instruction, whose address takes more to know.
        5 if mode == 0 => return None,
        _ => (registers[low + base_high], rest),
    };
    let displacement = match mode {
        0 => 0,
        1 => i64::from(*rest.first()? as i8),
        _ => i64::from(i32::from_le_bytes(*rest.first_chunk()?)),
    };
    Some(address.wrapping_add_signed(displacement))
}

/// The one or two addresses of a string instruction (`movs`, `cmps`, `stos`, `lods`, `scas`) as it stands now: with a repeat prefix
/// those of the element that is next.
#[must_use]
pub fn string_operands(code: &[u8], registers: &Registers) -> Option<[u64; 2]> {
    let Opcode { map, opcode, .. } = decode(code)?;
    let (source, destination) = (registers[6], registers[7]);
    match opcode {
        _ if map != Map::One => None,
        0xa4..=0xa7 => Some([source, destination]),
        0xaa | 0xab | 0xae | 0xaf => Some([destination; 2]),
        0xac | 0xad => Some([source; 2]),
        _ => None,
    }
}

/// The divisor of `div` and `idiv` if it is in a register of 32 or 64 bits.
#[must_use]
pub fn divisor(code: &[u8], registers: &Registers) -> Option<u64> {
    let Opcode { map, opcode, wide, small, base_high, rest, .. } = decode(code)?;
    let modrm = *rest.first()?;
    let is_division = map == Map::One && opcode == 0xf7 && modrm >> 3 & 7 >= 6;
    if !is_division || modrm >> 6 != 3 || small {
        return None;
    }
    let value = registers[usize::from(modrm & 7) + base_high];
    Some(if wide { value } else { value & 0xffff_ffff })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Register n holds n << 32.
    fn registers() -> Registers {
        core::array::from_fn(|n| (n as u64) << 32)
    }

    fn at(base: u64, index: u64, offset: i64) -> Option<u64> {
        Some(((base << 32) + (index << 32)).wrapping_add_signed(offset))
    }

    /// Bytes by the GNU assembler.
    #[test]
    fn operands_of_what_compilers_emit() {
        let cases: [(&[u8], Option<u64>); 22] = [
            (&[0x48, 0x0f, 0xc3, 0x07], at(7, 0, 0)),        // movnti %rax,(%rdi)
            (&[0x8b, 0x04, 0x0f], at(7, 1, 0)),              // mov (%rdi,%rcx,1),%eax
            (&[0x49, 0x8b, 0x44, 0x24, 0x08], at(12, 0, 8)), // mov 8(%r12),%rax
            (&[0x41, 0x8b, 0x45, 0xf8], at(13, 0, -8)),      // mov -8(%r13),%eax
            (&[0x4b, 0x89, 0x44, 0xfd, 0x10], at(13, 8 * 15, 16)), // mov %rax,16(%r13,%r15,8)
            (&[0x48, 0x89, 0x83, 0, 1, 0, 0], at(3, 0, 256)), // mov %rax,256(%rbx)
            (&[0x66, 0x89, 0x04, 0x24], at(4, 0, 0)),        // mov %ax,(%rsp)
            (&[0x0f, 0xb6, 0x04, 0x0a], at(2, 1, 0)),        // movzbl (%rdx,%rcx),%eax
            (&[0xf0, 0x4c, 0x0f, 0xb1, 0x06], at(6, 0, 0)),  // lock cmpxchg %r8,(%rsi)
            (&[0xf2, 0x44, 0x0f, 0x10, 0x04, 0x10], at(0, 2, 0)), // movsd (%rax,%rdx),%xmm8
            (&[0x66, 0x0f, 0x38, 0x00, 0x06], at(6, 0, 0)),  // pshufb (%rsi),%xmm0
            (&[0xc5, 0xfa, 0x6f, 0x04, 0x17], at(7, 2, 0)),  // vmovdqu (%rdi,%rdx),%xmm0
            (&[0xc4, 0xc1, 0x7a, 0x6f, 0x04, 0x10], at(8, 2, 0)), // vmovdqu (%r8,%rdx),%xmm0
            (&[0xc4, 0x81, 0x7a, 0x6f, 0x44, 0x20, 0x40], at(8, 12, 64)), // vmovdqu 64(%r8,%r12),%xmm0
            (&[0xc4, 0xe2, 0xf3, 0xf6, 0x06], at(6, 0, 0)),  // mulx (%rsi),%rcx,%rax
            (&[0x80, 0x3c, 0x37, 0x00], at(7, 6, 0)),        // cmpb $0,(%rdi,%rsi)
            (&[0x48, 0x8d, 0x04, 0x0f], None),               // lea (%rdi,%rcx),%rax
            (&[0x48, 0x8b, 0x05, 1, 2, 3, 4], None),         // mov disp(%rip),%rax
            (&[0x48, 0x89, 0xc8], None),                     // mov %rcx,%rax
            (&[0x0f, 0x18, 0x0f], None),                     // prefetcht0 (%rdi)
            (&[0x62, 0xf1, 0x7e, 0x48, 0x6f, 0x07], None),   // vmovdqu32 (%rdi),%zmm0
            (&[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0], None), // mov %gs:0,%rax
        ];
        for (code, expected) in cases {
            assert_eq!(memory_operand(code, &registers()), expected, "{code:x?}");
        }
    }

    #[test]
    fn strings_are_where_the_registers_say() {
        let (source, destination) = (6 << 32, 7 << 32);
        let cases: [(&[u8], Option<[u64; 2]>); 10] = [
            (&[0xf3, 0xa4], Some([source, destination])),       // rep movsb
            (&[0xf3, 0x48, 0xa5], Some([source, destination])), // rep movsq
            (&[0x66, 0xa5], Some([source, destination])),       // movsw
            (&[0xf3, 0xa6], Some([source, destination])),       // repe cmpsb
            (&[0xf3, 0x48, 0xab], Some([destination; 2])),      // rep stosq
            (&[0xf2, 0xae], Some([destination; 2])),            // repne scasb
            (&[0xac], Some([source; 2])),                       // lodsb
            (&[0x67, 0xa4], None),                              // movsb with 32-bit addresses
            (&[0x0f, 0xa4, 0x07, 1], None),                     // shld $1,%eax,(%rdi)
            (&[0x8b, 0x04, 0x0f], None),                        // mov (%rdi,%rcx),%eax
        ];
        for (code, expected) in cases {
            assert_eq!(string_operands(code, &registers()), expected, "{code:x?}");
        }
    }

    #[test]
    fn divisors_in_registers() {
        let mut registers = registers();
        registers[1] = 5 << 32;
        registers[14] = 3;
        assert_eq!(divisor(&[0xf7, 0xf1], &registers), Some(0), "div %ecx");
        assert_eq!(divisor(&[0x48, 0xf7, 0xf9], &registers), Some(5 << 32), "idiv %rcx");
        assert_eq!(divisor(&[0x49, 0xf7, 0xf6], &registers), Some(3), "div %r14");
        for unknown in [&[0xf7, 0x31][..], &[0x66, 0xf7, 0xf1], &[0xf6, 0xf1], &[0xf7, 0xe1], &[0xf7], &[]] {
            assert_eq!(divisor(unknown, &registers), None, "{unknown:x?}");
        }
    }

    /// Whatever the bytes are, an answer comes; cut off ones give none that needs what is not there.
    #[test]
    fn any_bytes_have_an_answer() {
        let mut x = 1u64;
        for _ in 0..200_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let bytes = (x ^ x >> 29).to_le_bytes();
            for len in 0..=8 {
                let (bytes, registers) = (&bytes[..len], &registers());
                let _ = (memory_operand(bytes, registers), divisor(bytes, registers));
                let _ = string_operands(bytes, registers);
            }
        }
    }
}
