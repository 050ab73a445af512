//! Puts tiny functions where they are called, which saves the epoch check at their entry.
//!
//! Only functions that show nothing of themselves: no loop, no call, and no operator that can trap, so that every
//! backtrace stays as it was. The callee's parameters and locals become locals of the caller, one set for each callee, since
//! no call of a leaf can be inside another call of it:
//!
//! ```text
//! call $leaf   becomes   (local.set p1) (local.set p0) (local.set l0 (const 0)) ... (block (result T) body')
//! ```
//!
//! The block is left out where no branch goes to it; `return` becomes a branch to it. The function itself stays where it is:
//! it may be exported, or called through a table.

use std::collections::BTreeMap;

use wasmparser::{
    CompositeInnerType, FuncType, FunctionBody, FunctionSectionReader, ImportSectionReader, Operator,
    TypeRef, TypeSectionReader, ValType,
};

use super::{FLAT_GROWTH_BYTES, RewriteError, opcode, opcode_at, slice, write_u32};

/// Operators of the largest function that is inlined; its final `end` counts.
const MAX_LEAF_OPERATORS: usize = 40;
/// Locals that inlining may add to one function.
const MAX_ADDED_LOCALS: usize = 256;
/// Functions with more locals than this are left alone: engines allow 50,000.
const MAX_CALLER_LOCALS: u32 = 40_000;

/// The types of a module's functions.
#[derive(Default)]
pub(super) struct Signatures {
    /// By type index; `None` for what is no function.
    types: Vec<Option<FuncType>>,
    imported: u32,
    /// Type indices of the functions the module defines.
    defined: Vec<u32>,
}

impl Signatures {
    pub(super) fn read_types(&mut self, types: TypeSectionReader<'_>) -> Result<(), RewriteError> {
        for group in types {
            for ty in group?.into_types() {
                self.types.push(match ty.composite_type.inner {
                    CompositeInnerType::Func(function) => Some(function),
                    _ => None,
                });
            }
        }
        Ok(())
    }

    pub(super) fn read_imports(&mut self, imports: ImportSectionReader<'_>) -> Result<(), RewriteError> {
        for import in imports.into_imports() {
            if matches!(import?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                self.imported = self.imported.saturating_add(1);
            }
        }
        Ok(())
    }

    pub(super) fn read_functions(
        &mut self,
        functions: FunctionSectionReader<'_>,
    ) -> Result<(), RewriteError> {
        for ty in functions {
            self.defined.push(ty?);
        }
        Ok(())
    }

    /// Of the `index`th function that the module defines.
    fn of(&self, index: usize) -> Option<&FuncType> {
        self.types.get(*self.defined.get(index)? as usize)?.as_ref()
    }
}

/// The functions that can be inlined, by function index.
pub(super) struct Leaves<'a>(BTreeMap<u32, Leaf<'a>>);

/// A function that can be inlined.
struct Leaf<'a> {
    /// Types of its parameters, then of its locals, as bytes of the binary format.
    locals: Vec<u8>,
    parameters: usize,
    /// What to write instead of it.
    pieces: Vec<Piece<'a>>,
    /// The type of the block around it, if some branch goes there.
    block_type: Option<u8>,
}

/// A part of a leaf's body.
enum Piece<'a> {
    /// To be copied.
    Bytes(&'a [u8]),
    /// An operator on a local.
    Local { opcode: u8, index: u32 },
    /// A `return` inside this many frames.
    Return { nesting: u32 },
}

