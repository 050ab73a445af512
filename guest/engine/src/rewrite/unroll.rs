//! Unrolls small innermost loops, so that one epoch check serves several iterations.
//!
//! ```text
//! (loop T body)   becomes   (block T (loop T (block body' (br 2)) ... (block body' (br 2)) body''))
//! ```
//!
//! with [`copies`] bodies. In a copy inside a `block`, a branch to the loop (`continue`) leaves that block, which is
//! how the next copy starts; the end of the body leaves everything with the loop's results. The last copy sits in
//! the loop itself, so its `continue` is the only branch back. Labels outside the loop are renumbered by the frames
//! in between. Copies share the function's locals, so nothing else has to change.

use std::ops::Range;

use wasmparser::{BlockType, FunctionBody, Operator};

use super::{FLAT_GROWTH_BYTES, RewriteError, opcode, opcode_at, slice, write_len, write_u32};

/// Bodies up to this weight get [`COPIES_OF_TINY`]; weight is operators plus `br_table` targets.
const TINY_WEIGHT: usize = 24;
/// The check is most of such a loop's overhead.
const COPIES_OF_TINY: usize = 16;
/// Heavier bodies are left alone: the check disappears in their own work.
const MAX_WEIGHT: usize = 80;
/// For bodies between [`TINY_WEIGHT`] and [`MAX_WEIGHT`].
const COPIES_OF_SMALL: usize = 8;

/// The new body and how many loops were unrolled, `None` if none was.
pub(super) fn unroll_loops(body: &FunctionBody<'_>) -> Result<Option<(Vec<u8>, usize)>, RewriteError> {
    let (bytes, base) = (body.as_bytes(), body.range().start);
    if !bytes.contains(&opcode::LOOP) {
        return Ok(None);
    }
    let mut budget = bytes.len() + FLAT_GROWTH_BYTES;
    let mut out = Vec::new();
    let mut copied = 0;
    let mut loops = 0;
    // The loop that no other one was seen in yet, if it may still qualify.
    let mut innermost: Option<Loop> = None;
    let mut reader = body.get_operators_reader()?;
    while !reader.eof() {
        let start = reader.original_position().saturating_sub(base);
        let operator = reader.read()?;
        let end = reader.original_position().saturating_sub(base);
        if let Operator::Loop { blockty } = operator {
            innermost = Loop::open(blockty, start, end);
            continue;
        }
        let Some(mut candidate) = innermost.take() else { continue };
        match candidate.step(&operator, opcode_at(bytes, start), start..end)? {
            Step::Within => innermost = Some(candidate),
            Step::Unsuitable => {}
            Step::Closed => {
                let Some(unrolled) = candidate.unrolled(bytes, base, start)? else { continue };
                let growth = unrolled.len().saturating_sub(end.saturating_sub(candidate.start));
                if growth <= budget {
                    budget -= growth;
                    out.extend_from_slice(slice(bytes, copied..candidate.start, base)?);
                    out.extend_from_slice(&unrolled);
                    copied = end;
                    loops += 1;
                }
            }
        }
    }
    if loops == 0 {
        return Ok(None);
    }
    out.extend_from_slice(slice(bytes, copied..bytes.len(), base)?);
    Ok(Some((out, loops)))
}

/// What an operator means for the loop it stands in.
enum Step {
    Within,
    Closed,
    Unsuitable,
}

/// A loop whose body is being read. Positions are relative to the function body.
struct Loop {
    /// Of its opcode.
    start: usize,
    /// Of the first operator in it; what is between is the block type.
    body: usize,
    /// Frames open inside it.
    nesting: u32,
    weight: usize,
    /// Some branch goes back to its start.
    repeats: bool,
    branches: Vec<Branch>,
}

/// A branching operator in a loop's body.
struct Branch {
    opcode: u8,
    bytes: Range<usize>,
    /// Frames of the body it stands in: the label of the loop itself.
    nesting: u32,
    /// For `br_table` the default is the last.
    labels: Vec<u32>,
}

impl Loop {
    /// `None` if the block type could have parameters, which the copies would need as well.
    fn open(block_type: BlockType, start: usize, body: usize) -> Option<Self> {
        match block_type {
            BlockType::Empty | BlockType::Type(_) => {
                Some(Self { start, body, nesting: 0, weight: 0, repeats: false, branches: Vec::new() })
            }
            BlockType::FuncType(_) => None,
        }
    }