impl<'a> Leaves<'a> {
    /// Looks through all functions.
    pub(super) fn find(signatures: &Signatures, bodies: &[FunctionBody<'a>]) -> Result<Self, RewriteError> {
        let mut leaves = BTreeMap::new();
        for (index, body) in bodies.iter().enumerate() {
            let Some(number) = u32::try_from(index).ok().and_then(|i| i.checked_add(signatures.imported))
            else {
                break;
            };
            if let Some(ty) = signatures.of(index)
                && let Some(leaf) = Leaf::read(ty, body)?
            {
                leaves.insert(number, leaf);
            }
        }
        Ok(Self(leaves))
    }
}

impl<'a> Leaf<'a> {
    /// `None` if the function does not qualify.
    fn read(ty: &FuncType, body: &FunctionBody<'a>) -> Result<Option<Self>, RewriteError> {
        let (bytes, base) = (body.as_bytes(), body.range().start);
        // No operator of a leaf takes more bytes than a constant of 16 with its opcode.
        if bytes.len() > MAX_LEAF_OPERATORS * 18 {
            return Ok(None);
        }
        let result = match ty.results() {
            [] => opcode::EMPTY,
            [result] => match number_type(*result) {
                Some(byte) => byte,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let Some(locals) = leaf_locals(ty, body)? else { return Ok(None) };
        let mut leaf = Leaf { locals, parameters: ty.params().len(), pieces: Vec::new(), block_type: None };
        let mut reader = body.get_operators_reader()?;
        let mut nesting = 0_u32;
        let mut copied = reader.original_position().saturating_sub(base);
        for _ in 0..MAX_LEAF_OPERATORS {
            if reader.eof() {
                return Ok(None);
            }
            let start = reader.original_position().saturating_sub(base);
            let operator = reader.read()?;
            let end = reader.original_position().saturating_sub(base);
            let code = opcode_at(bytes, start);
            let piece = match operator {
                Operator::LocalGet { local_index: index }
                | Operator::LocalSet { local_index: index }
                | Operator::LocalTee { local_index: index } => {
                    if index as usize >= leaf.locals.len() {
                        return Ok(None);
                    }
                    Some(Piece::Local { opcode: code, index })
                }
                Operator::Return => {
                    leaf.block_type = Some(result);
                    Some(Piece::Return { nesting })
                }
                Operator::End if nesting == 0 => {
                    leaf.pieces.push(Piece::Bytes(slice(bytes, copied..start, base)?));
                    return Ok(reader.eof().then_some(leaf));
                }
                Operator::End => {
                    nesting -= 1;
                    None
                }
                Operator::Block { .. } | Operator::If { .. } => {
                    nesting = nesting.saturating_add(1);
                    None
                }
                Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                    if relative_depth == nesting {
                        leaf.block_type = Some(result);
                    }
                    None
                }
                _ if never_traps(code) => None,
                _ => return Ok(None),
            };
            if let Some(piece) = piece {
                leaf.pieces.push(Piece::Bytes(slice(bytes, copied..start, base)?));
                leaf.pieces.push(piece);
                copied = end;
            }
        }
        Ok(None)
    }

    /// Writes what does the same as a call, with the leaf's locals at `first`.
    fn write(&self, first: u32, out: &mut Vec<u8>) {
        let local = |index: usize| first.saturating_add(u32::try_from(index).unwrap_or(u32::MAX));
        for index in (0..self.parameters).rev() {
            out.push(opcode::LOCAL_SET);
            write_u32(out, local(index));
        }
        for (index, ty) in self.locals.iter().enumerate().skip(self.parameters) {
            out.extend_from_slice(zero(*ty));
            out.push(opcode::LOCAL_SET);
            write_u32(out, local(index));
        }
        if let Some(block_type) = self.block_type {
            out.extend_from_slice(&[opcode::BLOCK, block_type]);
        }
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => out.extend_from_slice(bytes),
                Piece::Local { opcode, index } => {
                    out.push(*opcode);
                    write_u32(out, first.saturating_add(*index));
                }
                Piece::Return { nesting } => {
                    out.push(opcode::BR);
                    write_u32(out, *nesting);
                }
            }
        }
        if self.block_type.is_some() {
            out.push(opcode::END);
        }
    }
}

/// Types of parameters and locals, `None` if some is a reference or they are too many.
fn leaf_locals(ty: &FuncType, body: &FunctionBody<'_>) -> Result<Option<Vec<u8>>, RewriteError> {
    let mut locals = Vec::new();
    for parameter in ty.params() {
        let Some(byte) = number_type(*parameter) else { return Ok(None) };
        locals.push(byte);
    }
    for group in body.get_locals_reader()? {
        let (count, ty) = group?;
        let Some(byte) = number_type(ty) else { return Ok(None) };
        if count as usize > MAX_LEAF_OPERATORS {
            return Ok(None);
        }
        locals.extend(std::iter::repeat_n(byte, count as usize));
    }
    Ok((locals.len() <= MAX_LEAF_OPERATORS).then_some(locals))
}

/// The new body of the `index`th function and how many calls were replaced, `None` if none was.
pub(super) fn inline_calls(
    signatures: &Signatures,
    leaves: &Leaves<'_>,
    index: usize,
    body: &FunctionBody<'_>,
) -> Result<Option<(Vec<u8>, usize)>, RewriteError> {
    let (bytes, base) = (body.as_bytes(), body.range().start);
    if leaves.0.is_empty() || !bytes.contains(&opcode::CALL) {
        return Ok(None);
    }
    let Some(mut locals) = CallerLocals::of(signatures, index, body)? else { return Ok(None) };
    let mut budget = bytes.len() + FLAT_GROWTH_BYTES;
    let mut reader = body.get_operators_reader()?;
    let mut copied = reader.original_position().saturating_sub(base);
    let mut operators = Vec::new();
    let mut calls = 0;
    let mut inlined = Vec::new();
    while !reader.eof() {
        let start = reader.original_position().saturating_sub(base);
        let Operator::Call { function_index } = reader.read()? else { continue };
        let Some(leaf) = leaves.0.get(&function_index) else { continue };
        let Some(first) = locals.place(function_index, leaf) else { continue };
        inlined.clear();
        leaf.write(first, &mut inlined);
        if inlined.len() > budget {
            continue;
        }
        budget -= inlined.len();
        operators.extend_from_slice(slice(bytes, copied..start, base)?);
        operators.extend_from_slice(&inlined);
        copied = reader.original_position().saturating_sub(base);
        calls += 1;
    }
    if calls == 0 {
        return Ok(None);
    }
    operators.extend_from_slice(slice(bytes, copied..bytes.len(), base)?);
    let mut out = locals.declarations(bytes, base)?;
    out.extend_from_slice(&operators);
    Ok(Some((out, calls)))
}

/// The locals of a function that leaves are put into.
struct CallerLocals {
    /// Groups declared so far and where their declarations are in the body.
    groups: u32,
    declared: std::ops::Range<usize>,
    /// Parameters and locals it had.
    before: u32,
    /// Types of the locals that are added.
    added: Vec<u8>,
    /// Where the locals of each leaf are.
    places: BTreeMap<u32, u32>,
}

impl CallerLocals {
    /// `None` if the function can't take more.
    fn of(
        signatures: &Signatures,
        index: usize,
        body: &FunctionBody<'_>,
    ) -> Result<Option<Self>, RewriteError> {
        let base = body.range().start;
        let Some(ty) = signatures.of(index) else { return Ok(None) };
        let mut reader = body.get_locals_reader()?;
        let groups = reader.get_count();
        let start = reader.original_position().saturating_sub(base);
        let mut before = u32::try_from(ty.params().len()).unwrap_or(u32::MAX);
        for _ in 0..groups {
            before = before.saturating_add(reader.read()?.0);
        }
        let declared = start..reader.original_position().saturating_sub(base);
        let fits = before <= MAX_CALLER_LOCALS;
        Ok(fits.then(|| Self { groups, declared, before, added: Vec::new(), places: BTreeMap::new() }))
    }

    /// The first of the locals for this leaf, `None` if there is no room.
    fn place(&mut self, number: u32, leaf: &Leaf<'_>) -> Option<u32> {
        if let Some(first) = self.places.get(&number) {
            return Some(*first);
        }
        if self.added.len() + leaf.locals.len() > MAX_ADDED_LOCALS {
            return None;
        }
        let first = self.before.checked_add(u32::try_from(self.added.len()).ok()?)?;
        self.added.extend_from_slice(&leaf.locals);
        self.places.insert(number, first);
        Some(first)
    }

    /// The declarations of all locals, the old ones first.
    fn declarations(&self, bytes: &[u8], base: usize) -> Result<Vec<u8>, RewriteError> {
        let mut out = Vec::new();
        let added = u32::try_from(self.added.len()).unwrap_or(u32::MAX);
        write_u32(&mut out, self.groups.saturating_add(added));
        out.extend_from_slice(slice(bytes, self.declared.clone(), base)?);
        for ty in &self.added {
            out.extend_from_slice(&[1, *ty]);
        }
        Ok(out)
    }
}

/// The byte of a number or vector type in the binary format (core specification, section 5.3.1); `None` for references.
fn number_type(ty: ValType) -> Option<u8> {
    match ty {
        ValType::I32 => Some(0x7f),
        ValType::I64 => Some(0x7e),
        ValType::F32 => Some(0x7d),
        ValType::F64 => Some(0x7c),
        ValType::V128 => Some(0x7b),
        ValType::Ref(_) => None,
    }
}

/// The operator that pushes the zero of a type that [`number_type`] returned.
fn zero(ty: u8) -> &'static [u8] {
    match ty {
        0x7f => &[0x41, 0],
        0x7e => &[0x42, 0],
        0x7d => &[0x43, 0, 0, 0, 0],
        0x7c => &[0x44, 0, 0, 0, 0, 0, 0, 0, 0],
        _ => &[0xfd, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

/// Is this the opcode of operators that can't trap, call, loop, or read another function's mind? What needs an operand
/// looked at is not among them.
fn never_traps(opcode: u8) -> bool {
    match opcode {
        // nop; else; drop, select, select with types; global.get, global.set
        0x01 | opcode::ELSE | 0x1a..=0x1c | 0x23 | 0x24 => true,
        // i32.div_s to i32.rem_u, the same for i64, the truncations that trap
        0x6d..=0x70 | 0x7f..=0x82 | 0xa8..=0xab | 0xae..=0xb1 => false,
        // constants, comparisons, arithmetic, conversions, sign extension
        0x41..=0xc4 => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "inline_tests.rs"]
mod tests;