    /// Takes note of an operator other than `loop`.
    ///
    /// Decides by the opcode, so that an operator unknown here, which may carry labels, makes the loop unsuitable.
    fn step(
        &mut self,
        operator: &Operator<'_>,
        opcode: u8,
        bytes: Range<usize>,
    ) -> Result<Step, RewriteError> {
        self.weight = self.weight.saturating_add(1);
        match (opcode, operator) {
            (opcode::BLOCK | opcode::IF, _) => self.nesting = self.nesting.saturating_add(1),
            (opcode::END, _) if self.nesting == 0 => return Ok(Step::Closed),
            (opcode::END, _) => self.nesting -= 1,
            (opcode::BR_TABLE, Operator::BrTable { targets }) => {
                self.weight = self.weight.saturating_add(targets.len() as usize);
                if self.weight > MAX_WEIGHT {
                    return Ok(Step::Unsuitable);
                }
                let mut labels = targets.targets().collect::<Result<Vec<_>, _>>()?;
                labels.push(targets.default());
                self.branch(opcode, bytes, labels);
            }
            (
                _,
                Operator::Br { relative_depth }
                | Operator::BrIf { relative_depth }
                | Operator::BrOnNull { relative_depth }
                | Operator::BrOnNonNull { relative_depth },
            ) => self.branch(opcode, bytes, vec![*relative_depth]),
            (opcode, _) if is_plain(opcode) => {}
            _ => return Ok(Step::Unsuitable),
        }
        Ok(if self.weight > MAX_WEIGHT + 1 { Step::Unsuitable } else { Step::Within })
    }

    fn branch(&mut self, opcode: u8, bytes: Range<usize>, labels: Vec<u32>) {
        self.repeats |= labels.contains(&self.nesting);
        self.branches.push(Branch { opcode, bytes, nesting: self.nesting, labels });
    }

    /// What to put in place of the loop whose `end` is at `end`, `None` if it does not qualify.
    fn unrolled(&self, bytes: &[u8], base: usize, end: usize) -> Result<Option<Vec<u8>>, RewriteError> {
        // The loop's own `end` was counted.
        let Some(copies) = copies(self.weight.saturating_sub(1)).filter(|_| self.repeats) else {
            return Ok(None);
        };
        let block_type = slice(bytes, self.start.saturating_add(1)..self.body, base)?;
        let mut out = vec![opcode::BLOCK];
        out.extend_from_slice(block_type);
        out.push(opcode::LOOP);
        out.extend_from_slice(block_type);

        let mut copy = vec![opcode::BLOCK, opcode::EMPTY];
        self.write_copy(bytes, base, end, 2, &mut copy)?;
        copy.extend_from_slice(&[opcode::BR, 2, opcode::END]);
        for _ in 1..copies {
            out.extend_from_slice(&copy);
        }
        self.write_copy(bytes, base, end, 1, &mut out)?;
        out.extend_from_slice(&[opcode::END, opcode::END]);
        Ok(Some(out))
    }

    /// Writes the body for a place that has `frames` more around it than the loop had.
    fn write_copy(
        &self,
        bytes: &[u8],
        base: usize,
        end: usize,
        frames: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), RewriteError> {
        let mut copied = self.body;
        for branch in &self.branches {
            out.extend_from_slice(slice(bytes, copied..branch.bytes.start, base)?);
            copied = branch.bytes.end;
            out.push(branch.opcode);
            if branch.opcode == opcode::BR_TABLE {
                write_len(out, branch.labels.len().saturating_sub(1), base)?;
            }
            for &label in &branch.labels {
                // Up to `nesting` it is a frame of the body, or the loop, which became the copy's block.
                let outside = label > branch.nesting;
                write_u32(out, if outside { label.saturating_add(frames) } else { label });
            }
        }
        out.extend_from_slice(slice(bytes, copied..end, base)?);
        Ok(())
    }
}

/// How many bodies a loop gets whose body has this weight.
fn copies(weight: usize) -> Option<usize> {
    if weight <= TINY_WEIGHT {
        Some(COPIES_OF_TINY)
    } else if weight <= MAX_WEIGHT {
        Some(COPIES_OF_SMALL)
    } else {
        None
    }
}

/// Is this the first byte of operators that neither open or close a frame nor name a label?
///
/// The others are the branches, the exception blocks, stack switching and, for `br_on_cast`, the GC proposal.
fn is_plain(opcode: u8) -> bool {
    match opcode {
        // unreachable, nop; throw, throw_ref; return and the calls
        0x00 | 0x01 | 0x08 | 0x0a | 0x0f..=0x15 => true,
        opcode::ELSE => true,
        // drop, select; variables and tables; memory, constants, numbers
        0x1a..=0x1c | 0x20..=0x26 | 0x28..=0xc4 => true,
        // references without br_on_null and br_on_non_null
        0xd0..=0xd4 => true,
        // bulk memory and saturating conversions, vectors, atomics
        0xfc..=0xfe => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "unroll_tests.rs"]
mod tests;
